"""What a posterior's meta says of predictions: what was tuned, and T by mode; as files have it, too."""

from __future__ import annotations

from typing import Any

import pytest

from varlora.posterior import PosteriorMeta, PredictionConfig

TUNED = PredictionConfig(samples=8, temperature=0.5, logit_temperature=1.5)
FIELDS = TUNED.to_dict()


@pytest.mark.parametrize("tuned", [TUNED, PredictionConfig(temperature=0), PredictionConfig(prune=0.1), None])
def test_a_plain_dict_gives_it_back(tuned: PredictionConfig | None) -> None:
    meta = PosteriorMeta(tuned=tuned, logit_temperatures={"mean": 2.0})
    assert PosteriorMeta.from_dict(meta.to_dict()) == meta


@pytest.mark.parametrize(
    "tuned",
    [
        {},
        [],
        {**FIELDS, "temperature": -1},
        {**FIELDS, "temperature": True},
        {**FIELDS, "temperature": 10**400},
        {**FIELDS, "samples": 2.5},
        {**FIELDS, "samples": -1},
        {**FIELDS, "mode": None},
        {**FIELDS, "mode": ["mean"]},
        {**FIELDS, "logit_temperature": 0},
        {**FIELDS, "draws": 3},
        {**FIELDS, "prune": {"fraction": 0.1}},
        {**FIELDS, "prune_by": "luck"},
        {name: value for name, value in FIELDS.items() if name != "prune"},
    ],
)
def test_what_could_not_be_applied_is_refused(tuned: Any) -> None:
    with pytest.raises(ValueError, match=r"^meta\.tuned: "):
        PosteriorMeta.from_dict({"tuned": tuned})


def test_in_python_it_is_a_config() -> None:
    with pytest.raises(ValueError, match=r"meta\.tuned is .*; it must be a PredictionConfig"):
        PosteriorMeta(tuned=FIELDS)  # type: ignore[arg-type]


def test_temperatures_of_the_logits() -> None:
    meta = PosteriorMeta(logit_temperatures={"mean": 2.0}).with_logit_temperatures({"samples": 1.5})
    assert [meta.logit_temperature_of(mode) for mode in ("mean", "samples", "linearised")] == [2.0, 1.5, 1.5]
    assert PosteriorMeta(logit_temperatures={"mean": 2.0}).logit_temperature_of("linearised") == 2.0
    assert meta.with_logit_temperatures({"linearised": 1.2}).logit_temperature_of("linearised") == 1.2
    assert PosteriorMeta().logit_temperature_of("samples") == 1.0
    with pytest.raises(ValueError, match=r"logit_temperatures\['samples'\] must be positive, not 0"):
        PosteriorMeta(logit_temperatures={"samples": 0})
    with pytest.raises(ValueError, match="logit_temperatures has 'sample'; did you mean 'samples'"):
        PosteriorMeta(logit_temperatures={"sample": 1.0})
