"""A run from start to end: load, train, read the posterior, predict, measure, write the folder.

load_setting ──► train (Method.fit) ──► Posterior ──► predictions ──► measure ──► write_run
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from varlora.io.files import read_json
from varlora.io.folders import atomic_folder, check_can_be_folder, check_target
from varlora.methods import METHODS, Job, Method, with_temperatures
from varlora.metrics import check_metrics
from varlora.posterior import Mode, Posterior
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config, configs_by_mode
from varlora.runs.arguments import training_arguments
from varlora.runs.checkpoints import (
    KeepOwner,
    check_checkpoints,
    check_owner,
    checkpoints_of,
    claim_checkpoints,
    digest_of,
    remove_checkpoints,
    remove_left_over,
    this_process,
)
from varlora.runs.config import PLACES, RunConfig
from varlora.runs.folder import FACTS, CompletionScores, Facts, is_run, read_config
from varlora.runs.generation import check_generation, generate_split
from varlora.runs.health import run_health, with_verdict
from varlora.runs.measure import measure
from varlora.runs.peak_memory import PeakMemory
from varlora.runs.predict import frozen_layers_once, predict_answers, predict_split
from varlora.runs.result import RunResult, write_run
from varlora.runs.setting import Setting, load_setting
from varlora.runs.trackers import check_trackers, keep_events
from varlora.tasks.task import VALIDATION

logger = logging.getLogger(__name__)


class AlreadyFinishedError(ValueError):
    """There is nothing to resume: the run is there."""


def run(
    config: RunConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    source: str | None = None,
) -> RunResult:
    """Runs one configuration and writes its folder, whole or not at all.

    Args:
        config: the settings.
        overwrite: replace an existing run folder.
        resume: go on from the last checkpoint of the same settings.
        progress: show progress bars.
        source: where the data are from, for the run's folder; what the task says by default, of files their names.

    Raises:
        AlreadyFinishedError: it was to be resumed, and its folder is there.
        ValueError: settings, data or model do not fit, or a folder is taken, also by a run that has begun since.
        Stopped: by SIGTERM or Ctrl-C, after a step, with a checkpoint.
    """
    processes = this_process()
    checkpoints = checkpoints_of(config)
    if resume and not overwrite:
        _check_not_finished(config)
    check_target(config.output_dir, overwrite=overwrite)
    _check_steps(config)
    check_metrics()
    check_trackers(config.report_to)
    method = method_of(config)
    check_checkpoints(config, resume=resume, overwrite=overwrite)
    if config.frozen_layers_dir is not None:
        check_can_be_folder(config.frozen_layers_dir, option="frozen_layers_dir")
        Path(config.frozen_layers_dir).mkdir(parents=True, exist_ok=True)
    memory = PeakMemory()
    setting = load_setting(config)
    if source is not None:
        setting = replace(setting, task=replace(setting.task, source=source))
    _check_temperature_scaling(setting)
    check_generation(setting)
    if processes.is_main_process and not resume:
        remove_checkpoints(checkpoints)
    processes.wait_for_everyone()
    with frozen_layers_once(setting, folder=checkpoints):
        trained = train(setting, method, checkpoints=checkpoints, resume=resume, progress=progress)
        result = replace(evaluate(setting, trained, progress=progress), peak_memory=memory.peak())
    check_owner(checkpoints)
    if processes.is_main_process:  # every process has the same result; one writes it
        with atomic_folder(config.output_dir, overwrite=overwrite) as folder:
            write_run(folder, result)
            setting.tokenizer.save_pretrained(str(folder))
            keep_events(checkpoints, folder)
        try:
            remove_checkpoints(checkpoints)
        except OSError as error:
            logger.warning("the run is finished, and not all of %s could be removed (%s)", checkpoints, error)
    processes.wait_for_everyone()
    return result


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained adapter's posterior, before temperature scaling, and how long training took.

    Attributes:
        posterior: what training gave.
        seconds: of this process; of a training that was resumed, without what went before.
        log: the trainer's log.
        resumed: whether an earlier process had begun it.
    """

    posterior: Posterior
    seconds: float
    log: list[dict[str, Any]]
    resumed: bool = False


def method_of(config: RunConfig) -> Method:
    """The method that the settings name, with their options."""
    method: Method = METHODS[config.method](**config.method_options)
    return method


