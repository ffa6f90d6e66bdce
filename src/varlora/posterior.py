"""Posteriors over the trained tensors of a model, and how they are read out of a trained one.

A posterior maps checkpoint keys (`varlora.adapters`) to a mean and a variance. `PointMass` knows every entry
exactly; `DiagonalGaussian` is q = N(m, diag v) with v = 1 / precision, for IVON precision = λ (h + δ).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from varlora.adapters import adapter_config, base_model_of, fixed_tensors, trained_tensors


@dataclass(frozen=True, kw_only=True)
class PosteriorMeta:
    """What a posterior's numbers mean and where they come from; everything in it is plain JSON.

    Attributes:
        method: how it was trained: "ivon", "adamw", ...
        num_examples: N, size of the training set.
        ess: λ, effective sample size; None if unknown or not the same for all tensors.
        prior_precision: λ δ of the prior N(0, 1/(λ δ)), by checkpoint key.
        base_model: name or path of the pre-trained model.
        base_revision: its revision or commit.
        adapter_config: content of PEFT's adapter_config.json; None for a plain module.
        readout: how an answer is read from the model's output (`varlora.readout`).
        logit_temperature: divides the logits (method `temperature`); not the posterior's temperature τ.
        history: the operations done since training, oldest first.
        diagnostics: measurements taken at the end of training.

    Raises:
        ValueError: a value cannot be written as JSON, or a number is out of its range.
    """

    method: str = "unknown"
    num_examples: int | None = None
    ess: float | None = None
    prior_precision: Mapping[str, float] | None = None
    base_model: str | None = None
    base_revision: str | None = None
    adapter_config: Mapping[str, Any] | None = None
    readout: Mapping[str, Any] | None = None
    logit_temperature: float = 1.0
    history: tuple[Mapping[str, Any], ...] = ()
    diagnostics: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _plain(getattr(self, f.name), f"meta.{f.name}"))
        object.__setattr__(self, "history", tuple(self.history))
        for name, value in (
            ("num_examples", self.num_examples),
            ("ess", self.ess),
            ("logit_temperature", self.logit_temperature),
        ):
            kinds = int if name == "num_examples" else (int, float)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value > 0):
                raise ValueError(f"meta.{name} must be positive, not {value!r}.")

    def after(self, operation: Mapping[str, Any]) -> PosteriorMeta:
        """The same with one more operation in its history."""
        return dataclasses.replace(self, history=(*self.history, operation))


@runtime_checkable
class Posterior(Protocol):
    """A distribution over tensors; all mappings have the same keys, in sorted order."""

    kind: ClassVar[str]

    @property
    def mean(self) -> Mapping[str, Tensor]:
        """Means m, by checkpoint key."""

    @property
    def variance(self) -> Mapping[str, Tensor]:
        """Variances v, by checkpoint key; 0 where an entry is known exactly."""

    @property
    def meta(self) -> PosteriorMeta:
        """What the numbers mean and where they come from."""

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One coherent draw of all tensors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PointMass:
    """All mass at one set of weights: the "posterior" of a deterministic method.

    Tensors are held, not copied.

    Args:
        mean: the weights by checkpoint key; floating point and finite.
        meta: see `PosteriorMeta`.

    Raises:
        ValueError: there is no tensor, or one is not floating point or not finite; the message names it.

    Example:
        >>> q = PointMass(mean={"w": torch.ones(2)})
        >>> q.variance["w"]
        tensor([0., 0.])
    """

    kind: ClassVar[str] = "point_mass"
    mean: Mapping[str, Tensor]
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _sorted_tensors(self.mean))
        validate(self)

    @property
    def variance(self) -> dict[str, Tensor]:
        """Zeros, by checkpoint key."""
        return {key: torch.zeros_like(m) for key, m in self.mean.items()}

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The mean; nothing is drawn from the generator."""
        return dict(self.mean)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalGaussian:
    """q = N(m, diag v), v = 1 / precision, with independent entries.

    Tensors are held, not copied.

    Args:
        mean: m by checkpoint key; floating point and finite.
        precision: 1 / v, same keys and shapes; float32 or float64, > 0. Infinity marks an entry that is known
            exactly: one pruned to zero, or all entries of a tensor that did not train.
        meta: see `PosteriorMeta`.

    Raises:
        ValueError: keys, shapes, dtypes or values do not fit; the message names the tensor.

    Example:
        >>> q = DiagonalGaussian(mean={"w": torch.zeros(2)}, precision={"w": torch.tensor([4.0, torch.inf])})
        >>> q.variance["w"]
        tensor([0.2500, 0.0000])
        >>> q.sample(torch.Generator().manual_seed(0))["w"].shape
        torch.Size([2])
    """

    kind: ClassVar[str] = "diagonal_gaussian"
    mean: Mapping[str, Tensor]
    precision: Mapping[str, Tensor]
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _sorted_tensors(self.mean))
        object.__setattr__(self, "precision", _sorted_tensors(self.precision))
        validate(self)

    @property
    def variance(self) -> dict[str, Tensor]:
        """v = 1 / precision, by checkpoint key."""
        return {key: precision.reciprocal() for key, precision in self.precision.items()}

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One draw m + sqrt(v) ε, ε ~ N(0, I): in float32, or float64 where the mean is.

        ε is drawn on the generator's device, for every tensor in sorted order of the keys, exactly known
        entries included: so equal seeds give equal ε before and after pruning.

        Args:
            generator: the only source of randomness.

        Returns:
            Tensors by checkpoint key, in sorted order, on the mean's device.
        """
        draw = {}
        for key, mean in self.mean.items():
            dtype = torch.float64 if mean.dtype == torch.float64 else torch.float32
            eps = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=dtype)
            std = self.precision[key].to(mean.device, dtype).rsqrt()
            draw[key] = torch.addcmul(mean.to(dtype), std, eps.to(mean.device))
        return draw


def validate(q: PointMass | DiagonalGaussian) -> None:
    """Checks that a posterior's tensors fit together; construction does this already.

    Raises:
        ValueError: what does not fit, by tensor.
    """
    if not q.mean:
        raise ValueError("a posterior needs at least one tensor.")
    for key, mean in q.mean.items():
        if not mean.is_floating_point():
            raise ValueError(f"mean of {key} has dtype {mean.dtype}; it must be floating point.")
        if bad := int((~torch.isfinite(mean)).sum()):
            raise ValueError(f"mean of {key} has {bad} NaN or infinite value(s) of {mean.numel()}.")
    if isinstance(q, PointMass):
        return
    if differing := sorted(q.mean.keys() ^ q.precision.keys()):
        raise ValueError(f"mean and precision must have the same keys; only one of them has {differing}.")
    for key, precision in q.precision.items():
        if precision.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"precision of {key} has dtype {precision.dtype}; it must be float32 or float64.")
        if precision.shape != q.mean[key].shape:
            raise ValueError(
                f"precision of {key} has shape {tuple(precision.shape)}, its mean {tuple(q.mean[key].shape)}."
            )
        if bad := int((~(precision > 0)).sum()):
            raise ValueError(f"precision of {key} has {bad} value(s) of {precision.numel()} that are NaN or not > 0.")
        exact = torch.isinf(precision)
        if not bool(exact.all()) and (bad := int((exact & (q.mean[key] != 0)).sum())):
            raise ValueError(
                f"precision of {key} has {bad} infinite value(s) where the mean is not 0; infinity marks a pruned "
                "entry, or all entries of a tensor that did not train."
            )


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
        num_examples: N, size of the training set.
        readout: how answers are read, `Readout.to_dict()`.
        base_model: name or path of the pre-trained model; None: as the model says.
        base_revision: its revision; None: as the model says.

    Raises:
        ValueError: the optimizer holds no posterior, or not all trained parameters; nothing trains; the
            adapter is merged.

    Example:
        >>> from varlora import IVON
        >>> model = torch.nn.Linear(2, 1)
        >>> q = posterior_of(model, IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=0.1))
        >>> q.precision["bias"]
        tensor([1.])
    """
    optimizer = _unwrapped(optimizer)
    trained = trained_tensors(model)
    if not trained:
        raise ValueError(
            "no parameter of the model trains (requires_grad), so there is nothing to have a posterior over."
        )
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
    diagnostics: dict[str, Any] = {"hessian_moved": hessian_moved(hessians)}
    diagnostics["steps"] = int(max(optimizer.state[p]["step"] for p in trained.values()))
    diagnostics["skipped_steps"] = int(getattr(optimizer, "skipped_steps", 0))
    if len(ess) > 1:
        diagnostics["ess_of_groups"] = ess
    return DiagonalGaussian(
        mean=mean,
        precision=precision,
        meta=dataclasses.replace(
            _model_meta(model, base_model, base_revision),
            method=method,
            num_examples=num_examples,
            ess=ess[0] if len(ess) == 1 else None,
            prior_precision={key: optimizer.prior_precision(p) for key, p in trained.items()},
            readout=readout,
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
        ValueError: there is no adapter and nothing trains, or the adapter is merged.

    Example:
        >>> sorted(point_mass_of(torch.nn.Linear(2, 1), method="adamw").mean)
        ['bias', 'weight']
    """
    tensors = {**trained_tensors(model), **fixed_tensors(model)}
    return PointMass(
        mean={key: t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True) for key, t in tensors.items()},
        meta=dataclasses.replace(
            _model_meta(model, base_model, base_revision), method=method, num_examples=num_examples, readout=readout
        ),
    )


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


def _model_meta(model: nn.Module, base_model: str | None, base_revision: str | None) -> PosteriorMeta:
    name, revision = base_model_of(model)
    return PosteriorMeta(
        base_model=base_model or name,
        base_revision=base_revision or (revision if base_model in (None, name) else None),
        adapter_config=adapter_config(model),
    )


def _unwrapped(optimizer: Any) -> Any:
    given = type(optimizer).__name__
    while not hasattr(optimizer, "precision") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not hasattr(optimizer, "precision"):
        raise ValueError(
            f"{given} holds no posterior. Pass the varlora.IVON that trained the model; for weights trained by "
            "another optimizer, point_mass_of(model, method=...) keeps them as a point mass."
        )
    return optimizer


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP2 has sharded over ranks (every rank must ask), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _sorted_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensors[key].detach() for key in sorted(tensors)}


def _plain(value: Any, where: str) -> Any:
    """`value` in JSON's own types, or a ValueError that says where it is not."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where} has the key {bad[0]!r}; JSON keys are strings.")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(
        f"{where} is {value!r} ({type(value).__name__}), which JSON cannot hold; give plain finite values."
    )
