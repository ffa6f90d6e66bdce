"""Hidden states of rows in a folder, for every run of the same frozen layers: written once, read by any process.

    FOLDER/LAYERS/ROWS.safetensors

LAYERS is a hash of all that the states depend on but the row: the frozen weights bit for bit, the model's
configuration, which layers, versions, and what rounds otherwise (device, threads). A file is written whole or not at
all, and never changed; each of its rows has a checksum, which is compared when the row is first read. Two processes
that compute the same row write the same numbers. The folder is a cache: it may be deleted whenever nothing runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from varlora.io.folders import atomic_file
from varlora.readout.trunks import Trunk

logger = logging.getLogger(__name__)

FORMAT = "1"
DIGEST = 32
ROWS_PER_FILE = 32
"""At least, but for the last file of a block; an eighth of what is known, so that there are few files."""


class SharedRowStates:
    """The states of rows by key: those in a folder, and those that this process adds.

    States that are read are mapped: they are in memory as far as the system likes. They are on the processor.

    Args:
        folder: it must be there.
        fingerprint: of what the states depend on but the row (`states_fingerprint`).
        memory: bytes of states that may wait to be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> states = SharedRowStates(folder, "ab" * 32, memory=2**20)
        >>> states[b"a row"] = torch.ones(2, 4)
        >>> states.close()
        >>> other = SharedRowStates(folder, "ab" * 32, memory=2**20)
        >>> b"a row" in other, b"another" in other, other[b"a row"].tolist() == [[1.0] * 4] * 2
        (True, False, True)
    """

    def __init__(self, folder: Path, fingerprint: str, *, memory: int) -> None:
        self.folder = folder / fingerprint[:16]
        self.fingerprint = fingerprint
        self.memory = memory
        self._states: dict[bytes, Tensor] = {}
        self._checksums: dict[bytes, bytes] = {}
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._seen: set[str] = set()

    def __contains__(self, key: bytes) -> bool:
        digest = hashlib.sha256(key).digest()
        if digest not in self._states:
            self._look()
        if digest in self._checksums and _checksum(self._states[digest]) != self._checksums.pop(digest):
            logger.warning("states of a row in %s are damaged (their checksum differs); computed anew", self.folder)
            del self._states[digest]
        return digest in self._states

    def __getitem__(self, key: bytes) -> Tensor:
        if key not in self:
            raise KeyError(key)
        return self._states[hashlib.sha256(key).digest()]

    def __setitem__(self, key: bytes, states: Tensor) -> None:
        """Keeps a row's states (tokens, width), unless another process has written the same meanwhile."""
        if key in self:
            return
        digest = hashlib.sha256(key).digest()
        self._states[digest] = states.detach().cpu()
        self._waiting.append(digest)
        self._waiting_bytes += states.nbytes
        if len(self._waiting) >= max(ROWS_PER_FILE, len(self._states) // 8) or self._waiting_bytes >= self.memory:
            self._write()

    def close(self) -> None:
        """Writes what has not been written, and forgets all states."""
        self._write()
        self._states.clear()
        self._checksums.clear()
        self._seen.clear()

    def _look(self) -> None:
        """Learns of rows in files that were not there before."""
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name not in self._seen:
                self._seen.add(file.name)
                try:
                    self._read(file)
                except (ValueError, OSError, SafetensorError) as error:
                    logger.warning("%s is left aside, and its rows are computed anew: %s", file, error)

    def _read(self, file: Path) -> None:
        if not file.is_file():
            raise ValueError("it is no regular file")
        with safe_open(file, framework="pt") as opened:
            if (opened.metadata() or {}) != {"format": FORMAT, "fingerprint": self.fingerprint}:
                raise ValueError("it holds no states of these layers")
            if set(opened.keys()) != {"states", "rows", "lengths"}:
                raise ValueError("it holds other tensors than states do")
            states, rows, lengths = (opened.get_tensor(name) for name in ("states", "rows", "lengths"))
        each = [int(n) for n in lengths]
        if states.ndim != 2 or rows.shape != (len(each), 2 * DIGEST) or min(each) < 1 or sum(each) != len(states):
            raise ValueError("its tensors do not fit together")
        for name, part in zip(rows.to(torch.uint8), states.split(each), strict=True):
            digest, checksum = name[:DIGEST].numpy().tobytes(), name[DIGEST:].numpy().tobytes()
            if digest not in self._states:
                self._states[digest] = part
                self._checksums[digest] = checksum

    def _write(self) -> None:
        """Writes the rows that wait, by data type and width, and takes them from the files, mapped, from then on."""
        kinds: dict[tuple[torch.dtype, int], list[bytes]] = {}
        for digest in self._waiting:
            states = self._states[digest]
            kinds.setdefault((states.dtype, states.shape[1]), []).append(digest)
        self._waiting, self._waiting_bytes = [], 0
        for digests in kinds.values():
            rows = [self._states[digest] for digest in digests]
            names = b"".join(digest + _checksum(states) for digest, states in zip(digests, rows, strict=True))
            tensors = {
                "states": torch.cat(rows),
                "rows": torch.frombuffer(bytearray(names), dtype=torch.uint8).view(len(rows), 2 * DIGEST),
                "lengths": torch.tensor([len(states) for states in rows]),
            }
            file = self.folder / f"{hashlib.sha256(names).hexdigest()[:32]}.safetensors"
            try:
                with atomic_file(file, overwrite=True) as new:
                    save_file(tensors, new, metadata={"format": FORMAT, "fingerprint": self.fingerprint})
            except (OSError, SafetensorError) as error:
                logger.warning("states of %d rows are not shared: %s cannot be written (%s)", len(rows), file, error)
                continue
            self._seen.add(file.name)
            for digest in digests:
                del self._states[digest]
            try:
                self._read(file)
            except (ValueError, OSError, SafetensorError) as error:
                logger.warning(
                    "%s was written and does not read; its %d rows are kept here: %s", file, len(rows), error
                )
                for digest, states in zip(digests, rows, strict=True):
                    self._states.setdefault(digest, states)


def states_fingerprint(trunk: Trunk, layers: int) -> str:
    """A hash of all that the states of a trunk's rows depend on but the row.

    Args:
        trunk: the model's.
        layers: how many of its lowest layers are frozen.

    Raises:
        ValueError: weights are not at hand (offloaded or sharded).
    """
    module = trunk.module
    config: Any = module.config
    outside = list(trunk.layers[layers:])
    outside += [part for part in module.modules() if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    left_out = {id(t) for part in outside for t in (*part.parameters(), *part.buffers())}
    prefixes = tuple(f"{name}." for name, part in module.named_modules() if any(part is other for other in outside))
    tensors = dict(module.state_dict(keep_vars=True)) | dict(module.named_buffers())
    device = next(trunk.embeddings.parameters()).device
    facts = {
        "format": FORMAT,
        "model": type(module).__name__,
        "config": {name: value for name, value in config.to_dict().items() if name not in NAMES},
        "attention": getattr(config, "_attn_implementation", None),
        "layers": layers,
        "versions": [torch.__version__, transformers.__version__],
        "rounding": [torch.get_num_threads(), torch.get_float32_matmul_precision(), *_processor(device)],
    }
    total = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, t in sorted(tensors.items()):
        if not isinstance(t, Tensor) or id(t) in left_out or name.startswith(prefixes):
            continue
        if t.is_meta or hasattr(t, "full_tensor"):
            raise ValueError(
                f"frozen_layers_dir needs every frozen weight at hand to know whose states it holds, and {name} is "
                "offloaded or sharded. Leave it out."
            )
        total.update(f"{name} {t.dtype} {tuple(t.shape)};".encode())
        total.update(_bytes_of(t))
    return total.hexdigest()


NAMES = ("_name_or_path", "id2label", "label2id", "transformers_version")
"""Of a configuration: what a base model is called, and its classes."""


def _processor(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device)]
    return [str(device), platform.machine(), torch.backends.cpu.get_cpu_capability()]


def _checksum(states: Tensor) -> bytes:
    return hashlib.sha256(_bytes_of(states)).digest()


def _bytes_of(t: Tensor) -> Any:
    """The entries' bytes, to hash."""
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
