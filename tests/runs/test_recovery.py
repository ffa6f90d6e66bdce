"""What a kill or a signal may leave behind, that the run can be finished from it to the same bits, and what is kept."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from small_runs import config, films, save_model, write_rows
from varlora.runs.checkpoints import (
    FINGERPRINT,
    OWNER,
    Fingerprint,
    check_checkpoints,
    checkpoints_of,
    read_fingerprint,
    remove_checkpoints,
)
from varlora.runs.config import RunConfig
from varlora.runs.run import AlreadyFinishedError, Trained, method_of, run, train
from varlora.runs.setting import load_setting
from varlora.training.checkpoint_files import CHECKPOINT_FILES, last_whole_checkpoint
from varlora.training.stopping import Stopped, ask_to_stop


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
    """Settings of a run that nothing has disturbed; it ends in the middle of its third epoch of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    settings = config(folder, save_model(folder / "model"), max_steps=10, save_steps=4)
    run(settings, progress=False)
    return settings


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


class Steps(TrainerCallback):
    """Counts the steps that are begun."""

    def __init__(self) -> None:
        self.count = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1


def begin(settings: RunConfig, *callbacks: TrainerCallback, resume: bool = False) -> Trained:
    """Trains, without a folder in the end."""
    return train(
        *(load_setting(settings), method_of(settings)),
        checkpoints=checkpoints_of(settings),
        progress=False,
        callbacks=callbacks,
        resume=resume,
    )


@pytest.fixture(scope="module")
def killed(finished: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a kill after the ninth step leaves of the same run: checkpoints of the fourth and the eighth."""
    settings = replace(finished, output_dir=str(tmp_path_factory.mktemp("killed") / "run"))
    with pytest.raises(Killed):
        begin(settings, KillAfter(9))
    return checkpoints_of(settings)


@pytest.fixture
def interrupted(finished: RunConfig, killed: Path, tmp_path: Path) -> RunConfig:
    """Settings of a run that was killed; its checkpoints may be damaged."""
    settings = replace(finished, output_dir=str(tmp_path / "run"))
    shutil.copytree(killed, checkpoints_of(settings))
    return settings


def assert_same_run(first: RunConfig, second: RunConfig) -> None:
    for name in ("adapter_model.safetensors", "posterior.safetensors", "metrics.json"):
        assert filecmp.cmp(Path(first.output_dir) / name, Path(second.output_dir) / name, shallow=False), name


def test_a_damaged_checkpoint_is_passed_over(
    finished: RunConfig, interrupted: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = checkpoints_of(interrupted)
    size = (checkpoints / "checkpoint-8" / "optimizer.pt").stat().st_size
    os.truncate(checkpoints / "checkpoint-8" / "optimizer.pt", size // 2)

    run(interrupted, resume=True, progress=False)

    told = f"checkpoint-8 is damaged (optimizer.pt: {size // 2:,} of {size:,} bytes); going on from checkpoint-4"
    assert told in caplog.messages
    assert_same_run(interrupted, finished)
    assert not checkpoints.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_without_a_whole_checkpoint_nothing_begins_again_unasked(file: str, interrupted: RunConfig) -> None:
    for step in (4, 8):
        (checkpoints_of(interrupted) / f"checkpoint-{step}" / file).unlink()

    with pytest.raises(ValueError, match=rf"checkpoint-4 is damaged \({file} is missing\)\. .* --overwrite"):
        run(interrupted, resume=True, progress=False)

    assert (checkpoints_of(interrupted) / "checkpoint-4").is_dir()


@pytest.mark.parametrize("method", ["adamw", "ivon"])
def test_a_training_that_is_resumed_after_its_last_step_takes_none(
    method: str, finished: RunConfig, tmp_path: Path
) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"), max_steps=6, method=method)
    whole = begin(settings)
    steps = Steps()
    again = begin(settings, steps, resume=True)
    assert steps.count == 0
    assert all(torch.equal(whole.posterior.point[key], value) for key, value in again.posterior.point.items())
    assert all(torch.equal(whole.posterior.tensors()[key], value) for key, value in again.posterior.tensors().items())


def assert_stopped(settings: RunConfig, ask: Callable[[], object]) -> Stopped:
    """A training that is asked to stop in its third step stops after it, with a checkpoint, and leaves the handlers."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match=r"stopped by SIG\w+ at step 3 of 10; saved in .*run\.checkpoints") as stopped:
        begin(settings, At(3, ask))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert last_whole_checkpoint(checkpoints_of(settings)) == checkpoints_of(settings) / "checkpoint-3"
    return stopped.value


def test_sigterm_saves_after_the_step_and_the_run_goes_on_to_the_same_bits(finished: RunConfig, tmp_path: Path) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))
    stopped = assert_stopped(settings, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stopped.exit_code == 143

    run(settings, resume=True, progress=False)

    assert_same_run(settings, finished)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal; in the background a shell has it ignored, and training leaves that as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_so_does_ctrl_c(finished: RunConfig, tmp_path: Path) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))
    assert assert_stopped(settings, lambda: os.kill(os.getpid(), signal.SIGINT)).exit_code == 130


