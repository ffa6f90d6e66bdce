"""Variants of finished runs: made once, whole, the same again, and what validation rows choose."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compare.plans import drawing, variant_of
from small_runs import config, films, finish_herds, herds, save_model, write_rows
from varlora.compare import variant_files
from varlora.compare import variants as making
from varlora.compare.variant import Variant
from varlora.compare.variant_files import (
    FRACTIONS,
    is_complete,
    load_variant,
    logit_temperature,
    pruned_fraction,
    seconds,
)
from varlora.compare.variants import ensure_variants
from varlora.metrics import (
    WORTHWHILE,
    TemperatureFit,
    fit_temperature,
    mean_log_probs,
    paired_error,
    standard_errors_for,
)
from varlora.metrics.scoring import log_losses
from varlora.posterior.ops import prune, temper
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.predict import predict_split
from varlora.runs.run import run
from varlora.runs.setting import reload_setting
from varlora.runs.space import Grid
from varlora.runs.tune import tune

OUTSIDE = [
    {"id": f"out-{i}", "text": f"a {a} {b}", "label": -1}
    for i, (a, b) in enumerate([("cat", "dog"), ("cow", "hen"), ("hen", "hen")])
]

OTHER = {"positive": "negative", "negative": "positive"}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


@pytest.fixture(scope="session")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One run of each kind that matters here: a Gaussian, a point, an ensemble, and Laplace's."""
    runs = {}
    for method in ("ivon", "adamw", "ensemble", "laplace"):
        folder = tmp_path_factory.mktemp(method)
        options: dict[str, Any] = {"ood_file": write_rows(folder / "ood.jsonl", OUTSIDE)} if method == "ivon" else {}
        options |= {"ess": 100.0} if method == "ivon" else {}  # wide noise: draws differ
        runs[method] = finish_herds(folder, model, method=method, max_steps=12, **options)
    return runs


@pytest.fixture
def ivon(finished: Mapping[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished["ivon"], tmp_path / "run"))


def predicted(folder: Path, q: Any, split: str, samples: int | None = None) -> Prediction:
    found = read_run(folder)
    setting = reload_setting(found)
    prediction = predict_split(setting, q, split, choose_config(q, samples, found.config.samples))
    assert isinstance(prediction, Prediction)
    return prediction


def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(making, "reload_setting", refuse)


