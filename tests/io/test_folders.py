"""Folders appear whole or not at all."""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path

import pytest

from killed_saves import outcomes
from varlora.io import folders
from varlora.io.folders import FolderExistsError, atomic_folder, check_can_be_folder, check_target, find_interrupted


def write(target: Path, text: str, *, overwrite: bool = False) -> None:
    with atomic_folder(target, overwrite=overwrite) as folder:
        (folder / "posterior.json").write_text(text)
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=["swap", "renames"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "renames":
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)


def test_a_new_folder_appears_at_the_end_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with atomic_folder(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert contents(target) == {"file": "x"}
    assert os.listdir(target.parent) == ["b"]


@pytest.mark.usefixtures("_way")
def test_overwriting_replaces_the_whole_folder_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    (target / "more").write_text("old")
    write(target, "new", overwrite=True)
    assert contents(target) == {"posterior.json": "new", "inner/file": "new"}
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    write(target, "old")

    def fail() -> None:
        with atomic_folder(target, overwrite=True) as folder:
            (folder / "posterior.json").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(target) == {"posterior.json": "old", "inner/file": "old"}
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new")
    assert contents(tmp_path / "out")["posterior.json"] == "new"


def test_a_folder_that_is_not_empty_needs_overwrite(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(FolderExistsError, match=r"out is not empty \(inner, posterior.json.*--overwrite"):
        write(tmp_path / "out", "new")
    assert contents(tmp_path / "out")["posterior.json"] == "old"


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderExistsError, match=r"not written by varlora.*holds no posterior.json.*thesis.tex"):
        write(tmp_path, "new", overwrite=True)
    assert contents(tmp_path) == {"thesis.tex": "years of work"}


def test_a_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(FolderExistsError, match="out is a file"):
        check_target(tmp_path / "out", overwrite=True)


def test_a_target_that_appears_meanwhile_is_kept_and_so_is_the_result(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def race() -> None:
        with atomic_folder(target) as folder:
            (folder / "posterior.json").write_text("mine")
            write(target, "theirs")

    with pytest.raises(FolderExistsError, match=r"finished folder is kept as .*\.out\.new-") as caught:
        race()
    assert contents(target)["posterior.json"] == "theirs"
    [kept] = find_interrupted(target)
    assert str(kept) in str(caught.value)
    assert contents(kept) == {"posterior.json": "mine"}


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real")["posterior.json"] == "new"


def test_what_an_interrupted_save_left_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".out.new-0123cdef").mkdir()
    (tmp_path / ".out.new-mine").mkdir()
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "out", "new")
    assert ".out.new-0123cdef" in caplog.text
    assert "mine" not in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="SIGKILL, and renameat2 to swap folders")
def test_a_kill_leaves_the_old_or_the_new_never_half(tmp_path: Path) -> None:
    found = {mode: outcomes(tmp_path / mode, mode) for mode in ("first", "swap", "renames")}
    assert set(found["first"]) == {"nothing", "new"}
    assert set(found["swap"]) == {"old", "new"}
    assert set(found["renames"]) == {"old", "new", "said"}
    assert found["renames"].count("said") == 1  # between the two renames
    assert all(len(outcomes) > 8 and outcomes[-1] == "new" for outcomes in found.values())


def test_what_is_on_the_way_to_a_folder_must_be_folders(tmp_path: Path) -> None:
    check_can_be_folder(tmp_path)
    check_can_be_folder(tmp_path / "new" / "inner")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder, said in (
        (tmp_path / "file", f"{tmp_path / 'file'} is a file"),
        (tmp_path / "file" / "inner", f"{tmp_path / 'file'} is a file"),
        (tmp_path / "link", f"{tmp_path / 'link'} is a link to nothing"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{folder} cannot be a folder: {said}. Choose another")):
            check_can_be_folder(folder)


def test_only_names_of_our_making_are_taken_for_interrupted_saves(tmp_path: Path) -> None:
    for name in (".run.new-0123abcd", ".run.old-0123abcd", ".run.new-notes", ".run.old-2024", ".run.new-0123abcd.txt"):
        (tmp_path / name).mkdir()
    assert [path.name for path in find_interrupted(tmp_path / "run")] == [".run.old-0123abcd", ".run.new-0123abcd"]
