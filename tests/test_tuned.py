"""What was tuned is what predictions use, all of it, and can be left aside."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from varlora import as_tuned, isotropic_prior, merge, predict, predict_linearised, prune, temper, without_tuning
from varlora.completions import predict_completions
from varlora.posterior import DiagonalGaussian, DropoutMasks, Mixture, PointMass, Posterior, PosteriorMeta
from varlora.readout import ClassHead
from varlora.tuned import by_default, settled, why_the_point

HEAD = ClassHead(classes=("a", "b"))


class Classifier(nn.Module):
    """Two logits, linear in one number; or, for completions, logits of two tokens at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        if input_ids.is_floating_point():
            return SimpleNamespace(logits=self.layer(input_ids))
        return SimpleNamespace(logits=self.layer(input_ids.float()[..., None]))


BATCH = {"input_ids": torch.tensor([[1.0], [2.0], [-1.0]]), "labels": torch.tensor([0, 1, 0])}
TEXT = {
    "input_ids": torch.tensor([[1, 0, 1]]),
    "attention_mask": torch.ones(1, 3, dtype=torch.int64),
    "labels": torch.tensor([[-100, 0, 1]]),
}


def tuned(**changes: Any) -> dict[str, Any]:
    return {"temperature": 1.0, "samples": 6, "mode": "samples", "logit_temperature": 1.0, **changes}


def gaussian(**meta: Any) -> DiagonalGaussian:
    return DiagonalGaussian(
        mean={"layer.weight": torch.tensor([[1.0], [0.1]])},
        precision={"layer.weight": torch.tensor([[4.0], [1.0]])},
        meta=PosteriorMeta(**meta),
    )


def test_everything_that_was_tuned_is_used() -> None:
    chosen = tuned(temperature=0.25, logit_temperature=2.0, pruned={"fraction": 0.5, "by": "snr"})
    q = gaussian(tuned=chosen, logit_temperature=3.0, history=({"op": "tune"},))
    by_hand = temper(prune(gaussian(), 0.5), 0.25)

    found = predict(Classifier(), q, [BATCH], readout=HEAD, seed=5)

    expected = predict(Classifier(), by_hand, [BATCH], 6, readout=HEAD, seed=5, logit_temperature=2.0)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert (found.num_draws, found.mode, found.logit_temperature) == (6, "samples", 2.0)
    other = predict(Classifier(), q, [BATCH], 2, readout=HEAD, seed=5, logit_temperature=1.0)
    assert torch.equal(
        other.log_probs,
        predict(Classifier(), by_hand, [BATCH], 2, readout=HEAD, seed=5, logit_temperature=1.0).log_probs,
    )
    at_mean = predict(Classifier(), q, [BATCH], 0, readout=HEAD)
    assert at_mean.logit_temperature == 3.0  # that of the mean is training's
    assert torch.equal(
        at_mean.log_probs,
        predict(Classifier(), prune(gaussian(logit_temperature=3.0), 0.5), [BATCH], 0, readout=HEAD).log_probs,
    )


def test_nothing_is_applied_twice() -> None:
    q = gaussian(tuned=tuned(temperature=4.0, logit_temperature=2.0))
    once = as_tuned(q)
    assert as_tuned(once) is once
    assert torch.equal(
        predict(Classifier(), once, [BATCH], 6, readout=HEAD).log_probs,
        predict(Classifier(), q, [BATCH], readout=HEAD).log_probs,
    )


def test_without_tuning_is_as_trained() -> None:
    q = gaussian(tuned=tuned(temperature=4.0), history=({"op": "prune"}, {"op": "tune"}))
    left = without_tuning(q)
    assert left.meta == PosteriorMeta(history=({"op": "prune"},))
    assert torch.equal(
        predict(Classifier(), left, [BATCH], 10, readout=HEAD).log_probs,
        predict(Classifier(), gaussian(), [BATCH], 10, readout=HEAD).log_probs,
    )
    assert settled(left, None) == (left, 10)


def judged(helps: bool, **meta: Any) -> DiagonalGaussian:
    return gaussian(
        diagnostics={"sampling": {"helps": helps, "why": "" if helps else "sampling gives no gain"}}, **meta
    )