def test_the_runs_own_modes_and_their_first_draws_are_read_and_nothing_is_kept(
    ivon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_is_loaded(monkeypatch)
    own = [variant_of(mode="mean"), Variant(), variant_of(samples=4), variant_of(samples=3), variant_of(samples=1)]
    own.append(variant_of(temperature=0, samples=2))
    assert is_complete(ivon, own)
    ensure_variants(ivon, own)
    assert not (ivon / "variants").exists()
    found = read_run(ivon)
    stored = found.prediction("test", "samples")
    for variant, draws in ((own[1], 4), (own[2], 4), (own[3], 3), (own[4], 1)):
        assert torch.equal(load_variant(found, variant, "test").log_probs, stored.log_probs[:, :draws])
    assert torch.equal(load_variant(found, own[5], "test").log_probs, found.prediction("test", "mean").log_probs)


def test_the_first_draws_are_those_of_a_prediction_with_so_many(ivon: Path) -> None:
    # An odd number ends with a draw that has no mirror image, as it does in `predict`.
    found = read_run(ivon)
    for draws in (1, 3):
        first = load_variant(found, variant_of(samples=draws), "test")
        alone = predicted(ivon, found.posterior, "test", samples=draws)
        assert torch.equal(first.log_probs, alone.log_probs)
        assert (first.antithetic, first.seed, first.mode) == (alone.antithetic, alone.seed, alone.mode)


def test_a_variant_is_the_posterior_pruned_then_tempered(ivon: Path) -> None:
    variant = variant_of(temperature=4, samples=6, prune=0.3, prune_by="magnitude", prune_scope="tensor")
    assert not is_complete(ivon, [variant])
    ensure_variants(ivon, [variant])
    assert is_complete(ivon, [variant])
    found = read_run(ivon)
    q = temper(prune(found.posterior, 0.3, by="magnitude", scope="tensor"), 4)
    for split in ("validation", "test", "ood"):
        kept, expected = load_variant(found, variant, split), predicted(ivon, q, split, samples=6)
        assert torch.equal(kept.log_probs, expected.log_probs)
        assert (kept.ids, kept.classes, kept.mode, kept.num_draws) == (expected.ids, expected.classes, "samples", 6)
    assert (seconds(found, variant, "test") or 0) > 0
    assert seconds(found, drawing(variant, 2), "test") is None
    assert seconds(found, Variant(), "test") == found.facts["seconds"]["predict/test/samples"]
    assert seconds(found, variant_of(mode="mean"), "test") == found.facts["seconds"]["predict/test/mean"]
    assert seconds(found, variant_of(samples=2), "test") is None


def test_more_draws_than_the_run_has_begin_with_its_own(ivon: Path) -> None:
    ensure_variants(ivon, [variant_of(samples=7), variant_of(samples=5)])
    found = read_run(ivon)
    many = load_variant(found, variant_of(samples=7), "test")
    assert torch.equal(many.log_probs, predicted(ivon, found.posterior, "test", samples=7).log_probs)
    assert torch.equal(many.log_probs[:, :4], found.prediction("test", "samples").log_probs)
    assert torch.equal(load_variant(found, variant_of(samples=5), "test").log_probs, many.log_probs[:, :5])


def test_at_random_the_runs_seed_decides(ivon: Path) -> None:
    variant = variant_of(mode="mean", prune=0.5, prune_by="random")
    ensure_variants(ivon, [variant])
    found = read_run(ivon)
    q = prune(found.posterior, 0.5, by="random", seed=found.config.seed)
    assert torch.equal(load_variant(found, variant, "test").log_probs, predicted(ivon, q, "test", samples=0).log_probs)


def test_made_again_every_byte_is_the_same(ivon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "FRACTIONS", (0.1, 0.9))
    wanted = [variant_of(temperature=2), variant_of(prune="validation"), variant_of(prune=0.2, prune_by="random")]
    wanted = [drawing(variant, 2) for variant in wanted]
    ensure_variants(ivon, wanted)
    before = {file.relative_to(ivon): file.read_bytes() for file in ivon.rglob("variants/**/*.parquet")}
    assert len(before) >= 6
    shutil.rmtree(ivon / "variants")
    ensure_variants(ivon, wanted)
    assert {file.relative_to(ivon): file.read_bytes() for file in ivon.rglob("variants/**/*.parquet")} == before


def test_what_an_older_varlora_made_is_made_anew(ivon: Path) -> None:
    variant = variant_of(mode="mean", prune=0.5)
    ensure_variants(ivon, [variant])
    (file,) = ivon.glob("variants/*/variant.json")
    now = file.read_text()
    file.write_text(now.replace('"format": 2', '"format": 0'))
    assert file.read_text() != now
    assert not is_complete(ivon, [variant])
    ensure_variants(ivon, [variant])
    assert json.loads(file.read_text())["format"] == 2
    assert is_complete(ivon, [variant])


def test_more_draws_replace_fewer_and_hold_them(ivon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = variant_of(temperature=2, samples=2), variant_of(temperature=2, samples=5)
    ensure_variants(ivon, [few])
    found = read_run(ivon)
    first = load_variant(found, few, "test").log_probs
    with pytest.raises(ValueError, match="fewer draws than"):
        load_variant(found, many, "test")
    assert not is_complete(ivon, [many])
    ensure_variants(ivon, [few, many])
    assert len(list((ivon / "variants").iterdir())) == 1
    assert torch.equal(load_variant(found, few, "test").log_probs, first)
    assert torch.equal(load_variant(found, many, "test").log_probs[:, :2], first)
    nothing_is_loaded(monkeypatch)
    ensure_variants(ivon, [few, many])


def test_the_logit_temperature_is_that_of_the_variants_own_validation_rows(ivon: Path) -> None:
    plain = variant_of(temperature=32)  # enough noise for 48 rows to see that predictions are too unsure
    scaled = variant_of(temperature=32, logit_temperature="validation")
    ensure_variants(ivon, [scaled])
    found = read_run(ivon)
    validation, test = load_variant(found, plain, "validation"), load_variant(found, plain, "test")
    t = fit_temperature(validation.log_probs, validation.labels).value
    assert logit_temperature(found, scaled) == t != 1
    divided = load_variant(found, scaled, "test")
    assert torch.equal(divided.log_probs, (test.log_probs / t).log_softmax(-1))
    assert divided.logit_temperature == t
    assert [path.name for path in (ivon / "variants").glob("*")].count("validation.json") == 1
    assert len([path for path in (ivon / "variants").iterdir() if path.is_dir()]) == 1


def test_it_takes_the_place_of_what_the_run_has(model: str, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "noisy.jsonl",
        [{**row, "label": OTHER[row["label"]]} if i % 5 == 0 else row for i, row in enumerate(herds(48))],
    )
    folder = finish_herds(tmp_path, model, method="adamw", max_steps=25, temperature_scaling=True, validation_file=rows)
    scaled = variant_of(mode="mean", logit_temperature="validation")
    ensure_variants(folder, [scaled])
    found = read_run(folder)
    assert found.posterior.meta.logit_temperature_of("mean") != 1
    own = found.posterior.meta.logit_temperature_of("mean")
    assert logit_temperature(found, scaled) == pytest.approx(own, rel=1e-9)
    assert load_variant(found, scaled, "test").logit_temperature == pytest.approx(own, rel=1e-9)


def test_it_is_drawn_to_1_as_often_whatever_the_run_has(ivon: Path, tmp_path: Path) -> None:
    """Far beyond its prior a T that is fitted over a fitted one would be another."""
    folder = shutil.copytree(ivon, tmp_path / "copy")
    scaled = variant_of(mode="mean", logit_temperature="validation")
    ensure_variants(folder, [scaled])
    kept = read_run(folder).prediction("validation", "mean")
    logits = 3 * torch.randn(kept.log_probs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=logits[:, 0]).mode
    labels[::5] = 1 - labels[::5]
    sure = dataclasses.replace(kept, log_probs=(6 * logits).log_softmax(-1), labels=labels)
    once = fit_temperature(sure.log_probs, labels, warn=False).value
    over = fit_temperature(sure.at_temperature(once).log_probs, labels, warn=False).value
    assert over > 1.2
    for prediction in (sure, sure.at_temperature(once)):
        (folder / "predictions" / "validation.mean.parquet").unlink()
        prediction.save(folder / "predictions" / "validation.mean.parquet")
        assert logit_temperature(read_run(folder), scaled) == pytest.approx(once, rel=1e-9)


def test_the_fraction_is_the_largest_that_is_shown_to_cost_nothing_worth_a_word(ivon: Path) -> None:
    variant = variant_of(samples=2, temperature=0.5, prune="validation", prune_by="magnitude")
    ensure_variants(ivon, [variant])
    found = read_run(ivon)

    def losses(fraction: float) -> Tensor:
        q = temper(prune(found.posterior, fraction, by="magnitude"), 0.5)
        prediction = predicted(ivon, q, "validation", samples=2)
        return log_losses(mean_log_probs(prediction.log_probs), prediction.labels)

    free, reference = 0.0, losses(0.0)
    for fraction in FRACTIONS:
        difference, error = paired_error(losses(fraction), reference)
        if difference + standard_errors_for(len(reference)) * error > WORTHWHILE:
            break
        free = fraction
    assert pruned_fraction(found, variant) == free
    q = temper(prune(found.posterior, free, by="magnitude"), 0.5)
    assert torch.equal(load_variant(found, variant, "test").log_probs, predicted(ivon, q, "test", samples=2).log_probs)


def test_where_nothing_can_be_pruned_the_runs_own_predictions_serve(
    ivon: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "_choose_fraction", lambda *_: (0.0, []))
    variant = variant_of(prune="validation")
    ensure_variants(ivon, [variant])
    found = read_run(ivon)
    assert not list(ivon.rglob("variants/**/*.parquet"))
    assert is_complete(ivon, [variant])
    assert torch.equal(load_variant(found, variant, "test").log_probs, found.prediction("test", "samples").log_probs)
    assert seconds(found, variant, "test") == found.facts["seconds"]["predict/test/samples"]


def test_nothing_is_chosen_on_rows_of_the_test_split(model: str, tmp_path: Path) -> None:
    """Half of the validation rows are test rows with their labels turned round; they must have no say."""
    fresh = herds(40)
    turned = [{**row, "label": OTHER[row["label"]]} for row in herds(40, 40)]
    both = write_rows(tmp_path / "both.jsonl", [*fresh, *turned])
    settings = config(
        tmp_path / "a",
        model,
        method="adamw",
        max_steps=12,
        validation_file=both,
        test_file=write_rows(tmp_path / "test.jsonl", herds(40, 40)),
    )
    run(settings, progress=False)
    variant = variant_of(mode="mean", logit_temperature="validation")
    ensure_variants(settings.output_dir, [variant])
    found = read_run(settings.output_dir)
    validation = found.prediction("validation", "mean")
    clean = fit_temperature(validation.log_probs[:40], validation.labels[:40]).value
    assert logit_temperature(found, variant) == clean != fit_temperature(validation.log_probs, validation.labels).value


def test_a_warning_of_a_temperature_names_the_run_and_the_variant(ivon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []

    def named_fit(*rows: Tensor, of: str) -> TemperatureFit:
        named.append(of)
        return TemperatureFit(value=1.0, likeliest=1.0, rows=len(rows[0]), distance=0.0, needed=1.0)

    monkeypatch.setattr(variant_files, "fit_temperature", named_fit)
    variant = variant_of(mode="mean", logit_temperature="validation")
    ensure_variants(ivon, [variant])
    assert logit_temperature(read_run(ivon), variant) == 1
    assert named == [f"{ivon} predicted with as {{mode: mean}}"]


def test_a_tuned_run_is_varied_as_training_left_it(ivon: Path) -> None:
    variant = variant_of(temperature=2, samples=2)
    ensure_variants(ivon, [variant])
    before = load_variant(read_run(ivon), variant, "test").log_probs
    shutil.rmtree(ivon / "variants")
    tune(
        ivon,
        Grid(
            temperatures=[0.0, 4.0], samples=[], fractions=[0.5], by="magnitude", apply_pruning=True, standard_errors=0
        ),
    )
    assert read_run(ivon).posterior.meta.tuned is not None
    ensure_variants(ivon, [variant])
    assert torch.equal(load_variant(read_run(ivon), variant, "test").log_probs, before)


def test_reading_the_run_does_not_mind_its_variants(ivon: Path) -> None:
    before = read_run(ivon)
    ensure_variants(ivon, [variant_of(temperature=2, samples=2, logit_temperature="validation")])
    after = read_run(ivon)
    assert (after.config, after.metrics, after.facts) == (before.config, before.metrics, before.facts)
    assert all(torch.equal(after.posterior.mean[key], m) for key, m in before.posterior.mean.items())


def test_a_kill_leaves_a_variant_whole_or_not_at_all(ivon: Path) -> None:
    wanted = [variant_of(temperature=2, samples=2), variant_of(temperature=4, samples=2)]
    child = os.fork()
    if child == 0:
        saved = Prediction.save
        count = 0

        def save_and_die(self: Prediction, file: Any) -> Path:
            nonlocal count
            count += 1
            if count == 5:  # in the middle of the second variant
                os.kill(os.getpid(), signal.SIGKILL)
            return saved(self, file)

        Prediction.save = save_and_die  # type: ignore[method-assign]
        ensure_variants(ivon, wanted)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert len(list((ivon / "variants").iterdir())) == 2  # the first, and what the second left half-written
    assert is_complete(ivon, wanted[:1])
    assert not is_complete(ivon, wanted)
    found = read_run(ivon)
    with pytest.raises(ValueError, match=r"not been predicted with as \{mode: samples, temperature: 4.0\} yet"):
        load_variant(found, wanted[1], "test")
    ensure_variants(ivon, wanted)
    assert sorted(path.name for path in (ivon / "variants").iterdir()) == sorted(v.stored_as.key for v in wanted)
    q = temper(found.posterior, 4)
    expected = predicted(ivon, q, "test", samples=2)
    assert torch.equal(load_variant(found, wanted[1], "test").log_probs, expected.log_probs)


def test_an_ensembles_first_members_are_a_smaller_ensemble(finished: Mapping[str, Path]) -> None:
    found = read_run(finished["ensemble"])
    stored = found.prediction("test", "samples")
    assert torch.equal(load_variant(found, variant_of(samples=1), "test").log_probs, stored.log_probs[:, :1])
    with pytest.raises(ValueError, match="its 2 members are all the draws it has"):
        ensure_variants(found.path, [variant_of(samples=3)])
    with pytest.raises(ValueError, match="component 0 of the mixture"):
        ensure_variants(found.path, [variant_of(temperature=2)])


def test_laplaces_own_mode_is_the_linearised_one(finished: Mapping[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished["laplace"], tmp_path / "run"))
    own, tempered = variant_of(mode="linearised"), variant_of(mode="linearised", temperature=0.25)
    ensure_variants(folder, [own, tempered])
    found = read_run(folder)
    assert torch.equal(load_variant(found, own, "test").log_probs, found.prediction("test", "linearised").log_probs)
    expected = predicted(folder, temper(found.posterior, 0.25), "test")
    assert torch.equal(load_variant(found, tempered, "test").log_probs, expected.log_probs)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant(), "method 'adamw' gives a point mass, which has no draws. Use mode: mean"),
        (variant_of(mode="mean", prune=0.1), "a point mass has no variance to prune by snr; use by='magnitude'"),
        (variant_of(mode="mean", prune="validation", prune_by="variance"), "no variance to prune by variance"),
        (variant_of(mode="linearised"), "point_mass"),
    ],
)
def test_what_a_point_has_not_is_refused(finished: Mapping[str, Path], variant: Variant, message: str) -> None:
    folder = finished["adamw"]
    with pytest.raises(ValueError, match="cannot be predicted with as") as caught:
        ensure_variants(folder, [variant])
    assert message in str(caught.value)
    assert not is_complete(folder, [variant])
    with pytest.raises(ValueError, match=r"cannot be predicted with as|has not been predicted with as"):
        load_variant(read_run(folder), variant, "test")


