"""posterior.json is written anew whole or not at all, and nothing but what was tuned changes."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from killed_saves import kill_at
from varlora.posterior import DiagonalGaussian, PosteriorMeta, PredictionConfig
from varlora.posterior.folder import CheckpointError, load_posterior, save_posterior
from varlora.posterior.manifest import MANIFEST, read_manifest, sha256, to_json, write_tuned

TUNED = PredictionConfig(samples=8, temperature=0.5, logit_temperature=1.5)
OLD_FIELDS = {
    "method",
    "num_examples",
    "ess",
    "prior_precision",
    "base_model",
    "base_revision",
    "readout",
    "linearised",
    "logit_temperatures",
    "history",
    "diagnostics",
}


def saved(folder: Path, **meta: Any) -> Path:
    q = DiagonalGaussian(
        mean={"w": torch.tensor([1.0, 2.0])},
        precision={"w": torch.tensor([3.0, 4.0])},
        meta=PosteriorMeta(method="ivon", ess=1e-7 / 3, history=({"op": "prune", "fraction": 0.1},), **meta),
    )
    return save_posterior(q, folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tuned_and_back_to_the_same_bytes(tmp_path: Path) -> None:
    folder = saved(tmp_path / "q")
    before, q = contents(folder), load_posterior(folder)
    history = [*q.meta.history, {"op": "tune", "rows": 3}]

    write_tuned(folder, TUNED, history)

    after, again = contents(folder), load_posterior(folder)
    assert again.meta.tuned == TUNED
    assert list(again.meta.history) == history
    assert {name for name in before if before[name] != after[name]} == {MANIFEST}
    old, new = json.loads(before[MANIFEST]), json.loads(after[MANIFEST])
    assert {name for name in old if old[name] != new[name]} == {"meta", "sha256"}
    assert after.keys() == before.keys()
    write_tuned(folder, dataclasses.replace(TUNED, samples=4), history)  # once more, over what was tuned
    assert load_posterior(folder).meta.tuned == dataclasses.replace(TUNED, samples=4)
    write_tuned(folder, None, q.meta.history)
    assert contents(folder) == before


def test_versions_stay_those_of_training(tmp_path: Path) -> None:
    folder = saved(tmp_path / "q")
    manifest = read_manifest(folder)
    manifest["versions"]["torch"] = "2.0.0"
    manifest["sha256"] = sha256(to_json(manifest))
    (folder / MANIFEST).write_bytes(to_json(manifest))
    before = contents(folder)
    write_tuned(folder, TUNED, [])
    assert read_manifest(folder)["versions"]["torch"] == "2.0.0"
    write_tuned(folder, None, manifest["meta"]["history"])
    assert contents(folder) == before


def test_a_posterior_that_was_never_tuned_does_not_speak_of_it(tmp_path: Path) -> None:
    """So its file is that of a version that knew of no tuning, and such a file loads."""
    folder = saved(tmp_path / "q")
    assert "tuned" not in read_manifest(folder)["meta"]
    assert read_manifest(folder)["meta"].keys() >= OLD_FIELDS
    manifest = read_manifest(folder)
    manifest["meta"] = {name: value for name, value in manifest["meta"].items() if name in OLD_FIELDS}
    manifest["sha256"] = sha256(to_json(manifest))
    (folder / MANIFEST).write_bytes(to_json(manifest))
    assert load_posterior(folder).meta.tuned is None
    copy = save_posterior(load_posterior(saved(tmp_path / "other", tuned=TUNED)), tmp_path / "copy")
    assert load_posterior(copy).meta.tuned == TUNED


@pytest.mark.parametrize(
    ("tuned", "history", "message"),
    [({"temperature": 0.5}, [], r"meta\.tuned"), (TUNED, [{"nll": object()}], r"meta\.history")],
)
def test_what_could_not_be_loaded_is_not_written(tmp_path: Path, tuned: Any, history: Any, message: str) -> None:
    folder = saved(tmp_path / "q")
    before = contents(folder)
    with pytest.raises(ValueError, match=message):
        write_tuned(folder, tuned, history)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="format version None"):
        write_tuned(folder, TUNED, [])
    (folder / MANIFEST).write_bytes(before[MANIFEST])
    assert contents(folder) == before


def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """At every point where the disk is touched, and halfway through the write."""
    found = []
    for point in range(1, 20):
        folder = saved(tmp_path / str(point))
        child = os.fork()
        if child == 0:
            write_and_die(folder, point)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        tuned = load_posterior(folder).meta.tuned
        found.append(tuned.samples if tuned is not None else 0)
        if status == 0:
            break
    assert status == 0
    assert len(found) > 4
    assert found == sorted(found)
    assert {found[0], found[-1]} == {0, 8}


def write_and_die(folder: Path, point: int) -> None:
    wrap, write = kill_at(point), Path.write_bytes
    Path.write_bytes = wrap(write, lambda path, data: write(path, data[: len(data) // 2]))  # type: ignore[method-assign]
    os.fsync, os.replace, Path.unlink = wrap(os.fsync), wrap(os.replace), wrap(Path.unlink)  # type: ignore[method-assign]
    write_tuned(folder, TUNED, [{"op": "tune"}])
