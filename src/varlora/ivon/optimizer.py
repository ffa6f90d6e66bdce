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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from varlora.ivon.adam_update import adam_update_
from varlora.ivon.fit_variance import NOT_BEGUN, follow_fit
from varlora.ivon.ivon_state import IVONState
from varlora.ivon.options import Auto, Update, Variance, check_options
from varlora.ivon.priors import PriorName, prior_of
from varlora.ivon.skipped import MOST_SKIPPED, STEPS_BEFORE_REFUSAL, all_finite, mostly_skipped

logger = logging.getLogger(__name__)

CPU_BLOCK = 2**16
"""Entries that are updated together on a CPU."""


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
        prior = prior_of(group)
        pulled = group["update"] == "adam" and prior.pulls and group["weight_decay"]
        for taken in _blocks(products):
            states, means = [self._state(p) for p in taken], [self.mean(p) for p in taken]
            momenta = [state["momentum"] for state in states]
            torch._foreach_add_([state["step"] for state in states], 1)
            gradients = [_gradient(p).to(g.dtype) for p, g in zip(taken, momenta, strict=True)]
            if pulled:
                pulls = [prior.delta(state, group) for state in states]
                gradients = [g.add(m, alpha=d) for g, m, d in zip(gradients, means, pulls, strict=True)]
            torch._foreach_lerp_(momenta, gradients, 1 - group["betas"][0])
            for p, state, mean in zip(taken, states, means, strict=True):
                if group["betas"][1] < 1:
                    self._learn_hessian(state, group, products[p])
                prior.renew_(state, mean, group)
            if group["update"] == "adam":
                _adam_update(states, means, gradients, group)
            else:
                for state, mean in zip(states, means, strict=True):
                    self._newton_update(mean, state, group)
            for p, mean in zip(taken, means, strict=True):
                if mean.dtype != p.dtype:
                    p.copy_(mean)

    def _learn_hessian(self, state: dict[str, Any], group: dict[str, Any], product: Tensor | None) -> None:
        assert product is not None
        beta2, hessian = group["betas"][1], state["hessian"]
        curvature = hessian + prior_of(group).delta(state, group)
        excess = product.mul(group["ess"]).mul_(curvature).sub_(hessian)  # f − h
        hessian.add_(excess, alpha=1 - beta2)
        hessian.add_(excess.square_().div_(curvature), alpha=0.5 * (1 - beta2) ** 2)

    def _newton_update(self, mean: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        prior = prior_of(group)
        delta = prior.delta(state, group)
        direction = state["momentum"] / (1 - group["betas"][0] ** state["step"].item() if group["debias"] else 1.0)
        if prior.pulls:
            direction.add_(mean, alpha=delta)
        direction.div_(state["hessian"] + delta).clamp_(-group["clip_radius"], group["clip_radius"])
        lr = group["lr"]
        if group["rescale_lr"]:
            lr = lr * (group["hess_init"] + group["weight_decay"])
        mean.add_(direction, alpha=-lr)

    def _count(self, key: str) -> None:
        for group in self.param_groups:
            group[key] = group.get(key, 0) + 1


def _adam_update(
    states: Sequence[dict[str, Any]], means: Sequence[Tensor], gradients: Sequence[Tensor], group: dict[str, Any]
) -> None:
    by_step: dict[float, list[int]] = {}  # they are one, unless some took part in fewer steps
    for i, step in enumerate(torch.stack([state["step"] for state in states]).tolist()):
        by_step.setdefault(step, []).append(i)
    for step, taken in by_step.items():
        adam_update_(
            [means[i] for i in taken],
            [states[i]["momentum"] for i in taken],
            [states[i]["second_moment"] for i in taken],
            [gradients[i] for i in taken],
            step=step,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["adam_beta2"],
            eps=group["adam_eps"],
        )


def _blocks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters, some at a time: on a CPU so few that what a step reads of them stays in its cache."""
    block: list[Tensor] = []
    entries = 0
    for p in parameters:
        if block and p.device.type == "cpu" and entries + p.numel() > CPU_BLOCK:
            yield block
            block, entries = [], 0
        block.append(p)
        entries += p.numel()
    if block:
        yield block


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad
