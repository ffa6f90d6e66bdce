"""Checkpoints that list their files: which is whole, which is taken, and which may be removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from varlora.training.checkpoint_files import (
    CHECKPOINT_FILES,
    DamagedCheckpointError,
    begin_checkpoint,
    checkpoints_in,
    damage_of,
    finish_checkpoint,
    last_whole_checkpoint,
    remove_old_checkpoints,
)


def save(folder: Path, step: int, *, finished: bool = True, resumable: bool = True, best: Path | None = None) -> Path:
    """A checkpoint of several files, one in a folder of its own."""
    checkpoint = folder / f"checkpoint-{step}"
    begin_checkpoint(checkpoint, processes=2, rows_per_step=8, resumable=resumable)
    (checkpoint / "optimizer.pt").write_bytes(bytes(2000))
    (checkpoint / "rng_state_1.pth").write_bytes(b"random")
    (checkpoint / "shards").mkdir(exist_ok=True)
    (checkpoint / "shards" / "0.bin").write_bytes(b"shard")
    state = {"global_step": step, "best_model_checkpoint": str(best) if best is not None else None}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    if finished:
        finish_checkpoint(checkpoint)
    return checkpoint


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "short": (lambda c: (c / "optimizer.pt").write_bytes(bytes(1024)), "damaged (optimizer.pt: 1,024 of 2,000 bytes)"),
    "flipped": (lambda c: flip(c / "optimizer.pt"), "damaged (optimizer.pt was changed: its SHA-256 differs)"),
    "missing": (lambda c: (c / "rng_state_1.pth").unlink(), "damaged (rng_state_1.pth is missing)"),
    "deep": (lambda c: flip(c / "shards" / "0.bin"), "damaged (shards/0.bin was changed: its SHA-256 differs)"),
    "unlisted": (lambda c: (c / CHECKPOINT_FILES).unlink(), f"without {CHECKPOINT_FILES}"),
    "torn list": (lambda c: (c / CHECKPOINT_FILES).write_bytes(b'{"format": 1'), f"damaged ({CHECKPOINT_FILES}: "),
    "empty list": (lambda c: (c / CHECKPOINT_FILES).write_bytes(b""), f"damaged ({CHECKPOINT_FILES}: "),
    "another list": (lambda c: (c / CHECKPOINT_FILES).write_text('{"format": 2}'), f"damaged ({CHECKPOINT_FILES}: "),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_older_whole_checkpoint_is_taken_and_the_choice_is_told(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(tmp_path, 20), save(tmp_path, 30)
    assert last_whole_checkpoint(tmp_path) == newer
    assert not caplog.records
    damage, told = DAMAGES[kind]
    damage(newer)
    assert (damage_of(newer) or "").startswith(told)
    assert last_whole_checkpoint(tmp_path) == older
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"checkpoint-30 is {told}")
    assert line.endswith("; going on from checkpoint-20")
    damage(older)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint-30 is .*; checkpoint-20 is .* --overwrite"):
        last_whole_checkpoint(tmp_path)


def test_steps_are_numbers_and_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        save(tmp_path, step)
    (tmp_path / "checkpoint-200").touch()
    (tmp_path / "checkpoint-mine").mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-5", "checkpoint-20", "checkpoint-100"]
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


def test_where_no_save_ever_ended_there_is_nothing_to_lose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 5, finished=False)
    assert last_whole_checkpoint(tmp_path) is None
    assert "checkpoint-5 is half-written: its save was interrupted, and there is no other" in caplog.text


@pytest.mark.parametrize("left", [[], [f".{CHECKPOINT_FILES}.new-0123abcd"]])
def test_a_kill_when_a_save_has_just_begun_leaves_nothing_in_the_way(left: list[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    for name in left:
        (tmp_path / "checkpoint-5" / name).touch()
    assert last_whole_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-5" / "optimizer.pt").touch()
    with pytest.raises(DamagedCheckpointError, match=f"without {CHECKPOINT_FILES}"):
        last_whole_checkpoint(tmp_path)


def test_a_checkpoint_that_is_saved_anew_is_not_whole_before_its_end(tmp_path: Path) -> None:
    save(tmp_path, 5)
    checkpoint = save(tmp_path, 5, finished=False)
    assert damage_of(checkpoint) == "half-written: its save was interrupted"
    finish_checkpoint(checkpoint)
    assert damage_of(checkpoint) is None


def test_without_the_optimizer_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert damage_of(save(tmp_path, 5, resumable=False)) == "without the optimizer's state (save_only_model=True)"


def test_a_checkpoint_needs_the_best_one_that_it_names(tmp_path: Path) -> None:
    best = save(tmp_path, 10, best=tmp_path / "checkpoint-10")
    newer = save(tmp_path, 30, best=best)
    assert (damage_of(best), damage_of(newer)) == (None, None)
    flip(best / "optimizer.pt")
    assert f"without the best checkpoint so far, {best}, which is damaged" in (damage_of(newer) or "")
    best.rename(tmp_path / "elsewhere")
    assert "which is not there" in (damage_of(newer) or "")


def test_a_list_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 5)
    values = json.loads((checkpoint / CHECKPOINT_FILES).read_text())
    values["files"]["../../secret"] = {"size": 1, "sha256": ""}
    (checkpoint / CHECKPOINT_FILES).write_text(json.dumps(values))
    assert damage_of(checkpoint) == f"damaged ({CHECKPOINT_FILES} is not of format 1)"


def test_what_is_of_no_use_is_removed_first_and_nobody_elses_never(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step)
    save(tmp_path, 17, finished=False)
    save(tmp_path, 40)  # of a path that the training has left
    (tmp_path / "checkpoint-1").mkdir()
    newest = save(tmp_path, 20)
    remove_old_checkpoints(newest, best=None, limit=None)
    assert len(checkpoints_in(tmp_path)) == 7
    remove_old_checkpoints(newest, best=None, limit=4)
    assert [c.name for c in checkpoints_in(tmp_path)] == [f"checkpoint-{n}" for n in (1, 5, 10, 15, 20)]
    remove_old_checkpoints(newest, best=tmp_path / "checkpoint-5", limit=1)
    assert [c.name for c in checkpoints_in(tmp_path)] == [f"checkpoint-{n}" for n in (1, 5, 20)]


def test_the_newest_is_kept_beside_a_later_one_that_is_damaged(tmp_path: Path) -> None:
    flip(save(tmp_path, 40) / "optimizer.pt")
    newest = save(tmp_path, 30)
    remove_old_checkpoints(newest, best=None, limit=1)
    assert checkpoints_in(tmp_path) == [newest]
