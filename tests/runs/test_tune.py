"""Tuning a finished run: what it writes, what it leaves alone, what it refuses, and that it can be taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from small_runs import films, finish_herds, herds, write_rows
from tiny_runs import save_chat_model
from varlora import remove_tuning, temper
from varlora.io.folders import atomic_folder
from varlora.metrics import cross_fitted, likeliest_temperature
from varlora.metrics.temperature import PRIOR_SD
from varlora.posterior import PredictionConfig
from varlora.posterior.ops import prune
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.folder import RunFolder, read_run, write_derived
from varlora.runs.predict import predict_split
from varlora.runs.setting import reload_setting
from varlora.runs.space import Grid
from varlora.runs.tune import Tuning, reset, tune
from varlora.runs.tuning import losses

DATA = ("config.yaml", "metrics.json", "run.json", "log.jsonl", "adapter_model.safetensors", "posterior.safetensors")


QUICK: dict[str, Any] = {"samples": [2], "temperatures": [0.25], "fractions": []}


@pytest.fixture(scope="module")
def hot_run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with far too much variance: a posterior that was not measured."""
    q = read_run(trained).posterior
    median = torch.cat([v.flatten() for v in q.variance.values()]).median()
    q = temper(q, float(0.3**2 / median))
    made = tmp_path_factory.mktemp("hot") / "hot"
    with atomic_folder(made) as folder:
        write_derived(folder, q, sources=[trained], name="hot")
    return made


@pytest.fixture
def hot(hot_run: Path, tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(hot_run, tmp_path / "hot"))


@pytest.fixture(scope="module")
def tuned_run(hot_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuning]:
    """It tuned quickly, and what came of it."""
    folder = Path(shutil.copytree(hot_run, tmp_path_factory.mktemp("tuned") / "hot"))
    return folder, tune(folder, Grid(**QUICK))


