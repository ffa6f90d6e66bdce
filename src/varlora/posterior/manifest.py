"""`posterior.json`: read with every check, and its `meta.tuned` written anew without touching another file."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varlora.io import files
from varlora.io.files import LARGEST_JSON
from varlora.io.folders import atomic_file, find_interrupted
from varlora.posterior import KINDS, PointMass, PosteriorMeta, PredictionConfig
from varlora.posterior.prediction_config import upgrade_tuned

FORMAT_VERSION = 4
_READ = (1, 2, 3, 4)
MANIFEST = "posterior.json"
BESIDE = "posterior.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_MEAN = "adapter_model.safetensors"
PLAIN_MEAN = "mean.safetensors"

COPY_AGAIN = "Copy the folder again from its source, or save the posterior anew."


class CheckpointError(ValueError):
    """A folder that is no sound posterior; the message names the file and what to do."""


def meta_fields(meta: PosteriorMeta) -> dict[str, Any]:
    """`meta` as posterior.json holds it: without the adapter's config, and some fields only where they say something.

    So the file of a posterior that was never tuned does not depend on whether this version knows of tuning.
    """
    held = {name: value for name, value in meta.to_dict().items() if name != "adapter_config"}
    optional = ("tuned", "base_fingerprint", "base_loading", "task")
    return {name: value for name, value in held.items() if name not in optional or value is not None}


def write_tuned(
    folder: str | os.PathLike[str], tuned: PredictionConfig | None, history: Sequence[Mapping[str, Any]]
) -> None:
    """Writes posterior.json anew with another `meta.tuned` and `meta.history`, whole or not at all.

    Nothing else in the file changes, but for the step to this format, and no other file: a kill leaves the old content
    or the new.

    Args:
        folder: a posterior folder.
        tuned: what to predict with; None takes the field out.
        history: the whole history.

    Raises:
        CheckpointError: posterior.json is not sound.
        ValueError: `history` is not what `PosteriorMeta` takes.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from varlora import PointMass, PredictionConfig, load_posterior, save_posterior
        >>> folder = save_posterior(PointMass(mean={"w": torch.ones(1)}), Path(tempfile.mkdtemp()) / "q")
        >>> before = (folder / MANIFEST).read_bytes()
        >>> write_tuned(folder, PredictionConfig(mode="mean", logit_temperature=1.5), [{"op": "tune"}])
        >>> load_posterior(folder).meta.tuned.logit_temperature
        1.5
        >>> write_tuned(folder, None, [])
        >>> (folder / MANIFEST).read_bytes() == before
        True
    """
    manifest = read_manifest(Path(folder))
    meta = {name: value for name, value in manifest["meta"].items() if name != "tuned"}
    meta["history"] = list(PosteriorMeta(tuned=tuned, history=tuple(history)).history)
    if tuned is not None:
        meta["tuned"] = tuned.to_dict()
    manifest["meta"] = meta
    manifest["sha256"] = sha256(to_json(manifest))
    with atomic_file(Path(folder) / MANIFEST, overwrite=True) as file:
        file.write_bytes(to_json(manifest))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked content of posterior.json in this version's format, without its own hash.

    Raises:
        CheckpointError: it is missing, changed, of a newer format or kind, or incomplete.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        left = ", ".join(str(sibling) for sibling in find_interrupted(folder))
        hint = f" An interrupted save left {left}: rename the one you want to {folder}." if left else ""
        raise CheckpointError(f"{folder} is not a folder that exists.{hint}")
    if not path.exists():
        hint = "Give a folder written by save_posterior."
        if (folder / "optimizer.pt").is_file():
            hint = (
                "This is a Trainer's checkpoint without a posterior beside it: use posterior_from_checkpoint(folder)."
            )
        elif (folder / ADAPTER_MEAN).is_file():
            hint = "This is a plain adapter without a posterior: load it with PEFT."
        raise CheckpointError(f"{path} does not exist. {hint}")
    manifest = parse_json(path, read_bytes(path, largest=LARGEST_JSON))
    version = manifest.get("format_version")
    if version not in _READ or isinstance(version, bool):
        raise CheckpointError(
            f"{path} has format version {version!r}; this varlora ({library_version('varlora')}) reads "
            f"{', '.join(map(str, _READ))}. If the version is higher, install a newer varlora."
        )
    stated = manifest.pop("sha256", None)
    if stated != sha256(to_json(manifest)):
        raise CheckpointError(f"{path} was changed or damaged after it was written. {COPY_AGAIN}")
    if not isinstance(manifest.get("kind"), str) or manifest["kind"] not in KINDS:
        raise CheckpointError(
            f"{path} is of kind {manifest.get('kind')!r}; this varlora reads {', '.join(KINDS)}. Install a newer one."
        )
    listed: Any = manifest.get("files")
    if not isinstance(listed, dict):
        listed = {}
    adapter = ADAPTER_CONFIG in listed
    expected = {mean_file(adapter)} | ({ADAPTER_CONFIG} if adapter else set())
    if manifest["kind"] != PointMass.kind:
        expected.add(BESIDE)
    if set(listed) != expected or not isinstance(manifest.get("meta"), dict):
        raise CheckpointError(f"{path} must list exactly {sorted(expected)} and hold meta. {COPY_AGAIN}")
    if not all(map(_is_entry, listed.values())):
        raise CheckpointError(f"{path} must give size and sha256 of each of its files. {COPY_AGAIN}")
    if version < 3:
        try:
            manifest["meta"] = _upgrade_meta(manifest["meta"])
        except ValueError as error:
            raise CheckpointError(f"{path}: {error} {COPY_AGAIN}") from error
    return {**manifest, "format_version": FORMAT_VERSION}


def read_whole_manifest(folder: Path) -> dict[str, Any]:
    """Checks and returns a folder's posterior.json, all of whose files are there.

    Raises:
        CheckpointError: as `read_manifest`; or a file is missing.
    """
    manifest = read_manifest(folder)
    if missing := [str(folder / name) for name in manifest["files"] if not (folder / name).exists()]:
        verb = "does not exist" if len(missing) == 1 else "do not exist"
        raise CheckpointError(f"{', '.join(missing)} {verb}, and {MANIFEST} says what is in it. {COPY_AGAIN}")
    return manifest


def _upgrade_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` of formats 1 and 2, which had T in two fields, and τ, S and T of what was tuned beside "pruned"."""
    former = ("logit_temperature", "logit_temperature_by_mode", "tuned")
    upgraded = {name: value for name, value in meta.items() if name not in former}
    of_point, by_mode = meta.get("logit_temperature", 1.0), meta.get("logit_temperature_by_mode") or {}
    if not isinstance(by_mode, Mapping):
        raise ValueError(f"meta.logit_temperature_by_mode is {by_mode!r}; it must map modes to numbers.")
    if of_point != 1 or by_mode:
        upgraded["logit_temperatures"] = {"mean": of_point, **by_mode}
    if meta.get("tuned") is not None:
        try:
            upgraded["tuned"] = upgrade_tuned(meta["tuned"])
        except ValueError as error:
            raise ValueError(f"meta.tuned: {error}") from error
    return upgraded


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("size"), int) and isinstance(value.get("sha256"), str)


def read_bytes(path: Path, *, largest: int | None = None) -> bytes:
    """A file of the folder.

    Raises:
        CheckpointError: there is none, it is no regular file, or larger than it may be.
    """
    try:
        return files.read_bytes(path, largest=largest)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist. {COPY_AGAIN}") from error
    except ValueError as error:
        raise CheckpointError(f"{error} {COPY_AGAIN}") from error


def mean_file(adapter: bool) -> str:
    """The name of the file that holds the point."""
    return ADAPTER_MEAN if adapter else PLAIN_MEAN


def to_json(value: Mapping[str, Any]) -> bytes:
    """The one spelling of a JSON object that hashes are taken of."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def parse_json(path: Path, data: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: it is none.
    """
    try:
        value = files.parse_json(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is not sound JSON ({error}). {COPY_AGAIN}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not a {type(value).__name__}. {COPY_AGAIN}")
    return value


def sha256(data: bytes) -> str:
    """The hash as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@functools.cache
def library_version(library: str) -> str:
    """The installed version; "unknown" for a library that is not. It is read from its files once a process."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
