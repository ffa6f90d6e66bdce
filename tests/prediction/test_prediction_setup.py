"""What was tuned is what predictions use, all of it, and can be left aside."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from varlora import apply_tuning, isotropic_prior, merge, predict, predict_linearised, prune, remove_tuning, temper
from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    Mixture,
    PointMass,
    Posterior,
    PosteriorMeta,
    PredictionConfig,
)
from varlora.prediction.completions import predict_completions
from varlora.prediction.prediction_setup import apply_config, choose_config, choose_default_config, explain_point
from varlora.readout.readout import ClassHead

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


def tuned(**changes: Any) -> PredictionConfig:
    return PredictionConfig(**{"samples": 6, "logit_temperature": 1.0, **changes})


def gaussian(**meta: Any) -> DiagonalGaussian:
    return DiagonalGaussian(
        mean={"layer.weight": torch.tensor([[1.0], [0.1]])},
        precision={"layer.weight": torch.tensor([[4.0], [1.0]])},
        meta=PosteriorMeta(**meta),
    )


def test_everything_that_was_tuned_is_used() -> None:
    chosen = tuned(temperature=0.25, logit_temperature=2.0, prune=0.5)
    q = gaussian(tuned=chosen, logit_temperatures={"mean": 3.0}, history=({"op": "tune"},))
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
        predict(
            Classifier(), prune(gaussian(logit_temperatures={"mean": 3.0}), 0.5), [BATCH], 0, readout=HEAD
        ).log_probs,
    )


def test_nothing_is_applied_twice() -> None:
    q = gaussian(tuned=tuned(temperature=4.0, logit_temperature=2.0))
    once = apply_tuning(q)
    assert apply_tuning(once) is once
    assert torch.equal(
        predict(Classifier(), once, [BATCH], 6, readout=HEAD).log_probs,
        predict(Classifier(), q, [BATCH], readout=HEAD).log_probs,
    )


def test_without_tuning_it_is_as_trained() -> None:
    q = gaussian(tuned=tuned(temperature=4.0), history=({"op": "prune"}, {"op": "tune"}))
    left = remove_tuning(q)
    assert left.meta == PosteriorMeta(history=({"op": "prune"},))
    assert torch.equal(
        predict(Classifier(), left, [BATCH], 10, readout=HEAD).log_probs,
        predict(Classifier(), gaussian(), [BATCH], 10, readout=HEAD).log_probs,
    )
    assert choose_config(left).samples == 10
    assert apply_config(left, choose_config(left)) is left


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
        (PointMass(mean=gaussian().mean), 0, ""),
        (Mixture(components=(gaussian(), gaussian())), 10, ""),
    ],
)
def test_by_default_it_draws_only_where_draws_were_shown_to_help(
    q: Posterior, draws: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_default_config(q).draws(10) == draws
    assert why in explain_point(q)
    assert bool(why) == bool(explain_point(q))
    assert caplog.text.count("predicting with the point") == bool(why)
    assert choose_default_config(q, 3).samples == (None if isinstance(q, PointMass) else 3)
    assert choose_config(q).samples == (None if isinstance(q, PointMass) else draws or 10)  # what judges them draws


def test_a_prediction_and_completions_go_by_it() -> None:
    for helps, draws in ((True, 10), (False, 1)):
        found = predict(Classifier(), judged(helps), [BATCH], readout=HEAD)
        assert (found.num_draws, found.mode) == (draws, "samples" if helps else "mean")
        assert predict_completions(Classifier(), judged(helps), [TEXT])[0].shape == (1, draws)


def test_a_tuned_mean_has_no_draws() -> None:
    q = gaussian(tuned=tuned(temperature=0.0, samples=None, mode="mean", logit_temperature=2.0))
    found = predict(Classifier(), q, [BATCH], readout=HEAD)
    expected = predict(Classifier(), gaussian(), [BATCH], 0, readout=HEAD, logit_temperature=2.0)
    assert torch.equal(found.log_probs, expected.log_probs)
    assert found.mode == "mean"
    assert isinstance(apply_tuning(q), PointMass)
    for draws in (lambda: predict(Classifier(), q, [BATCH], 4, readout=HEAD), lambda: choose_config(q, 1)):
        with pytest.raises(ValueError, match=r"chose this posterior's mean .*remove_tuning"):
            draws()
    with pytest.raises(ValueError, match=r"chose this posterior's mean .*remove_tuning"):
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
        return apply_tuning(dataclasses.replace(q, meta=meta))  # type: ignore[type-var]

    same = with_tuned()
    assert type(same) is type(q)
    assert same.meta.logit_temperature_of("samples") == 2.0
    assert isinstance(with_tuned(temperature=0.0, samples=None, mode="mean"), PointMass)


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
    apply_tuning(q)
    assert not caplog.text  # what applies it takes nothing away