@pytest.mark.parametrize(
    ("q", "draws", "why"),
    [
        (judged(True), 10, ""),
        (judged(False), 0, "sampling gives no gain"),
        (gaussian(), 0, "no labelled validation rows have said"),
        (temper(judged(True), 2.0), 0, "not measured since the posterior was changed (temper)"),
        (DropoutMasks(mean=gaussian().mean, rate=0.5), 0, "no labelled validation rows have said"),
        (gaussian(diagnostics={"sampling": "junk"}), 0, "no labelled validation rows have said"),
        (judged(False, tuned=tuned()), 6, ""),
        (PointMass(mean=gaussian().mean), 10, ""),
        (Mixture(components=(gaussian(), gaussian())), 10, ""),
    ],
)
def test_by_default_it_draws_only_where_draws_were_shown_to_help(
    q: Posterior, draws: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert by_default(q, None)[1] == draws
    assert why in why_the_point(q)
    assert bool(why) == bool(why_the_point(q))
    assert caplog.text.count("predicting with the point") == bool(why)
    assert by_default(q, 3)[1] == 3
    assert settled(q, None)[1] == (draws or 10)  # what judges them draws


def test_a_prediction_and_completions_go_by_it() -> None:
    for helps, draws in ((True, 10), (False, 1)):
        found = predict(Classifier(), judged(helps), [BATCH], readout=HEAD)
        assert (found.num_draws, found.mode) == (draws, "samples" if helps else "mean")
        assert predict_completions(Classifier(), judged(helps), [TEXT])[0].shape == (1, draws)


def test_a_tuned_mean_has_no_draws() -> None:
    q = gaussian(tuned=tuned(temperature=0.0, samples=0, mode="mean", logit_temperature=2.0))
    found = predict(Classifier(), q, [BATCH], readout=HEAD)
    expected = predict(Classifier(), gaussian(), [BATCH], 0, readout=HEAD, logit_temperature=2.0)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert found.mode == "mean"
    assert isinstance(as_tuned(q), PointMass)
    for draws in (lambda: predict(Classifier(), q, [BATCH], 4, readout=HEAD), lambda: settled(q, 1)):
        with pytest.raises(ValueError, match=r"chose this posterior's mean .*without_tuning"):
            draws()
    with pytest.raises(ValueError, match=r"chose this posterior's mean .*without_tuning"):
        predict_linearised(Classifier(), q, [BATCH], readout=HEAD)


def test_the_linearised_prediction() -> None:
    q = gaussian(tuned=tuned(temperature=0.25, mode="linearised", logit_temperature=2.0), linearised=True)
    found = predict_linearised(Classifier(), q, [BATCH], readout=HEAD)
    expected = predict_linearised(Classifier(), temper(gaussian(), 0.25), [BATCH], readout=HEAD, logit_temperature=2.0)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert predict(Classifier(), q, [BATCH], readout=HEAD).logit_temperature == 1.0  # T is of the linearised mode


def test_completions() -> None:
    q = gaussian(tuned=tuned(temperature=0.25))
    found, _ = predict_completions(Classifier(), q, [TEXT])
    expected, _ = predict_completions(Classifier(), temper(gaussian(), 0.25), [TEXT], 6)
    assert found.shape == (1, 6)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "q",
    [
        DropoutMasks(mean={"w": torch.ones(2)}, rate=0.1),
        Mixture(components=[PointMass(mean={"w": torch.ones(2)})] * 2),
    ],
)
def test_kinds_without_a_variance(q: Posterior) -> None:
    def with_tuned(**changes: Any) -> Posterior:
        meta = PosteriorMeta(tuned=tuned(logit_temperature=2.0, **changes))
        return as_tuned(dataclasses.replace(q, meta=meta))  # type: ignore[type-var]

    same = with_tuned()
    assert type(same) is type(q)
    assert same.meta.logit_temperature_of("samples") == 2.0
    assert isinstance(with_tuned(temperature=0.0, samples=0, mode="mean"), PointMass)


def test_what_is_made_of_a_tuned_posterior_is_not_tuned(caplog: pytest.LogCaptureFixture) -> None:
    q = gaussian(tuned=tuned(temperature=4.0), history=({"op": "tune"},))
    for name, operation in (("prune", lambda: prune(q, 0.5)), ("temper", lambda: temper(q, 2.0))):
        assert operation().meta.tuned is None
        assert f"chosen before {name}" in caplog.text
        caplog.clear()
    assert torch.equal(temper(q, 2.0).variance["layer.weight"], temper(gaussian(), 2.0).variance["layer.weight"])
    merged = merge([q, gaussian()], prior=isotropic_prior(q, 1e-3))
    assert merged.meta.tuned is None
    assert "left out of the merged posterior" in caplog.text
    caplog.clear()
    as_tuned(q)
    assert not caplog.text  # what applies it takes nothing away
