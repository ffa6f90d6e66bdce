"""Folders of posteriors and runs that varlora wrote up to format 2 of posterior.json: read, and predicted with alike.

`data/format_2/posterior` was tuned in all there was: τ, S, T and pruning, over a T by mode. `data/format_2/run` is a
run of twelve steps with predictions and variants, tuned and pruned.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from compare.plans import variant_of
from varlora.compare.variant_files import is_complete, load_variant, logit_temperature, pruned_fraction, read_tuned
from varlora.posterior import DiagonalGaussian, PosteriorMeta, PredictionConfig
from varlora.posterior.folder import CheckpointError, load_posterior, save_posterior
from varlora.posterior.manifest import MANIFEST, read_manifest, sha256, to_json, write_tuned
from varlora.posterior.ops import prune, temper
from varlora.prediction.prediction_setup import apply_tuning, remove_tuning
from varlora.runs.folder import read_run
from varlora.runs.tune import reset

FORMER = Path(__file__).parent / "data" / "format_2"
TUNED = PredictionConfig(temperature=0.25, samples=6, prune=0.5, prune_by="variance", logit_temperature=1.5)
WARM = variant_of(temperature=4, samples=6, logit_temperature="validation")
PRUNED = variant_of(prune="validation", prune_by="magnitude")


def test_what_was_tuned_and_t_by_mode() -> None:
    q = load_posterior(FORMER / "posterior")
    assert q.meta.tuned == TUNED
    assert [q.meta.logit_temperature_of(mode) for mode in ("mean", "samples", "linearised")] == [1.25, 0.8, 0.8]
    assert isinstance(q, DiagonalGaussian)
    plain = DiagonalGaussian(mean=q.mean, precision=q.precision)
    applied = apply_tuning(q)
    for key, variance in temper(prune(plain, 0.5, by="variance"), 0.25).variance.items():
        assert torch.equal(applied.variance[key], variance)
    assert [applied.meta.logit_temperature_of(mode) for mode in ("mean", "samples")] == [1.25, 1.5]


def test_saved_again_it_is_of_this_format_and_the_same(tmp_path: Path) -> None:
    q = load_posterior(FORMER / "posterior")
    folder = save_posterior(q, tmp_path / "q")
    assert json.loads((folder / MANIFEST).read_text())["format_version"] == 4
    assert load_posterior(folder).meta == q.meta
    for name in ("mean.safetensors", "posterior.safetensors"):
        assert (folder / name).read_bytes() == (FORMER / "posterior" / name).read_bytes()


def test_tuning_it_again_takes_the_step(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FORMER / "posterior", tmp_path / "q"))
    before = load_posterior(folder)
    write_tuned(folder, None, [])
    after = load_posterior(folder)
    assert after.meta == remove_tuning(before).meta
    assert json.loads((folder / MANIFEST).read_text())["format_version"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuned": {"temperature": 1.0}}, r"meta\.tuned: .* must give"),
        ({"tuned": [1]}, r"meta\.tuned: .* must give"),
        (
            {"tuned": {"temperature": 1.0, "samples": 2.5, "mode": "samples", "logit_temperature": 1.0}},
            "samples is 2.5",
        ),
        ({"logit_temperature_by_mode": 2.0, "tuned": None}, "must map modes to numbers"),
        ({"logit_temperature": "hot"}, "must be positive"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = Path(shutil.copytree(FORMER / "posterior", tmp_path / "q"))
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    manifest["meta"] |= changes
    manifest["sha256"] = sha256(to_json(manifest))
    (folder / MANIFEST).write_bytes(to_json(manifest))
    with pytest.raises(CheckpointError, match=message):
        load_posterior(folder)


def test_a_run_its_predictions_and_what_was_tuned() -> None:
    run = read_run(FORMER / "run")
    tuned = run.posterior.meta.tuned
    assert tuned is not None
    assert (tuned.canonical.mode, tuned.prune, tuned.prune_by) == ("mean", 0.1, "snr")
    assert tuned.describe() in json.loads((run.path / "tune.json").read_text())["sentence"]
    assert run.prediction("test", "samples").num_draws == 4
    assert run.posterior.meta.logit_temperature_of("samples") == 1.0


def test_its_variants_are_found_and_are_what_they_were() -> None:
    run, tune = read_run(FORMER / "run"), variant_of(tune=True)
    assert is_complete(run.path, [WARM, PRUNED, tune, variant_of(mode="mean")])
    assert logit_temperature(run, WARM) == 0.5301854728598986
    assert load_variant(run, WARM, "test").probs[0].tolist() == pytest.approx(
        [0.0325143705454818, 0.9674856294545182], rel=1e-12
    )
    assert pruned_fraction(run, PRUNED) == 0.1
    assert load_variant(run, PRUNED, "test").probs[0].tolist() == pytest.approx(
        [0.12515102483951945, 0.8748489751604805], rel=1e-12
    )
    chosen = PredictionConfig(mode="mean", temperature=0, logit_temperature=0.5453419150366791)
    assert read_tuned(run, tune) == chosen
    assert load_variant(run, tune, "test").probs[0].tolist() == pytest.approx(
        [0.026296425555649323, 0.9737035744443507], rel=1e-12
    )


def test_what_was_tuned_can_be_taken_back(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FORMER / "run", tmp_path / "run"))
    before = read_run(folder).posterior
    reset(folder)
    after = read_run(folder).posterior
    assert after.meta == remove_tuning(before).meta == PosteriorMeta.from_dict(after.meta.to_dict())
    assert read_manifest(folder)["files"] == read_manifest(FORMER / "run")["files"]
