"""A finished run's validation rows, and what variants of its posterior predict for them.

The predictions come from the run folder where training has left them (τ = 1, and the mean); the base model is loaded
only where others are needed. Rows that are test rows, too, may not be chosen on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from varlora.metrics.selection import FEWEST_ROWS
from varlora.posterior import PredictionConfig
from varlora.posterior.draws import number_of_draws
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import remove_tuning
from varlora.runs.data import load_own_rows, put_beside_own
from varlora.runs.folder import CompletionScores, RunFolder
from varlora.runs.predict import predict_split
from varlora.runs.setting import Setting, reload_setting
from varlora.runs.usable_rows import UsableRows, usable_rows
from varlora.tasks import OUT_OF_SCOPE, Task
from varlora.tasks.task import VALIDATION

logger = logging.getLogger(__name__)


class ValidationRows:
    """The validation rows that may be chosen on, and their predictions, each made once.

    Args:
        run: the run, with its settings as they are now.
        rows: the task with other validation rows; None: the run's own.
        setting: the model and the rows, where they are loaded already; None loads them, the model if it is needed.
        progress: show progress bars.

    Raises:
        ValueError: there are too few rows to choose on.
    """

    def __init__(
        self, run: RunFolder, *, rows: Task | None = None, setting: Setting | None = None, progress: bool = False
    ) -> None:
        self.run, self.q, self.own, self.progress = run, remove_tuning(run.posterior), rows is None, progress
        if rows is not None:
            rows = put_beside_own(rows, run, ["train", "test"])
        self.task = rows or (setting.task if setting is not None else load_own_rows(run))
        self.kept, self.left_out = select_usable(self.task)
        held = self.task.rows(VALIDATION)
        self.labels = torch.tensor([0] * len(held) if run.is_completion else held["label"][:])[self.kept]
        self._made: dict[PredictionConfig, Tensor] = {}
        self._setting = setting

    def log_probs(self, config: PredictionConfig) -> Tensor:
        """Log-probabilities of the rows, predicted in one way but divided by no T.

        Args:
            config: the way; its number of draws is the run's where it has none.

        Returns:
            (N, S, C); S is another where the posterior has another number of draws. Of completions C is 1.
        """
        key = config.stored_as
        draws = number_of_draws(self.q, config.draws(self.run.config.samples))
        if key not in self._made or (key.mode == "samples" and self._made[key].shape[1] < draws):
            stored = self._stored(key, draws)
            self._made[key] = (stored if stored is not None else self._predicted(config))[self.kept]
        return self._made[key][:, :draws] if key.mode == "samples" else self._made[key]

    def _stored(self, key: PredictionConfig, draws: int) -> Tensor | None:
        """What training has left, if it was predicted in this way, is of these rows and has as many draws."""
        if not self.own or key != PredictionConfig(mode=key.mode) or self.run.is_completion:
            return None
        stored = self.run.stored_prediction(VALIDATION, key.mode)
        if stored is None:
            return None
        if not is_of(stored, self.task, VALIDATION):
            logger.warning(
                "the stored %s predictions are not of the rows that the data hold now: made anew", VALIDATION
            )
            return None
        if key.mode == "samples" and (stored.num_draws < draws or stored.seed != self.run.config.seed):
            return None
        logger.info("%s rows at %s: as training has left them", VALIDATION, key.describe())
        return stored.at_temperature(1.0).log_probs

    def _predicted(self, config: PredictionConfig) -> Tensor:
        if self._setting is None:
            self._setting = reload_setting(self.run, self.task)
        logger.info("%s rows at %s", VALIDATION, config.stored_as.describe())
        undivided = replace(config, logit_temperature=1.0)
        prediction = predict_split(self._setting, self.q, VALIDATION, undivided, progress=self.progress)
        if isinstance(prediction, CompletionScores):
            return prediction.log_likelihoods[..., None]  # of one "class", the completion that was given
        return prediction.log_probs


def is_of(stored: Prediction, task: Task, split: str) -> bool:
    """Whether predictions are of the rows, and the answers, that a split holds now.

    Args:
        stored: what a run has kept.
        task: one of classes.
        split: the split.
    """
    rows = task.rows(split)
    labels = [max(label, OUT_OF_SCOPE) for label in stored.labels.tolist()]
    return stored.ids == tuple(map(str, rows["id"])) and labels == rows["label"][:]


def select_usable(task: Task) -> UsableRows:
    """`usable_rows`, of which there must be enough to choose on; a warning names those that are test rows, too.

    Raises:
        ValueError: there are too few.
    """
    usable = usable_rows(task)
    number = int(usable.kept.sum())
    if number < FEWEST_ROWS:
        too = (
            f" ({usable.left_out} others are test rows, too, and nothing is tuned on those)" if usable.left_out else ""
        )
        raise ValueError(
            f"the split 'validation' has {number} labelled row(s) to choose on{too}; it needs {FEWEST_ROWS}. "
            "Train with more validation rows (validation_file or validation_size), or predict as trained."
        )
    if usable.left_out:
        logger.warning("%d %s rows are test rows, too, and are left out", usable.left_out, VALIDATION)
    return usable
