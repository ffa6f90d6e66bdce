"""`varlora health`, and the health that `varlora train` shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.workshop import Outcome, Workshop, reviews, write_rows
from varlora import PointMass, save_posterior
from varlora.report.health_text import sentence, statements
from varlora.runs.folder import read_run

Call = Callable[..., Outcome]


def test_train_shows_it_and_health_shows_it_again(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    held_out = write_rows(tmp_path / "held-out.jsonl", reviews(30, first=200))
    trained = call(*workshop.training(tmp_path / "run", validation_file=held_out))
    shown = call("health", tmp_path / "run")

    assert (trained.code, shown.code) == (0, 0), trained.err + shown.err
    found = read_run(tmp_path / "run").health()
    assert len(statements(found)) >= 5
    for name, value, _ in statements(found):
        assert name in shown.out
        assert value in shown.out
    assert sentence(found) in shown.out
    assert "on the 30 validation rows" in shown.out
    assert f"varlora tune {tmp_path / 'run'} chooses" in shown.out
    assert "`" not in shown.out
    verdict = shown.out[shown.out.index(sentence(found)) :]
    assert verdict in trained.out
    assert f"The numbers behind it: varlora health {tmp_path / 'run'}" in trained.out
    assert "Noise / weights" not in trained.out
    assert not any(name in trained.out for name, _, _ in statements(found))


def test_few_validation_rows_say_nothing(call: Call, run_folder: Path) -> None:
    shown = call("health", run_folder)
    assert shown.code == 0
    assert "Nothing can be said of sampling here: only 2 validation rows have a label, and it takes 20." in shown.out
    assert "varlora tune" not in shown.out
    assert "Noise / weights" in shown.out


def test_a_posterior_alone_has_its_scales(call: Call, tmp_path: Path) -> None:
    save_posterior(PointMass(mean={"w": torch.ones(1)}), tmp_path / "q")
    shown = call("health", tmp_path / "q")
    assert (shown.code, "there is nothing to sample" in shown.out) == (0, True)


def test_a_folder_that_is_nothing_is_refused(call: Call, tmp_path: Path) -> None:
    missing = call("health", tmp_path / "none")
    assert (missing.code, "not a folder that exists" in missing.err) == (1, True)


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_it_takes_one_folder(call: Call, words: list[str]) -> None:
    assert call("health", *words).code == 2
