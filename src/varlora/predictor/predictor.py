"""`Predictor`: a trained posterior with all that it takes to answer, loaded once and asked as often as one likes."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import datasets
import torch
from typing_extensions import Self

from varlora.adapters import check_base, load_into
from varlora.posterior import Mode, Posterior, PredictionConfig, linearisable
from varlora.posterior.draws import number_of_draws
from varlora.prediction.generation import Generations
from varlora.prediction.linearised import DRAWS
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import apply_config, choose_default_config, remove_tuning
from varlora.prediction.until_sure import can_stop, most_draws
from varlora.predictor.answering import RowAnswerer
from varlora.predictor.client import Backend
from varlora.predictor.held_draws import hold_draws, move_held
from varlora.predictor.hub import local_folder
from varlora.predictor.reader import SPLIT, RowReader
from varlora.runs.calibration import loaded_as
from varlora.runs.decision import Decision
from varlora.runs.export_folder import is_export, read_export
from varlora.runs.finished import read_finished_folder, run_now
from varlora.runs.folder import RunFolder
from varlora.runs.generation import encode_split_prompts, generate_encoded
from varlora.runs.predict import predict_encoded
from varlora.runs.setting import LoadedModel, Setting, reload_model
from varlora.tasks.rows import Records
from varlora.tasks.task import TaskKind

STORED: Final = "stored"
"""As `decision`: what `varlora decide` keeps in the folder, if anything."""


class Predictor(RowAnswerer):
    """A trained posterior with its model, tokenizer, prompt, answers and way of predicting.

    Made by `from_pretrained`. Rows are read, worded and cut by the code that does it in training. The draws are a
    fixed set, by the run's seed: the same row gets the same numbers in every call, alone or among others, up to the
    rounding of a batch (dropout masks, of the method mc_dropout, are the exception: they are a batch's own).

    It may be called from several threads, one of which runs at a time: a lock makes the others wait, since the draws
    are put into the one model in turn. It is a classifier in scikit-learn's form, trained already.

    Attributes:
        run: The folder, read.
        config: The way to predict.
        decision: Which rows are answered, and sets; None: every row is answered.
        reader: Reads the rows.

    Args:
        run: The folder, read; its posterior as it is to be predicted with, tuned or not.
        loaded: The model, which the predictor has for itself from here on.
        config: The way to predict.
        decision: Which rows are answered, and sets.
        reader: That of the run.
        until_sure: Each row takes as many draws as it needs, where the config draws.

    Raises:
        ValueError: The model's base is not the posterior's, or the decision was chosen for another way to predict.

    Example:
        predictor = Predictor.from_pretrained("runs/reviews")
        predictor("a fine film").label
    """

    def __init__(
        self,
        *,
        run: RunFolder,
        loaded: LoadedModel,
        config: PredictionConfig,
        decision: Decision | None = None,
        reader: RowReader | None = None,
        until_sure: bool = False,
    ) -> None:
        self.run = run
        self.config = config
        self.reader = reader if reader is not None else RowReader(run=run, config=loaded.config)
        self._loaded, self._settings = loaded, loaded.config
        self._lock = threading.RLock()
        q = run.posterior
        check_base(loaded.model, q.point.keys(), q.meta.base_fingerprint, q.meta.base_model)  # once, not at each call
        applied = apply_config(q, config, seed=loaded.config.seed)
        applied = dataclasses.replace(  # type: ignore[type-var]
            applied, meta=dataclasses.replace(applied.meta, base_fingerprint=None)
        )
        self._mode: Mode = config.canonical.mode
        self._samples = self._draws = config.draws(loaded.config.samples)
        self._logit_temperature = applied.meta.logit_temperature_of(self._mode)
        self._mirrored = self._mode == "samples" and applied.symmetric and self._draws > 1
        self._q: Posterior | None
        if self._mode == "mean":
            load_into(loaded.model, applied.point)  # for good, so that nothing need be put in at each call
            self._q = None
        elif self._mode == "linearised":
            self._q = linearisable(applied)
        elif until_sure and self.kind != "completion" and can_stop(applied):
            self._q, self._samples = applied, "auto"
        else:
            self._q = hold_draws(applied, self._draws, seed=loaded.config.seed, device=self.device)
        if self._mode == "samples":  # an ensemble has as many as it has members
            self.config = dataclasses.replace(config, samples=self.num_draws)
        self.decision = decision
        if decision is not None:
            self._check(decision)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        samples: int | Literal["auto"] | None = None,
        mode: Mode | None = None,
        untuned: bool = False,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        base_model: str | None = None,
        gguf_file: str | None = None,
        truncation: str | None = None,
        max_new_tokens: int | None = None,
        decision: Decision | str | None = STORED,
        revision: str | None = None,
        backend: str | Backend | None = None,
        beside: Predictor | None = None,
        kind: TaskKind | None = None,
        answers: Sequence[str] | None = None,
        **settings: Any,
    ) -> Predictor:
        """Loads what a folder holds.

        Args:
            folder: A run's folder, or what `save_posterior`, a Trainer or PEFT's `save_pretrained` wrote; or the name
                of one on the hub, "OWNER/NAME": the files that are needed are fetched once; none is a pickle. Or an
                export's folder.
            samples: S, the number of draws; 0 is the mean. None: what `varlora tune` chose; else the run's own number
                where validation rows have shown that draws help, and the mean where they have not. "auto": for each row
                4, 8 or 16, until its averaged probabilities are sure to .01 (`varlora.prediction.until_sure`); classes
                and choices alone, and without a decision, which is for one number of draws.
            mode: "mean", "samples" or "linearised"; None goes by `samples`.
            untuned: Leave aside what `varlora tune` chose.
            device: Where the model goes; None: a CUDA GPU where there is one.
            dtype: Of the frozen weights: "float32", "bfloat16", "float16"; None: as in training.
            batch_size: Rows in a batch; None: the run's own.
            base_model: Name or folder of the base model, if it is not where it was in training.
            gguf_file: Name of the GGUF file there, if it is one.
            truncation: What to do with rows that are too long: "error", "left", "right"; None: as in training.
            max_new_tokens: Most tokens of a text that is written; None: the run's own.
            decision: Which rows are answered, and sets. By default what `varlora decide` keeps in the folder; None
                leaves that aside.
            revision: Branch, tag or commit, of a name on the hub.
            backend: URL of an OpenAI-compatible server that serves an export's adapters ("http://localhost:8000/v1"),
                or more about it: no model is loaded, and their answers are averaged here.
            beside: Another predictor on the same causal language model, which the two then share: only the adapter is
                loaded. They wait for each other.
            kind, answers, settings: What a folder that `varlora train` has not written does not say of its task
                (`varlora.runs.finished.read_finished_folder`): `answers=["no", "yes"], prompt_style="varlora"`.

        Raises:
            ValueError: The folder holds no run, something in it is damaged or its base model is not there, or the
                options do not go together; the message says which, and what to do.
        """
        if isinstance(decision, str) and decision != STORED:
            raise ValueError(f"decision is {decision!r}; give a Decision, None, or leave it out.")
        rows: dict[str, Any] = {
            "per_device_eval_batch_size": batch_size,
            "truncation": truncation,
            "max_new_tokens": max_new_tokens,
        }
        base: dict[str, Any] = {"dtype": dtype, "gguf_file": gguf_file, **settings}
        if backend is not None:
            from varlora.predictor.remote import RemotePredictor  # which is a Predictor

            here = {"samples": samples, "mode": mode, "untuned": untuned or None, "device": device, **base}
            here |= {"base_model": base_model, "beside": beside, "revision": revision, "kind": kind, "answers": answers}
            if given := [name for name, value in here.items() if value is not None]:
                raise ValueError(
                    f"{', '.join(given)} decide how a model is loaded here, and backend says that a server has loaded "
                    "it; leave one of them out."
                )
            return RemotePredictor.connect(Path(folder), backend, settings=rows, decision=decision)
        adapter = local_folder(folder, revision=revision)
        settings = {**base, **rows, "model_name_or_path": base_model}
        if is_export(adapter):
            run, export = read_export(adapter)
            if export.mode == "samples" and (samples == 0 or mode == "mean"):
                raise ValueError(
                    f"{folder} holds draws, and no mean, which is asked for. Export that one: varlora export RUN "
                    "--samples 0."
                )
            run = run_now(run, kind=kind, answers=answers, **settings)
            adapter /= export.adapters[0].name
            if isinstance(decision, str):
                decision = None if export.decision is None else Decision.from_dict(export.decision)
                if decision is not None:
                    decision.check_loaded_as(loaded_as(run))
        else:
            run = read_finished_folder(adapter, kind=kind, answers=answers, **settings)
        q, config = remove_tuning(run.posterior) if untuned else run.posterior, run.config
        if isinstance(samples, str) and samples != "auto":
            raise ValueError(f"samples is {samples!r}; give a number of draws, 0 for the mean, or 'auto'.")
        until_sure = samples == "auto"
        if until_sure and run.facts["task"]["kind"] == "completion":
            raise ValueError("samples is 'auto', which is for answers; for texts give a number.")
        number = most_draws(q) if samples == "auto" else samples
        way = choose_default_config(q, number, config.samples, mode=mode, tell=False)
        if isinstance(decision, str):
            decision = stored_decision(run, untuned=untuned)
        run = dataclasses.replace(run, posterior=q)
        if beside is None:
            loaded = reload_model(run, folder=adapter, device=device)
            return cls(run=run, loaded=loaded, config=way, decision=decision, until_sure=until_sure)
        with beside._lock:
            loaded = reload_model(run, folder=adapter, beside=beside._loaded)
            made = cls(run=run, loaded=loaded, config=way, decision=decision, until_sure=until_sure)
        made._lock = beside._lock
        return made

    @property
    def loaded(self) -> LoadedModel:
        """The model, its tokenizer and its settings."""
        return self._loaded

    @property
    def num_draws(self) -> int:
        """How many draws are averaged, at most where each row takes as many as it needs; 1 at the mean."""
        return DRAWS if self._mode == "linearised" else number_of_draws(self._q, self._draws)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self._loaded.model.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Moves the model, and the draws that are held.

        Returns:
            The predictor itself.
        """
        with self._lock:
            self._loaded.model.to(device)
            self._q = None if self._q is None else move_held(self._q, self.device)
        return self

    def check(self, records: Records) -> None:
        """Refuses records that cannot be answered; nothing is predicted.

        Raises:
            ValueError: A row does not fit the task, or has more tokens than are allowed.
        """
        with self._lock:
            self._encoded(self._setting(records))

    def _predict(self, records: Records) -> Prediction:
        with self._lock:
            setting = self._setting(records)
            prediction = predict_encoded(
                setting,
                self._q,
                self._encoded(setting),
                self._mode,
                self._samples,
                logit_temperature=self._logit_temperature,
                shared_noise=True,
            )
        assert isinstance(prediction, Prediction)
        return dataclasses.replace(prediction, mode=self._mode, antithetic=self._mirrored)

    def _generate(self, records: Records) -> Generations:
        with self._lock:
            setting = self._setting(records)
            return generate_encoded(setting, self._q, self._encoded(setting), self._draws)

    def _setting(self, records: Records) -> Setting:
        """The model and the rows."""
        return self._loaded.setting(self.reader.read(records))

    def _encoded(self, setting: Setting) -> datasets.Dataset:
        return encode_split_prompts(setting, SPLIT) if setting.readout is None else setting.encoded(SPLIT)


def stored_decision(run: RunFolder, *, untuned: bool) -> Decision | None:
    """What `varlora decide` keeps in a run's folder; None where there is nothing.

    Args:
        run: the run, its posterior as the folder holds it.
        untuned: whether what was tuned is left aside, for which the decision may not be.

    Raises:
        ValueError: the file is damaged, or for another posterior or way to predict.
    """
    decision = Decision.load(run.path)
    if decision is not None and untuned and run.posterior.meta.tuned is not None:
        raise ValueError(
            f"{Decision.file(run.path)} was chosen for the posterior as it is tuned, which --untuned leaves aside. "
            "Leave that out, or the decision: decision=None, on the command line --undecided."
        )
    if decision is not None:
        try:
            decision.check_loaded_as(loaded_as(run))
        except ValueError as error:
            raise ValueError(f"{error} Or leave it aside: decision=None, on the command line --undecided.") from error
    return decision
