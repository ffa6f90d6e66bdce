"""The posterior of a `checkpoint-N` folder that transformers' Trainer saved while IVON trained.

adapter_model.safetensors or model.safetensors    the weights
optimizer.pt                                      IVON's state, read with `weights_only=True`: no code in it can run
"""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlora.adapters import checkpoint_key, in_fixed_order
from varlora.io.files import LARGEST_JSON
from varlora.ivon.diagnostics import ivon_diagnostics
from varlora.ivon.fit_variance import fit_variance
from varlora.ivon.options import check_saved, with_variance
from varlora.ivon.priors import prior_of
from varlora.posterior import DiagonalGaussian, PosteriorMeta
from varlora.posterior.folder import adapter_config_in, check_ranks, tensors_in
from varlora.posterior.manifest import ADAPTER_CONFIG, ADAPTER_MEAN, CheckpointError, read_bytes
from varlora.posterior.record import counted_examples, record_diagnostics, remaining_temperatures
from varlora.posterior.training_record import record_in
from varlora.training.checkpoint_files import listed_damage

_UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, LookupError, TypeError, ValueError, OSError),
    *(AttributeError, AssertionError, NotImplementedError, ModuleNotFoundError),
)


class OtherOptimizerError(CheckpointError):
    """A checkpoint that is sound and holds no posterior, since its optimizer was not IVON."""


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
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        told = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}."
        raise CheckpointError(f"{folder}: {told} This checkpoint is damaged; take an earlier one.") from error


def _from_checkpoint(
    folder: Path, adapter: str, num_examples: int | None, readout: Mapping[str, Any] | None
) -> DiagonalGaussian:
    files = folder if adapter == "default" else folder / adapter
    config, weights = None, folder / "model.safetensors"
    if (files / ADAPTER_CONFIG).is_file():
        named = files / ADAPTER_CONFIG
        config = in_fixed_order(adapter_config_in(named, read_bytes(named, largest=LARGEST_JSON)))
        weights = files / ADAPTER_MEAN
    if (damage := listed_damage(folder, weights.relative_to(folder).as_posix(), "optimizer.pt")) is not None:
        raise CheckpointError(f"{folder} is {damage}. Take another checkpoint.")
    saved = tensors_in(weights, read_bytes(weights))
    if config is not None:
        check_ranks(files / ADAPTER_CONFIG, config, saved)
    groups, state = _ivon_state(folder / "optimizer.pt")

    mean, precision, prior, hessians, steps = {}, {}, {}, {}, 0
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
            momentum = entry.get("momentum", torch.zeros(saved[key].shape))
            h: Tensor | None = None
            if group["variance"] == "hessian":
                h = entry["hessian"] if "hessian" in entry else torch.full_like(momentum, float(group["hess_init"]))
            held = [t.shape for t in (master, momentum, h) if t is not None]
            if others := [shape for shape in held if shape != saved[key].shape]:
                raise CheckpointError(
                    f"{key} is {tuple(saved[key].shape)} in {weights} and {tuple(others[0])} in optimizer.pt; the two "
                    "are not from one training run. Take both from the same checkpoint."
                )
            mean[key] = master.to(momentum.dtype)
            if h is None:
                precision[key] = torch.full_like(momentum, 1 / fit_variance(group))
            else:
                of_group = prior_of(group)
                of_tensor = entry if entry else of_group.initial_state(saved[key].to(momentum.dtype), group)
                (delta,) = of_group.deltas([of_tensor], group)
                precision[key] = group["ess"] * of_group.curvature(h, delta, group)
                prior[key] = float(group["ess"] * delta)
                hessians[key] = (h, float(group["hess_init"]))
            steps = max(steps, int(entry.get("step", 0)))
    trained = tuple(mean)
    if config is not None:
        for key in sorted(saved.keys() - mean.keys()):
            if saved[key].is_floating_point() and not _is_tied(key, saved, trained):
                mean[key] = saved[key]
                precision[key] = torch.full(saved[key].shape, math.inf)

    if not trained:
        raise CheckpointError(f"{folder / 'optimizer.pt'} trained no tensor of {weights}. Take another checkpoint.")
    ess = sorted({float(group["ess"]) for group in groups if group["params"]})
    skipped = int(groups[0].get("skipped_steps", 0))
    record = record_in(groups)
    diagnostics = {
        **ivon_diagnostics(groups, hessians, ess=ess, steps=steps, skipped_steps=skipped),
        **record_diagnostics(record),
    }
    return DiagonalGaussian(
        mean=mean,
        precision=precision,
        meta=PosteriorMeta(
            method="ivon",
            num_examples=counted_examples(diagnostics) if num_examples is None else num_examples,
            ess=ess[0] if len(ess) == 1 else None,
            prior_precision=prior or None,
            base_model=(config or {}).get("base_model_name_or_path"),
            base_revision=(config or {}).get("revision"),
            base_fingerprint=record.get("base_fingerprint"),
            base_loading=record.get("base_loading"),
            adapter_config=config,
            readout=readout,
            task=record.get("task"),
            logit_temperatures=remaining_temperatures(record, readout),
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
    groups, state = [with_variance(group) for group in content["param_groups"]], content["state"]
    for i, group in enumerate(groups):
        if "hess_init" not in group or "ess" not in group:
            raise OtherOptimizerError(
                f"{path} was written by another optimizer than varlora.IVON (its options: {', '.join(sorted(group))}), "
                "which keeps no variance. Load the weights with PEFT and use point_mass_of(model, method=...)."
            )
        try:
            check_saved(i, group)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
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
        for name in ("mean", "momentum", "hessian"):
            if not isinstance(entry.get(name, torch.empty(0)), Tensor):
                raise ValueError(f"its {name} is no tensor")