@pytest.fixture
def tuned(tuned_run: tuple[Path, Tuning], tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(tuned_run[0], tmp_path / "tuned"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log_probs(folder: RunFolder, **options: Any) -> Prediction:
    setting = reload_setting(folder)
    q = options.pop("q", folder.posterior)
    config = options.pop("config", None) or choose_config(q, None, folder.config.samples)
    found = predict_split(setting, q, options.pop("split", "validation"), config)
    assert not options
    assert isinstance(found, Prediction)
    return found


def test_a_posterior_that_is_too_wide_is_cooled(hot: Path) -> None:
    before, as_trained = contents(hot), read_run(hot)

    tuning = tune(hot, Grid(samples=[2], fractions=[0.2]))

    assert tuning.tuned is not None
    assert tuning.tuned.temperature < 1
    assert (tuning.rows, tuning.left_out, tuning.split) == (48, 0, "validation")
    assert tuning.choice.nll_after < tuning.choice.nll_before
    again = read_run(hot)
    assert again.posterior.meta.tuned == tuning.tuned
    assert again.posterior.meta.history[-1] == {
        "op": "tune",
        "split": "validation",
        "rows": 48,
        "nll_before": tuning.choice.nll_before,
        "nll_after": tuning.choice.nll_after,
        "standard_error": tuning.choice.standard_error,
    }
    after = contents(hot)
    assert after.keys() - before.keys() == {"tune.json"}
    assert {name for name in before if before[name] != after[name]} == {"posterior.json", "README.md"}
    assert as_trained.posterior.meta == remove_tuning(again.posterior).meta
    card = after["README.md"].decode()
    assert card.startswith(before["README.md"].decode())
    assert tuning.sentence in card
    assert "measured before" in card
    assert tuning.tuned.describe() in tuning.sentence


def test_the_numbers_are_those_of_predictions_made_by_hand(hot: Path) -> None:
    folder = read_run(hot)
    tuning = tune(hot, Grid(samples=[2], temperatures=[0.25], fractions=[0.2]))
    plain = folder.posterior
    draws = {candidate.config.samples for candidate in tuning.choice.candidates if candidate.stage == "draws"}
    assert draws in (set(), {2, 4})
    for candidate in tuning.choice.candidates:
        config = candidate.config
        q = prune(plain, config.prune) if config.prune else plain
        q = temper(q, config.temperature)
        found = log_probs(folder, q=q, config=choose_config(q, config.samples or 0))
        if candidate.fitted and candidate.stage != "pruning":
            assert config.logit_temperature == likeliest_temperature(found.log_probs, found.labels, prior_sd=PRIOR_SD)
            expected = cross_fitted(found.log_probs, found.labels)[0]
        else:
            expected = losses(found.log_probs, found.labels, config.logit_temperature)
        assert candidate.nll == pytest.approx(float(expected.mean()), rel=1e-9), candidate


def test_predictions_are_as_tuned(tuned_run: tuple[Path, Tuning]) -> None:
    folder = read_run(tuned_run[0])
    chosen = folder.posterior.meta.tuned
    assert chosen is not None
    found = log_probs(folder, split="test")
    by_hand = log_probs(
        folder,
        q=temper(remove_tuning(folder.posterior), chosen.temperature),
        split="test",
        config=PredictionConfig(mode=chosen.mode, samples=chosen.samples),
    )
    expected = torch.log_softmax(by_hand.log_probs / chosen.logit_temperature, 2)
    assert torch.allclose(found.log_probs, expected, rtol=0, atol=1e-12)
    assert found.num_draws == (chosen.samples or 1)


def test_what_is_as_good_as_trained_is_kept_and_nothing_is_written(finished: Path) -> None:
    before = contents(finished)

    tuning = tune(finished, Grid(samples=[2], fractions=[], standard_errors=1e6))

    assert tuning.tuned is None
    assert "Kept as trained" in tuning.sentence
    after = contents(finished)
    table = json.loads(after.pop("tune.json"))
    assert after == before
    assert table["tuned"] is None
    assert len(table["candidates"]) == len(tuning.choice.candidates)
    assert sum(row["chosen"] for row in table["candidates"]) == len({row["stage"] for row in table["candidates"]})
    assert table["made_from"].keys() == {"adapter_config.json", "adapter_model.safetensors", "posterior.safetensors"}


def test_reset_gives_every_byte_back(hot_run: Path, tuned_run: tuple[Path, Tuning], tuned: Path) -> None:
    before = contents(hot_run)
    with pytest.raises(ValueError, match=r"is tuned: .* Replace that with --overwrite, or take it back with --reset"):
        tune(tuned, Grid(**QUICK))
    assert tune(tuned, Grid(**QUICK), overwrite=True) == tuned_run[1]
    assert contents(tuned).keys() - before.keys() == {"tune.json"}
    assert [entry["op"] for entry in read_run(tuned).posterior.meta.history] == ["temper", "tune"]

    reset(tuned)

    assert contents(tuned) == before
    with pytest.raises(ValueError, match="is not tuned; there is nothing to take back"):
        reset(tuned)


def test_tuning_again_starts_as_trained_and_may_end_there(
    hot_run: Path, tuned_run: tuple[Path, Tuning], tuned: Path
) -> None:
    kept = tune(tuned, Grid(**QUICK, standard_errors=1e6), overwrite=True)
    assert tuned_run[1].tuned is not None
    assert kept.tuned is None
    assert kept.choice.nll_before == tuned_run[1].choice.nll_before
    after = contents(tuned)
    after.pop("tune.json")
    assert after == contents(hot_run)


def test_a_card_that_the_user_wrote_on_stays(tuned: Path) -> None:
    card = tuned / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nMine.\n", encoding="utf-8")
    tune(tuned, Grid(**QUICK), overwrite=True)
    reset(tuned)
    text = card.read_text(encoding="utf-8")
    assert text.endswith("\nMine.\n")
    assert "varlora tune" not in text
    card.unlink()
    tune(tuned, Grid(**QUICK))
    assert not card.exists()


def test_pruning_on_demand(hot: Path) -> None:
    """Nothing else is there to change, and by the mean alone a twentieth is free."""
    only: dict[str, Any] = {"temperatures": [1.0], "samples": [2], "fractions": [0.05], "by": "magnitude"}
    only |= {"logit_temperature": False, "standard_errors": 0.0}
    tuning = tune(hot, Grid(**only, apply_pruning=True))
    assert tuning.choice.free_fraction == 0.05
    assert tuning.tuned is not None
    assert (tuning.tuned.prune, tuning.tuned.prune_by) == (0.05, "magnitude")
    assert "5 % pruned by magnitude" in tuning.sentence
    assert tune(hot, Grid(**only), overwrite=True).tuned is None
    few = tune(hot, Grid(**(only | {"standard_errors": None}), apply_pruning=True))
    assert (few.choice.free_fraction, few.tuned) == (0.0, None)  # 48 rows cannot show it


def no_model(*_: Any, **__: Any) -> None:
    raise AssertionError("the model is loaded")


# Other kinds of runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["adamw", "ensemble", "mc_dropout", "laplace"])
def test_every_kind_can_be_tuned(method: str, model: str, tmp_path: Path) -> None:
    folder = finish_herds(tmp_path, model, method=method, max_steps=6, samples=3)
    q = read_run(folder).posterior
    tuning = tune(folder, Grid(temperatures=[0, 0.5], samples=[2, 5], fractions=[0.1], standard_errors=0.0))
    candidates = tuning.choice.candidates
    assert len(tuning.notes) >= 1
    taus = {candidate.config.temperature for candidate in candidates}
    assert taus == {"laplace": {0.0, 0.5, 1.0}, "mc_dropout": {0.0, 1.0}}.get(method, {1.0})
    assert tuning.by == ("snr" if method == "laplace" else "magnitude")
    assert any(candidate.stage == "pruning" for candidate in candidates)
    found = read_run(folder).posterior
    assert found.meta.tuned == tuning.tuned
    assert type(found) is type(q)
    if tuning.tuned is not None:
        log_probs(read_run(folder), split="test")
        reset(folder)


def test_a_point_mass_needs_no_model_for_its_logits(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = herds(48)
    for row in rows[::6]:
        row["label"] = "positive"  # wrong, where training was on right ones
    wrong = write_rows(tmp_path / "wrong.jsonl", rows)
    much: dict[str, Any] = {"lora_target_modules": "all-linear", "max_steps": 25}
    folder = finish_herds(tmp_path, model, method="adamw", validation_file=wrong, **much)
    monkeypatch.setattr("varlora.runs.validation.reload_setting", no_model)
    tuning = tune(folder, Grid(fractions=[], standard_errors=1.0))
    assert {candidate.stage for candidate in tuning.choice.candidates} == {"scale"}
    assert [candidate.config.mode for candidate in tuning.choice.candidates] == ["mean", "mean"]
    assert tuning.tuned is not None
    divisor = tuning.tuned.logit_temperature
    assert tuning.tuned == PredictionConfig(mode="mean", logit_temperature=divisor)
    assert divisor is not None
    assert divisor > 1


def test_completions_are_tuned_by_their_likelihood(tmp_path: Path) -> None:
    def talks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], "prompt": row["text"] + " :", "completion": f" {row['label']}"} for row in rows]

    folder = finish_herds(
        tmp_path,
        save_chat_model(tmp_path / "model"),
        train_file=write_rows(tmp_path / "train-talks.jsonl", talks(films(16))),
        validation_file=write_rows(tmp_path / "validation-talks.jsonl", talks(herds(24))),
        test_file=write_rows(tmp_path / "test-talks.jsonl", talks(films(8))),
        max_steps=4,
    )
    tuning = tune(folder, Grid(temperatures=[0, 0.5], samples=[2], fractions=[0.1]))
    assert tuning.rows == 24
    assert any("no classes" in note for note in tuning.notes)
    assert not any(candidate.fitted for candidate in tuning.choice.candidates)
    own = read_run(folder).metrics["validation"]["samples"]["nll_per_row"]
    assert tuning.choice.nll_before == pytest.approx(own, rel=1e-9)


# Refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "message"),
    [("test", "there to be reported"), ("shift", "there to be reported"), ("train", "was trained on")],
)
def test_other_rows_are_refused(finished: Path, split: str, message: str) -> None:
    before = contents(finished)
    with pytest.raises(ValueError, match=f"split is '{split}', whose rows .*{message}"):
        tune(finished, split=split)
    assert contents(finished) == before


def test_without_validation_rows(finished: Path) -> None:
    facts = json.loads((finished / "run.json").read_text())
    del facts["task"]["rows"]["validation"]
    (finished / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"no validation rows.*validation_size.*τ = 1"):
        tune(finished)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": [-1]}, "temperatures has -1"),
        ({"samples": [0]}, "samples has 0"),
        ({"fractions": [1]}, "fractions has 1"),
        ({"standard_errors": -1.0}, "standard_errors is -1.0"),
    ],
)
def test_options_out_of_range(finished: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(finished, Grid(**options))


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        tune(tmp_path)
