"""What a kill may leave behind, and that the run can be finished from it to the same bits."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from small_runs import config, films, save_model, write_rows
from varlora.methods.method import last_checkpoint
from varlora.runs import RunConfig, load_setting, method_of, run, train
from varlora.runs.run import checkpoints_of


class Killed(BaseException):
    """As Ctrl-C: no Exception."""


class KillAfter(TrainerCallback):
    """Raises after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Settings of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    settings = config(folder, save_model(folder / "model"), max_steps=12, save_steps=5)
    run(settings, progress=False)
    return settings


def assert_same_run(first: RunConfig, second: RunConfig) -> None:
    for name in ("adapter_model.safetensors", "posterior.safetensors", "metrics.json"):
        assert filecmp.cmp(Path(first.output_dir) / name, Path(second.output_dir) / name, shallow=False), name


def test_a_half_written_checkpoint_is_passed_over(finished: RunConfig, tmp_path: Path) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))
    checkpoints = checkpoints_of(settings)
    with pytest.raises(Killed):
        train(
            *(load_setting(settings), method_of(settings)),
            checkpoints=checkpoints,
            progress=False,
            callbacks=[KillAfter(11)],
        )
    (checkpoints / "checkpoint-10" / "optimizer.pt").write_bytes(b"half")
    (checkpoints / "checkpoint-10" / "trainer_state.json").unlink()

    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-5"
    run(settings, resume=True, progress=False)

    assert_same_run(settings, finished)
    assert not checkpoints.exists()


def test_the_newest_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()

    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_a_run_killed_while_its_folder_is_written_leaves_none_and_can_be_finished(
    finished: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))

    def killed(folder: Path, **_: Any) -> None:
        (folder / "posterior.json").touch()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(run.__globals__, "write_run", killed)
        with pytest.raises(Killed):
            run(settings, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["run.checkpoints"]
    run(settings, resume=True, progress=False)

    assert_same_run(settings, finished)


def test_a_failed_run_leaves_the_folder_that_it_was_to_replace(finished: RunConfig, tmp_path: Path) -> None:
    before = sorted((path.name, path.read_bytes()) for path in Path(finished.output_dir).iterdir() if path.is_file())
    rows = write_rows(tmp_path / "train.jsonl", [{**row, "text": "fine " * 200} for row in films(32)])

    with pytest.raises(ValueError, match="more than the 128 allowed"):
        run(replace(finished, train_file=rows), overwrite=True, progress=False)

    after = sorted((path.name, path.read_bytes()) for path in Path(finished.output_dir).iterdir() if path.is_file())
    assert before == after