def test_so_does_another_thread(finished: RunConfig, tmp_path: Path) -> None:
    def ask() -> None:
        thread = threading.Thread(target=ask_to_stop)
        thread.start()
        thread.join()

    settings = replace(finished, output_dir=str(tmp_path / "run"))
    assert assert_stopped(settings, ask).exit_code == 143
    assert not ask_to_stop()  # nothing trains any more


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_stops_at_once(finished: RunConfig, tmp_path: Path) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        begin(settings, At(3, twice))
    assert not isinstance(stopped.value, Stopped)
    assert last_whole_checkpoint(checkpoints_of(settings)) is None


def test_a_finished_run_is_left_as_it_is(finished: RunConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.output_dir, tmp_path / "run"))
    settings = replace(finished, output_dir=str(folder))
    checkpoints = checkpoints_of(settings)
    checkpoints.mkdir()
    made = Fingerprint(settings=settings.fingerprint, rows=None, processes=1)
    (checkpoints / FINGERPRINT).write_text(json.dumps(asdict(made)))  # a kill before the last of them was removed
    before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")}

    with pytest.raises(AlreadyFinishedError, match="is already finished, with these settings"):
        run(settings, resume=True, progress=False)
    with pytest.raises(ValueError, match=r"finished run with other settings: seed \(0, now 1\)\. .* --overwrite"):
        run(replace(settings, seed=1), resume=True, progress=False)

    assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")} == before
    assert not checkpoints.exists()


def test_who_began_without_a_temperature_is_told_how_to_go_on(interrupted: RunConfig) -> None:
    unsaid = replace(interrupted, method_options={})
    without, file = replace(unsaid, temperature_scaling=False), checkpoints_of(unsaid) / FINGERPRINT
    assert unsaid.scales_temperature
    file.write_text(json.dumps(asdict(Fingerprint(settings=without.fingerprint, rows="", processes=1))))
    check_checkpoints(without, resume=True, overwrite=False)
    with pytest.raises(ValueError, match=r"add --temperature_scaling false, choose another output_dir"):
        check_checkpoints(unsaid, resume=True, overwrite=False)
    for other in (replace(unsaid, temperature_scaling=True), replace(unsaid, seed=1)):
        with pytest.raises(ValueError, match=r"Repeat its settings, choose another output_dir"):
            check_checkpoints(other, resume=True, overwrite=False)


def test_a_run_by_other_defaults_is_not_the_same(finished: RunConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.output_dir, tmp_path / "run"))
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "fingerprint": "of before"}))
    with pytest.raises(ValueError, match=r"earlier version .* defaults were others.* --overwrite"):
        run(replace(finished, output_dir=str(folder)), resume=True, progress=False)


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_is_not_a_runs_is_never_removed(
    how: dict[str, bool], finished: RunConfig, tmp_path: Path
) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))
    mine = checkpoints_of(settings) / "checkpoint-1" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")

    with pytest.raises(
        ValueError, match=r"somebody else's folder \(it holds checkpoint-1, .* choose another output_dir"
    ):
        run(settings, progress=False, **how)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    with pytest.raises(ValueError, match="somebody else's folder"):
        remove_checkpoints(checkpoints_of(settings))


def test_a_refused_start_keeps_the_checkpoints_that_it_was_to_replace(interrupted: RunConfig) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        run(replace(interrupted, train_file="nowhere.jsonl"), overwrite=True, progress=False)

    assert last_whole_checkpoint(checkpoints_of(interrupted)) is not None


