"""Folders that appear whole or not at all.

A result is written into a hidden sibling, flushed to disk, and put in place by one rename. Where the target
exists already, Linux swaps the two folders in one system call; elsewhere the old one is renamed away first, so
that a kill between the two renames leaves both, complete, beside the target (`find_interrupted` finds them). A kill
at any other moment leaves the old folder or the new one under the target's name, and at most a hidden sibling
to delete.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class FolderExistsError(ValueError):
    """The target folder holds files that may not be replaced."""


def check_can_be_folder(folder: str | os.PathLike[str], *, option: str = "output_dir") -> None:
    """Refuses a folder that is not there and cannot be made, since something on its path is a file.

    Args:
        folder: the folder.
        option: that names it, for the message.

    Raises:
        ValueError: something is.

    Example:
        >>> import tempfile
        >>> check_can_be_folder(Path(tempfile.mkdtemp()) / "new" / "inner")
    """
    for place in (Path(folder), *Path(folder).parents):
        if os.path.lexists(place):
            if not place.is_dir():
                what = "a file" if place.exists() else "a link to nothing"
                raise ValueError(
                    f"{folder} cannot be a folder: {place} is {what}. Choose another {option} (--{option})."
                )
            return


@contextmanager
def atomic_folder(
    target: str | os.PathLike[str], *, overwrite: bool = False, marker: str = "posterior.json"
) -> Iterator[Path]:
    """Yields a new folder to write into; when the block ends well, it takes the target's place as a whole.

    When the block raises, nothing has changed. What a replaced folder held is deleted, all of it.

    Args:
        target: the folder to create; parents are created, a symbolic link is followed.
        overwrite: replace a folder that is not empty.
        marker: a file that a folder must hold to be replaced, so that no foreign folder is ever deleted.

    Raises:
        FolderExistsError: see `check_target`. If the target appeared while the block ran, the finished folder
            is kept and the message says where.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "result"
        >>> with atomic_folder(target) as folder:
        ...     _ = (folder / "posterior.json").write_text("{}")
        ...     target.exists()
        False
        >>> [path.name for path in target.iterdir()]
        ['posterior.json']
    """
    target = Path(os.path.realpath(target))
    check_target(target, overwrite=overwrite, marker=marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    if left := find_interrupted(target):
        logger.warning("an interrupted save left %s; delete what you do not need", ", ".join(map(str, left)))
    work = _sibling(target, "new")
    work.mkdir()
    try:
        yield work
        flush(work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    try:
        _publish(work, target, overwrite, marker)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the finished folder is kept as {work}") from error


@contextmanager
def atomic_file(target: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new file's path to write to; when the block ends well, the file takes the target's place.

    Raises:
        FolderExistsError: the target exists and `overwrite` is false.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> with atomic_file(target) as file:
        ...     _ = file.write_text("{}")
        >>> target.read_text()
        '{}'
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _sibling(target, "new")
    try:
        yield work
        _flush_entry(work)
        if os.path.lexists(target) and not overwrite:
            raise FolderExistsError(f"{target} exists; choose another file, or replace this one with --overwrite.")
        os.replace(work, target)
        _flush_entry(target.parent)
    finally:
        work.unlink(missing_ok=True)


def check_target(target: str | os.PathLike[str], *, overwrite: bool = False, marker: str = "posterior.json") -> None:
    """Refuses a target that `atomic_folder` may not write to; call it before hours of work.

    Raises:
        FolderExistsError: the target is a file; or it is not empty and `overwrite` is false, or it holds no
            `marker`.
    """
    target = Path(target)
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise FolderExistsError(f"{target} is a file; give the name of a folder.")
    names = sorted(os.listdir(target))
    if not names:
        return
    if not overwrite:
        raise FolderExistsError(
            f"{target} is not empty ({', '.join(names[:4])}, ...); choose another folder, or replace this one with "
            "overwrite=True (--overwrite)."
        )
    if marker not in names:
        raise FolderExistsError(
            f"{target} was not written by varlora (it holds no {marker}), so it is not replaced: that would delete "
            f"{', '.join(names[:4])}, ... Choose another folder, or delete this one yourself."
        )


def find_interrupted(target: str | os.PathLike[str]) -> list[Path]:
    """Hidden siblings of `target` that an interrupted save left, old ones first."""
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        return []
    name = re.compile(rf"\.{re.escape(target.name)}\.(old|new)-[0-9a-f]{{8}}")
    siblings = (path for path in target.parent.iterdir() if name.fullmatch(path.name))
    return sorted(siblings, key=lambda path: (".new-" in path.name, path.name))


def content_in_words(folder: str | os.PathLike[str], *, most: int = 5) -> str:
    """What an existing folder holds, for messages.

    Args:
        folder: the folder.
        most: names of files and folders; further ones are counted.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> content_in_words(folder)
        'is empty'
        >>> for name in "abc":
        ...     (folder / name).mkdir()
        >>> content_in_words(folder, most=2)
        'holds a/, b/ and 1 more'
    """
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in Path(folder).iterdir())
    if not names:
        return "is empty"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"holds {', '.join(names[:most])}{more}"


def _publish(work: Path, target: Path, overwrite: bool, marker: str) -> None:
    try:
        os.rename(work, target)  # onto nothing, or (POSIX) onto an empty folder
    except OSError:
        if not target.is_dir():
            raise
        try:
            check_target(target, overwrite=overwrite, marker=marker)
        except FolderExistsError as error:
            raise FolderExistsError(f"{error} The finished folder is kept as {work}.") from error
        old = _replace(work, target)
        _flush_entry(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        if old.exists():
            logger.warning("could not delete all of %s, which was replaced; delete it yourself", old)
    else:
        _flush_entry(target.parent)


def _replace(work: Path, target: Path) -> Path:
    """Puts `work` in the place of `target`, and returns where the old folder now is."""
    if _exchange(work, target):
        return work
    old = _sibling(target, "old")
    os.rename(target, old)
    try:
        os.rename(work, target)
    except OSError:
        os.rename(old, target)
        raise
    return old


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def flush(folder: Path) -> None:
    """Flushes every file of a folder, and the folder's own entries, to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _flush_entry(Path(parent, name))
        _flush_entry(Path(parent))


def _flush_entry(path: Path) -> None:
    if path.is_dir():
        if os.name != "posix":
            return  # Windows cannot flush a folder, and needs no flush for a rename
        with contextlib.suppress(OSError):  # nor can some network file systems
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}-{secrets.token_hex(4)}")
