"""The rows that a decision is chosen on, predicted as the rows that it is for.

Training has left predictions of the validation rows in the run's folder; they are made anew where they would be made
otherwise: another posterior, mode or number of draws. Rows that are reported, too, are left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from varlora.posterior import PredictionConfig
from varlora.posterior.draws import number_of_draws
from varlora.prediction.prediction import Prediction
from varlora.runs.data import load_own_rows, put_beside_own
from varlora.runs.folder import RunFolder
from varlora.runs.predict import predict_answers
from varlora.runs.setting import LoadedModel, Setting, reload_setting
from varlora.runs.usable_rows import exclude_reported
from varlora.runs.validation import is_of
from varlora.tasks import Task
from varlora.tasks.task import VALIDATION

logger = logging.getLogger(__name__)

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
        loaded_as: how the frozen weights were loaded that predicted the rows; None where that is not known.
    """

    source: str
    rows: int
    left_out: int = 0
    also_used_for: tuple[str, ...] = ()
    loaded_as: str | None = None


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
    config: PredictionConfig,
    *,
    loaded: LoadedModel | None = None,
    reported: Sequence[str] = (),
    file: Task | None = None,
    progress: bool = False,
) -> Calibration:
    """The rows that a decision is chosen on, predicted as others will be.

    Args:
        run: the run, with its settings as they are now, and with what was tuned left in or taken out.
        config: how the rows to decide on will be predicted.
        loaded: its model, perhaps with rows, where it is loaded already; None loads it if a prediction is to be made.
        reported: the run's splits that are reported. Rows whose prompts are among theirs are not chosen on.
        file: other labelled rows in place of the validation rows, as the split "calibration".
        progress: show progress bars.

    Raises:
        ValueError: there are no such rows, or the run's task has no classes.
    """
    if run.is_completion:
        raise ValueError(
            "a decision needs probabilities of classes, and completions have none. Leave --coverage, "
            "--target_accuracy and --prediction_sets out."
        )

    def predicted(rows: Task, split: str) -> Prediction:
        setting = reload_setting(run, rows) if loaded is None else loaded.setting(rows)
        return predict_answers(setting, run.posterior, split, config, progress=progress)

    task = loaded.task if isinstance(loaded, Setting) else None
    used: tuple[str, ...] = ()
    if file is not None:
        rows = task = put_beside_own(file, run, ["train", *reported], own=task)
        split, source = CALIBRATION, str(file.source)
        prediction = predicted(file, split)
    else:
        if task is None and any(split in run.facts["task"]["rows"] for split in reported):
            task = load_own_rows(run)
        _check_validation_rows(run, reported)
        reported = [split for split in reported if split != VALIDATION]
        split = source = VALIDATION
        used, stored = also_used_for(run), _stored(run, config)
        if stored is not None and task is None:  # nothing to leave out, so that the rows need not be read
            chosen_on = ChosenOn(source=source, rows=0, also_used_for=used, loaded_as=loaded_as(run))
            return _labelled(stored, stored.labels >= 0, chosen_on)
        rows = task if task is not None and VALIDATION in task.splits else load_own_rows(run)
        if stored is not None and not is_of(stored, rows, VALIDATION):
            logger.warning("the stored validation predictions are not of the rows that the data hold now: made anew")
            stored = None
        prediction = stored or predicted(rows, VALIDATION)
    kept, left_out = prediction.labels >= 0, 0
    if task is not None:
        kept, left_out = exclude_reported(kept, rows.rows(split)["prompt"], task, reported)
    if left_out:
        logger.warning("%d rows of %s are reported, too, and no threshold is chosen on them", left_out, source)
    chosen_on = ChosenOn(source=source, rows=0, left_out=left_out, also_used_for=used, loaded_as=loaded_as(run))
    return _labelled(prediction, kept, chosen_on)


def loaded_as(run: RunFolder) -> str | None:
    """How a run's frozen weights are loaded, as its settings are now: "bfloat16", "bfloat16, 4bit"; None: not known.

    Args:
        run: the run; its posterior tells which data type "auto" was in training.
    """
    dtype = run.config.dtype if run.config.dtype != "auto" else (run.posterior.meta.base_loading or {}).get("dtype")
    if dtype is None or run.config.quantization == "none":
        return dtype
    return f"{dtype}, {run.config.quantization}"


def also_used_for(run: RunFolder) -> tuple[str, ...]:
    """What a run's validation rows have decided before, in words.

    Args:
        run: the run; its posterior tells whether it was tuned.
    """
    config, meta = run.config, run.posterior.meta
    steered: Mapping[str, Any] = (meta.diagnostics or {}).get("held_out") or {}
    asked = bool(steered.get("measurements")) and steered["source"] != "train"
    once = asked and bool(steered.get("why"))  # when the training had ended: λ stayed
    decided = {
        "λ was steered": asked and not once,
        "training was stopped early": config.early_stopping,
        "a temperature of the logits was fitted": once
        or config.temperature_scaling
        or config.method == "temperature"
        or "logit_temperature" in (meta.diagnostics or {}),
        "the prior was chosen": config.method_options.get("prior_choice") == VALIDATION,
        "`varlora tune` chose how to predict": meta.tuned is not None,
    }
    return tuple(words for words, holds in decided.items() if holds)


def _check_validation_rows(run: RunFolder, reported: Sequence[str]) -> None:
    if set(reported) == {VALIDATION}:
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


def _stored(run: RunFolder, config: PredictionConfig) -> Prediction | None:
    """What training has left of the validation rows, if it was made as it would be now."""
    q, mode = run.posterior, config.mode
    stored = run.stored_prediction(VALIDATION, mode) if q.meta.tuned is None else None
    if stored is None or stored.logit_temperature != q.meta.logit_temperature_of(mode):
        return None
    draws = number_of_draws(q, config.draws(run.config.samples))
    drawn = mode != "samples" or (stored.num_draws == draws and stored.seed == run.config.seed)
    return stored if drawn else None


def _labelled(prediction: Prediction, kept: Tensor, chosen_on: ChosenOn) -> Calibration:
    """The rows that are kept, and how many they are."""
    rows = int(kept.sum())
    if not rows:
        too = f"; {chosen_on.left_out} others are reported, too" if chosen_on.left_out else ""
        raise ValueError(
            f"there is no labelled row in {chosen_on.source} to choose a threshold on{too}. Give labelled rows that "
            "are not reported (--calibration_file)."
        )
    return Calibration(
        prediction=dataclasses.replace(
            prediction,
            log_probs=prediction.log_probs[kept],
            labels=prediction.labels[kept],
            ids=tuple(itertools.compress(prediction.ids, kept.tolist())),
        ),
        chosen_on=dataclasses.replace(chosen_on, rows=rows),
    )