def test_changed_rows_are_refused(ivon: Path, tmp_path: Path) -> None:
    settings = read_run(ivon).config
    rows = [json.loads(line) for line in Path(settings.test_file or "").read_text().splitlines()]
    changed = dataclasses.replace(settings, test_file=write_rows(tmp_path / "changed.jsonl", rows[:-1]))
    with pytest.raises(ValueError, match="the rows of 'test' are no longer those"):
        ensure_variants(ivon, [variant_of(temperature=2, samples=2)], config=changed)
    assert not is_complete(ivon, [variant_of(temperature=2, samples=2)])


def test_too_few_validation_rows_choose_nothing(model: str, tmp_path: Path) -> None:
    same = write_rows(tmp_path / "same.jsonl", films(16))  # as its test rows
    settings = config(tmp_path, model, method="adamw", max_steps=2, validation_file=same)
    run(settings, progress=False)
    with pytest.raises(ValueError, match=r"0 labelled row\(s\) to choose on \(16 others are test rows, too"):
        ensure_variants(settings.output_dir, [variant_of(mode="mean", logit_temperature="validation")])


def test_completions_are_refused(model: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a cat", "completion": " film"}] * 24)
    settings = config(
        tmp_path, model, max_steps=2, train_file=rows, validation_file=rows, test_file=rows, held_out="none"
    )
    run(settings, progress=False)
    own = [variant_of(mode="mean"), Variant(), variant_of(samples=4)]
    ensure_variants(settings.output_dir, own)
    assert is_complete(settings.output_dir, own)
    for variant in (
        variant_of(temperature=2),
        variant_of(samples=2),
        variant_of(mode="mean", logit_temperature="validation"),
    ):
        with pytest.raises(ValueError, match="its rows ask for completions, which have no classes"):
            ensure_variants(settings.output_dir, [variant])
    with pytest.raises(ValueError, match="has completions, which no Prediction holds"):
        load_variant(read_run(settings.output_dir), own[0], "test")


def test_what_is_no_run_has_no_variants(tmp_path: Path) -> None:
    assert not is_complete(tmp_path, [])
    with pytest.raises(ValueError, match="is not a run folder"):
        ensure_variants(tmp_path, [])


def test_an_unknown_split_is_an_error(finished: Mapping[str, Path]) -> None:
    found: RunFolder = read_run(finished["adamw"])
    with pytest.raises(ValueError, match="has no predictions for 'train'; it has validation, test"):
        load_variant(found, variant_of(mode="mean"), "train")
