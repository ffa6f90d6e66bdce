"""IVON: a Gaussian over the adapter, at about AdamW's cost.

Source: Cong et al. 2024, arXiv 2411.04421 (recipe); Cong et al. 2025, arXiv 2506.14280 (λ rule, adaptive prior);
Shen et al. 2024, arXiv 2402.17641 (the optimizer); the recipe "auto" is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Trainer

from varlora.ivon.trainer import VariationalTrainer
from varlora.ivon.trainer_held_out import IN_A_RUN
from varlora.methods.method import Fit, Job, record
from varlora.methods.options import IvonOptions
from varlora.posterior import posterior_of


@dataclass(frozen=True, kw_only=True)
class Ivon(IvonOptions):
    """Variational LoRA; the options are those of `varlora.IVONConfig`, and None means "as the recipe says".

    Example:
        >>> Ivon().config.lr                                     # AdamW's
        5e-05
        >>> Ivon(recipe="cong2024").config.ess
        1000000.0
    """

    def trainer(self, job: Job) -> Trainer:
        """A Trainer with IVON and its noise."""
        return _RunTrainer(**job.trainer_options(), variational=self.config)

    def fit(self, job: Job) -> Fit:
        """The Gaussian that training has reached."""
        trainer = self.trainer(job)
        log = job.run(trainer)
        return Fit(posterior=posterior_of(job.model, trainer.optimizer, **record(job, self.name)), log=log)


class _RunTrainer(VariationalTrainer):
    """Speaks of rows and options as `varlora train` does."""

    words = IN_A_RUN
