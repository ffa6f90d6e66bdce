"""The health of runs of every kind: what `train` finds is what the folder says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from small_runs import config, finish_herds, herds, save_model, write_rows
from varlora.io.folders import atomic_folder
from varlora.metrics import cross_fitted
from varlora.posterior.ops import prune
from varlora.prediction.prediction_setup import explain_point
from varlora.report.health_text import reason_for_the_point, scale_table, sentence, statements
from varlora.runs.folder import CompletionScores, read_run, write_derived
from varlora.runs.health import run_health
from varlora.runs.run import run

KIND = {
    "adamw": "point_mass",
    "ivon": "diagonal_gaussian",
    "laplace": "kronecker_gaussian",
    "swag": "low_rank_gaussian",
    "ensemble": "mixture",
    "mc_dropout": "dropout_masks",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    steps = {"per_device_train_batch_size": 48, "max_steps": 52}  # which pay for asking the 48 rows twice
    return finish_herds(tmp_path_factory.mktemp("trained"), model, held_out="auto", **steps)


def finish_soon(folder: Path, model: str, **options: Any) -> Path:
    """A run of so few steps that nothing but its form is to be looked at."""
    return finish_herds(folder, model, max_steps=8, **options)


@pytest.fixture(scope="module")
def soon(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_soon(tmp_path_factory.mktemp("soon"), model)


@pytest.mark.parametrize("method", KIND)
def test_every_kind_has_its_health(method: str, model: str, soon: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"curvature": "kron"} if method == "laplace" else {}
    folder = soon if method == "ivon" else finish_soon(tmp_path, model, method=method, **options)
    read = read_run(folder)
    found = read.health()
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert found.kind == KIND[method] == read.posterior.kind
    assert sentence(found) in card
    for name, value, _ in statements(found):
        assert f"- **{name}**: {value} " in card
    if method == "adamw":
        assert (found.sampling, statements(found), scale_table(found)) == (None, [], None)
        return
    at_mean, own = (read.prediction("validation", m) for m in ("mean", "linearised" if found.linearised else "samples"))
    assert at_mean.labels.tolist() == own.labels.tolist()
    assert (at_mean.logit_temperature, own.logit_temperature) == (1, 1)
    losses = [cross_fitted(p.log_probs, p.labels)[0] for p in (at_mean, own)]
    assert found.sampling is not None
    assert found.sampling.difference == pytest.approx(float((losses[1] - losses[0]).mean()), abs=1e-12)
    assert (found.sampling_rows, found.draws) == (48, own.num_draws)
    assert found.agreement is not None
    assert (scale_table(found) is None) == (method in ("ensemble", "mc_dropout"))
    assert found.linearised == (method == "laplace")


def test_the_folder_says_what_training_found_without_a_model(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = write_rows(tmp_path / "held-out.jsonl", herds(48))
    settings = config(tmp_path, model, validation_file=held_out, max_steps=8)
    result = run(settings, progress=False)
    elsewhere = Path(shutil.copytree(settings.output_dir, tmp_path / "elsewhere"))
    for gone in ("train.jsonl", "held-out.jsonl", "test.jsonl"):
        (tmp_path / gone).unlink()
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    read = read_run(elsewhere)
    found = read.health()
    assert found == result.health
    assert found.course is not None
    assert found.course.epochs == pytest.approx(max(entry["epoch"] for entry in result.log), abs=1e-4)
    assert found.learned is not None
    at_mean = read.prediction("validation", "mean")
    assert found.learned.right == int((at_mean.probs.argmax(1) == at_mean.labels).sum())
    assert explain_point(read.posterior) == reason_for_the_point(found)


def test_what_steered_lambda_is_in_it(trained: Path) -> None:
    found = read_run(trained).health()
    assert found.held_out is not None
    assert (found.held_out.source, found.held_out.rows) == ("validation", 48)
    assert found.ess_start == 100 * 48
    assert found.ess is not None
    assert len(found.fits) == 1
    names = [name for name, *_ in statements(found)]
    assert names == [
        "Sampled − mean NLL",
        "Cost of the noise",
        "Agreement of draws",
        "Mutual information",
        "λ/N",
        "Missing temperature log T̂",
        "Standard deviation",
    ]


def without_validation(folder: Path) -> Path:
    """The same folder with no predictions for validation rows."""
    for file in (folder / "predictions").glob("validation.*"):
        file.unlink()
    return folder


def test_without_predictions_the_last_measurement_in_training_speaks(trained: Path, tmp_path: Path) -> None:
    read = read_run(without_validation(Path(shutil.copytree(trained, tmp_path / "run"))))
    said = (read.posterior.meta.diagnostics or {})["held_out"]
    found = read.health()
    assert found.sampling is not None
    at = "_at_temperature" if "sampling_gain_at_temperature" in said else ""
    assert found.sampling.difference == -said[f"sampling_gain{at}"]
    assert found.sampling.standard_error == said[f"sampling_gain{at}_error"] > 0
    assert (found.in_training, found.agreement, found.can_be_tuned) == (True, None, False)


def test_without_validation_rows_nothing_is_said_of_sampling(soon: Path, tmp_path: Path) -> None:
    found = read_run(without_validation(Path(shutil.copytree(soon, tmp_path / "run")))).health()
    assert (found.sampling, found.agreement, found.validation_rows) == (None, None, 0)
    assert found.groups
    assert sentence(found).startswith("Nothing can be said of sampling here: there are no predictions for validation")


def test_few_validation_rows_are_said_to_be_few_in_the_card(model: str, tmp_path: Path) -> None:
    settings = config(tmp_path, model, max_steps=4)
    run(settings, progress=False)
    card = (Path(settings.output_dir) / "README.md").read_text(encoding="utf-8")
    assert "Nothing can be said of sampling here: only 16 validation rows have a label, and it takes 20." in card
    assert "varlora tune" not in card


def test_test_rows_are_never_looked_at(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    before = read_run(copy).health()
    for file in (copy / "predictions").glob("test.*"):
        file.write_bytes(b"not to be read")
    assert read_run(copy).health() == before


def test_without_draws_only_the_mean_is_known(model: str, tmp_path: Path) -> None:
    folder = finish_soon(tmp_path, model, samples=0, held_out="none")
    found = read_run(folder).health()
    assert found.unknown == "validation rows were predicted at the mean only"


def test_completions_are_judged_by_their_likelihood(model: str, tmp_path: Path) -> None:
    rows = [{"id": row["id"], "prompt": row["text"] + " :", "completion": f" {row['label']}"} for row in herds(48)]
    files = {f"{split}_file": write_rows(tmp_path / f"{split}.jsonl", rows) for split in ("train", "validation")}
    settings = config(tmp_path / "c", model, **{**files, "test_file": None, "max_steps": 8})
    result = run(settings, progress=False)
    found = read_run(settings.output_dir).health()
    at_mean, sampled = (result.predictions["validation"][mode] for mode in ("mean", "samples"))
    assert isinstance(at_mean, CompletionScores)
    assert isinstance(sampled, CompletionScores)
    difference = at_mean.log_likelihoods[:, 0] - sampled.log_likelihoods.exp().mean(1).log()
    assert found.sampling is not None
    assert found.sampling.difference == pytest.approx(float(difference.mean()))
    assert found.sampling.standard_error == pytest.approx(float(difference.std()) / 48**0.5)
    assert (found.completions, found.agreement, found.sampling_rows) == (True, None, 48)
    assert found == result.health


def test_a_posterior_made_from_a_run_has_no_predictions_yet(trained: Path, tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "pruned") as folder:
        write_derived(folder, prune(read_run(trained).posterior, 0.1), sources=[trained], name="pruned")
    found = read_run(tmp_path / "pruned").health()
    assert (found.derived, found.sampling, found.held_out) == (True, None, None)
    assert found.groups


def test_predictions_of_different_rows_are_refused(trained: Path) -> None:
    read = read_run(trained)
    stored = {mode: read.prediction("validation", mode) for mode in ("mean", "samples")}
    other = read.prediction("test", "samples")
    with pytest.raises(ValueError, match="not of the same rows"):
        run_health(read.posterior, {**stored, "samples": other}, 4)


def test_a_damaged_file_of_completions_is_named(tmp_path: Path) -> None:
    file = tmp_path / "validation.mean.parquet"
    scores = CompletionScores(
        log_likelihoods=torch.tensor([[-1.0, -2.0]], dtype=torch.float64), num_tokens=torch.tensor([3]), ids=("a",)
    )
    scores.save(file)
    loaded = CompletionScores.load(file)
    assert torch.equal(loaded.log_likelihoods, scores.log_likelihoods)
    assert (loaded.num_tokens.tolist(), loaded.ids) == ([3], ("a",))
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"validation\.mean\.parquet holds no scores"):
        CompletionScores.load(file)
