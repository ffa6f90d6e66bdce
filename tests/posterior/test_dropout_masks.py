"""What MC dropout's posterior can do, and that it says why it cannot do the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from varlora.posterior import DropoutMasks, NotAWeightSampleError, PosteriorMeta
from varlora.posterior.draws import weight_draws
from varlora.posterior.folder import load_posterior, save_posterior


def masks(rate: float = 0.1) -> DropoutMasks:
    return DropoutMasks(mean={"w": torch.tensor([3.0, -0.5])}, rate=rate, meta=PosteriorMeta(method="mc_dropout"))


@pytest.mark.parametrize(
    ("use", "instead"),
    [
        (lambda q: q.sample(torch.Generator()), r"varlora.predict\(model, q, ...\).*q.point"),
        (lambda q: list(weight_draws(q, 3)), r"varlora.predict"),
        (lambda q: q.scaled(2.0, q.meta), "Train with another lora_dropout"),
        (lambda q: q.variance, "Prune by magnitude"),
    ],
    ids=["sample", "weight_draws", "scaled", "variance"],
)
def test_what_needs_a_distribution_over_weights_is_refused(use: Callable[[Any], Any], instead: str) -> None:
    with pytest.raises(NotAWeightSampleError, match=f"mask differs from example to example.*{instead}"):
        use(masks())


def test_the_weights_can_be_pruned() -> None:
    q = masks().zeroed({"w": torch.tensor([False, True])}, PosteriorMeta(method="pruned"))
    assert (q.point["w"].tolist(), q.rate, q.meta.method) == ([3.0, 0.0], 0.1, "pruned")


def test_weights_and_rate_survive_their_files(tmp_path: Path) -> None:
    q = masks(rate=0.3)
    loaded = load_posterior(save_posterior(q, tmp_path / "q"))
    assert isinstance(loaded, DropoutMasks)
    assert (loaded.rate, loaded.meta) == (0.3, q.meta)
    assert torch.equal(loaded.point["w"], q.point["w"])


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_at_which_nothing_or_everything_is_dropped_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        masks(rate)


@pytest.mark.parametrize("tensors", [{}, {"rate": torch.zeros(2)}, {"rate": torch.tensor(0.1), "w": torch.zeros(1)}])
def test_other_tensors_are_refused(tensors: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="keeps one number, 'rate'"):
        DropoutMasks.from_tensors(masks().mean, tensors, PosteriorMeta())
