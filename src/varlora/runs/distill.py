"""`varlora distill`: one plain adapter whose single pass answers like the average over a posterior's draws.

    rows ──► averaged probabilities of the draws (soft targets) ──► the mean, trained on them ──► validation rows

The targets are of the training rows, and of unlabeled ones where they are given: no label is read. Learning rate and
epoch are chosen on a part of these rows, by the divergence from the average. The validation rows measure what is left
of the gap, beside what costs nothing: the mean, and the mean with a temperature of its logits, fitted on the other
folds' rows. Where that temperature does as well, distilling is no gain.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from varlora.adapters import unwrapped_model
from varlora.io.files import json_text
from varlora.io.folders import atomic_folder, check_target
from varlora.io.words import counted
from varlora.metrics import WORTHWHILE, cross_fitted, evaluate, mean_log_probs, paired_error, standard_errors_for
from varlora.metrics.scoring import log_losses
from varlora.posterior import PointMass, Posterior, PosteriorMeta, PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import apply_config, choose_config, remove_tuning
from varlora.runs.data import load_new_rows
from varlora.runs.folder import RunFolder, write_derived
from varlora.runs.folder_config import FolderConfig
from varlora.runs.predict import frozen_layers_once, predict_answers
from varlora.runs.setting import Setting, reload_setting
from varlora.runs.soft_targets import SoftTargetFit, SoftTargetOptions, fit_soft_targets
from varlora.runs.usable_rows import exclude_reported
from varlora.runs.validation import select_usable

logger = logging.getLogger(__name__)

DISTILLED = "distill.json"
SHOWN = ("nll", "accuracy", "ece_15", "auroc_errors")
"""Metrics of distill.json."""
FOLDS = 5
BOTH = "train and unlabeled"
"""The split of all rows that are distilled on, where some have no label."""


class NoGainError(ValueError):
    """The mean with a temperature answers as well as what was distilled.

    Attributes:
        distillation: what was measured.
    """

    def __init__(self, distillation: Distillation) -> None:
        super().__init__(distillation.sentence)
        self.distillation = distillation


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What was distilled, and how close it comes.

    Attributes:
        teacher: the way to predict that was matched, in words.
        fit: rate, epoch and divergence of the rows that were kept out of training.
        unlabeled: how many of the rows had no label.
        rows: validation rows.
        measured: metrics by way of predicting: "mean", "mean + T", "average" (of the draws), "distilled"; `kl` is the
            mean divergence from the average, in nats.
        difference: mean NLL of the distilled adapter less that of "mean + T".
        error: its paired standard error.
        needed: how many of them a gain must exceed.
    """

    teacher: str
    fit: SoftTargetFit
    unlabeled: int
    rows: int
    measured: Mapping[str, Mapping[str, float]]
    difference: float
    error: float
    needed: float

    @property
    def gain(self) -> bool:
        """Whether the validation rows show that distilling pays."""
        return self.difference < -WORTHWHILE and self.difference + self.needed * self.error < 0

    @property
    def rows_needed(self) -> int | None:
        """About how many validation rows would show this difference; None where it is none worth a training."""
        if self.difference >= -WORTHWHILE:
            return None
        return max(self.rows + 1, round(self.rows * (self.needed * self.error / self.difference) ** 2))

    @property
    def sentence(self) -> str:
        """The result, in words."""
        half = self.needed * self.error
        numbers = f"{self.difference:+.4f} ± {half:.4f} nats on {counted(self.rows, 'validation row')}"
        if self.gain:
            return f"Distilling pays: NLL {numbers} against the mean with a temperature."
        if self.rows_needed is not None:
            return (
                f"No gain is shown: NLL {numbers} against the mean with a temperature, which costs nothing. About "
                f"{counted(self.rows_needed, 'row')} would show a difference of this size; give more "
                "(validation_size), or tune the mean: varlora tune RUN --temperatures 0."
            )
        return (
            f"No gain: NLL {numbers} against the mean with a temperature, which costs nothing. Predict with that: "
            "varlora tune RUN --temperatures 0."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        fit = {name: value for name, value in asdict(self.fit).items() if name != "weights"}
        held = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "fit"}
        return {**held, "measured": {way: dict(of) for way, of in self.measured.items()}, "fit": fit, "gain": self.gain}


