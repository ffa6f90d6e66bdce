"""The posterior folder: an ordinary PEFT adapter that holds the mean, and beside it what makes it a posterior.

    adapter_config.json          as PEFT writes it
    adapter_model.safetensors    the point (a Gaussian's mean): PEFT and vLLM load and merge it without varlora
    posterior.safetensors        what the kind keeps beside it (a diagonal Gaussian: precision = 1/variance, same keys,
                                 float32); absent for a point mass
    posterior.json               format version, kind, meta, library versions, size and SHA-256 of the other files

For a plain module, `mean.safetensors` takes the place of the adapter's two files. Equal posteriors give equal
bytes. Saving is atomic (`varlora.folders`); loading checks everything before it returns anything, reads no
pickle and runs nothing from the folder.
"""

from __future__ import annotations

import io
import logging
import math
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from varlora.adapters import checkpoint_key, in_fixed_order, refuse_foreign, refuse_large
from varlora.checkpoint_files import listed_damage
from varlora.files import LARGEST_JSON
from varlora.folders import atomic_folder
from varlora.manifest import (
    ADAPTER_CONFIG,
    ADAPTER_MEAN,
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
    read_manifest,
    sha256,
    to_json,
)
from varlora.optim.prior import prior_delta
from varlora.posterior import KINDS, DiagonalGaussian, Posterior, PosteriorMeta
from varlora.posterior.training import counted_examples, prior_means, remaining_temperatures, training_diagnostics

__all__ = [
    "MANIFEST",
    "CheckpointError",
    "load_posterior",
    "posterior_from_checkpoint",
    "save_posterior",
    "write_posterior_beside",
    "write_posterior_files",
]

logger = logging.getLogger(__name__)

_LIBRARIES = ("varlora", "torch", "transformers", "peft", "safetensors")
_UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, LookupError, TypeError, ValueError, OSError),
    *(AttributeError, AssertionError, NotImplementedError, ModuleNotFoundError),
)
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
        >>> import tempfile
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
    files[mean_file(q.meta.adapter_config is not None)] = _tensor_bytes(q.point)
    if beside:
        files[BESIDE] = _tensor_bytes(beside)
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
    manifest = read_manifest(folder)
    where = folder / MANIFEST
    contents = {name: _read_checked(folder / name, entry) for name, entry in manifest["files"].items()}
    config = None
    if ADAPTER_CONFIG in contents:
        config = _adapter_config(folder / ADAPTER_CONFIG, contents[ADAPTER_CONFIG])
    try:
        meta = PosteriorMeta.from_dict({**manifest["meta"], "adapter_config": config})
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{where}: {error} {COPY_AGAIN}") from error
    _check_base_model(where, meta.base_model, base_model)

    path = folder / mean_file(config is not None)
    point = _tensors(path, contents[path.name])
    beside = _tensors(folder / BESIDE, contents[BESIDE]) if BESIDE in contents else {}
    if config is not None:
        _check_ranks(folder / ADAPTER_CONFIG, config, point)
    try:
        q: Posterior = KINDS[manifest["kind"]].from_tensors(point, beside, meta)
    except ValueError as error:
        named = path if not beside else f"{path} or {folder / BESIDE}"
        raise CheckpointError(f"{named}: {error} {COPY_AGAIN}") from error
    return q


def posterior_from_checkpoint(
    folder: str | os.PathLike[str],
    *,
    adapter: str = "default",
    num_examples: int | None = None,
    readout: Mapping[str, Any] | None = None,
) -> DiagonalGaussian:
    """The posterior of a `checkpoint-N` folder that transformers' Trainer saved while IVON trained.

    Needs the weights (`adapter_model.safetensors`, or `model.safetensors` without an adapter) and
    `optimizer.pt`, which is read with `weights_only=True`: no code in it can run.

    Args:
        folder: the checkpoint folder.
        adapter: name of the PEFT adapter.
        num_examples: N, size of the training set, for the record; None: as it was counted for λ.
        readout: how answers are read, `Readout.to_dict()`, for the record.

    Raises:
        CheckpointError: a file is missing or unreadable, the optimizer was not IVON, or weights and optimizer
            do not belong together.
    """
    folder = Path(folder)
    try:
        return _from_checkpoint(folder, adapter, num_examples, readout)
    except CheckpointError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        told = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}."
        raise CheckpointError(f"{folder}: {told} This checkpoint is damaged; take an earlier one.") from error


