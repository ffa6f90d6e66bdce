"""Answers to rows, whatever computes their predictions: one row, many or a stream, and scikit-learn's form of it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from varlora.posterior import Mode, PredictionConfig
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.predictor.answer import Answer, TextAnswer, answers_of, text_answers_of
from varlora.predictor.inputs import Row, chunks, is_one_row, listed, records_of
from varlora.predictor.reader import RowReader
from varlora.runs.config import RunConfig
from varlora.runs.decision import Decided, Decision
from varlora.runs.folder import RunFolder
from varlora.runs.predicted_as import PredictedAs
from varlora.runs.row_groups import groups_in
from varlora.tasks.rows import Records

logger = logging.getLogger(__name__)

BATCHES_A_CHUNK = 16
"""Batches of a stream that are read before they are answered: within them rows of like length go together."""


class RowAnswerer(ABC):
    """Answers rows by what a subclass predicts for them, or writes after them.

    Attributes:
        run: The folder, read.
        config: The way to predict.
        decision: Which rows are answered, and sets; None: every row is answered.
        reader: Reads the rows.
    """

    run: RunFolder
    config: PredictionConfig
    decision: Decision | None
    reader: RowReader
    _settings: RunConfig
    _mode: Mode
    _logit_temperature: float
    _samples: int | Literal["auto"]
    """S as it is asked for."""
    _warned_of_groups = False

    @property
    @abstractmethod
    def num_draws(self) -> int:
        """How many draws are averaged, at most."""

    @property
    def logit_temperature(self) -> float:
        """T, which divides the logits."""
        return self._logit_temperature

    @abstractmethod
    def _predict(self, records: Records) -> Prediction: ...

    @abstractmethod
    def _generate(self, records: Records) -> Generations: ...

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

    @overload
    def __call__(self, rows: Row) -> Answer | TextAnswer: ...

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

    def _decided(self, prediction: Prediction, records: Records) -> Decided | None:
        if self.decision is None:
            return None
        column = self.decision.group_column
        if column is None:
            return self.decision.decide(prediction)
        rows = records.as_given if records.as_given is not None else records.rows
        if any(row.get(column) is not None for row in rows):
            return self.decision.decide(prediction, groups_in(rows, column, where=records.where))
        if not self._warned_of_groups:
            self._warned_of_groups = True
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
            mode=self._mode, draws=self.num_draws, logit_temperature=self._logit_temperature, classes=self.classes
        )
        try:
            if self._samples == "auto":
                decision.predicted_as.refuse_until_sure()
            decision.predicted_as.check(way)
        except ValueError as error:
            raise ValueError(f"{error} Or leave it aside: decision=None, on the command line --undecided.") from error
