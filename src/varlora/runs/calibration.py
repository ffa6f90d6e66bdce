"""The rows that a decision is chosen on, predicted as the rows that it is for.

Training has left predictions of the validation rows in the run's folder; they are made anew where they would be made
otherwise: another posterior, mode or number of draws. Rows that are reported, too, are left out.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varlora.posterior import PredictionConfig
from varlora.posterior.draws import number_of_draws
from varlora.prediction.prediction import Prediction
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder
from varlora.runs.run import predict_split
from varlora.runs.setting import FinishedModel, Setting, reload_setting
from varlora.runs.validation import is_of, load_own_rows, unreported
from varlora.tasks import Task

logger = logging.getLogger(__name__)

VALIDATION = "validation"
CALIBRATION = "calibration"
"""The split of a file's rows that take the validation rows' place."""


@dataclass(frozen=True, kw_only=True)
class ChosenOn:
    """Which rows a decision was chosen on.

    Attributes:
        source: "validation", or the name of another file.
        rows: how many there were.
        left_out: how many labelled rows were left out because they are reported, too.
        also_used_for: what else the rows have decided, in words; each makes the guarantees a little less exact.
    """

    source: str
    rows: int
    left_out: int = 0
    also_used_for: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The rows that a decision is chosen on, predicted.

    Attributes:
        prediction: of the rows that are used; all have labels.
        chosen_on: which rows they are.
    """

    prediction: Prediction
    chosen_on: ChosenOn


def calibrate(
    run: RunFolder,
    settings: RunConfig,
    config: PredictionConfig,
    *,
    setting: Setting | FinishedModel | None = None,
    reported: Sequence[str] = (),
    file: Task | None = None,
    progress: bool = False,
) -> Calibration:
    """The rows that a decision is chosen on, predicted as others will be.

    Args:
        run: the run, with what was tuned left in or taken out.
        settings: its settings, as they are now.
        config: how the rows to decide on will be predicted.
        setting: its parts, or its model, where they are loaded already; None loads them if a prediction is to be made.
        reported: the run's splits that are reported. Rows whose prompts are among theirs are not chosen on.
        file: other labelled rows in place of the validation rows, as the split "calibration".
        progress: show progress bars.

    Raises:
        ValueError: there are no such rows, or the run's task has no classes.
    """
    if run.facts["task"]["kind"] == "completion":
        raise ValueError(
            "a decision needs probabilities of classes, and completions have none. Leave --coverage, "
            "--target_accuracy and --prediction_sets out."
        )
    task = setting.task if isinstance(setting, Setting) else None
    if task is None and any(split in run.facts["task"]["rows"] for split in reported):
        task = load_own_rows(run, settings)
    if file is not None:
        prediction = _predicted(_with_rows(file, setting, run, settings), run, CALIBRATION, config, progress)
        return _usable(prediction, file.rows(CALIBRATION)["prompt"], task, reported, str(file.source), ())
    splits = [split for split in reported if split != VALIDATION]
    if reported and not splits:
        raise ValueError(
            "only validation rows are to be reported, and the threshold is chosen on those. Report another split, or "
            "give other labelled rows to choose it on (--calibration_file)."
        )
    if VALIDATION not in run.facts["task"]["rows"]:
        raise ValueError(
            f"{run.path} has no validation rows to choose a threshold on, and it is never chosen on rows that are "
            "reported. Give labelled rows that are neither (--calibration_file), or train with validation_file or "
            "validation_size."
        )
    stored = _stored(run, settings, config)
    used = also_used_for(run)
    if stored is not None and task is None:
        return _usable(stored, (), None, (), VALIDATION, used)
    own = task if task is not None and VALIDATION in task.splits else load_own_rows(run, settings)
    if stored is None or not is_of(stored, own, VALIDATION):
        if stored is not None:
            logger.warning("the stored validation predictions are not of the rows that the data hold now: made anew")
        stored = _predicted(_with_rows(own, setting, run, settings), run, VALIDATION, config, progress)
    return _usable(stored, own.rows(VALIDATION)["prompt"], task, splits, VALIDATION, used)


def _with_rows(task: Task, at: Setting | FinishedModel | None, run: RunFolder, settings: RunConfig) -> Setting:
    """The model, loaded where it is not, and these rows."""
    if isinstance(at, Setting):
        return dataclasses.replace(at, task=task)
    return reload_setting(settings, run.path, run.posterior.meta, task) if at is None else at.setting(task)


def also_used_for(run: RunFolder) -> tuple[str, ...]:
    """What a run's validation rows have decided before, in words.

    Args:
        run: the run; its posterior tells whether it was tuned.
    """
    config, meta = run.config, run.posterior.meta
    steered: Mapping[str, Any] = (meta.diagnostics or {}).get("held_out") or {}
    decided = {
        "λ was steered": bool(steered.get("measurements")) and steered["source"] != "train",
        "training was stopped early": config.early_stopping,
        "a temperature of the logits was fitted": config.temperature_scaling or config.method == "temperature",
        "the prior was chosen": config.method_options.get("prior_choice") == VALIDATION,
        "`varlora tune` chose how to predict": meta.tuned is not None,
    }
    return tuple(words for words, holds in decided.items() if holds)


def _stored(run: RunFolder, settings: RunConfig, config: PredictionConfig) -> Prediction | None:
    """What training has left of the validation rows, if it was made as it would be now."""
    q, mode = run.posterior, config.mode
    file = run.path / "predictions" / f"{VALIDATION}.{mode}.parquet"
    if q.meta.tuned is not None or not file.is_file():
        return None
    stored = run.prediction(VALIDATION, mode)
    draws = number_of_draws(q, config.draws(settings.samples))
    drawn = mode != "samples" or (stored.num_draws == draws and stored.seed == settings.seed)
    return stored if drawn and stored.logit_temperature == q.meta.logit_temperature_of(mode) else None


def _predicted(setting: Setting, run: RunFolder, split: str, config: PredictionConfig, progress: bool) -> Prediction:
    prediction = predict_split(setting, run.posterior, split, config, progress=progress)
    assert isinstance(prediction, Prediction)
    return prediction


def _usable(
    prediction: Prediction,
    prompts: Sequence[str],
    task: Task | None,
    reported: Sequence[str],
    source: str,
    used: tuple[str, ...],
) -> Calibration:
    """The labelled rows that are not reported."""
    labelled = prediction.labels >= 0
    kept, left_out = (labelled, 0) if task is None else unreported(labelled, prompts, task, reported)
    if not bool(kept.any()):
        too = f"; {left_out} others are reported, too" if left_out else ""
        raise ValueError(
            f"there is no labelled row in {source} to choose a threshold on{too}. Give labelled rows that are not "
            "reported (--calibration_file)."
        )
    if left_out:
        logger.warning("%d rows of %s are reported, too, and no threshold is chosen on them", left_out, source)
    rows = dataclasses.replace(
        prediction,
        log_probs=prediction.log_probs[kept],
        labels=prediction.labels[kept],
        ids=tuple(name for name, keep in zip(prediction.ids, kept.tolist(), strict=True) if keep),
    )
    chosen_on = ChosenOn(source=source, rows=len(rows.labels), left_out=left_out, also_used_for=used)
    return Calibration(prediction=rows, chosen_on=chosen_on)
