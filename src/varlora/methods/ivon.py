"""IVON: a Gaussian over the adapter, at about AdamW's cost.

Source: Cong et al. 2024, arXiv 2411.04421 (recipe); Cong et al. 2025, arXiv 2506.14280 (λ rule, adaptive prior);
Shen et al. 2024, arXiv 2402.17641 (the optimizer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import Trainer

from varlora.methods.method import Fit, Job, record
from varlora.optim.ivon import IVON, Prior
from varlora.posterior import posterior_of
from varlora.training import IVONConfig, VariationalAnswerTrainer, VariationalTrainerMixin


class VariationalTrainer(VariationalTrainerMixin, Trainer):
    """transformers' Trainer with IVON."""


@dataclass(frozen=True, kw_only=True)
class Ivon:
    """Variational LoRA; the options are those of `varlora.IVONConfig`, whose defaults are the published recipe.

    Attributes:
        learning_rate: IVON's `lr`.
        ess: λ; None means 5000 √N.
        hess_init: h0.
        beta1: β1.
        beta2: β2.
        weight_decay: δ of the prior N(0, 1/(λ δ)).
        clip_radius: ξ.
        prior: "fixed" or "adaptive".
        draws: Monte-Carlo draws per micro-batch in training.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> Ivon(ess=1e6).config.ess
        1000000.0
    """

    name: ClassVar[str] = "ivon"
    summary: ClassVar[str] = "a diagonal Gaussian by the variational optimizer IVON"
    learning_rate: float = IVONConfig.lr
    ess: float | None = IVONConfig.ess
    hess_init: float = IVONConfig.hess_init
    beta1: float = IVONConfig.betas[0]
    beta2: float = IVONConfig.betas[1]
    weight_decay: float = IVONConfig.weight_decay
    clip_radius: float = IVONConfig.clip_radius
    prior: Prior = IVONConfig.prior
    draws: int = IVONConfig.draws

    def __post_init__(self) -> None:
        IVON([torch.zeros(1, requires_grad=True)], **self.config.optimizer_kwargs())  # it checks the options

    @property
    def config(self) -> IVONConfig:
        """The optimizer's options."""
        return IVONConfig(
            lr=self.learning_rate,
            ess=self.ess,
            hess_init=self.hess_init,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            clip_radius=self.clip_radius,
            prior=self.prior,
            draws=self.draws,
        )

    def trainer(self, job: Job) -> Trainer:
        """A Trainer with IVON and its noise."""
        if job.readout is None:
            return VariationalTrainer(**job.trainer_options(), variational=self.config)
        return VariationalAnswerTrainer(**job.trainer_options(), readout=job.readout, variational=self.config)

    def fit(self, job: Job) -> Fit:
        """The Gaussian that training has reached."""
        trainer = self.trainer(job)
        log = job.run(trainer)
        return Fit(posterior=posterior_of(job.model, trainer.optimizer, **record(job, self.name)), log=log)
