"""AdamW: one point. Without weight decay the maximum-likelihood estimate, with it the MAP.

The decoupled decay λ_w of AdamW is not exactly the gradient of a Gaussian prior, but plays its part.

Source: Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from varlora.methods.method import Fit, Job, record
from varlora.methods.options import AdamWOptions
from varlora.posterior import point_mass_of
from varlora.training.adapter_trainer import AdapterTrainer


@dataclass(frozen=True, kw_only=True)
class AdamW(AdamWOptions):
    """LoRA fine-tuning as everybody does it."""

    def set_arguments(self, job: Job) -> None:
        """Writes the options into the job's training arguments.

        Raises:
            ValueError: labels are to be smoothed, and completions have none.
        """
        if self.label_smoothing and job.readout is None:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} spreads a label over its choices, and completions have none. "
                "Leave it out, or give rows with labels."
            )
        job.arguments.learning_rate = self.learning_rate
        job.arguments.weight_decay = self.weight_decay
        job.arguments.label_smoothing_factor = self.label_smoothing

    def own_adamw_options(self, job: Job, *, kept: str) -> dict[str, Any]:
        """The options of PyTorch's AdamW, for a method whose AdamW keeps something as its state.

        Args:
            job: its arguments are set.
            kept: what is kept, for the message: "average is", "snapshots are".

        Raises:
            ValueError: the arguments ask for another optimizer, or for checkpoints without its state.
        """
        arguments = job.arguments
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        if optimizer is not torch.optim.AdamW:
            raise ValueError(f"optim={arguments.optim!r} is not PyTorch's AdamW; {self.name} needs 'adamw_torch'.")
        if arguments.load_best_model_at_end and arguments.save_only_model:
            raise ValueError(f"the {kept} optimizer state: with load_best_model_at_end, save_only_model=False.")
        return dict(options)

    def trainer(self, job: Job) -> Trainer:
        """A Trainer with its own AdamW."""
        self.set_arguments(job)
        return AdapterTrainer(**job.trainer_options())

    def fit(self, job: Job) -> Fit:
        """The trained weights as a point mass."""
        log = job.run(self.trainer(job))
        return Fit(posterior=point_mass_of(job.model, **record(job, self.name)), log=log)
