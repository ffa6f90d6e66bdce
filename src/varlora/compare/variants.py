"""Makes what is missing of the variants of finished runs: predicted once, and kept beside the run.

Where they are kept, and what is not: `varlora.compare.variant_files`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlora.compare.variant import Variant
from varlora.compare.variant_files import (
    FACTS,
    FOLDER,
    FORMAT,
    FRACTIONS,
    ROWS,
    draws_of,
    explain_unfit,
    is_own,
    is_stored,
    read_usable_rows,
    splits_of,
    stored_as,
    variant_folder,
)
from varlora.io.files import json_text
from varlora.io.folders import atomic_file, atomic_folder, find_interrupted
from varlora.metrics import largest_free, mean_log_probs, paired_error
from varlora.metrics.scoring import log_losses
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.runs.config import RunConfig
from varlora.runs.data import load_own_rows
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.predict import predict_answers
from varlora.runs.setting import Setting, reload_setting
from varlora.runs.space import Grid
from varlora.runs.tune import tuning_of
from varlora.runs.validation import is_of, select_usable
from varlora.tasks import Task
from varlora.tasks.task import VALIDATION


def ensure_variants(
    run: str | Path, variants: Sequence[Variant], *, config: RunConfig | None = None, progress: bool = False
) -> None:
    """Predicts with a finished run in the ways in which it has not been predicted with, and keeps the predictions.

    The model is loaded once, and only if something is missing. Each variant appears whole or not at all. No other
    process may be at the same run.

    Args:
        run: the run's folder.
        variants: what is wanted.
        config: the run's settings where they have changed, such as where the base model is.
        progress: show progress bars.

    Raises:
        ValueError: it is no run, a variant does not go with its posterior or its task, there are too few validation
            rows to choose on, or the data are no longer the run's.
    """
    folder = read_run(run)
    if config is not None:
        folder = dataclasses.replace(folder, config=config)
    for variant in variants:
        if (why := explain_unfit(folder, variant)) is not None:
            raise ValueError(f"{folder.path} cannot be predicted with as {variant.describe()}: {why}")
    if any(variant.chosen for variant in variants) and not (folder.path / FOLDER / ROWS).is_file():
        _note_rows(folder)
    wanted: dict[Variant, int] = {}
    for variant in variants:
        if not is_own(folder, variant):
            made = stored_as(folder, variant)
            wanted[made] = max(wanted.get(made, 0), draws_of(folder, variant))
    missing = {made: draws for made, draws in wanted.items() if not is_stored(folder, made, draws)}
    if missing:
        setting = reload_setting(folder)
        for made, draws in missing.items():
            _make(folder, setting, made, draws, progress=progress)


def _make(run: RunFolder, setting: Setting, made: Variant, draws: int, *, progress: bool) -> None:
    """Predicts with one variant, and puts its folder in place."""
    if "tune" in made.chosen:
        chosen, predicted = _tuned(run, setting, progress=progress)
    else:
        chosen, predicted = _derived(run, setting, made, draws, progress=progress)
    took: dict[str, float] = {}
    facts = {"format": FORMAT, "variant": made.to_dict(), "draws": draws, **chosen, "seconds": took}
    folder = variant_folder(run, made)
    for left in find_interrupted(folder):  # a killed process made it, and here it is made again
        shutil.rmtree(left)
    with atomic_folder(folder, overwrite=folder.exists(), marker=FACTS) as new:
        if predicted is not None:
            for split in splits_of(run):
                start = time.perf_counter()
                predicted(split).save(new / f"{split}.parquet")
                took[split] = time.perf_counter() - start
        (new / FACTS).write_text(json_text(facts), encoding="utf-8")


Chosen = tuple[dict[str, Any], Callable[[str], Prediction] | None]
"""What of a variant was chosen, and what predicts a split with it; None where the run's own predictions are those."""


def _derived(run: RunFolder, setting: Setting, made: Variant, draws: int, *, progress: bool) -> Chosen:
    """The posterior pruned, by what validation rows choose if they are to, and tempered."""
    config = dataclasses.replace(made.config, samples=draws or None)

    def predicted(fraction: float, split: str) -> Prediction:
        return _predicted(run, setting, dataclasses.replace(config, prune=fraction), split, progress=progress)

    if "prune" not in made.chosen:
        return {"pruned": config.prune}, lambda split: predicted(config.prune, split)
    fraction, tried = _choose_fraction(run, lambda amount: predicted(amount, VALIDATION))
    own = fraction == 0 and is_own(run, Variant(config=made.config))
    return {"tried": tried, "pruned": fraction}, None if own else lambda split: predicted(fraction, split)


def _tuned(run: RunFolder, setting: Setting, *, progress: bool) -> Chosen:
    """What `varlora tune` chooses, and predictions as it chose; the run's own posterior.json is not touched.

    What could be pruned for nothing would only be reported, so that it is not looked for.
    """
    _check_validation(run, setting.task)
    tuning = tuning_of(run, Grid(fractions=()), setting=setting, progress=progress)
    facts = {"tuning": tuning.to_dict()}
    if (tuned := tuning.tuned) is None:
        return facts, None
    return facts, lambda split: _predicted(run, setting, tuned, split, progress=progress)


def _predicted(run: RunFolder, setting: Setting, config: PredictionConfig, split: str, *, progress: bool) -> Prediction:
    """Predictions of the rows that the run's own are of."""
    prediction = predict_answers(setting, run.posterior, split, config, progress=progress)
    _check_rows(run, split, prediction)
    return prediction


def _check_rows(run: RunFolder, split: str, prediction: Prediction) -> None:
    """Refuses rows that are not those of the run's own predictions."""
    there = run.prediction(split, "mean")
    if there.ids != prediction.ids or not torch.equal(there.labels, prediction.labels):
        raise ValueError(
            f"the rows of {split!r} are no longer those that {run.path} was measured on, so its variants cannot be "
            "compared with it. Put the former rows back, or run it again."
        )


def _note_rows(run: RunFolder) -> None:
    """Writes which validation rows may be chosen on: those with an answer that are not test rows, too."""
    task = load_own_rows(run)
    kept, left_out = select_usable(task)
    _check_validation(run, task)
    facts = {"rows": len(kept), "test_rows_left_out": left_out, "usable": kept.nonzero().flatten().tolist()}
    with atomic_file(run.path / FOLDER / ROWS, overwrite=True) as file:
        file.write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _check_validation(run: RunFolder, task: Task) -> None:
    """Refuses to choose on rows that are not those of the run's own predictions."""
    if not is_of(run.prediction(VALIDATION, "mean"), task, VALIDATION):
        raise ValueError(f"the validation rows are no longer those of {run.path}. Put them back, or run it again.")


def _choose_fraction(run: RunFolder, predict: Callable[[float], Prediction]) -> tuple[float, list[dict[str, float]]]:
    """The largest fraction that costs nothing by validation NLL (`varlora.metrics.is_free`), and what was tried."""
    rows = read_usable_rows(run.path)

    def losses(fraction: float) -> Tensor:
        prediction = predict(fraction)
        return log_losses(mean_log_probs(prediction.log_probs[rows]), prediction.labels[rows])

    reference, tried = losses(0.0), []

    def costs() -> Iterator[tuple[float, Tensor]]:
        for fraction in FRACTIONS:
            pruned = losses(fraction)
            difference, error = paired_error(pruned, reference)
            tried.append({"fraction": fraction, "difference": difference, "standard_error": error})
            yield fraction, pruned

    return largest_free(costs(), reference), tried
