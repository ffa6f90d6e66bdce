"""Posteriors read out of a trained model and its optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from varlora.adapters import (
    adapter_config,
    base_fingerprint,
    base_loading,
    base_model_of,
    check_trainable,
    refuse_unreloadable,
    saved_tensors,
)
from varlora.posterior.diagonal import DiagonalGaussian
from varlora.posterior.gaussian_optimizer import GaussianOptimizer, missing_members
from varlora.posterior.meta import PosteriorMeta
from varlora.posterior.point_mass import PointMass
from varlora.posterior.record import counted_examples, record_diagnostics, remaining_temperatures
from varlora.posterior.sharded import whole
from varlora.posterior.training_record import training_record
from varlora.posterior.wrapped import unwrapped


def posterior_of(
    model: nn.Module,
    optimizer: Any,
    *,
    method: str = "ivon",
    num_examples: int | None = None,
    readout: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
) -> DiagonalGaussian:
    """The posterior that training has reached: a copy, independent of further steps.

    Under FSDP2 every rank must call it, and every rank gets the whole.

    Adapter tensors that do not train (`varlora.adapters.fixed_tensors`) are part of it, known exactly.

    Args:
        model: the trained model.
        optimizer: the `IVON`, or other `varlora.GaussianOptimizer`, that trained it; possibly inside
            accelerate's wrapper.
        method: name for the record.
        num_examples: N, size of the training set; None: as it was counted for λ, where that was left open.
        readout: how answers are read, `Readout.to_dict()`. Given one, the meta's logit temperatures, of
            the mean and of mode "samples", are what the rows that steered λ, read alike, ask for beyond two standard
            errors at the end.
        base_model: name or path of the pre-trained model; None: as the model says.
        base_revision: its revision; None: as the model says.

    Raises:
        ValueError: the optimizer holds no posterior, or not all trained parameters; nothing trains; the
            adapter is merged, or no saved adapter brings the model back (`varlora.adapters.refuse_unreloadable`).

    Example:
        >>> from varlora import IVON
        >>> model = torch.nn.Linear(2, 1)
        >>> q = posterior_of(model, IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=0.1))
        >>> q.precision["bias"]
        tensor([1.])
    """
    optimizer = _gaussian(optimizer)
    saved = saved_tensors(model)
    check_trainable(model, saved)
    trained = saved.trained
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if unheld := [key for key, p in trained.items() if p not in held]:
        raise ValueError(
            f"the optimizer does not hold {len(unheld)} trained parameter(s), such as {unheld[0]}. Pass the "
            "optimizer that trained this model; freeze what it is not meant to train."
        )
    mean = {key: whole(optimizer.mean(p)).detach().clone() for key, p in trained.items()}
    precision = {key: whole(optimizer.precision(p)).detach().clone() for key, p in trained.items()}
    for key, fixed in saved.fixed.items():
        mean[key] = fixed.detach().clone()
        precision[key] = torch.full_like(fixed, math.inf, dtype=torch.promote_types(fixed.dtype, torch.float32))

    ess = {optimizer.ess_of(p) for p in trained.values()}
    prior = {key: number for key, p in trained.items() if (number := optimizer.prior_precision(p)) is not None}
    centres = {key: whole(m0) for key, p in trained.items() if (m0 := optimizer.prior_mean(p)) is not None}
    record = training_record(optimizer)
    diagnostics = {**optimizer.diagnostics(trained), **record_diagnostics(record)}
    return DiagonalGaussian(
        mean=mean,
        precision=precision,
        prior_mean=prior_means(centres),
        meta=dataclasses.replace(
            model_meta(model, saved.tensors(), base_model, base_revision),
            method=method,
            num_examples=counted_examples(diagnostics) if num_examples is None else num_examples,
            ess=ess.pop() if len(ess) == 1 else None,
            prior_precision=prior or None,
            readout=readout,
            task=record.get("task"),
            logit_temperatures=remaining_temperatures(record, readout),
            diagnostics=diagnostics,
        ),
    )


def point_mass_of(
    model: nn.Module,
    *,
    method: str,
    num_examples: int | None = None,
    readout: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
) -> PointMass:
    """The model's weights as they stand, as a point mass: a copy, in float32 (float64 for float64 weights).

    Args:
        model: the trained model, or one with an adapter loaded for inference.
        method: name for the record: "adamw", ...
        num_examples: N, size of the training set.
        readout: how answers are read, `Readout.to_dict()`.
        base_model: name or path of the pre-trained model; None: as the model says.
        base_revision: its revision; None: as the model says.

    Raises:
        ValueError: there is no adapter and nothing trains, or the adapter is merged, or no saved adapter brings the
            model back (`varlora.adapters.refuse_unreloadable`).

    Example:
        >>> sorted(point_mass_of(torch.nn.Linear(2, 1), method="adamw").mean)
        ['bias', 'weight']
    """
    saved = saved_tensors(model)
    refuse_unreloadable(model, saved)
    tensors = saved.tensors()
    return PointMass(
        mean={key: t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True) for key, t in tensors.items()},
        meta=dataclasses.replace(
            model_meta(model, tensors, base_model, base_revision),
            method=method,
            num_examples=num_examples,
            readout=readout,
        ),
    )


def prior_means(starts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`DiagonalGaussian.prior_mean` of an optimizer's priors: copies of their means, without tensors of zeros.

    Example:
        >>> list(prior_means({"a": torch.ones(1), "b": torch.zeros(1)}))
        ['a']
    """
    return {key: start.detach().clone() for key, start in starts.items() if bool((start != 0).any())}


def model_meta(
    model: nn.Module, held: Collection[str], base_model: str | None = None, base_revision: str | None = None
) -> PosteriorMeta:
    """What a model says about itself: its base model, revision, fingerprint and adapter configuration.

    Args:
        model: the trained model.
        held: checkpoint keys of all its `varlora.adapters.saved_tensors`, which are no part of the base.
        base_model: name or path of the pre-trained model; None: as the model says.
        base_revision: its revision; None: as the model says.
    """
    name, revision = base_model_of(model)
    return PosteriorMeta(
        base_model=base_model or name,
        base_revision=base_revision or (revision if base_model in (None, name) else None),
        base_fingerprint=base_fingerprint(model, held),
        base_loading=base_loading(model),
        adapter_config=adapter_config(model),
    )


def _gaussian(optimizer: Any) -> GaussianOptimizer:
    inner: GaussianOptimizer = unwrapped(optimizer)
    if missing := missing_members(inner):
        raise ValueError(
            f"{type(optimizer).__name__} holds no posterior: it has no {', '.join(missing)} "
            "(varlora.GaussianOptimizer). Pass the varlora.IVON that trained the model; for weights trained by "
            "another optimizer, point_mass_of(model, method=...) keeps them as a point mass."
        )
    return inner
