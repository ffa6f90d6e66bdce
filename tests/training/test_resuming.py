"""A trainer of one's own with the mixin: its checkpoints list their files, and it goes on from whole ones only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from steered_tasks import Classifier, Rows, arguments, ivon_of, trainer_of
from varlora import IVON, IVONConfig, VariationalCallback, last_whole_checkpoint, posterior_from_checkpoint
from varlora.training import resuming
from varlora.training.checkpoint_files import CHECKPOINT_FILES, checkpoints_in

OPTIONS: dict[str, Any] = {"ess": 1e3, "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
"""An epoch has 20 steps."""


class Steps(TrainerCallback):
    """The steps that are begun, counted."""

    def __init__(self) -> None:
        self.count = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1


@pytest.fixture
def trained(tmp_path: Path) -> Any:
    trainer = trainer_of(tmp_path, **OPTIONS)
    trainer.train()
    return trainer


def assert_resumed_like(trained: Any, steps: int, tmp_path: Path, checkpoint: bool | str = True) -> None:
    counted = Steps()
    resumed = trainer_of(tmp_path, callbacks=[counted], **OPTIONS)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert counted.count == steps
    assert resumed.state.global_step == 6
    for one, other in zip(trained.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
        states = [ivon_of(trained).state[one], ivon_of(resumed).state[other]]
        assert torch.equal(*(state["second_moment"] for state in states))


def test_resuming_after_the_last_step_takes_none(trained: Any, tmp_path: Path) -> None:
    assert_resumed_like(trained, 0, tmp_path)


def test_the_newest_whole_checkpoint_is_resumed(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-6" / "scheduler.pt").unlink()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text("{")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert_resumed_like(trained, 4, tmp_path)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
@pytest.mark.parametrize("listed", [True, False])
def test_what_is_missing_never_leads_another_way(trained: Any, tmp_path: Path, file: str, listed: bool) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    (checkpoint / file).unlink()
    if not listed:
        (checkpoint / CHECKPOINT_FILES).unlink()
    with pytest.raises(ValueError, match=rf"{file} is missing" if listed else rf"has no {file[:9]}.*another way"):
        trainer_of(tmp_path, **OPTIONS).train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_another_trainer_is_taken_with_a_word(
    trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    (checkpoint / CHECKPOINT_FILES).unlink()
    assert_resumed_like(trained, 2, tmp_path, str(checkpoint))
    assert "does not list its files" in caplog.text


@pytest.mark.parametrize("changed", [{"processes": 2}, {"rows_per_step": 32}])
def test_steps_of_other_rows_are_refused(trained: Any, tmp_path: Path, changed: dict[str, int]) -> None:
    file = tmp_path / "checkpoint-6" / CHECKPOINT_FILES
    values = json.loads(file.read_text())
    assert (values["processes"], values["rows_per_step"], values["resumable"]) == (1, 16, True)
    file.write_text(json.dumps(values | changed))
    with pytest.raises(ValueError, match="this one is in 1 and reads 16: its steps would be others"):
        trainer_of(tmp_path, **OPTIONS).train(resume_from_checkpoint=True)


def test_without_an_optimizer_there_is_nothing_to_resume(tmp_path: Path) -> None:
    trainer_of(tmp_path, **OPTIONS, save_only_model=True).train()
    with pytest.raises(ValueError, match="checkpoint-6 is without the optimizer's state"):
        trainer_of(tmp_path, **OPTIONS).train(resume_from_checkpoint=True)


def test_there_is_a_whole_checkpoint_while_the_next_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a limit of one: what is old is removed when what is new is whole."""
    seen = []
    finish = resuming.finish_checkpoint

    def look(checkpoint: Path) -> None:
        found = last_whole_checkpoint(tmp_path)
        seen.append(found.name if found is not None else None)
        finish(checkpoint)

    monkeypatch.setattr(resuming, "finish_checkpoint", look)
    trainer_of(tmp_path, **OPTIONS, save_total_limit=1).train()
    assert seen == [None, "checkpoint-2", "checkpoint-4"]
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-6"]


def test_an_unmodified_trainer_is_refused_the_step_after_the_last(tmp_path: Path) -> None:
    def make() -> Trainer:
        return Trainer(
            model=Classifier(),
            args=arguments(tmp_path, max_steps=3, save_strategy="steps", save_steps=3),
            train_dataset=Rows(320),
            optimizer_cls_and_kwargs=(IVON, IVONConfig(lr=1e-3, ess=1e3).optimizer_kwargs()),
            callbacks=[VariationalCallback()],
        )

    make().train()
    with pytest.raises(ValueError, match="the last of 3 steps, and transformers' Trainer would take another"):
        make().train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_no_posterior_is_read_from_a_checkpoint_that_was_changed(trained: Any, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    posterior_from_checkpoint(checkpoint)
    file = checkpoint / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"optimizer\.pt was changed: its SHA-256 differs\)\. Take another checkpoint"):
        posterior_from_checkpoint(checkpoint)


def test_a_checkpoint_holds_the_arguments_as_they_were_given(tmp_path: Path) -> None:
    """What the trainer's own save is kept from meanwhile is not what was asked for."""
    trainer_of(tmp_path, **OPTIONS, save_total_limit=2).train()
    saved = torch.load(tmp_path / "checkpoint-6" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 2


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint-9 is not a folder that exists; True takes the newest whole"):
        trainer_of(tmp_path, **OPTIONS).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, a disk without room")
def test_a_disk_that_fills_is_told_and_older_checkpoints_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = torch.save

    def save_optimizer(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        save(value, "/dev/full" if str(file).endswith("checkpoint-4/optimizer.pt") else file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save_optimizer)
    with pytest.raises(OSError, match="checkpoint-4 could not be written whole; the disk may be full"):
        trainer_of(tmp_path, **OPTIONS).train()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
