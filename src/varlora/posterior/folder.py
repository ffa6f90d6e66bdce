"""The posterior folder: an ordinary PEFT adapter that holds the mean, and beside it what makes it a posterior.

    adapter_config.json          as PEFT writes it
    adapter_model.safetensors    the point (a Gaussian's mean): PEFT and vLLM load and merge it without varlora
    posterior.safetensors        what the kind keeps beside it (a diagonal Gaussian: precision = 1/variance, same keys,
                                 float32); absent for a point mass
    posterior.json               format version, kind, meta, library versions, size and SHA-256 of the other files

For a plain module, `mean.safetensors` takes the place of the adapter's two files. Equal posteriors give equal
bytes. Saving is atomic (`varlora.io.folders`); loading checks everything before it returns anything, reads no
pickle and runs nothing from the folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from varlora.adapters import refuse_foreign, refuse_large
from varlora.io.files import LARGEST_JSON
from varlora.io.folders import atomic_folder
from varlora.posterior import KINDS, Posterior, PosteriorMeta
from varlora.posterior.manifest import (
    ADAPTER_CONFIG,
    BESIDE,
    COPY_AGAIN,
    FORMAT_VERSION,
    MANIFEST,
    CheckpointError,
    library_version,
    mean_file,
    meta_fields,
    parse_json,
    read_bytes,
    read_whole_manifest,
    sha256,
    to_json,
)

__all__ = [
    "MANIFEST",
    "CheckpointError",
    "load_posterior",
    "save_posterior",
    "write_posterior_beside",
    "write_posterior_files",
]

logger = logging.getLogger(__name__)

_LIBRARIES = ("varlora", "torch", "transformers", "peft", "safetensors")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")  # torch.save's zip archive; a bare pickle


def save_posterior(q: Posterior, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Writes a posterior folder, whole or not at all.

    Args:
        q: the posterior.
        folder: where to; parents are created.
        overwrite: replace a folder that varlora wrote, with everything in it. No other folder is ever replaced.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is not empty and `overwrite` is false, or it is not varlora's; or the posterior's
            tensors were changed since and no longer fit. The folder is then as it was.

    Example:
        >>> import tempfile, torch
        >>> from varlora.posterior import DiagonalGaussian
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(2)}, precision={"w": torch.ones(2)})
        >>> folder = save_posterior(q, Path(tempfile.mkdtemp()) / "posterior")
        >>> sorted(path.name for path in folder.iterdir())
        ['mean.safetensors', 'posterior.json', 'posterior.safetensors']
        >>> load_posterior(folder).variance["w"]
        tensor([1., 1.])
    """
    with atomic_folder(folder, overwrite=overwrite, marker=MANIFEST) as new:
        write_posterior_files(q, new)
    return Path(folder)


def write_posterior_files(q: Posterior, folder: Path) -> None:
    """Writes a posterior's files into an existing folder, `posterior.json` last.

    For folders that hold more than a posterior: write into an `atomic_folder`.

    Raises:
        ValueError: as `save_posterior`.
    """
    beside = q.tensors()
    KINDS[q.kind].from_tensors(q.point, beside, q.meta)  # tensors that were changed since must still fit together
    files: dict[str, bytes] = {}
    if q.meta.adapter_config is not None:
        files[ADAPTER_CONFIG] = to_json(q.meta.adapter_config)
    files[mean_file(q.meta.adapter_config is not None)] = tensor_bytes(q.point)
    if beside:
        files[BESIDE] = tensor_bytes(beside)
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "kind": q.kind,
        "meta": meta_fields(q.meta),
        "ess_over_num_examples": q.meta.ess / q.meta.num_examples if q.meta.ess and q.meta.num_examples else None,
        "num_entries": sum(m.numel() for m in q.point.values()),
        "files": {name: {"size": len(data), "sha256": sha256(data)} for name, data in files.items()},
        "versions": {name: library_version(name) for name in _LIBRARIES},
    }
    manifest["sha256"] = sha256(to_json(manifest))
    for name, data in {**files, MANIFEST: to_json(manifest)}.items():
        (folder / name).write_bytes(data)


