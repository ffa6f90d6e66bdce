"""Posteriors read out of a trained model and its optimizer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from varlora.adapters import (
    adapter_config,
    base_fingerprint,
    base_model_of,
    check_trainable,
    fixed_tensors,
    refuse_unreloadable,
    trained_tensors,
)
from varlora.optim.ess_control import HeldOutRecord
from varlora.optim.wrapped import unwrapped
from varlora.posterior.diagonal import DiagonalGaussian
from varlora.posterior.meta import PosteriorMeta
from varlora.posterior.point_mass import PointMass


class GaussianOptimizer(Protocol):
    """An optimizer that holds a posterior over what it trains, as `varlora.IVON` does."""

    param_groups: list[dict[str, Any]]
    state: MutableMapping[Any, Any]

    def mean(self, p: Tensor) -> Tensor:
        """Posterior mean of `p`, in float32 or float64."""

    def precision(self, p: Tensor) -> Tensor:
        """Posterior precision of `p`, elementwise."""

    def prior_precision(self, p: Tensor) -> float:
        """Precision of the prior of `p`."""


def posterior_of(
    model: nn.Module,
    optimizer: GaussianOptimizer | Any,
    *,
    method: str = "ivon",
    num_examples: int | None = None,
    readout: Mapping[str, Any] | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
) -> DiagonalGaussian:
    """The posterior that training has reached: a copy, independent of further steps.

    Under FSDP2 every rank must call it, and every rank gets the whole.

    Adapter tensors that do not train (`fixed_tensors`) are part of it, known exactly.

    Args:
        model: the trained model.
        optimizer: the `IVON` that trained it, possibly inside accelerate's wrapper.
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
    optimizer = _unwrapped(optimizer)
    check_trainable(model)
    trained = trained_tensors(model)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    if unheld := [key for key, p in trained.items() if p not in groups]:
        raise ValueError(
            f"the optimizer does not hold {len(unheld)} trained parameter(s), such as {unheld[0]}. Pass the "
            "optimizer that trained this model; freeze what it is not meant to train."
        )
    mean = {key: _whole(optimizer.mean(p)).detach().clone() for key, p in trained.items()}
    precision = {key: _whole(optimizer.precision(p)).detach().clone() for key, p in trained.items()}
    for key, fixed in fixed_tensors(model).items():
        mean[key] = fixed.detach().clone()
        precision[key] = torch.full_like(fixed, math.inf, dtype=torch.promote_types(fixed.dtype, torch.float32))

    ess = sorted({float(groups[p]["ess"]) for p in trained.values()})
    hessians = {
        key: (_whole(optimizer.state[p]["hessian"]), float(groups[p]["hess_init"])) for key, p in trained.items()
    }
    prior = {key: optimizer.prior_precision(p) for key, p in trained.items()}
    starts = {key: _whole(optimizer.state[p]["start"]) for key, p in trained.items() if "start" in optimizer.state[p]}
    diagnostics = training_diagnostics(
        optimizer.param_groups,
        hessians,
        ess=ess,
        steps=int(max(optimizer.state[p]["step"] for p in trained.values())),
        skipped_steps=int(getattr(optimizer, "skipped_steps", 0)),
    )
    return DiagonalGaussian(
        mean=mean,
        precision=precision,
        prior_mean=prior_means(starts),
        meta=dataclasses.replace(
            model_meta(model, base_model, base_revision),
            method=method,
            num_examples=counted_examples(diagnostics) if num_examples is None else num_examples,
            ess=ess[0] if len(ess) == 1 else None,
            prior_precision=prior or None,
            readout=readout,
            logit_temperatures=remaining_temperatures(optimizer.param_groups[0], readout),
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
    refuse_unreloadable(model)
    tensors = {**trained_tensors(model), **fixed_tensors(model)}
    return PointMass(
        mean={key: t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True) for key, t in tensors.items()},
        meta=dataclasses.replace(
            model_meta(model, base_model, base_revision), method=method, num_examples=num_examples, readout=readout
        ),
    )


def prior_means(starts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`DiagonalGaussian.prior_mean` of movement priors: copies of where training began, without tensors of zeros.

    LoRA's B begins at 0; A at random, so that half of an adapter's weights are kept twice.

    Example:
        >>> list(prior_means({"a": torch.ones(1), "b": torch.zeros(1)}))
        ['a']
    """
    return {key: start.detach().clone() for key, start in starts.items() if bool((start != 0).any())}


def training_diagnostics(
    groups: Sequence[Mapping[str, Any]],
    hessians: Mapping[str, tuple[Tensor, float]],
    *,
    ess: Sequence[float],
    steps: int,
    skipped_steps: int,
) -> dict[str, Any]:
    """`meta.diagnostics` of a training with IVON, whether it has just ended or lies in a checkpoint.

    Args:
        groups: the optimizer's parameter groups.
        hessians: h and h0 by tensor.
        ess: the different λ of the groups.
        steps: that were taken.
        skipped_steps: that were left out for a gradient that was not finite.
    """
    diagnostics: dict[str, Any] = {"hessian_moved": hessian_moved(hessians), "steps": steps}
    diagnostics["skipped_steps"] = skipped_steps
    if len(ess) > 1:
        diagnostics["ess_of_groups"] = list(ess)
    if counted := groups[0].get("counted"):
        diagnostics["counted"] = dict(counted)
    if width := prior_width_diagnostics(groups):
        diagnostics["prior_width"] = width
    if found := held_out_diagnostics(groups[0]):
        diagnostics["held_out"] = found
    return diagnostics


def counted_examples(diagnostics: Mapping[str, Any]) -> int | None:
    """N as it was counted for λ (`varlora.examples`); None where λ and h0 were given.

    Example:
        >>> counted_examples({"counted": {"examples": 40, "rows": 9, "mean_over": "tokens"}})
        40
    """
    counted: Mapping[str, Any] = diagnostics.get("counted") or {}
    return counted.get("examples")


def prior_width_diagnostics(groups: Sequence[Mapping[str, Any]]) -> float | list[float] | None:
    """Width of the movement prior, in units of the movement, by parameter group where they differ; None without one.

    Below 4 where training with `prior_width="auto"` was stopped before its end.

    Example:
        >>> prior_width_diagnostics([{"prior": "movement", "prior_width": 4.0, "params": [0]}])
        4.0
    """
    widths = sorted({float(group["prior_width"]) for group in groups if group.get("prior") == "movement"})
    if not widths:
        return None
    return widths[0] if len(widths) == 1 else widths


def held_out_diagnostics(group: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the rows that steered λ said at the end (`varlora.optim.ess_control`); None where none were asked for.

    Args:
        group: the optimizer's first parameter group.

    Returns:
        source and number of rows, and measurements; why, where none steered λ. Where they were measured: how many rows'
        answers the averages are worth (fewer, where not all were asked); log T̂ of averages of ten draws and of the
        mean, the gain of sampling over the mean in nats, both at T = 1 and each at the T that is left for it, each with
        its standard error; the rows' NLL averaged over ten draws.
    """
    why = {"why": group["held_out_why"]} if "held_out_why" in group else {}
    if "held_out" not in group:
        return {"source": None, "rows": 0, "measurements": 0, **why} if why else None
    record, rows = HeldOutRecord.from_dict(group["held_out"]), int(group["held_out_rows"])
    found = {"source": group["held_out_source"], "rows": rows, "measurements": record.measurements, **why}
    if record.weight == 0:
        return {**found, "measurements": 0}
    log_temperature, its_error = record.log_temperature(rows)
    of_mean, its_own = record.log_temperature(rows, of="mean")
    gain, gain_error = record.sampling_gain(rows)
    at_temperature, error_at = record.sampling_gain_at_temperature(rows)
    return {
        **found,
        "effective_rows": record.effective_rows(rows),
        "ess_start": group.get("auto_ess"),
        "log_temperature": log_temperature,
        "log_temperature_error": its_error,
        "mean_log_temperature": of_mean,
        "mean_log_temperature_error": its_own,
        "sampling_gain": gain,
        "sampling_gain_error": gain_error,
        "sampling_gain_at_temperature": at_temperature,
        "sampling_gain_at_temperature_error": error_at,
        "nll": record.loss / record.weight,
        "remaining_temperature": record.remaining_temperature(rows),
        "mean_remaining_temperature": record.remaining_temperature(rows, of="mean"),
    }


def remaining_temperatures(group: Mapping[str, Any], readout: Mapping[str, Any] | None) -> dict[str, float]:
    """The logit temperatures that the rows which steered λ ask for; empty if all are 1, or if they were read otherwise.

    Args:
        group: the optimizer's first parameter group.
        readout: how predictions will be read, `Readout.to_dict()`.

    Returns:
        T of averages of ten draws ("samples") and of predictions at the mean ("mean").

    Example:
        >>> remaining_temperatures({}, readout=None)
        {}
    """
    if readout is None or "held_out" not in group:
        return {}
    if json.dumps(group.get("held_out_readout"), sort_keys=True) != json.dumps(readout, sort_keys=True):
        return {}
    record, rows = HeldOutRecord.from_dict(group["held_out"]), int(group["held_out_rows"])
    found = {"samples": record.remaining_temperature(rows), "mean": record.remaining_temperature(rows, of="mean")}
    return found if set(found.values()) != {1.0} else {}


def hessian_moved(hessians: Mapping[str, tuple[Tensor, float]]) -> dict[str, Any]:
    """How far the Hessian has moved from its start: median |h/h0 − 1|, overall and by tensor.

    Near 0, the posterior's variance is the one it was started with, not one that was learned: at β2 = .99999 the
    start keeps 90 % of its weight after 10 000 steps.

    Args:
        hessians: (h, h0) by checkpoint key.

    Example:
        >>> hessian_moved({"w": (torch.tensor([1.0, 1.5, 3.0]), 1.0)})
        {'overall': 0.5, 'by_tensor': {'w': 0.5}}
    """
    moved = {key: (h.detach() / h0 - 1).abs().flatten().cpu() for key, (h, h0) in hessians.items()}
    return {
        "overall": torch.cat([m.double() for m in moved.values()]).median().item(),
        "by_tensor": {key: m.median().item() for key, m in sorted(moved.items())},
    }


def model_meta(model: nn.Module, base_model: str | None = None, base_revision: str | None = None) -> PosteriorMeta:
    """What a model says about itself: its base model, revision, fingerprint and adapter configuration."""
    name, revision = base_model_of(model)
    return PosteriorMeta(
        base_model=base_model or name,
        base_revision=base_revision or (revision if base_model in (None, name) else None),
        base_fingerprint=base_fingerprint(model, [*trained_tensors(model), *fixed_tensors(model)]),
        adapter_config=adapter_config(model),
    )


def _unwrapped(optimizer: Any) -> Any:
    given = type(optimizer).__name__
    optimizer = unwrapped(optimizer)
    if not hasattr(optimizer, "precision"):
        raise ValueError(
            f"{given} holds no posterior. Pass the varlora.IVON that trained the model; for weights trained by "
            "another optimizer, point_mass_of(model, method=...) keeps them as a point mass."
        )
    return optimizer


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP2 has sharded over ranks (every rank must ask), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
