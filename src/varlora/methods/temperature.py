"""Temperature scaling: the logits divided by one number fitted on validation rows (`varlora.metrics.temperature`).

The cheapest competitor of any posterior, and often a strong one; it goes on top of every method. At a point, accuracy
does not change.

Source: Guo et al. 2017, arXiv 1706.04599.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import Trainer

from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job
from varlora.methods.options import TemperatureOptions
from varlora.metrics import fit_temperature
from varlora.posterior import Mode, Posterior
from varlora.prediction.prediction import Prediction, predict

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Temperature(TemperatureOptions, AdamW):
    """AdamW, then one temperature on the logits by validation NLL."""

    def trainer(self, job: Job) -> Trainer:
        """AdamW's trainer, if there will be something to fit the temperature on.

        Raises:
            ValueError: the task has no classes, or no validation rows.
        """
        if job.readout is None:
            raise ValueError("method 'temperature' scales the logits of classes; completions have none. Use 'adamw'.")
        if job.validation is None:
            raise ValueError(
                "method 'temperature' is fitted on labelled validation rows that are not test rows, too; give some, or "
                "use 'adamw'."
            )
        return super().trainer(job)

    def fit(self, job: Job) -> Fit:
        """AdamW's point mass with the temperature in its meta."""
        fit = super().fit(job)
        assert job.readout is not None
        assert job.validation is not None
        at_point = predict(job.model, fit.posterior, job.batches(job.validation), 0, readout=job.readout)
        scaled = with_temperatures(fit.posterior, {"mean": at_point}, of=f"training in {job.arguments.output_dir}")
        return dataclasses.replace(fit, posterior=scaled)


def with_temperatures(
    q: Posterior, validation: Mapping[Mode, Prediction], *, usable: Tensor | None = None, of: str = ""
) -> Posterior:
    """The posterior with a logit temperature for each mode of prediction, and in its diagnostics what decided it.

    Args:
        q: any posterior.
        validation: by mode, predictions for validation rows that no temperature has divided.
        usable: (N,) which rows, all with a label, may decide it; None: all that have one.
        of: what a warning is to name: a run.

    Raises:
        ValueError: a prediction was divided by a temperature, or no temperature can be fitted to it.

    Example:
        >>> import torch
        >>> from varlora.posterior import PointMass
        >>> logits = torch.tensor([[[2.0, 0.0]]] * 400, dtype=torch.float64)
        >>> prediction = Prediction(log_probs=logits.log_softmax(-1), labels=torch.tensor([0, 0, 0, 1] * 100))
        >>> q = with_temperatures(PointMass(mean={"w": torch.ones(1)}), {"mean": prediction})
        >>> round(q.meta.logit_temperature_of("mean"), 3), q.meta.diagnostics["logit_temperature"]["mean"]["rows"]
        (1.735, 400)
    """
    fits = {}
    for mode, prediction in validation.items():
        if prediction.logit_temperature != 1.0:
            raise ValueError(
                f"the predictions of mode {mode!r} were divided by {prediction.logit_temperature} already; predict "
                "with logit_temperature=1.0."
            )
        known = prediction.labels >= 0 if usable is None else usable
        whose = f"{of}, mode {mode}" if of else f"mode {mode}"
        fits[mode] = fit_temperature(prediction.log_probs[known], prediction.labels[known], of=whose)
        logger.info("%s: %s", whose, fits[mode].sentence)
    temperatures: dict[str, float] = {mode: fit.value for mode, fit in fits.items()}
    decided = {"logit_temperature": {mode: dataclasses.asdict(fit) for mode, fit in fits.items()}}
    meta = dataclasses.replace(
        q.meta.with_logit_temperatures(temperatures), diagnostics={**(q.meta.diagnostics or {}), **decided}
    )
    return dataclasses.replace(q, meta=meta)  # type: ignore[type-var]
