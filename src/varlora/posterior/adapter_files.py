"""A plain PEFT adapter's files as a point mass: read with the checks of a posterior folder, no pickle opened."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from varlora.adapters import in_fixed_order
from varlora.io.files import LARGEST_JSON
from varlora.posterior.folder import adapter_config_in, check_ranks, tensors_in
from varlora.posterior.manifest import ADAPTER_CONFIG, ADAPTER_MEAN, CheckpointError, read_bytes
from varlora.posterior.meta import PosteriorMeta
from varlora.posterior.point_mass import PointMass


def point_mass_from_adapter(folder: str | os.PathLike[str]) -> PointMass:
    """The weights of an adapter that PEFT's `save_pretrained` wrote, as a point mass, in float32 at least.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        CheckpointError: a file is missing or damaged, or the adapter is of a kind that varlora refuses.

    Example:
        >>> point_mass_from_adapter("no-such-folder")
        Traceback (most recent call last):
        varlora.posterior.manifest.CheckpointError: no-such-folder/adapter_config.json does not exist. ...
    """
    described, weights = Path(folder) / ADAPTER_CONFIG, Path(folder) / ADAPTER_MEAN
    config = in_fixed_order(adapter_config_in(described, read_bytes(described, largest=LARGEST_JSON)))
    if not weights.exists() and weights.with_suffix(".bin").exists():
        raise CheckpointError(
            f"{weights.with_suffix('.bin')} is a pickle, which can run code, and varlora opens none. Load the adapter "
            "with PEFT, if you trust it, and save it anew with save_pretrained, which writes safetensors."
        )
    tensors = tensors_in(weights, read_bytes(weights))
    check_ranks(described, config, tensors)
    names = {name: config.get(name) for name in ("base_model_name_or_path", "revision")}
    if wrong := [name for name, value in names.items() if not isinstance(value, (str, type(None)))]:
        raise CheckpointError(f"{described}: {wrong[0]} is {names[wrong[0]]!r}; it must be text.")
    try:
        return PointMass(
            mean={key: t.to(torch.promote_types(t.dtype, torch.float32)) for key, t in tensors.items()},
            meta=PosteriorMeta(
                base_model=names["base_model_name_or_path"], base_revision=names["revision"], adapter_config=config
            ),
        )
    except ValueError as error:
        raise CheckpointError(f"{weights}: {error}") from error
