"""Which variants are a run's own, which are kept as which, and what is refused: made-up run folders, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.plans import drawing, variant_of
from varlora.compare.variant import Variant
from varlora.compare.variant_files import (
    FORMAT,
    draws_of,
    explain_unfit,
    is_own,
    is_stored,
    load_variant,
    pruned_fraction,
    read_usable_rows,
    seconds,
    splits_of,
    stored_as,
    variant_folder,
)
from varlora.posterior import DiagonalGaussian, DropoutMasks, Mixture, PointMass, Posterior, PosteriorMeta
from varlora.prediction.prediction import Prediction
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder

ONES = {"w": torch.ones(4)}
POINT = PointMass(mean=ONES)
GAUSSIAN = DiagonalGaussian(mean=ONES, precision=ONES)
LINEARISED = DiagonalGaussian(mean=ONES, precision=ONES, meta=PosteriorMeta(linearised=True))
ENSEMBLE = Mixture(components=[POINT] * 3)
GAUSSIANS = Mixture(components=[GAUSSIAN] * 3)
DROPOUT = DropoutMasks(mean=ONES, rate=0.1)
ROWS = {"train": 9, "validation": 40, "test": 5, "ood": 2}


def run_of(
    q: Posterior,
    *,
    samples: int = 10,
    rows: Mapping[str, int] = ROWS,
    kind: str = "label",
    path: Path = Path("nowhere"),
) -> RunFolder:
    config = RunConfig(model_name_or_path="m", train_file="t", output_dir="o", samples=samples)
    facts = {"task": {"kind": kind, "rows": rows}, "seconds": {"predict/test/mean": 1.0, "predict/test/samples": 9.0}}
    return RunFolder(path=path, config=config, posterior=q, metrics={}, facts=facts)


def write_facts(run: RunFolder, variant: Variant, **facts: Any) -> Path:
    folder = variant_folder(run, stored_as(run, variant))
    folder.mkdir(parents=True)
    content = {"format": FORMAT, "draws": 10, "pruned": 0.0, "seconds": {"test": 3.0}, **facts}
    (folder / "variant.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def prediction(draws: int) -> Prediction:
    log_probs = torch.randn(5, draws, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(
        -1
    )
    return Prediction(log_probs=log_probs, labels=torch.zeros(5, dtype=torch.int64), mode="samples", antithetic=True)


@pytest.mark.parametrize(
    ("q", "variant", "own"),
    [
        (GAUSSIAN, Variant(), True),
        (GAUSSIAN, variant_of(samples=10), True),
        (GAUSSIAN, variant_of(samples=11), False),
        (GAUSSIAN, variant_of(samples=1), True),
        (GAUSSIAN, variant_of(temperature=0, samples=99), True),
        (GAUSSIAN, variant_of(temperature=2), False),
        (GAUSSIAN, variant_of(prune=0.1), False),
        (GAUSSIAN, variant_of(prune="validation"), False),
        (GAUSSIAN, variant_of(mode="linearised"), False),
        (LINEARISED, variant_of(mode="linearised"), True),
        (ENSEMBLE, Variant(), True),
        (ENSEMBLE, variant_of(samples=2), True),
        (POINT, variant_of(mode="mean", logit_temperature="validation"), True),
        (POINT, variant_of(mode="mean", prune=0.1, prune_by="magnitude"), False),
    ],
)
def test_what_training_has_predicted_already(q: Posterior, variant: Variant, own: bool) -> None:
    assert is_own(run_of(q), variant) == own


def test_a_run_that_predicts_at_its_mean_has_no_draws_of_its_own() -> None:
    run = run_of(GAUSSIAN, samples=0)
    assert "Give the variant's samples" in (explain_unfit(run, Variant()) or "")
    assert explain_unfit(run, variant_of(samples=4)) is None
    assert not is_own(run, variant_of(samples=1))
    assert is_own(run, variant_of(mode="mean"))


@pytest.mark.parametrize(
    ("q", "variant", "why"),
    [
        (GAUSSIAN, variant_of(temperature=2, prune=0.5, prune_by="snr", samples=50), None),
        (GAUSSIAN, variant_of(prune=0.5, prune_by="variance"), "all entries have the same variance"),
        (GAUSSIAN, variant_of(mode="linearised", temperature=0.5), None),
        (POINT, Variant(), "gives a point mass, which has no draws"),
        (POINT, variant_of(mode="mean", prune=0.5, prune_by="random"), None),
        (POINT, variant_of(mode="mean", prune="validation"), "use by='magnitude'"),
        (ENSEMBLE, variant_of(samples=3), None),
        (ENSEMBLE, variant_of(samples=4), "its 3 members are all the draws it has. Give samples up to 3"),
        (ENSEMBLE, variant_of(temperature=2), "component 0 of the mixture"),
        (ENSEMBLE, variant_of(prune=0.5, prune_by="magnitude"), None),
        (GAUSSIANS, variant_of(samples=12), None),  # 10 draws of 3 components are 12
        (GAUSSIANS, variant_of(samples=6), "fewer are no part of more. Give samples: 12"),
        (GAUSSIANS, variant_of(temperature=2), None),
        (DROPOUT, variant_of(samples=3), None),
        (DROPOUT, variant_of(temperature=2), "no covariance to temper"),
        (DROPOUT, variant_of(prune=0.5), "no variance of the weights"),
        (DROPOUT, variant_of(prune=0.5, prune_by="magnitude"), None),
        (ENSEMBLE, variant_of(mode="linearised"), "mixture"),
        (POINT, variant_of(tune=True), None),  # it has a T
        (GAUSSIANS, variant_of(tune=True), None),
        (DROPOUT, variant_of(tune=True), None),
    ],
)
def test_what_a_posterior_lacks(q: Posterior, variant: Variant, why: str | None) -> None:
    found = explain_unfit(run_of(q), variant)
    assert found is None if why is None else why in (found or "")


def test_without_validation_rows_nothing_is_chosen() -> None:
    run = run_of(GAUSSIAN, rows={"train": 9, "test": 5})
    for variant in (variant_of(prune="validation"), variant_of(logit_temperature="validation"), variant_of(tune=True)):
        assert "no validation rows to choose on" in (explain_unfit(run, variant) or "")
    assert explain_unfit(run, variant_of(prune=0.5)) is None


def test_the_runs_own_number_of_draws_has_one_name() -> None:
    run = run_of(GAUSSIAN)
    chosen = variant_of(prune="validation")
    assert stored_as(run, drawing(chosen, 10)) == stored_as(run, chosen)
    assert stored_as(run, drawing(chosen, 9)) != stored_as(run, chosen)
    assert (draws_of(run, chosen), draws_of(run, drawing(chosen, 9))) == (10, 9)
    assert draws_of(run, variant_of(mode="mean")) == 0


def test_the_splits_that_are_predicted() -> None:
    assert splits_of(run_of(GAUSSIAN)) == ["validation", "test", "ood"]


def test_what_is_kept_counts_if_it_has_the_draws(tmp_path: Path) -> None:
    run, variant = run_of(GAUSSIAN, path=tmp_path), variant_of(temperature=2)
    assert not is_stored(run, variant.stored_as, 1)
    folder = write_facts(run, variant)
    assert [is_stored(run, variant.stored_as, draws) for draws in (10, 11)] == [True, False]
    saved = prediction(10)
    saved.save(folder / "test.parquet")
    first = load_variant(run, variant_of(temperature=2, samples=1), "test")
    assert torch.equal(first.log_probs, saved.log_probs[:, :1])
    assert not first.antithetic
    assert load_variant(run, variant_of(temperature=2, samples=4), "test").antithetic
    assert seconds(run, variant, "test") == 3.0
    assert seconds(run, drawing(variant, 4), "test") is None
    assert seconds(run, variant, "ood") is None


def test_a_t_of_the_plans_own_stands_in_the_place_of_the_runs(tmp_path: Path) -> None:
    run, variant = run_of(GAUSSIAN, path=tmp_path), variant_of(samples=4, logit_temperature=3)
    (tmp_path / "predictions").mkdir()
    divided = replace(prediction(10), logit_temperature=2.0)
    divided.save(tmp_path / "predictions" / "test.samples.parquet")
    assert is_own(run, variant)
    assert variant.stored_as == Variant()
    found = load_variant(run, variant, "test")
    assert torch.equal(found.log_probs, (divided.log_probs[:, :4] / 1.5).log_softmax(-1))
    assert (found.logit_temperature, variant.describe()) == (3.0, "{mode: samples, samples: 4, logit_temperature: 3.0}")
    completions = run_of(GAUSSIAN, kind="completion")
    assert explain_unfit(completions, Variant()) is None
    assert "completions, which have no classes" in (
        explain_unfit(completions, replace(Variant(), config=variant.config)) or ""
    )


def test_a_chosen_fraction_is_read_and_nothing_pruned_is_the_runs_own(tmp_path: Path) -> None:
    run = run_of(GAUSSIAN, path=tmp_path)
    chosen, warm = variant_of(prune="validation"), variant_of(prune="validation", temperature=2)
    with pytest.raises(ValueError, match=r"has not been predicted with as \{mode: samples, prune: validation\} yet"):
        pruned_fraction(run, chosen)
    write_facts(run, chosen, pruned=0.0)
    write_facts(run, warm, pruned=0.3)
    assert (pruned_fraction(run, chosen), pruned_fraction(run, warm)) == (0.0, 0.3)
    assert (seconds(run, chosen, "test"), seconds(run, warm, "test")) == (9.0, 3.0)
    (tmp_path / "predictions").mkdir()
    prediction(10).save(tmp_path / "predictions" / "test.samples.parquet")
    assert torch.equal(load_variant(run, chosen, "test").log_probs, prediction(10).log_probs)


def test_without_the_note_of_validation_rows_nothing_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"validation.json is missing: which validation rows may be chosen on"):
        read_usable_rows(tmp_path)
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants" / "validation.json").write_text('{"usable": [0, 2]}', encoding="utf-8")
    assert read_usable_rows(tmp_path).tolist() == [0, 2]


def test_a_variant_in_words() -> None:
    assert Variant().describe() == "{mode: samples}"
    assert variant_of(tune=True).describe() == "{tune: true}"
    assert (
        variant_of(mode="mean", prune=0.1, prune_by="random").describe() == "{mode: mean, prune: 0.1, prune_by: random}"
    )
