"""`varlora eval`: a finished run, measured with bootstrap intervals."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from varlora.cli.console import out, say
from varlora.cli.finished import check_new_file, read_finished, read_foreign_rows, write_new_file
from varlora.cli.selective import calibrate_by_options, kept_decision, report_of, say_groups, show, wanted_of
from varlora.cli.tables import metrics_tables, temperatures_of
from varlora.io.files import json_text
from varlora.metrics import AnswerRows, Interval, evaluate_rows_with_intervals, evaluate_with_intervals
from varlora.posterior import Posterior, PredictionConfig, linearisable
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import apply_config, configs_by_mode
from varlora.runs.choose_decision import choose_decision
from varlora.runs.config import RunConfig
from varlora.runs.data import load_new_rows, put_beside_own, read_new_rows
from varlora.runs.decision import Decision, Groups
from varlora.runs.folder import CompletionScores
from varlora.runs.generation import generate_split
from varlora.runs.measure import IN_SCOPE, measure
from varlora.runs.predict import check_has_classes, predict_split
from varlora.runs.row_groups import groups_of, own_records
from varlora.runs.setting import Setting, reload_setting
from varlora.tasks.rows import Records

logger = logging.getLogger(__name__)


def execute(arguments: Namespace) -> None:
    """Predicts, measures, shows and writes."""
    if arguments.test_file is not None and arguments.split is not None:
        raise ValueError("give --test_file or --split, not both: the file is a split of its own, 'test'.")
    wanted = wanted_of(arguments)
    target = check_new_file(arguments.output_file, overwrite=arguments.overwrite)
    records = read_foreign_rows(arguments, arguments.test_file, "test_file", labelled=True)
    run, settings, config = read_finished(arguments, records)
    task = None
    if arguments.test_file is not None:
        columns = arguments.dataset_columns
        records = records or read_new_rows(arguments.test_file, settings, labelled=True, columns=columns)
        task = put_beside_own(load_new_rows(records, run, split="test", labelled=True), run, ["train"])
    elif arguments.dataset_columns is not None and arguments.calibration_file is None:
        raise ValueError("--dataset_columns has no effect without --test_file or --calibration_file.")
    setting = reload_setting(run, task)
    q, progress = run.posterior, not arguments.no_progress
    configs = configs_by_mode(q, config)
    own = list(configs)[-1]
    if arguments.linearised:
        configs["linearised"] = _linearised(setting, q, config)
    splits = arguments.split or [split for split in setting.task.splits if split != "train"]
    decided: tuple[Decision, str] | None = None
    if wanted is not None:  # first, since it may be refused
        calibration = calibrate_by_options(arguments, run, configs[own], reported=splits, loaded=setting)
        decided = choose_decision(wanted, calibration), own
    predictions: dict[str, dict[str, Prediction | CompletionScores]] = {
        split: {mode: predict_split(setting, q, split, how, progress=progress) for mode, how in configs.items()}
        for split in _with_in_scope(setting, splits)
    }
    generations: dict[str, dict[str, Generations]] = {}
    if setting.task.final_answer is not None:
        generations = {
            split: {mode: generate_split(setting, q, split, how, progress=progress) for mode, how in configs.items()}
            for split in splits
        }
    metrics = {split: modes for split, modes in measure(predictions, generations).items() if split in splits}
    judged: Mapping[str, Mapping[str, Prediction | CompletionScores | Generations]] = {**predictions, **generations}
    intervals = {
        split: {mode: _intervals(prediction, arguments.resamples) for mode, prediction in judged[split].items()}
        for split in splits
    }
    for table in metrics_tables(metrics, intervals, temperatures_of(apply_config(q, config))):
        out.print(table)
    counts = ", ".join(f"{split} {len(setting.task.rows(split))}" for split in splits)
    bounded = any(by_metric for modes in intervals.values() for by_metric in modes.values())
    explained = " Below each number: its 95 % bootstrap interval over them." if bounded else ""
    say(f"Rows: {escape(counts)}.{explained}")
    if decided is None and setting.readout is not None:
        first = predictions[splits[0]]
        decided = kept_decision(run, {mode: _of_classes(prediction) for mode, prediction in first.items()})
    selective = None
    if decided is not None:
        decision, by_mode = decided
        by_split = {split: _of_classes(predictions[split][by_mode]) for split in splits}
        selective = _show_decision(decision, by_split, run.path, settings, records)
    if target is not None:
        content: dict[str, Any] = {
            "run": str(run.path),
            "samples": config.draws(settings.samples),
            "tuned": None if q.meta.tuned is None else q.meta.tuned.to_dict(),
            "metrics": metrics,
            "intervals": {
                split: {
                    mode: {name: [interval.low, interval.high] for name, interval in by_metric.items()}
                    for mode, by_metric in modes.items()
                }
                for split, modes in intervals.items()
            },
        }
        if selective is not None:
            content["selective"] = selective
        write_new_file(target, json_text(content), overwrite=arguments.overwrite)


def _linearised(setting: Setting, q: Posterior, config: PredictionConfig) -> PredictionConfig:
    """The way to predict by the linearised model.

    Raises:
        ValueError: there are no classes, or the posterior's mean was chosen.
        NotLinearisableError: the posterior cannot be linearised.
    """
    check_has_classes(setting)
    if config.canonical.mode == "mean":
        raise ValueError(
            "--linearised needs the posterior's variance, and it is measured at its mean alone (by --samples 0, by "
            "`varlora tune`, or since it has no other). Leave one of them out, or measure it --untuned."
        )
    linearisable(q)
    return config.at("linearised")


def _show_decision(
    decision: Decision, by_split: Mapping[str, Prediction], path: Path, settings: RunConfig, records: Records | None
) -> dict[str, Any] | None:
    """Shows what comes of a decision in every split, and gives it; None where the rows' groups are not known."""
    groups: dict[str, Groups] | None = None
    if (column := decision.group_column) is not None:
        groups = {}
        try:
            for split, prediction in by_split.items():
                rows, called = (records, split) if records is not None else own_records(settings, split)
                groups[split] = groups_of(prediction.ids, rows, called, column)
        except ValueError as error:
            logger.warning("%s is not measured: %s", Decision.file(path), error)
            return None
    report = report_of(decision, by_split, groups=groups)
    show(report)
    say_groups(decision)
    return report


def _of_classes(prediction: Prediction | CompletionScores) -> Prediction:
    assert isinstance(prediction, Prediction)
    return prediction


def _with_in_scope(setting: Setting, splits: list[str]) -> list[str]:
    """The splits, and the one that rows out of scope are told from."""
    outside = any(max(setting.task.rows(split)["label"]) < 0 for split in splits if setting.readout is not None)
    return [*splits, IN_SCOPE] if outside and IN_SCOPE not in splits and IN_SCOPE in setting.task.splits else splits


def _intervals(prediction: Prediction | CompletionScores | Generations, resamples: int) -> dict[str, Interval]:
    if isinstance(prediction, CompletionScores) or resamples == 0:
        return {}
    if isinstance(prediction, Generations):
        rows = AnswerRows(prediction.answers, prediction.references)
        return evaluate_rows_with_intervals(rows, resamples=resamples)
    known = prediction.labels >= 0
    if not bool(known.any()):
        return {}
    return evaluate_with_intervals(prediction.log_probs[known], prediction.labels[known], resamples=resamples)