def distill(
    run: RunFolder,
    output_dir: str | Path,
    *,
    unlabeled_file: str | None = None,
    samples: int | None = None,
    untuned: bool = False,
    options: SoftTargetOptions | None = None,
    keep_without_gain: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Distillation:
    """Distils a run's averaged prediction into one adapter, and writes it as a run folder.

    Args:
        run: The run, of classes or choices, with its settings as they are now.
        output_dir: Where to. The folder appears whole or not at all.
        unlabeled_file: More rows to match the average on; answers in it are not looked at.
        samples: Draws of the average; None: what was tuned, or the run's own number.
        untuned: Leave aside what `varlora tune` chose.
        options: How to fit.
        keep_without_gain: Write the folder also where the mean with a temperature is as good.
        overwrite: Replace a folder that varlora wrote.
        progress: Show progress bars.

    Returns:
        What was measured on the validation rows.

    Raises:
        NoGainError: The mean with a temperature is as good. Nothing is written.
        ValueError: The run writes texts, has no draws, or too few validation rows to tell; or the folder is taken.
    """
    config, options = run.config, options or SoftTargetOptions(seed=run.config.seed)
    check_target(output_dir, overwrite=overwrite)
    if run.is_completion:
        raise ValueError(
            f"{run.path} writes texts: an average over draws is one of whole texts, which no sequence of single tokens "
            "follows. Distil runs with classes or choices."
        )
    if isinstance(config, FolderConfig):
        raise ValueError(
            f"{run.path} has no training and validation rows of its own, since `varlora train` has not written it. "
            "Distil a run."
        )
    q = remove_tuning(run.posterior) if untuned else run.posterior
    way = choose_config(q, samples, config.samples)
    if way.canonical.mode == "mean":
        raise ValueError(
            f"{run.path} is predicted with at one set of weights, so that there is no average to distil. Give draws "
            "(--samples 10), where the posterior has some."
        )
    setting = reload_setting(run)
    validation, _ = select_usable(setting.task)
    rows = "train"
    if unlabeled_file is not None:
        setting, rows = _with_unlabeled(setting, run, unlabeled_file), BOTH

    predicted = functools.partial(predict_answers, setting, progress=progress)
    average = predicted(q, "validation", way)
    mean = predicted(q, "validation", dataclasses.replace(way.at("mean"), logit_temperature=1.0))
    start = apply_config(q, way.at("mean"), seed=config.seed).point
    fit = _fit(setting, predicted(q, rows, way), rows, start, options, progress=progress)
    student = PointMass(mean={**start, **fit.weights}, meta=_meta(q, run, way, fit))
    result = Distillation(
        teacher=(dataclasses.replace(way, samples=average.num_draws) if way.mode == "samples" else way).describe(),
        fit=fit,
        unlabeled=len(setting.task.rows(rows)) - len(setting.task.rows("train")),
        **_compared(average, mean, predicted(student, "validation", PredictionConfig(mode="mean")), validation),
    )
    if not result.gain and not keep_without_gain:
        raise NoGainError(result)
    with atomic_folder(output_dir, overwrite=overwrite) as folder:
        write_derived(folder, student, sources=[run.path], name=Path(output_dir).name)
        (folder / DISTILLED).write_text(json_text(result.to_dict()), encoding="utf-8")
    return result


def _with_unlabeled(setting: Setting, run: RunFolder, file: str) -> Setting:
    """The setting with one more split: the training rows, and those of a file that the run has in no split."""
    task = load_new_rows(file, run, split="unlabeled", labelled=False, tokenizer=setting.tokenizer)
    new = task.rows("unlabeled")
    kept, left_out = exclude_reported(
        torch.ones(len(new), dtype=torch.bool), new["prompt"], setting.task, ["train", "validation", "test"]
    )
    if left_out:
        logger.warning("%s: %s left out, which the run has, too", file, counted(left_out, "row"))
    new, old = new.select(kept.nonzero()[:, 0].tolist()), setting.task.rows("train")
    shared = [column for column in old.column_names if column in new.column_names]
    old = old.select_columns(shared)
    both = datasets.concatenate_datasets([old, new.select_columns(shared).cast(old.features)])
    return dataclasses.replace(setting, task=setting.task.with_splits({BOTH: both}))


def _fit(
    setting: Setting,
    average: Prediction,
    rows: str,
    start: Mapping[str, Tensor],
    options: SoftTargetOptions,
    *,
    progress: bool,
) -> SoftTargetFit:
    """Trains the model's adapter, which was loaded frozen."""
    assert setting.readout is not None
    model: Any = unwrapped_model(setting.model)
    model.set_adapter(model.active_adapter)  # sets requires_grad
    try:
        with frozen_layers_once(setting):
            return fit_soft_targets(
                setting.model,
                start,
                setting.encoded(rows).to_list(),
                average.probs,
                readout=setting.readout,
                collate=setting.collate,
                options=options,
                progress=progress,
            )
    finally:
        model.requires_grad_(False)


def _meta(q: Posterior, run: RunFolder, way: PredictionConfig, fit: SoftTargetFit) -> PosteriorMeta:
    """What is known of the adapter; its logits are divided by nothing."""
    step = {"op": "distill", "teacher": way.to_dict(), "rows": fit.rows, "kept": fit.kept, "epoch": fit.epoch}
    return PosteriorMeta(
        method="distill",
        num_examples=fit.rows,
        base_model=q.meta.base_model,
        base_revision=q.meta.base_revision,
        base_fingerprint=q.meta.base_fingerprint,
        base_loading=q.meta.base_loading,
        adapter_config=q.meta.adapter_config,
        readout=q.meta.readout,
        task=q.meta.task,
        history=(*q.meta.history, step),
    )


def _compared(average: Prediction, mean: Prediction, distilled: Prediction, rows: Tensor) -> dict[str, Any]:
    """The ways to predict, measured on the validation rows that may be looked at."""
    labels, target = average.labels[rows], mean_log_probs(average.log_probs[rows])
    losses, temperatures = cross_fitted(mean.log_probs[rows], labels, folds=FOLDS)
    divided = torch.log_softmax(mean.log_probs[rows] / temperatures[:, None, None], dim=-1)
    ways = {
        "mean": mean.log_probs[rows],
        "mean + T": divided,
        "average": average.log_probs[rows],
        "distilled": distilled.log_probs[rows],
    }
    measured = {}
    for way, log_probs in ways.items():
        metrics = evaluate(log_probs, labels)
        measured[way] = {name: metrics[name] for name in SHOWN if name in metrics}
        measured[way]["kl"] = float(_divergence(target, mean_log_probs(log_probs)).mean())
    own = log_losses(mean_log_probs(ways["distilled"]), labels)
    difference, error = paired_error(own, losses)
    needed = standard_errors_for(len(labels))
    return {"rows": len(labels), "measured": measured, "difference": difference, "error": error, "needed": needed}


def _divergence(target: Tensor, other: Tensor) -> Tensor:
    """KL(target ‖ other) of each row (N,), of log-probabilities (N, C)."""
    difference = torch.where(target > -torch.inf, target - other, 0.0)
    return (target.exp() * difference).sum(-1)
