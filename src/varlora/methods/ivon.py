"""IVON: a Gaussian over the adapter, at about AdamW's cost.

Source: Cong et al. 2024, arXiv 2411.04421 (recipe); Cong et al. 2025, arXiv 2506.14280 (λ rule, adaptive prior);
Shen et al. 2024, arXiv 2402.17641 (the optimizer); the recipe "auto" is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import Trainer

from varlora.held_out import HeldOutSource
from varlora.ivon_config import RECIPES, IVONConfig, Recipe
from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job, record
from varlora.optim.auto import Auto
from varlora.optim.options import Prior, Update
from varlora.posterior import posterior_of
from varlora.training import VariationalTrainer


@dataclass(frozen=True, kw_only=True)
class Ivon:
    """Variational LoRA; the options are those of `varlora.IVONConfig`, and None means "as the recipe says".

    Attributes:
        recipe: "auto" (variational Adam, nothing to set but AdamW's learning rate), "cong2024" or "cong2025".
        learning_rate: IVON's `lr`; under "auto" the default is AdamW's, under the published recipes .03.
        update: "adam" or "newton".
        ess: λ; "auto" is 100 N.
        hess_init: h0; "auto" is N/λ.
        beta1: β1.
        beta2: β2; 1 keeps h at h0.
        weight_decay: δ of the prior N(0, 1/(λ δ)); not with "movement".
        clip_radius: ξ, of the Newton update.
        prior: "fixed", "adaptive" or "movement".
        prior_width: of the movement prior; "auto" grows from 0 to 4 in the course of the training.
        held_out: which rows steer λ = "auto": "validation", "train" (some are withheld for a while), "auto" (validation
            rows if there are some), or "none".
        draws: Monte-Carlo draws per micro-batch in training.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> Ivon().config.lr == AdamW().learning_rate
        True
        >>> Ivon(recipe="cong2024").config.ess
        1000000.0
    """

    name: ClassVar[str] = "ivon"
    recipe: Recipe = IVONConfig.recipe
    learning_rate: float | None = None
    update: Update | None = None
    ess: float | Auto | None = None
    hess_init: float | Auto | None = None
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float | None = None
    clip_radius: float | None = None
    prior: Prior | None = None
    prior_width: float | Auto | None = None
    held_out: HeldOutSource | None = None
    draws: int = IVONConfig.draws

    def __post_init__(self) -> None:
        _ = self.config  # it checks the options

    @property
    def config(self) -> IVONConfig:
        """The optimizer's options, filled in by the recipe."""
        beta1, beta2 = RECIPES.get(self.recipe, RECIPES["auto"])["betas"]  # IVONConfig refuses what is no recipe
        return IVONConfig(
            recipe=self.recipe,
            lr=self.learning_rate,
            update=self.update,
            ess=self.ess,
            hess_init=self.hess_init,
            betas=(
                self.beta1 if self.beta1 is not None else beta1,
                self.beta2 if self.beta2 is not None else beta2,
            ),
            weight_decay=self.weight_decay,
            clip_radius=self.clip_radius,
            prior=self.prior,
            prior_width=self.prior_width,
            held_out=self.held_out,
            draws=self.draws,
        ).resolved(learning_rate=AdamW.learning_rate)

    def trainer(self, job: Job) -> Trainer:
        """A Trainer with IVON and its noise."""
        return VariationalTrainer(**job.trainer_options(), variational=self.config)

    def fit(self, job: Job) -> Fit:
        """The Gaussian that training has reached."""
        trainer = self.trainer(job)
        log = job.run(trainer)
        return Fit(posterior=posterior_of(job.model, trainer.optimizer, **record(job, self.name)), log=log)