@pytest.mark.parametrize("content", [b"", b'{"settings": "0123'])
def test_a_torn_fingerprint_is_told_and_nothing_is_removed(content: bytes, interrupted: RunConfig) -> None:
    (checkpoints_of(interrupted) / FINGERPRINT).write_bytes(content)

    told = rf"fingerprint is damaged \({len(content)} bytes\), .* delete .* yourself"
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(ValueError, match=told):
            run(interrupted, progress=False, **how)

    assert last_whole_checkpoint(checkpoints_of(interrupted)) is not None


def test_checkpoints_of_an_earlier_version_are_told_as_such(interrupted: RunConfig) -> None:
    """Its fingerprint was a hash of the settings that there were then, and its checkpoints do not list their files."""
    (checkpoints_of(interrupted) / FINGERPRINT).write_text("0123456789abcdef")

    with pytest.raises(ValueError, match=r"begun by an earlier version of varlora, .* start afresh with --overwrite"):
        run(interrupted, resume=True, progress=False)


def test_a_finished_runs_damaged_settings_are_named(finished: RunConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.output_dir, tmp_path / "run"))
    with (folder / "config.yaml").open("a") as file:
        file.write("sampels: 4\n")

    with pytest.raises(ValueError, match=r"run/config\.yaml: unknown option 'sampels'; .*samples"):
        run(replace(finished, output_dir=str(folder)), resume=True, progress=False)


def test_a_kill_while_the_fingerprint_is_written_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".{FINGERPRINT}.new-0123abcd").write_bytes(b'{"settings"')

    assert read_fingerprint(tmp_path) is None


def test_the_fingerprint_is_the_last_to_be_removed(interrupted: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, removed = checkpoints_of(interrupted), shutil.rmtree

    def dies(folder: Path, **_: Any) -> None:
        removed(folder)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        with pytest.raises(Killed):
            remove_checkpoints(checkpoints)
    assert read_fingerprint(checkpoints) is not None
    remove_checkpoints(checkpoints)
    assert not checkpoints.exists()


def test_checkpoints_of_two_processes_are_not_gone_on_from_by_one(interrupted: RunConfig) -> None:
    checkpoints = checkpoints_of(interrupted)
    for file in (checkpoints / FINGERPRINT, checkpoints / "checkpoint-8" / CHECKPOINT_FILES):
        values = json.loads(file.read_text())
        assert values["processes"] == 1
        file.write_text(json.dumps(values | {"processes": 2}))

    with pytest.raises(ValueError, match="was trained by 2 processes, and this one is by 1"):
        run(interrupted, resume=True, progress=False)
    with pytest.raises(ValueError, match="in 2 processes that read 8 rows a step, and this one is in 1 and reads 8"):
        begin(interrupted, resume=True)


def test_a_run_killed_while_its_folder_is_written_leaves_none_and_can_be_finished(
    finished: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))

    def killed(folder: Path, _: Any) -> None:
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


@pytest.mark.parametrize("moment", ["on_step_end", "on_train_end"])
def test_a_run_whose_folder_another_has_taken_ends_and_leaves_the_other_alone(
    moment: str, finished: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(finished, output_dir=str(tmp_path / "run"))
    folder = checkpoints_of(settings)

    def begin_another(*args: Any, **kwargs: Any) -> None:
        remove_checkpoints(folder)
        shutil.copytree(tmp_path / "other", folder)

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FINGERPRINT).write_text("0123456789abcdef")
    (tmp_path / "other" / OWNER).write_text("process 1 on elsewhere, 0123")
    another = type("Another", (TrainerCallback,), {moment: begin_another})()
    monkeypatch.setattr("varlora.runs.run.train", lambda *a, **k: train(*a, **k, callbacks=[another]))

    with pytest.raises(ValueError, match=r"another run has begun in .*run\.checkpoints .*\(process 1 on elsewhere\)"):
        run(settings, progress=False)
    assert {file.name for file in folder.iterdir()} == {FINGERPRINT, OWNER}
    assert not Path(settings.output_dir).exists()


def test_the_current_folder_has_its_checkpoints_beside_it(
    finished: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert checkpoints_of(replace(finished, output_dir=".")) == Path(f"{tmp_path.resolve()}/here.checkpoints")
    assert checkpoints_of(replace(finished, output_dir="run")) == Path("run.checkpoints")
