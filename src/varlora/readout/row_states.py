"""Hidden states of rows: in memory up to a bound, in memory-mapped safetensors files beyond it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from varlora.io.files import MEBIBYTE

logger = logging.getLogger(__name__)

BLOCKS = 8
"""A file takes one part in so many of what may be in memory."""


class RowStates:
    """The states of rows by key, each as it was given: same numbers, same data type.

    Where those in memory would be more than the bound, the oldest of them go into a file, which is mapped: it is read
    as memory is, and the system may drop its pages and read them again. `close` removes the files.

    Args:
        memory: bytes of states to hold in memory, on the device of the states; at most one row more for a moment, and
            an eighth of it while a file is written.
        folder: where the files go, which are made in a folder of their own; None: the system's temporary folder.

    Raises:
        ValueError: the bound is not positive.

    Example:
        >>> states = RowStates(memory=64)                    # four tokens of four numbers
        >>> for row in range(3):
        ...     states[row] = torch.full((2, 4), float(row))
        >>> states[0].tolist() == [[0.0] * 4] * 2, states.bytes_in_memory, states.num_files
        (True, 64, 1)
        >>> states.close()
    """

    def __init__(self, *, memory: int, folder: Path | None = None) -> None:
        if memory < 1:
            raise ValueError(f"memory is {memory} bytes; it must be positive.")
        self.memory = memory
        self.folder = folder
        self.bytes_in_memory = 0
        self.num_files = 0
        self._states: dict[Hashable, Tensor] = {}
        self._in_memory: dict[Hashable, int] = {}
        self._files: Path | None = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._states

    def __getitem__(self, key: Hashable) -> Tensor:
        return self._states[key]

    def __setitem__(self, key: Hashable, states: Tensor) -> None:
        """Keeps a row's states (tokens, width), which must not be known yet."""
        if key in self._states:
            raise ValueError(f"the states of {key!r} are known already.")
        self._states[key] = states
        self._in_memory[key] = states.nbytes
        self.bytes_in_memory += states.nbytes
        while self.bytes_in_memory > self.memory:
            self._write_oldest()

    def close(self) -> None:
        """Forgets all states and removes the files."""
        self._states.clear()
        self._in_memory.clear()
        self.bytes_in_memory = 0
        if self._files is not None:
            shutil.rmtree(self._files)
            self._files = None

    def _write_oldest(self) -> None:
        if self._files is None:
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._files = Path(tempfile.mkdtemp(prefix="frozen-layers-", dir=self.folder))
            logger.info(
                "%.0f MiB of frozen layers' states are in memory; the others go to %s until the run ends",
                *(self.bytes_in_memory / MEBIBYTE, self._files),
            )
        block: list[Hashable] = []
        size, kind = 0, None
        for key, nbytes in self._in_memory.items():
            if kind not in (None, self._states[key].dtype):
                break
            block.append(key)
            size, kind = size + nbytes, self._states[key].dtype
            if size >= self.memory / BLOCKS:
                break
        rows = [self._states[key] for key in block]
        file = self._files / f"{self.num_files}.safetensors"
        save_file({"states": torch.cat(rows).cpu()}, file)
        with safe_open(file, framework="pt") as opened:
            mapped = opened.get_tensor("states").split([len(row) for row in rows])
        for key, states in zip(block, mapped, strict=True):
            self._states[key] = states
            self.bytes_in_memory -= self._in_memory.pop(key)
        self.num_files += 1