def write_posterior_beside(q: Posterior, folder: Path) -> None:
    """Writes a posterior's files over those of an existing folder that holds the same adapter, as a trainer's does.

    A kill on the way leaves a folder without posterior.json, which is no posterior, never one with another's mean.

    Raises:
        ValueError: as `save_posterior`.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    write_posterior_files(q, folder)


def load_posterior(folder: str | os.PathLike[str], *, base_model: str | None = None) -> Posterior:
    """Reads a posterior folder, after checking that it is complete, unchanged and sound.

    Args:
        folder: what `save_posterior` wrote.
        base_model: if given, the name or path of the model it is going to be used with: must be the one it was
            trained on. `varlora.adapters.base_model_of(model)[0]` says it for a loaded model.

    Raises:
        CheckpointError: a file is missing, truncated, changed, of a newer format, a pickle; its tensors do not
            fit or are not finite; the base model is another. The message names the file and what to do.
    """
    folder = Path(folder)
    manifest = read_whole_manifest(folder)
    where = folder / MANIFEST
    contents = {name: _read_checked(folder / name, entry) for name, entry in manifest["files"].items()}
    config = None
    if ADAPTER_CONFIG in contents:
        config = adapter_config_in(folder / ADAPTER_CONFIG, contents[ADAPTER_CONFIG])
    try:
        meta = PosteriorMeta.from_dict({**manifest["meta"], "adapter_config": config})
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where}: {error} {COPY_AGAIN}") from error
    _check_base_model(where, meta.base_model, base_model)

    path = folder / mean_file(config is not None)
    point = tensors_in(path, contents[path.name])
    beside = tensors_in(folder / BESIDE, contents[BESIDE]) if BESIDE in contents else {}
    if config is not None:
        check_ranks(folder / ADAPTER_CONFIG, config, point)
    try:
        q: Posterior = KINDS[manifest["kind"]].from_tensors(point, beside, meta)
    except ValueError as error:
        named = path if not beside else f"{path} or {folder / BESIDE}"
        raise CheckpointError(f"{named}: {error} {COPY_AGAIN}") from error
    return q


def adapter_config_in(path: Path, data: bytes) -> dict[str, Any]:
    """An adapter's configuration, from the bytes of its file.

    Raises:
        CheckpointError: it is none, or of a kind that is no LoRA.
    """
    config = parse_json(path, data)
    try:
        refuse_foreign(config)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config


def check_ranks(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuses a configuration with ranks that its tensors do not have.

    Raises:
        CheckpointError: there is one.
    """
    try:
        refuse_large(config, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error} {COPY_AGAIN}") from error


def _read_checked(path: Path, expected: Mapping[str, Any]) -> bytes:
    data = read_bytes(path, largest=max(expected["size"], LARGEST_JSON))
    _refuse_pickle(path, data)
    if len(data) != expected["size"]:
        kind = "truncated" if len(data) < expected["size"] else "not the file that was written"
        raise CheckpointError(f"{path} is {kind}: {len(data)} bytes of {expected['size']}. {COPY_AGAIN}")
    if sha256(data) != expected["sha256"]:
        raise CheckpointError(f"{path} was changed or damaged after it was written (SHA-256 differs). {COPY_AGAIN}")
    return data


def _refuse_pickle(path: Path, data: bytes) -> None:
    # A safetensors file begins with the length of its header, whose first byte can be a pickle's 0x80, then has "{".
    if data.startswith(_PICKLE_STARTS) and data[8:9] != b"{":
        raise CheckpointError(
            f"{path} is a pickle (torch.save), whatever its name says; varlora does not open pickles, since they can "
            "run code. Save the posterior anew with save_posterior."
        )


def tensors_in(path: Path, data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, from its bytes.

    Raises:
        CheckpointError: it is none.
    """
    _refuse_pickle(path, data)
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, LookupError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path} is not a sound safetensors file ({error}). {COPY_AGAIN}") from error


def _check_base_model(path: Path, trained_on: str | None, given: str | None) -> None:
    if given is None:
        return
    if trained_on is None:
        logger.warning("%s does not say its base model, so %s could not be compared with it", path, given)
    elif trained_on != given and os.path.realpath(trained_on) != os.path.realpath(given):
        raise CheckpointError(
            f"{path} was trained on base model {trained_on!r}, not on {given!r}. Load it with {trained_on!r}; if both "
            "are the same model under two names, leave base_model out."
        )


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of these tensors; equal tensors give equal bytes."""
    cpu = {key: t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()}
    return safetensors.torch.save(cpu, metadata={"format": "pt"})
