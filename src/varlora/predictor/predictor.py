"""`Predictor`: a trained posterior with all that it takes to answer, loaded once and asked as often as one likes."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Self

from varlora.adapters import check_base
from varlora.posterior import DropoutMasks, Mixture, Mode, PointMass, Posterior, PredictionConfig, linearisable
from varlora.posterior.draws import number_of_draws, weight_draws
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import apply_config, choose_default_config, remove_tuning
from varlora.predictor.answer import Answer, TextAnswer, answers_of, text_answers_of
from varlora.predictor.asked import Asked, chunks, is_one_row, listed, records_of
from varlora.predictor.client import Backend
from varlora.runs.data import load_new_rows
from varlora.runs.export_folder import is_export, read_export
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.generation import encode_split_prompts, generate_encoded
from varlora.runs.run import predict_encoded
from varlora.runs.setting import FinishedModel, reload_model
from varlora.tasks import Task
from varlora.tasks.prompts import YES_NO
from varlora.tasks.rows import Records
from varlora.tasks.unread import unread_in_words

logger = logging.getLogger(__name__)

SPLIT = "input"
"""What rows without an id are called by, before their position."""
BATCHES_A_CHUNK = 16
"""Batches of a stream that are read before they are answered: within them rows of like length go together."""
HELD_BYTES = 2**30
"""Most bytes of draws that are held from call to call; more are drawn anew, the same ones, at each call."""


class Predictor:
    """A trained posterior with its model, tokenizer, prompt, answers and way of predicting.

    Made by `from_pretrained`. Rows are read, worded and cut by the code that does it in training. The draws are a
    fixed set, by the run's seed: the same row gets the same numbers in every call, alone or among others, up to the
    rounding of a batch (dropout masks, of the method mc_dropout, are the exception: they are a batch's own).

    One call runs at a time: a lock makes others wait, since the draws are put into the one model in turn.

    Attributes:
        run: The folder, read.
        config: The way to predict.

    Example:
        predictor = Predictor.from_pretrained("runs/reviews")
        predictor("a fine film").label
    """

    def __init__(self, *, run: RunFolder, loaded: FinishedModel, config: PredictionConfig) -> None:
        self.run = run
        self.config = config
        self._loaded, self._settings = loaded, loaded.config
        self._lock = threading.RLock()
        self._told: set[str] = set()
        self._chat = _chat_tokenizer(run)
        q = run.posterior
        check_base(loaded.model, q.point.keys(), q.meta.base_fingerprint, q.meta.base_model)  # once, not at each call
        applied = apply_config(q, config, seed=loaded.config.seed)
        self._q: Posterior = dataclasses.replace(  # type: ignore[type-var]
            applied, meta=dataclasses.replace(applied.meta, base_fingerprint=None)
        )
        if config.canonical.mode == "linearised":
            linearisable(self._q)
        self._samples = config.draws(loaded.config.samples)
        self._mirrored = config.canonical.mode == "samples" and applied.symmetric and self._samples > 1
        if config.canonical.mode == "samples":
            self._q = _hold(self._q, self._samples, seed=loaded.config.seed, device=self.device)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        samples: int | None = None,
        mode: Mode | None = None,
        untuned: bool = False,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        batch_size: int | None = None,
        base_model: str | None = None,
        gguf_file: str | None = None,
        truncation: str | None = None,
        max_new_tokens: int | None = None,
        backend: str | Backend | None = None,
        beside: Predictor | None = None,
    ) -> Predictor:
        """Loads what a folder holds.

        Args:
            folder: A run's folder, or an export's.
            samples: S, the number of draws; 0 is the mean. None: what `varlora tune` chose; else the run's own number
                where validation rows have shown that draws help, and the mean where they have not.
            mode: "mean", "samples" or "linearised"; None goes by `samples`.
            untuned: Leave aside what `varlora tune` chose.
            device: Where the model goes; None: a CUDA GPU where there is one.
            dtype: Of the frozen weights: "float32", "bfloat16", "float16"; None: as in training.
            batch_size: Rows in a batch; None: the run's own.
            base_model: Name or folder of the base model, if it is not where it was in training.
            gguf_file: Name of the GGUF file there, if it is one.
            truncation: What to do with rows that are too long: "error", "left", "right"; None: as in training.
            max_new_tokens: Most tokens of a text that is written; None: the run's own.
            backend: URL of an OpenAI-compatible server that serves an export's adapters ("http://localhost:8000/v1"),
                or more about it: no model is loaded, and their answers are averaged here.
            beside: Another predictor on the same causal language model, which the two then share: only the adapter is
                loaded. They wait for each other.

        Raises:
            ValueError: The folder holds no run, something in it is damaged or its base model is not there, or the
                options do not go together; the message says which, and what to do.
        """
        if backend is not None:
            return _connect(
                folder,
                backend,
                batch_size=batch_size,
                truncation=truncation,
                max_new_tokens=max_new_tokens,
                here={
                    "samples": samples,
                    "mode": mode,
                    "untuned": untuned or None,
                    "device": device,
                    "dtype": dtype,
                    "base_model": base_model,
                    "gguf_file": gguf_file,
                    "beside": beside,
                },
            )
        adapter = Path(folder)
        if is_export(folder):
            run, export = read_export(folder)
            adapter /= export.adapters[0].name
        else:
            run = read_run(adapter)
        q = remove_tuning(run.posterior) if untuned else run.posterior
        given: dict[str, Any] = {
            "model_name_or_path": base_model,
            "dtype": dtype,
            "per_device_eval_batch_size": batch_size,
            "truncation": truncation,
            "max_new_tokens": max_new_tokens,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if base_model is not None or gguf_file is not None:
            changes["gguf_file"] = gguf_file  # another place says anew whether it is a file there
        config = dataclasses.replace(run.config, **changes)
        way = choose_default_config(q, samples, config.samples, mode=mode, tell=False)
        if beside is None:
            loaded = reload_model(config, adapter, q.meta, device=device)
            return cls(run=dataclasses.replace(run, posterior=q), loaded=loaded, config=way)
        with beside._lock:
            loaded = reload_model(config, adapter, q.meta, beside=beside._loaded)
            made = cls(run=dataclasses.replace(run, posterior=q), loaded=loaded, config=way)
        made._lock = beside._lock
        return made

    @property
    def kind(self) -> str:
        """What is answered: "label" (one set of classes), "choice" (each row's own) or "completion" (texts)."""
        kind: str = self.run.facts["task"]["kind"]
        return kind

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in order; letters for choices, none for completions."""
        return tuple(self.run.facts["task"]["answers"])

    @property
    def classes_(self) -> NDArray[np.str_]:
        """The same, as scikit-learn has them."""
        return np.array(self.classes)

    @property
    def loaded(self) -> FinishedModel:
        """The model, its tokenizer and its settings."""
        return self._loaded

    @property
    def num_draws(self) -> int:
        """How many draws are averaged; 1 at the mean."""
        return number_of_draws(self._q, self._samples)

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
            self._q = _moved(self._q, self.device)
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
            return next(self.answers(records_of([rows], self._field)))
        known = listed(rows)
        if known is None:
            return self._stream(rows)
        return list(self.answers(records_of(known, self._field))) if len(known) else []

    def answers(self, records: Records) -> Iterator[Answer] | Iterator[TextAnswer]:
        """The answers to records, one for each, in their order."""
        if self.kind == "completion":
            return text_answers_of(self._generate(records))
        return answers_of(self._predict(records))

    def predict_proba(self, rows: Any) -> NDArray[np.float64]:
        """Probabilities (N, C), averaged over the draws, in the classes' order; 0 for a choice that is not offered.

        Args:
            rows: As those of a call, but not a stream.

        Raises:
            ValueError: As for a call; or the task is one of completions.
        """
        known = self._known(rows)
        if not len(known):
            return np.zeros((0, len(self.classes)))
        return self.prediction(known).probs.numpy()

    def predict(self, rows: Any) -> NDArray[np.str_]:
        """The likeliest class of each row (N,).

        Args:
            rows: As those of `predict_proba`.

        Raises:
            ValueError: As of `predict_proba`.
        """
        likeliest: NDArray[np.str_] = self.classes_[self.predict_proba(rows).argmax(axis=1)]
        return likeliest

    def prediction(self, rows: Any, *, labelled: bool = False) -> Prediction:
        """Log-probabilities (N, S, C) by draw, for metrics and guarantees.

        Args:
            rows: As those of `predict_proba`, at least one.
            labelled: Whether the rows' answers are read, into `Prediction.labels`.

        Raises:
            ValueError: As of `predict_proba`.
        """
        if self.kind == "completion":
            raise ValueError(f"{self.run.path} writes texts, which have no probabilities of classes; call it instead.")
        return self._predict(records_of(self._known(rows), self._field, labelled=labelled))

    @property
    def _field(self) -> str | None:
        """The field that a bare text stands in."""
        if self.kind == "label":
            return None if self.classes == YES_NO else "text"
        return "prompt" if self.kind == "completion" else None

    def _known(self, rows: Any) -> Any:
        known = listed([rows] if is_one_row(rows) else rows)
        if known is None:
            raise ValueError("the rows are a stream; make a list of them, or call the predictor, which reads streams.")
        return known

    def _stream(self, rows: Iterable[Any]) -> Iterator[Answer] | Iterator[TextAnswer]:
        first = 0
        for chunk in chunks(rows, BATCHES_A_CHUNK * self._settings.per_device_eval_batch_size):
            yield from self.answers(records_of(chunk, self._field, first=first))
            first += len(chunk)

    def _predict(self, records: Records) -> Prediction:
        with self._lock:
            setting = self._loaded.setting(self._task(records))
            encoded = setting.encoded(SPLIT)
            found = predict_encoded(setting, self._q, encoded, self.config.canonical.mode, self._samples)
        assert isinstance(found, Prediction)
        return dataclasses.replace(found, antithetic=self._mirrored)

    def _generate(self, records: Records) -> Generations:
        with self._lock:
            setting = self._loaded.setting(self._task(records))
            return generate_encoded(setting, self._q, encode_split_prompts(setting, SPLIT), self._samples)

    def _task(self, records: Records) -> Task:
        """The rows, worded as in training."""
        task = load_new_rows(
            records,
            self.run,
            self._settings,
            split=SPLIT,
            labelled=records.labelled,
            tokenizer=self._chat,
            tell=False,
        )
        if new := [column for columns in task.not_read.values() for column in columns if column not in self._told]:
            self._told.update(new)
            logger.warning("%s: %s", records.where, unread_in_words({SPLIT: new}, [SPLIT]))
        return task


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


def _chat_tokenizer(run: RunFolder) -> PreTrainedTokenizerBase | None:
    """The run's own tokenizer, whose chat template writes prompts."""
    if run.facts["task"]["kind"] != "completion" and run.config.prompt_format != "chat":
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(run.path))
    return tokenizer


def _hold(q: Posterior, samples: int, *, seed: int, device: torch.device) -> Posterior:
    """The draws that predictions make of a posterior, made once: as points with equal weights.

    What is too much to hold stays as it is, and is drawn anew each time; dropout masks are no draws of weights.
    """
    size = sum(t.numel() * t.element_size() for t in q.point.values())
    if isinstance(q, DropoutMasks) or number_of_draws(q, samples) * size > HELD_BYTES:
        return q
    points = [PointMass(mean=_on(weights, device), meta=q.meta) for weights in weight_draws(q, samples, seed=seed)]
    return Mixture(components=tuple(points), meta=q.meta) if len(points) > 1 else points[0]


def _moved(q: Posterior, device: torch.device) -> Posterior:
    """Draws that are held, on another device; a posterior that is drawn from stays where it is."""
    if isinstance(q, PointMass):
        return dataclasses.replace(q, mean=_on(q.mean, device))
    if isinstance(q, Mixture):
        return dataclasses.replace(q, components=tuple(_moved(component, device) for component in q.components))
    return q


def _on(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: t.to(device) for key, t in tensors.items()}
