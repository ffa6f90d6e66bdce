r"""IVON: improved variational online Newton, a plain `torch.optim.Optimizer`.

It minimises λ E_q[mean loss] + KL(q ‖ p) over q = N(m, diag 1/(λ (h + δ))). The parameters hold the mean m;
the optimizer holds the running gradient g and the running diagonal Hessian h. Gradients are taken at
m + noise by `varlora.ivon.noise.NoiseController`, which also collects noise · gradient; one step then is

    f = λ (h + δ) · mean(noise · gradient)                          (Price / Stein estimator of the Hessian)
    g ← β1 g + (1 − β1) ĝ
    h ← β2 h + (1 − β2) f + ½ (1 − β2)² (h − f)² / (h + δ)
    m ← m − lr · clip((g / (1 − β1ᵗ) + δ m) / (h + δ), ±ξ)

With `update="adam"` the last line is AdamW's instead (`ivon.adam_update`, variational Adam), and with `variance="fit"`
there is no h: the posterior is N(m, v) with one v for a group, which follows the fit (`ivon.fit_variance`). With
`prior="adaptive"` every tensor has its own δ (`ivon.priors`), and δ m is dropped from the step.

Source: Shen et al. 2024, arXiv 2402.17641; Cong et al. 2025, arXiv 2506.14280.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from varlora.ivon.adam_update import adam_update_
from varlora.ivon.blocks import blocks
from varlora.ivon.fit_variance import NOT_BEGUN, follow_fit
from varlora.ivon.ivon_state import IVONState
from varlora.ivon.numbers import number_of
from varlora.ivon.options import Auto, Update, Variance, check_options
from varlora.ivon.priors import PriorName, prior_of
from varlora.ivon.skipped import MOST_SKIPPED, STEPS_BEFORE_REFUSAL, all_finite, mostly_skipped
from varlora.posterior.sharded import local

logger = logging.getLogger(__name__)

CPU_BLOCK = 2**16
"""Entries that are updated together on a CPU, where the update takes several passes."""


class IVON(IVONState):
    """Variational online Newton with Price's Hessian estimate (arXiv 2402.17641).

    A `NoiseController` must be attached to the model and this optimizer before training; `step` refuses to
    run on gradients that were not taken at sampled weights. Losses are means over the minibatch; under
    gradient accumulation, scale each loss by its share so that the weights sum to one (transformers and
    accelerate do this already).

    State per parameter, in float32 (float64 for float64 parameters) whatever the parameter's dtype:
    `step`, `momentum`; with `variance="hessian"` `hessian`; for half-precision parameters `mean`, the master copy; with
    `update="adam"` also `second_moment`, with `prior="adaptive"` also `prior_precision`.

    λ is read anew each time: `optimizer.param_groups[i]["ess"]` may be changed between a step and the next forward
    pass, and is part of the state. (Not between a forward pass and its step: the noise of that pass has the old λ.)

    Args:
        params: parameters, or groups that override any option below.
        lr: learning rate, > 0. The Newton update's is about 600 times AdamW's (with `clip_radius=1e-3`).
        ess: λ, effective sample size, > 0. λ = number of training examples is plain Bayes where h is
            learned; larger is colder.
            "auto" (λ = 100 N) and None (λ = 5000 √N) leave it to the integration (`VariationalCallback`), which knows
            the training set. Of variance="fit" only its ratio to the λ that training began with counts.
        hess_init: h0, > 0. The initial noise has standard deviation 1 / sqrt(ess (hess_init + δ)). "auto" leaves it to
            the integration: h0 = N / λ.
        betas: (β1, β2). β1 is in [0, 1); β2 in [0, 1], and with β2 = 1 h stays at h0 to the bit.
        weight_decay: δ >= 0: the prior is N(0, 1 / (ess δ)).
        clip_radius: ξ > 0, bound on the preconditioned step, elementwise; of the Newton update.
        rescale_lr: multiply lr by (h0 + δ); of the Newton update.
        debias: divide the momentum by 1 − β1ᵗ; without it the Newton update only.
        prior: "fixed" keeps δ = weight_decay; "adaptive" learns one δ per tensor, starting at weight_decay, or, if that
            is 0, at the tensor's own 1 / (λ · max(mean(m²), .02²)).
        update: how the mean moves: "newton" by IVON's preconditioned step, "adam" by AdamW's, with AdamW's learning
            rate. With a fixed prior δ m is then part of the gradient.
        adam_beta2: decay of the second moment, in [0, 1); of the Adam update.
        adam_eps: ε > 0; of the Adam update.
        variance: "hessian" is 1/(λ (h + δ)); "fit" is one number for a group, from its learning rates and the training
            loss, which the `NoiseController` sees (of the Adam update, without h and prior, so that `hess_init`, β2,
            `weight_decay` and `prior` are left alone).

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

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        ess: float | Auto | None,
        hess_init: float | Auto = "auto",
        betas: tuple[float, float] = (0.9, 0.99999),
        weight_decay: float = 0.0,
        clip_radius: float = math.inf,
        rescale_lr: bool = False,
        debias: bool = True,
        prior: PriorName = "fixed",
        update: Update = "newton",
        adam_beta2: float = 0.999,
        adam_eps: float = 1e-8,
        variance: Variance = "hessian",
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
            "update": update,
            "adam_beta2": adam_beta2,
            "adam_eps": adam_eps,
            "variance": variance,
            **NOT_BEGUN,
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
            ValueError: the variance follows the fit, and no training loss was seen; more than half of the steps were
                skipped.
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
        fitted = [group for group in self.param_groups if group["variance"] == "fit"]
        trained_on = self._trained_on() if fitted else 0.0
        read = [product for product in products.values() if product is not None]
        if self.noise.all_agree(all_finite([*read, *(_gradient(p) for p in products)])):
            for group in self.param_groups:
                self._update(group, {p: products[p] for p in group["params"] if p in products})
            for group in fitted:
                follow_fit(group, trained_on)
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

    @property
    def reads_products(self) -> bool:
        """Whether a step reads noise · gradient: whether a Hessian is learned."""
        return any(group["betas"][1] < 1 for group in self.param_groups)

    # Inside -----------------------------------------------------------------------------------------------

    def _trained_on(self) -> float:
        assert self.noise is not None
        loss = self.noise.mean_loss()
        if loss is None:
            raise ValueError(
                "variance='fit' follows the training loss, and no loss was seen in this step: no backward pass went "
                "through an output.loss or output.log_probs of the model. Call observe_loss(loss) of the "
                "NoiseController before loss.backward(), use VariationalTrainerMixin, which does in compute_loss, or "
                "take variance='hessian'."
            )
        return loss

    def _update(self, group: dict[str, Any], products: Mapping[Tensor, Tensor | None]) -> None:
        """Updates the parameters of a group, by their mean noise · gradient where it is read."""
        alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for p in products:
            alike.setdefault((p.device, self._state(p)["momentum"].dtype), []).append(p)
        largest = CPU_BLOCK if group["variance"] == "hessian" else 2**62
        for (device, dtype), parameters in alike.items():
            for taken in blocks(parameters, [p.numel() for p in parameters], device, largest):
                states, means = [self.state[p] for p in taken], [self.mean(p) for p in taken]
                gradients = [local(_gradient(p)).to(dtype) for p in taken]
                torch._foreach_add_([state["step"] for state in states], 1)
                if group["betas"][1] < 1:
                    _learn_hessians(states, group, [products[p] for p in taken])
                prior_of(group).renew_(states, means, group)
                update = _adam_update if group["update"] == "adam" else _newton_update
                update([local(mean) for mean in means], gradients, states, group)
                for p, mean in zip(taken, means, strict=True):
                    if mean.dtype != p.dtype:
                        p.copy_(mean)

    def _count(self, key: str) -> None:
        for group in self.param_groups:
            group[key] = group.get(key, 0) + 1


