"""The base model without training: what a table's other rows start from.

The posterior is the adapter's beginning as a point: B is 0, so that the model answers as the base model does.
Everything else of a run stays: prediction, temperature, metrics, folder.
"""

from __future__ import annotations

from dataclasses import dataclass

from varlora.methods.method import Fit, Job, record
from varlora.methods.options import ZeroShotOptions
from varlora.posterior import point_mass_of
from varlora.readout.readout import ClassHead


@dataclass(frozen=True, kw_only=True)
class ZeroShot(ZeroShotOptions):
    """The adapter where it begins."""

    def fit(self, job: Job) -> Fit:
        """The adapter's beginning as a point mass, and an empty log.

        Raises:
            ValueError: a classification head is new and has learned nothing; a training is to be stopped early.
        """
        if isinstance(job.readout, ClassHead):
            raise ValueError(
                "method 'zero_shot' asks a model that has learned to answer, and a classification head begins at "
                "random. Use a causal language model, or another method."
            )
        if job.arguments.load_best_model_at_end:
            raise ValueError("early_stopping has no effect on method 'zero_shot', which does not train. Leave it out.")
        return Fit(posterior=point_mass_of(job.model, **record(job, self.name)), log=[])
