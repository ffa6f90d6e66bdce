"""What IVON holds: the posterior N(m, v) of every parameter, and what of it is left to the training.

m is the parameter itself, or its master copy. v is 1/(λ (h + δ)), where h and the prior are the parameter's state and λ
is its group's; or one number that follows the fit, from numbers of its group (`ivon.fit_variance`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from varlora.ivon.auto import is_open, settle
from varlora.ivon.diagnostics import ivon_diagnostics
from varlora.ivon.fit_variance import fit_variance
from varlora.ivon.options import check_saved, check_settled, warn_of_another_posterior, with_variance
from varlora.ivon.priors import prior_of
from varlora.posterior.gaussian_optimizer import NoiseStatistics
from varlora.posterior.sharded import whole

logger = logging.getLogger(__name__)


class IVONState(torch.optim.Optimizer):
    """The state of `IVON`, which says how it steps."""

    noise: NoiseStatistics | None = None
    _group_index: Mapping[Tensor, int] = MappingProxyType({})
    _half: ClassVar[tuple[torch.dtype, ...]] = (torch.float16, torch.bfloat16)

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
        """The posterior precision of `p`, elementwise: λ (h + δ), or 1/v of the variance that follows the fit.

        Raises:
            ValueError: `ess` or `hess_init` was left open and nobody has set it.
        """
        group, state = self.group_of(p), self._state(p)
        if group["variance"] == "fit":
            return torch.full_like(state["momentum"], 1 / fit_variance(group))
        prior = prior_of(group)
        (delta,) = prior.deltas([state], group)
        return group["ess"] * prior.curvature(state["hessian"], delta, group)  # type: ignore[no-any-return]

    def noise_scale(self, p: Tensor) -> Tensor | float:
        """The posterior standard deviation of `p`, elementwise; or that of all entries of its group, a number."""
        group = self.group_of(p)
        if group["variance"] == "hessian":
            return self.precision(p).rsqrt()
        if "ess_start" not in group:  # the first draw: the posterior of all of them begins
            for trained in group["params"]:
                if trained.requires_grad:
                    self._state(trained)
        return math.sqrt(fit_variance(group))

    def prior_precision(self, p: Tensor) -> float | None:
        """The prior's precision λ δ for `p`; None where the variance follows the fit, without a prior."""
        group, state = self.group_of(p), self._state(p)
        if group["variance"] == "fit":
            return None
        (delta,) = prior_of(group).deltas([state], group)
        return float(group["ess"] * delta)

    def prior_mean(self, p: Tensor) -> None:
        """None: IVON's priors are around 0."""

    def ess_of(self, p: Tensor) -> float:
        """λ of `p`."""
        return float(self.group_of(p)["ess"])

    def diagnostics(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What IVON says of its training, plain JSON; under FSDP2 every rank must ask.

        Args:
            tensors: the trained parameters by checkpoint key.
        """
        states = {key: self._state(p) for key, p in tensors.items()}
        return ivon_diagnostics(
            self.param_groups,
            {
                key: (whole(state["hessian"]), float(self.group_of(tensors[key])["hess_init"]))
                for key, state in states.items()
                if "hessian" in state
            },
            ess=sorted({self.ess_of(p) for p in tensors.values()}),
            steps=int(max(state["step"] for state in states.values())),
            skipped_steps=self.skipped_steps,
        )

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

    # What is left to the training ("auto") -------------------------------------------------------------------

    def is_open(self) -> bool:
        """Whether a parameter group waits for the number of examples (`ivon.auto`)."""
        return any(is_open(group) for group in self.param_groups)

    def settle(self, num_examples: int) -> None:
        """Writes λ and h0 where they were left open.

        Args:
            num_examples: N.
        """
        for group in self.param_groups:
            if is_open(group):
                settle(group, num_examples)
                logger.info("%d examples: ess = %.4g, h0 = %s", num_examples, group["ess"], group["hess_init"])

    def is_steered(self) -> bool:
        """Whether held-out rows may move λ: whether it was "auto"."""
        return any(group.get("auto_ess") is not None for group in self.param_groups)

    def move_ess(self, law: Callable[[float, float], float]) -> None:
        """Moves λ where it was "auto".

        Args:
            law: from the present λ, and the one that training began with, to the next.
        """
        for group in self.param_groups:
            if group.get("auto_ess") is not None:
                group["ess"] = law(group["ess"], group["auto_ess"])

    # Checkpoints --------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state; statistics stay in float32 even where the parameters are in half precision.

        Raises:
            ValueError: the state is another optimizer's.
        """
        state_dict = {**state_dict, "param_groups": [with_variance(group) for group in state_dict["param_groups"]]}
        for i, group in enumerate(state_dict["param_groups"]):
            check_saved(i, group)
            if i < len(self.param_groups):
                warn_of_another_posterior(group, self.param_groups[i])
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

    def _state(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            group = self.group_of(p)
            check_settled(group)
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            like = p.detach().to(dtype)
            state["step"] = torch.tensor(0.0)
            state["momentum"] = torch.zeros_like(like)
            if group["variance"] == "hessian":
                state["hessian"] = torch.full_like(like, group["hess_init"])
            else:
                group.setdefault("ess_start", group["ess"])
            if group["update"] == "adam":
                state["second_moment"] = torch.zeros_like(like)
            if p.dtype in self._half:
                state["mean"] = like.clone()
            state.update(prior_of(group).initial_state(like, group))
        return state