def _learn_hessians(states: Sequence[dict[str, Any]], group: dict[str, Any], products: Sequence[Tensor | None]) -> None:
    held = [local(product) for product in products if product is not None]
    hessians, beta2, prior = _held(states, "hessian"), group["betas"][1], prior_of(group)
    deltas = prior.deltas(states, group)
    if (lowest := prior.lowest(deltas, group)) is not None:  # λ may have moved since the last step
        torch._foreach_clamp_min_(hessians, lowest)
    curvatures = torch._foreach_add(hessians, deltas)
    excesses = torch._foreach_mul(held, group["ess"])
    torch._foreach_mul_(excesses, curvatures)
    torch._foreach_sub_(excesses, hessians)  # f − h
    torch._foreach_add_(hessians, excesses, alpha=1 - beta2)
    torch._foreach_mul_(excesses, excesses)
    torch._foreach_div_(excesses, curvatures)
    torch._foreach_add_(hessians, excesses, alpha=0.5 * (1 - beta2) ** 2)


def _newton_update(
    means: list[Tensor], gradients: list[Tensor], states: Sequence[dict[str, Any]], group: dict[str, Any]
) -> None:
    prior, momenta, beta1 = prior_of(group), _held(states, "momentum"), group["betas"][0]
    deltas = prior.deltas(states, group)
    torch._foreach_lerp_(momenta, gradients, 1 - beta1)
    steps = torch.stack([state["step"] for state in states]).tolist()
    directions = torch._foreach_div(momenta, [1 - beta1**step if group["debias"] else 1.0 for step in steps])
    if prior.pulls and deltas[0]:
        torch._foreach_add_(directions, means, alpha=deltas[0])
    torch._foreach_div_(directions, torch._foreach_add(_held(states, "hessian"), deltas))
    if group["clip_radius"] < math.inf:
        torch._foreach_clamp_max_(directions, group["clip_radius"])
        torch._foreach_clamp_min_(directions, -group["clip_radius"])
    scale = group["hess_init"] + group["weight_decay"] if group["rescale_lr"] else 1.0
    torch._foreach_add_(means, directions, alpha=-number_of(group["lr"]) * scale)


def _adam_update(
    means: list[Tensor], gradients: list[Tensor], states: Sequence[dict[str, Any]], group: dict[str, Any]
) -> None:
    adam_update_(
        means,
        _held(states, "momentum"),
        _held(states, "second_moment"),
        gradients,
        steps=[state["step"] for state in states],
        lr=number_of(group["lr"]),
        beta1=group["betas"][0],
        beta2=group["adam_beta2"],
        eps=group["adam_eps"],
        decay=number_of(group["weight_decay"]) if prior_of(group).pulls else 0.0,
    )


def _held(states: Sequence[dict[str, Any]], key: str) -> list[Tensor]:
    return [local(state[key]) for state in states]


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad
