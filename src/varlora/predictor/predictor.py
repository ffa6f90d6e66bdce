"""`Predictor`: a trained posterior with all that it takes to answer, loaded once and asked as often as one likes."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, overload

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from varlora.adapters import check_base, load_into
from varlora.posterior import Mode, Posterior, PredictionConfig, linearisable
from varlora.posterior.draws import number_of_draws
from varlora.prediction.generation import Generations
from varlora.prediction.linearised import DRAWS
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import apply_config, choose_default_config, remove_tuning
from varlora.prediction.until_sure import MOST, can_stop
from varlora.predictor.answer import Answer, TextAnswer, answers_of, text_answers_of
from varlora.predictor.asked import Asked, chunks, is_one_row, listed, records_of
from varlora.predictor.client import Backend
from varlora.predictor.held_draws import hold_draws, move_held
from varlora.predictor.hub import local_folder
from varlora.predictor.reader import SPLIT, RowReader
from varlora.runs.decision import Decided, Decision
from varlora.runs.export_folder import is_export, read_export
from varlora.runs.finished import read_finished_folder, run_now
from varlora.runs.folder import RunFolder
from varlora.runs.generation import encode_split_prompts, generate_encoded
from varlora.runs.predict import predict_encoded
from varlora.runs.predicted_as import PredictedAs
from varlora.runs.row_groups import groups_in
from varlora.runs.setting import LoadedModel, Setting, reload_model
from varlora.tasks.rows import Records
from varlora.tasks.task import TaskKind

logger = logging.getLogger(__name__)

STORED: Final = "stored"
"""As `decision`: what `varlora decide` keeps in the folder, if anything."""
BATCHES_A_CHUNK = 16
"""Batches of a stream that are read before they are answered: within them rows of like length go together."""


class Predictor:
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

    _told_of_groups = False

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
        self._samples = config.draws(loaded.config.samples)
        self._logit_temperature = applied.meta.logit_temperature_of(self._mode)
        self._mirrored = self._mode == "samples" and applied.symmetric and self._samples > 1
        self._q: Posterior | None
        self._asked: int | Literal["auto"] = self._samples
        if self._mode == "mean":
            load_into(loaded.model, applied.point)  # for good, so that nothing need be put in at each call
            self._q = None
        elif self._mode == "linearised":
            self._q = linearisable(applied)
        elif until_sure and self.kind != "completion" and can_stop(applied):
            self._q, self._asked = applied, "auto"
        else:
            self._q = hold_draws(applied, self._samples, seed=loaded.config.seed, device=self.device)
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
        if backend is not None:
            return _connect(
                folder,
                backend,
                batch_size=batch_size,
                truncation=truncation,
                max_new_tokens=max_new_tokens,
                decision=decision,
                here={
                    "samples": samples,
                    "mode": mode,
                    "untuned": untuned or None,
                    "device": device,
                    "dtype": dtype,
                    "base_model": base_model,
                    "gguf_file": gguf_file,
                    "beside": beside,
                    "revision": revision,
                    "kind": kind,
                    "answers": answers,
                    **settings,
                },
            )
        adapter = local_folder(folder, revision=revision)
        settings |= {
            "model_name_or_path": base_model,
            "gguf_file": gguf_file,
            "dtype": dtype,
            "per_device_eval_batch_size": batch_size,
            "truncation": truncation,
            "max_new_tokens": max_new_tokens,
        }
        if is_export(adapter):
            run, export = read_export(adapter)
            run = run_now(run, kind=kind, answers=answers, **settings)
            adapter /= export.adapters[0].name
            if isinstance(decision, str):
                decision = None if export.decision is None else Decision.from_dict(export.decision)
        else:
            run = read_finished_folder(adapter, kind=kind, answers=answers, **settings)
        q, config = remove_tuning(run.posterior) if untuned else run.posterior, run.config
        until_sure = isinstance(samples, str)
        if isinstance(samples, str) and samples != "auto":
            raise ValueError(f"samples is {samples!r}; give a number of draws, 0 for the mean, or 'auto'.")
        number = MOST if isinstance(samples, str) else samples
        if until_sure and run.facts["task"]["kind"] == "completion":
            raise ValueError("samples is 'auto', which is for answers; for texts give a number.")
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
    def kind(self) -> str:
        """What is answered: "label" (one set of classes), "choice" (each row's own) or "completion" (texts)."""
        return self.reader.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in order; letters for choices, none for completions."""
        return self.reader.classes

    @property
    def classes_(self) -> NDArray[np.str_]:
        """The same, as scikit-learn has them."""
        return np.array(self.classes)

    @property
    def loaded(self) -> LoadedModel:
        """The model, its tokenizer and its settings."""
        return self._loaded

    @property
    def num_draws(self) -> int:
        """How many draws are averaged, at most where each row takes as many as it needs; 1 at the mean."""
        return DRAWS if self._mode == "linearised" else number_of_draws(self._q, self._samples)

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

    @overload
    def __call__(self, rows: Asked) -> Answer | TextAnswer: ...

    @overload
    def __call__(self, rows: list[Any]) -> list[Answer] | list[TextAnswer]: ...

    @overload
    def __call__(self, rows: Any) -> Any: ...

    def __call__(self, rows: Any) -> Any:
        """Answers.

        Args:
            rows: A text, or a record as in training; a list, a data set, an array of texts or a table of them; or any
                other iterable of them, which is answered as it is read.

        Returns:
            An `Answer` (of a completion a `TextAnswer`) for one row; a list of them for a list, in its order; an
            iterator for an iterator, in its order, which holds a few batches of rows at a time.

        Raises:
            ValueError: A row does not fit the task; the message says which, and why. Of a stream, when it is reached.
        """
        if is_one_row(rows):
            return next(self.answers(records_of([rows], self.reader.field_of_text)))
        known = listed(rows)
        if known is None:
            return self._stream(rows)
        return list(self.answers(records_of(known, self.reader.field_of_text))) if len(known) else []

    def answers(self, records: Records) -> Iterator[Answer] | Iterator[TextAnswer]:
        """The answers to records, one for each, in their order."""
        if self.kind == "completion":
            return text_answers_of(self._generate(records))
        prediction = self._predict(records)
        return answers_of(prediction, self._decided(prediction, records))

    def answers_with_prediction(self, rows: Any) -> tuple[list[Answer], Prediction]:
        """The answers to rows, and the log-probabilities (N, S, C) by draw that they are read from, in one pass.

        Args:
            rows: As those of `predict_proba`, at least one.

        Raises:
            ValueError: As of `predict_proba`.
        """
        records = self._records(rows)
        prediction = self._predict(records)
        return list(answers_of(prediction, self._decided(prediction, records))), prediction

    def check(self, records: Records) -> None:
        """Refuses records that cannot be answered; nothing is predicted.

        Raises:
            ValueError: A row does not fit the task, or has more tokens than are allowed.
        """
        with self._lock:
            self._encoded(self._setting(records))

    def fit(self, rows: Any, labels: Any = None) -> Self:
        """Refused: the predictor is trained already. It is here since scikit-learn asks whether it is.

        Raises:
            ValueError: Always; the message says how to hand a trained classifier over.
        """
        raise ValueError(
            f"the predictor of {self.run.path} is trained already. Hand it over as sklearn.frozen.FrozenEstimator("
            "predictor) or, to MAPIE, with prefit=True; to train, use `varlora train`."
        )

    def predict_proba(self, rows: Any) -> NDArray[np.float64]:
        """Probabilities (N, C), those of the answers, in the classes' order; 0 for a choice that is not offered.

        Args:
            rows: As those of a call, but not a stream.

        Raises:
            ValueError: As for a call; or the task is one of completions.
        """
        self._refuse_texts()
        known = self._known(rows)
        if not len(known):
            return np.zeros((0, len(self.classes)))
        records = records_of(known, self.reader.field_of_text)
        prediction = self._predict(records)
        decided = self._decided(prediction, records)
        return (prediction.probs if decided is None else decided.probs).numpy()

    def predict(self, rows: Any) -> NDArray[np.str_]:
        """The labels of the answers (N,).

        Args:
            rows: As those of `predict_proba`.

        Raises:
            ValueError: As of `predict_proba`.
        """
        self._refuse_texts()
        return np.array([answer.label for answer in self(self._known(rows))], dtype=self.classes_.dtype)

    def prediction(self, rows: Any, *, labelled: bool = False) -> Prediction:
        """Log-probabilities (N, S, C) by draw, for metrics and guarantees.

        Args:
            rows: As those of `predict_proba`, at least one.
            labelled: Whether the rows' answers are read, into `Prediction.labels`.

        Raises:
            ValueError: As of `predict_proba`.
        """
        return self._predict(self._records(rows, labelled=labelled))

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def _refuse_texts(self) -> None:
        if self.kind == "completion":
            raise ValueError(f"{self.run.path} writes texts, which have no probabilities of classes; call it instead.")

    def _records(self, rows: Any, *, labelled: bool = False) -> Records:
        """Rows to be classified, at least one."""
        self._refuse_texts()
        if not len(known := self._known(rows)):
            raise ValueError("there are no rows; give one or more.")
        return records_of(known, self.reader.field_of_text, labelled=labelled)

    def _known(self, rows: Any) -> Any:
        known = listed([rows] if is_one_row(rows) else rows)
        if known is None:
            raise ValueError("the rows are a stream; make a list of them, or call the predictor, which reads streams.")
        return known

    def _stream(self, rows: Iterable[Any]) -> Iterator[Answer] | Iterator[TextAnswer]:
        first = 0
        for chunk in chunks(rows, BATCHES_A_CHUNK * self._settings.per_device_eval_batch_size):
            yield from self.answers(records_of(chunk, self.reader.field_of_text, first=first))
            first += len(chunk)

    def _predict(self, records: Records) -> Prediction:
        with self._lock:
            setting = self._setting(records)
            found = predict_encoded(
                setting,
                self._q,
                self._encoded(setting),
                self._mode,
                self._asked,
                logit_temperature=self._logit_temperature,
                shared_noise=True,
            )
        assert isinstance(found, Prediction)
        return dataclasses.replace(found, mode=self._mode, antithetic=self._mirrored)

    def _generate(self, records: Records) -> Generations:
        with self._lock:
            setting = self._setting(records)
            return generate_encoded(setting, self._q, self._encoded(setting), self._samples)

    def _setting(self, records: Records) -> Setting:
        """The model and the rows."""
        return self._loaded.setting(self.reader.read(records))

    def _encoded(self, setting: Setting) -> datasets.Dataset:
        return encode_split_prompts(setting, SPLIT) if setting.readout is None else setting.encoded(SPLIT)

    def _decided(self, prediction: Prediction, records: Records) -> Decided | None:
        if self.decision is None:
            return None
        column = self.decision.group_column
        if column is None:
            return self.decision.decide(prediction)
        rows = records.as_given if records.as_given is not None else records.rows
        if any(row.get(column) is not None for row in rows):
            return self.decision.decide(prediction, groups_in(rows, column, where=records.where))
        if not self._told_of_groups:
            self._told_of_groups = True
            logger.warning(
                "%s: no row has %r, by which the decision goes; such rows go by its common thresholds",
                records.where,
                column,
            )
        return self.decision.decide(prediction, (None,) * len(rows))

    def _check(self, decision: Decision) -> None:
        """Refuses a decision that was chosen for another way to predict, before any row is asked."""
        if self.kind == "completion":
            raise ValueError("a decision needs probabilities of classes, and completions have none; leave it out.")
        way = PredictedAs(
            mode=self._mode,
            draws=self.num_draws,
            logit_temperature=self._logit_temperature,
            classes=self.classes,
        )
        try:
            if self._asked == "auto":
                decision.predicted_as.refuse_until_sure()
            decision.predicted_as.check(way)
        except ValueError as error:
            raise ValueError(f"{error} Or leave it aside: decision=None, on the command line --undecided.") from error


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
    return decision


def _connect(
    folder: str | os.PathLike[str], backend: str | Backend, *, here: Mapping[str, Any], **options: Any
) -> Predictor:
    """A predictor whose model is a server's; options of a model that is loaded here are refused."""
    from varlora.predictor.remote import RemotePredictor  # which is a Predictor

    if given := [name for name, value in here.items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)} decide how a model is loaded here, and backend says that a server has loaded it; "
            "leave one of them out."
        )
    return RemotePredictor.connect(Path(folder), backend, **options)
