r"""IVON: improved variational online Newton, a plain `torch.optim.Optimizer`.

It minimises λ E_q[mean loss] + KL(q ‖ p) over q = N(m, diag 1/(λ (h + δ))). The parameters hold the mean m;
the optimizer holds the running gradient g and the running diagonal Hessian h. Gradients are taken at
m + noise by `varlora.noise.NoiseController`, which also collects noise · gradient; one step then is

    f = λ (h + δ) · mean(noise · gradient)                          (Price / Stein estimator of the Hessian)
    g ← β1 g + (1 − β1) ĝ
    h ← β2 h + (1 − β2) f + ½ (1 − β2)² (h − f)² / (h + δ)
    m ← m − lr · clip((g / (1 − β1ᵗ) + δ m) / (h + δ), ±ξ)

With `update="adam"` the last line is AdamW's instead (`optim.adam_update`, variational Adam). With `prior="adaptive"`
or "movement" every tensor has its own δ (`optim.prior`), and δ m is dropped from the step.

Source: Shen et al. 2024, arXiv 2402.17641; Cong et al. 2025, arXiv 2506.14280.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from varlora.optim.adam_update import adam_update_
from varlora.optim.options import Auto, Prior, Update, check_options, check_saved, check_settled, warn_of_another_prior
from varlora.optim.prior import prior_delta, prior_state, renew_prior_

logger = logging.getLogger(__name__)

MOST_SKIPPED = 0.5
"""Share of skipped steps beyond which a training is an error."""
STEPS_BEFORE_REFUSAL = 20
"""Before so many steps nothing is said of their share within a training."""


class NoiseStatistics(Protocol):
    """What IVON needs from whoever draws the noise (`varlora.noise.NoiseController`)."""

    def collect(self) -> Mapping[Tensor, Tensor]:
        """Returns mean(noise · gradient) of every parameter whose noise took part in a backward pass."""

    def all_agree(self, flag: Tensor) -> bool:
        """Whether `flag` is true on every rank."""

    def clear(self) -> None:
        """Forgets the products collected so far."""

    def after_step(self) -> None:
        """Called once at the end of every step, taken or skipped."""


class IVON(torch.optim.Optimizer):
    """Variational online Newton with Price's Hessian estimate (arXiv 2402.17641).

    A `NoiseController` must be attached to the model and this optimizer before training; `step` refuses to
    run on gradients that were not taken at sampled weights. Losses are means over the minibatch; under
    gradient accumulation, scale each loss by its share so that the weights sum to one (transformers and
    accelerate do this already).

    State per parameter, in float32 (float64 for float64 parameters) whatever the parameter's dtype:
    `step`, `momentum`, `hessian`; for half-precision parameters `mean`, the master copy; with `update="adam"` also
    `second_moment`, with `prior="adaptive"` or "movement" also `prior_precision`, with "movement" `start` and
    `ess_start`.

    λ is read anew each time: `optimizer.param_groups[i]["ess"]` may be changed between a step and the next forward
    pass, and is part of the state. (Not between a forward pass and its step: the noise of that pass has the old λ.)

    Args:
        params: parameters, or groups that override any option below.
        lr: learning rate, > 0. The Newton update's is about 600 times AdamW's (with `clip_radius=1e-3`).
        ess: λ, effective sample size, > 0. λ = number of training examples is plain Bayes where h is
            learned; larger is colder.
            "auto" (λ = 100 N) and None (λ = 5000 √N) leave it to the integration (`VariationalCallback`), which knows
            the training set.
        hess_init: h0, > 0. The initial noise has standard deviation 1 / sqrt(ess (hess_init + δ)). "auto" leaves it to
            the integration: h0 = N / λ.
        betas: (β1, β2). β1 is in [0, 1); β2 in [0, 1], and with β2 = 1 h stays at h0 to the bit.
        weight_decay: δ >= 0: the prior is N(0, 1 / (ess δ)); not with prior="movement".
        clip_radius: ξ > 0, bound on the preconditioned step, elementwise; of the Newton update.
        rescale_lr: multiply lr by (h0 + δ); of the Newton update.
        debias: divide the momentum by 1 − β1ᵗ; without it the Newton update only.
        prior: "fixed" keeps δ = weight_decay; "adaptive" learns one δ per tensor, starting at weight_decay, or, if that
            is 0, at the tensor's own 1 / (λ · max(mean(m²), .02²)); "movement" is a prior around the tensor's start, as
            wide as it has moved (of the Adam update, without weight_decay).
        prior_width: w > 0, of the movement prior: its standard deviation in units of the root mean square of the
            movement. "auto" grows from 0 to 4 in a straight line: `set_prior_width`, which the integrations call
            after every step.
        update: how the mean moves: "newton" by IVON's preconditioned step, "adam" by AdamW's, with AdamW's learning
            rate. With a fixed prior δ m is then part of the gradient.
        adam_beta2: decay of the second moment, in [0, 1); of the Adam update.
        adam_eps: ε > 0; of the Adam update.

    Raises:
        ValueError: an option is out of its range, or has no effect with the given `update`; the message names it, its
            value and what is allowed.

    Example:
        >>> import torch
        >>> from varlora import IVON, NoiseController
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = IVON(model.parameters(), lr=0.1, ess=100.0, hess_init=1.0)
        >>> noise = NoiseController(model, optimizer, seed=0)
        >>> loss = model(torch.ones(4, 2)).square().mean()     # a forward in training mode draws the noise
        >>> loss.backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["step"].item()
        1.0

    Source: arXiv 2402.17641, Algorithm 1; LoRA recipe arXiv 2411.04421; adaptive prior arXiv 2506.14280.
    """

    noise: NoiseStatistics | None = None
    _group_index: Mapping[Tensor, int] = MappingProxyType({})
    _half: ClassVar[tuple[torch.dtype, ...]] = (torch.float16, torch.bfloat16)

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        ess: float | Auto | None,
        hess_init: float | Auto,
        betas: tuple[float, float] = (0.9, 0.99999),
        weight_decay: float = 0.0,
        clip_radius: float = math.inf,
        rescale_lr: bool = False,
        debias: bool = True,
        prior: Prior = "fixed",
        prior_width: float | Auto = "auto",
        update: Update = "newton",
        adam_beta2: float = 0.999,
        adam_eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "ess": ess,
            "hess_init": hess_init,
            "betas": betas,
            "weight_decay": weight_decay,
            "clip_radius": clip_radius,
            "rescale_lr": rescale_lr,
            "debias": debias,
            "prior": prior,
            "prior_width": prior_width,
            "update": update,
            "adam_beta2": adam_beta2,
            "adam_eps": adam_eps,
            "step_index": 0,
            "skipped_steps": 0,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group after checking its options; see the class for their ranges."""
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):
            params = list(params)
            named = self.param_groups and "param_names" in self.param_groups[0]
            if named and all(isinstance(p, Tensor) for p in params):
                # torch wants all groups named or none; the next NoiseController writes the names.
                param_group.setdefault("param_names", [""] * len(params))
            param_group["params"] = params
        super().add_param_group(param_group)
        try:
            check_options(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    # What the posterior is, per parameter ------------------------------------------------------------------

    def mean(self, p: Tensor) -> Tensor:
        """The posterior mean of `p`, in float32 or float64: its master copy if `p` is in half precision."""
        if p.dtype not in self._half:
            return p.detach()
        master: Tensor = self._state(p)["mean"]
        if not torch.equal(master.to(p.dtype), p.detach()):
            master.copy_(p.detach())  # the weights were loaded anew since the last step
        return master

    def precision(self, p: Tensor) -> Tensor:
        """The posterior precision λ (h + δ) of `p`, elementwise.

        Raises:
            ValueError: `ess`, `hess_init` or `prior_width` was left open and nobody has set it.
        """
        group = self.group_of(p)
        state = self._state(p)
        return group["ess"] * (state["hessian"] + prior_delta(state, group))  # type: ignore[no-any-return]

    def noise_scale(self, p: Tensor) -> Tensor:
        """The posterior standard deviation 1 / sqrt(λ (h + δ)) of `p`, elementwise."""
        return self.precision(p).rsqrt()

    def prior_precision(self, p: Tensor) -> float:
        """The prior's precision λ δ for `p`."""
        group = self.group_of(p)
        state = self._state(p)
        return float(group["ess"] * prior_delta(state, group))

    def group_of(self, p: Tensor) -> dict[str, Any]:
        """The parameter group that holds `p`; KeyError if none does."""
        if p not in self._group_index:
            self._group_index = {q: i for i, group in enumerate(self.param_groups) for q in group["params"]}
        if p not in self._group_index:
            raise KeyError(f"this optimizer does not hold the given parameter of shape {tuple(p.shape)}")
        return self.param_groups[self._group_index[p]]

    @property
    def step_index(self) -> int:
        """How many times `step` was called, skipped steps included; the noise of a step is keyed by it."""
        return int(self.param_groups[0]["step_index"])

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because a gradient or a noise · gradient product was not finite."""
        return int(self.param_groups[0]["skipped_steps"])

    # Training ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates momentum, Hessian and mean from the gradients and products of all draws since the last step.

        A step with a non-finite gradient or product changes nothing but the counters. Where more than half of at least
        20 steps were such, that is an error.

        Args:
            closure: evaluates the model, calls backward and returns the loss.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: no noise was drawn, or some parameter's gradient bypassed its noise.
            ValueError: more than half of the steps were skipped.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.noise is None:
            raise RuntimeError(
                "IVON.step() needs gradients taken at sampled weights, but no noise was drawn: create "
                "NoiseController(model, optimizer) before the first forward pass, then forward, backward and "
                "step as usual."
            )
        products = self.noise.collect()
        if self.noise.all_agree(_all_finite([*products.values(), *(_gradient(p) for p in products)])):
            for group in self.param_groups:
                for p in group["params"]:
                    if p in products:
                        self._update(p, group, products[p])
        else:
            self._count("skipped_steps")
            if self.skipped_steps <= 10 or self.skipped_steps % 100 == 0:
                logger.warning(
                    "IVON skipped step %d: a gradient or a noise * gradient product is not finite "
                    "(%d of %d steps skipped so far); weights and statistics are unchanged.",
                    self.step_index + 1,
                    self.skipped_steps,
                    self.step_index + 1,
                )
        self._count("step_index")
        self.noise.after_step()
        if self.step_index >= STEPS_BEFORE_REFUSAL and self.skipped_steps > MOST_SKIPPED * self.step_index:
            raise ValueError(mostly_skipped(self.skipped_steps, self.step_index))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients and, with them, the noise · gradient products."""
        super().zero_grad(set_to_none)
        if self.noise is not None:
            self.noise.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state; statistics stay in float32 even where the parameters are in half precision.

        Raises:
            ValueError: the state is another optimizer's.
        """
        for i, group in enumerate(state_dict["param_groups"]):
            entries = [state_dict["state"].get(index) or {} for index in group["params"]]
            check_saved(i, group, entries)
            if i < len(self.param_groups):
                warn_of_another_prior(group, self.param_groups[i])
        super().load_state_dict(state_dict)
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        held = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, held, strict=True):
            if p.dtype in self._half and saved_id in state_dict["state"]:
                # torch has just rounded these to the parameter's dtype.
                for key, value in state_dict["state"][saved_id].items():
                    if key != "step":
                        self.state[p][key] = value.to(p.device, torch.float32, copy=True)
                if self.state[p]:  # saved when the parameter was in full precision
                    self.state[p].setdefault("mean", p.detach().float())

    # Inside -----------------------------------------------------------------------------------------------

    def _update(self, p: Tensor, group: dict[str, Any], product: Tensor) -> None:
        state, mean = self._state(p), self.mean(p)
        beta1, beta2 = group["betas"]
        momentum, hessian = state["momentum"], state["hessian"]

        if group["prior"] == "movement" and state["step"] == 0:  # weights may have been loaded since the state was made
            state["start"].copy_(mean)
        state["step"] += 1
        gradient = _gradient(p).to(momentum.dtype)
        if group["update"] == "adam" and group["prior"] == "fixed" and group["weight_decay"]:
            gradient = gradient.add(mean, alpha=group["weight_decay"])
        momentum.lerp_(gradient, 1 - beta1)

        if beta2 < 1:
            curvature = hessian + prior_delta(state, group)
            excess = product.mul(group["ess"]).mul_(curvature).sub_(hessian)  # f − h
            hessian.add_(excess, alpha=1 - beta2)
            hessian.add_(excess.square_().div_(curvature), alpha=0.5 * (1 - beta2) ** 2)
        if group["prior"] == "adaptive":
            renew_prior_(state, mean, group)
            if beta2 < 1:  # a falling δ must leave h + δ positive
                hessian.copy_(torch.maximum(hessian, -0.5 * prior_delta(state, group)))
        if group["update"] == "adam":
            adam_update_(
                mean,
                momentum,
                state["second_moment"],
                gradient,
                step=state["step"].item(),
                lr=group["lr"],
                beta1=beta1,
                beta2=group["adam_beta2"],
                eps=group["adam_eps"],
            )
        else:
            self._newton_update(mean, state, group)
        if group["prior"] == "movement":  # of the movement that the next draw will see
            renew_prior_(state, mean, group)
        if mean.dtype != p.dtype:
            p.copy_(mean)

    def _newton_update(self, mean: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        delta = prior_delta(state, group)
        direction = state["momentum"] / (1 - group["betas"][0] ** state["step"].item() if group["debias"] else 1.0)
        if group["prior"] == "fixed":
            direction.add_(mean, alpha=delta)
        direction.div_(state["hessian"] + delta).clamp_(-group["clip_radius"], group["clip_radius"])
        lr = group["lr"]
        if group["rescale_lr"]:
            lr = lr * (group["hess_init"] + group["weight_decay"])
        mean.add_(direction, alpha=-lr)

    def _state(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            group = self.group_of(p)
            check_settled(group)
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            like = p.detach().to(dtype)
            state["step"] = torch.tensor(0.0)
            state["momentum"] = torch.zeros_like(like)
            state["hessian"] = torch.full_like(like, group["hess_init"])
            if group["update"] == "adam":
                state["second_moment"] = torch.zeros_like(like)
            if p.dtype in self._half:
                state["mean"] = like.clone()
            state.update(prior_state(like, group))
        return state

    def _count(self, key: str) -> None:
        for group in self.param_groups:
            group[key] = group.get(key, 0) + 1


def mostly_skipped(skipped: int, steps: int) -> str:
    """What to say of a training that left out more than half of its steps."""
    return (
        f"{skipped} of {steps} steps skipped for numbers that are not finite. That is more than half, and the rest is "
        "no training. Look for the loss that is not finite (rows without a label, a learning rate that is too large, "
        "float16), and train again."
    )


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _all_finite(tensors: Iterable[Tensor]) -> Tensor:
    flags = [torch.isfinite(_local(t)).all() for t in tensors]
    if not flags:
        return torch.tensor(True)
    return torch.stack([flag.to(flags[0].device) for flag in flags]).all()


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