def _from_checkpoint(
    folder: Path, adapter: str, num_examples: int | None, readout: Mapping[str, Any] | None
) -> DiagonalGaussian:
    files = folder if adapter == "default" else folder / adapter
    config, weights = None, folder / "model.safetensors"
    if (files / ADAPTER_CONFIG).is_file():
        named = files / ADAPTER_CONFIG
        config = in_fixed_order(_adapter_config(named, read_bytes(named, largest=LARGEST_JSON)))
        weights = files / ADAPTER_MEAN
    if (damage := listed_damage(folder, weights.relative_to(folder).as_posix(), "optimizer.pt")) is not None:
        raise CheckpointError(f"{folder} is {damage}. Take another checkpoint.")
    saved = _tensors(weights, read_bytes(weights))
    if config is not None:
        _check_ranks(files / ADAPTER_CONFIG, config, saved)
    groups, state = _ivon_state(folder / "optimizer.pt")

    mean, precision, prior, starts, hessians, steps = {}, {}, {}, {}, {}, 0
    for group in groups:
        for name, index in zip(group["param_names"], group["params"], strict=True):
            key = checkpoint_key(name, adapter if config is not None else None)
            if key not in saved and index not in state:
                continue  # a frozen parameter that was handed to the optimizer all the same
            if key not in saved:
                raise CheckpointError(
                    f"{weights} has no {key}, which optimizer.pt trained ({name}); the two are not from one "
                    "training run. Take both from the same checkpoint."
                )
            entry = state.get(index, {})
            master = entry.get("mean", saved[key])
            h = entry["hessian"] if "hessian" in entry else torch.full(saved[key].shape, float(group["hess_init"]))
            if not h.shape == master.shape == saved[key].shape:
                raise CheckpointError(
                    f"{key} is {tuple(saved[key].shape)} in {weights} and {tuple(h.shape)} in optimizer.pt; the two "
                    "are not from one training run. Take both from the same checkpoint."
                )
            delta = prior_delta(entry, group) if entry else group["weight_decay"]
            mean[key] = master.to(h.dtype)
            precision[key] = group["ess"] * (h + delta)
            prior[key] = float(group["ess"] * delta)
            if "start" in entry:
                starts[key] = entry["start"]
            hessians[key] = (h, float(group["hess_init"]))
            steps = max(steps, int(entry.get("step", 0)))
    if config is not None:
        for key in sorted(saved.keys() - mean.keys()):
            if saved[key].is_floating_point() and not _is_tied(key, saved, hessians):
                mean[key] = saved[key]
                precision[key] = torch.full(saved[key].shape, math.inf)

    if not hessians:
        raise CheckpointError(f"{folder / 'optimizer.pt'} trained no tensor of {weights}. Take another checkpoint.")
    ess = sorted({float(group["ess"]) for group in groups if group["params"]})
    skipped = int(groups[0].get("skipped_steps", 0))
    diagnostics = training_diagnostics(groups, hessians, ess=ess, steps=steps, skipped_steps=skipped)
    return DiagonalGaussian(
        mean=mean,
        precision=precision,
        prior_mean=prior_means(starts),
        meta=PosteriorMeta(
            method="ivon",
            num_examples=counted_examples(diagnostics) if num_examples is None else num_examples,
            ess=ess[0] if len(ess) == 1 else None,
            prior_precision=prior or None,
            base_model=(config or {}).get("base_model_name_or_path"),
            base_revision=(config or {}).get("revision"),
            base_fingerprint=groups[0].get("base_fingerprint"),
            adapter_config=config,
            readout=readout,
            logit_temperatures=remaining_temperatures(groups[0], readout),
            diagnostics=diagnostics,
        ),
    )


def _is_tied(key: str, saved: Mapping[str, Tensor], trained: Iterable[str]) -> bool:
    """Whether a tensor is a trained one under a second name: PEFT writes tied tensors once for each."""
    last = key.rpartition(".")[2]
    return bool(saved[key].any()) and any(
        other.rpartition(".")[2] == last
        and saved[other].shape == saved[key].shape
        and torch.equal(saved[other], saved[key])
        for other in trained
    )


def _ivon_state(path: Path) -> tuple[list[dict[str, Any]], dict[int, dict[str, Tensor]]]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist, and without the optimizer's state there is no variance. Train with "
            "save_only_model=False, or load the weights alone with PEFT."
        )
    try:
        data = read_bytes(path)
        _refuse_compressed(data)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        _check_optimizer_state(content)
    except _UNREADABLE as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is not an optimizer state that can be read safely ({told}). Take another checkpoint."
        ) from error
    groups, state = content["param_groups"], content["state"]
    for group in groups:
        if "hess_init" not in group or "ess" not in group:
            raise CheckpointError(
                f"{path} was written by another optimizer than varlora.IVON (its options: {', '.join(sorted(group))}), "
                "which keeps no Hessian. Load the weights with PEFT and use point_mass_of(model, method=...)."
            )
        if "param_names" not in group:
            raise CheckpointError(
                f"{path} does not name its parameters. Load model and optimizer and use posterior_of(model, optimizer)."
            )
    return groups, state


def _refuse_compressed(data: bytes) -> None:
    """torch.save stores tensors as they are, in an archive: what is larger out of it than in it is not its work."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which torch.save does not do")


def _check_optimizer_state(content: Any) -> None:
    if not isinstance(content, dict) or not {"param_groups", "state"} <= content.keys():
        raise ValueError("it has no param_groups and state")
    groups, state = content["param_groups"], content["state"]
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise ValueError("its param_groups are no list of groups")
    if not isinstance(state, dict) or not all(isinstance(entry, dict) for entry in state.values()):
        raise ValueError("its state is none by parameter")
    for group in groups:
        for name, kind in (("params", int), ("param_names", str)):
            held = group.get(name, [])
            if not isinstance(held, list) or not all(isinstance(one, kind) for one in held):
                raise ValueError(f"its {name} are no list of {'numbers' if kind is int else 'names'}")
        if len(group.get("param_names", group.get("params", []))) != len(group.get("params", [])):
            raise ValueError("it does not name every parameter once")
    for entry in state.values():
        for name in ("mean", "hessian"):
            if not isinstance(entry.get(name, torch.empty(0)), Tensor):
                raise ValueError(f"its {name} is no tensor")


def _adapter_config(path: Path, data: bytes) -> dict[str, Any]:
    config = parse_json(path, data)
    try:
        refuse_foreign(config)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return config


def _check_ranks(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
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


def _tensors(path: Path, data: bytes) -> dict[str, Tensor]:
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


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    cpu = {key: t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()}
    return safetensors.torch.save(cpu, metadata={"format": "pt"})