def train(
    setting: Setting,
    method: Method,
    *,
    checkpoints: Path,
    resume: bool = False,
    progress: bool = True,
    callbacks: Iterable[TrainerCallback] = (),
) -> Trained:
    """Trains the setting's adapter.

    Args:
        setting: what is trained on what.
        method: how.
        checkpoints: folder for the trainer's checkpoints.
        resume: go on from what is in `checkpoints`.
        progress: show a progress bar.
        callbacks: more of the trainer's callbacks.

    Raises:
        ValueError: as `claim_checkpoints`; there are checkpoints to go on from, and none is whole.
        Stopped: by SIGTERM or Ctrl-C, after a step, with a checkpoint.
    """
    config = setting.config
    if setting.usable.left_out:
        logger.warning("%d %s rows are test rows, too, and decide nothing", setting.usable.left_out, VALIDATION)
    set_seed(config.seed)
    job = Job(
        model=setting.model,
        arguments=training_arguments(setting, checkpoints, progress=progress),
        train=setting.encoded("train"),
        validation=setting.encoded_usable(),
        collate=setting.collate,
        readout=setting.readout,
        callbacks=(*callbacks, KeepOwner(checkpoints)),
        resume=resume,
        progress=progress,
    )
    resumed = claim_checkpoints(checkpoints, config, rows=digest_of(job.train, job.validation), resume=resume)
    start = time.perf_counter()
    fit = method.fit(job)
    return Trained(posterior=fit.posterior, seconds=time.perf_counter() - start, log=fit.log, resumed=resumed)


def evaluate(setting: Setting, trained: Trained, *, progress: bool = True) -> RunResult:
    """Fits the temperatures where that is wanted, predicts and measures every split but train, and judges the draws."""
    q = trained.posterior
    seconds = {"train": trained.seconds}
    splits = [split for split in setting.task.splits if split != "train"]
    configs = configs_by_mode(q, choose_config(q, setting.config.samples))
    predictions: dict[str, dict[str, Prediction | CompletionScores]] = {split: {} for split in splits}
    generations: dict[str, dict[str, Generations]] = {}
    usable = setting.usable.kept
    if setting.config.scales_temperature and setting.readout is not None and usable.any():
        unscaled: dict[Mode, Prediction] = {}
        for mode, config in configs.items():
            start = time.perf_counter()
            plain = replace(config, logit_temperature=1.0)
            unscaled[mode] = predict_answers(setting, q, VALIDATION, plain, progress=progress)
            seconds[f"predict/{VALIDATION}/{mode}"] = time.perf_counter() - start
        try:
            q = with_temperatures(q, unscaled, usable=usable, of=setting.config.output_dir)
        except ValueError as error:
            if setting.config.temperature_scaling:
                raise
            logger.warning("no temperature of the logits is fitted, which was not asked for: %s", error)
        predictions[VALIDATION] = {
            mode: made.at_temperature(q.meta.logit_temperature_of(mode)) for mode, made in unscaled.items()
        }
    for split in splits:
        for mode, config in configs.items():
            if mode in predictions[split]:
                continue
            start = time.perf_counter()
            predictions[split][mode] = predict_split(setting, q, split, config, progress=progress)
            seconds[f"predict/{split}/{mode}"] = time.perf_counter() - start
            if setting.task.final_answer is not None:
                start = time.perf_counter()
                texts = generate_split(setting, q, split, config, progress=progress)
                generations.setdefault(split, {})[mode] = texts
                seconds[f"generate/{split}/{mode}"] = time.perf_counter() - start
    stored = predictions.get(VALIDATION, {})
    health = run_health(q, stored, setting.config.samples, trained.log, deciding_nothing=setting.deciding_nothing)
    return RunResult(
        setting=setting,
        posterior=with_verdict(q, health),
        predictions=predictions,
        metrics=measure(predictions, generations),
        health=health,
        seconds=seconds,
        resumed=trained.resumed,
        log=trained.log,
        generations=generations,
    )


def _check_not_finished(config: RunConfig) -> None:
    """Refuses to resume what is finished."""
    folder = Path(config.output_dir)
    if not is_run(folder):
        return
    there = read_config(folder)
    if read_json(folder / FACTS, Facts)["fingerprint"] != config.fingerprint:
        if there.fingerprint == config.fingerprint:
            raise ValueError(
                f"{folder} is a finished run of an earlier version of varlora, whose defaults were others: with the "
                "same settings this version trains something else. Choose another output_dir, or replace it with "
                "--overwrite."
            )
        changed = {name: values for name, values in config.differences(there).items() if name not in PLACES}
        others = [f"{name} ({former!r}, now {now!r})" for name, (now, former) in changed.items()]
        raise ValueError(
            f"{folder} is a finished run with other settings: {', '.join(others)}. Choose another output_dir, or "
            "replace it with --overwrite."
        )
    if this_process().is_main_process:
        remove_left_over(config)
    raise AlreadyFinishedError(f"{folder} is already finished, with these settings; nothing in it was changed.")


def _check_steps(config: RunConfig) -> None:
    """Refuses a training of no step, whatever would be made of it."""
    if config.max_steps == 0 and config.method != "zero_shot":
        raise ValueError(
            "max_steps is 0, which would train nothing; give a positive number of steps, or -1 to go by "
            "num_train_epochs. What the model does untrained: --method zero_shot."
        )


def _check_temperature_scaling(setting: Setting) -> None:
    """Refuses a run that would have nothing to fit a temperature on; called before hours of training."""
    if not setting.config.temperature_scaling:
        return
    if setting.readout is None:
        raise ValueError("temperature_scaling scales the logits of classes; completions have none. Leave it out.")
    if not setting.usable.kept.any():
        raise ValueError(
            "temperature_scaling needs labelled validation rows that are not test rows, too; give validation_file or "
            "validation_size."
        )
