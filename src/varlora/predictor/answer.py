"""What is answered to one row, and how it is read off a prediction of many."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from varlora.metrics import mutual_information, predictive_entropy
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.runs.decision import Decided


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a row with classes or choices.

    Attributes:
        id: The row's own id, or one by its position.
        label: The likeliest class, also where the row is not answered; by a decision with costs, the class whose
            answer has the least expected cost.
        probability: Its probability, averaged over the draws.
        probabilities: Those of all classes, or of the choices that the row offers, in the classes' order; as the
            decision recalibrates them, where it does.
        entropy: In nats, of the draws' average before any recalibration: how unsure it is.
        mutual_information: In nats: how far the draws disagree. None where there is one.
        answered: Whether it is sure enough. None where no decision rule is set.
        reason: Why it is not answered; None where it is.
        prediction_set: The classes that a set with a guarantee holds. None where no set was asked for.
        band: The name of its band of confidence. None where there are none.
        expected_cost: Of answering with the label. None where nothing was said of costs.
        intervals: By class the two probabilities between which its own is, by Venn–Abers. None otherwise.
        draws_taken: With samples="auto", how many draws the row took; None where all take the same number.
    """

    id: str
    label: str
    probability: float
    probabilities: Mapping[str, float]
    entropy: float
    mutual_information: float | None = None
    answered: bool | None = None
    reason: str | None = None
    prediction_set: tuple[str, ...] | None = None
    band: str | None = None
    expected_cost: float | None = None
    intervals: Mapping[str, tuple[float, float]] | None = None
    draws_taken: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: every field.

        Example:
            >>> answer = Answer(id="0", label="b", probability=0.75, probabilities={"a": 0.25, "b": 0.75}, entropy=0.56)
            >>> answer.to_dict()["probabilities"]
            {'a': 0.25, 'b': 0.75}
        """
        return _plain(self)


@dataclass(frozen=True, kw_only=True)
class TextAnswer:
    """What is written after a prompt.

    Attributes:
        id: The row's own id, or one by its position.
        text: What was written; of several draws, by the first that gives the answer.
        answer: The final answer that most draws give, or their text where the task has none; None where no text has
            a final answer.
        agreement: The share of the draws that give it. None where there is one.
        answers: Every answer with the share of the draws that give it, the most frequent first.
        log_likelihood_per_token: In nats, averaged over the draws.
        finished: Whether the text came to its end within `max_new_tokens`.
    """

    id: str
    text: str
    answer: str | None
    agreement: float | None
    answers: Mapping[str, float]
    log_likelihood_per_token: float
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: every field."""
        return _plain(self)


def _plain(answer: Answer | TextAnswer) -> dict[str, Any]:
    return {field.name: _as_json(getattr(answer, field.name)) for field in dataclasses.fields(answer)}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_json(one) for name, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def answers_of(prediction: Prediction, decided: Decided | None = None) -> Iterator[Answer]:
    """One answer for each row; a choice that a row does not offer has no probability.

    Args:
        prediction: Of N rows, with their ids and the names of the classes.
        decided: What was decided of them; None where nothing is.

    Example:
        >>> log_probs = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]], dtype=torch.float64).log()
        >>> prediction = Prediction(
        ...     log_probs=log_probs, labels=torch.tensor([-100]), classes=("bad", "good"), ids=("a",)
        ... )
        >>> [(answer.label, round(answer.probability, 6)) for answer in answers_of(prediction)]
        [('bad', 0.7)]
    """
    draws = prediction.log_probs
    probs = prediction.probs if decided is None else decided.probs
    labels = (probs.argmax(dim=1) if decided is None or decided.cheapest is None else decided.cheapest).tolist()
    entropy = predictive_entropy(draws).tolist()
    disagreement = mutual_information(draws).tolist() if prediction.num_draws > 1 else [None] * len(probs)
    taken = prediction.draws_taken.tolist() if prediction.draws_taken is not None else [None] * len(probs)
    offered = (~torch.isneginf(draws).all(dim=1)).tolist()
    for n, (name, row) in enumerate(zip(prediction.ids, probs.tolist(), strict=True)):
        named = zip(prediction.classes, row, offered[n], strict=True)
        yield Answer(
            id=name,
            label=prediction.classes[labels[n]],
            probability=row[labels[n]],
            probabilities={label: probability for label, probability, there in named if there},
            entropy=entropy[n],
            mutual_information=disagreement[n],
            draws_taken=taken[n],
            **(_decided_of(decided, n, prediction.classes, offered[n]) if decided is not None else {}),
        )


def _decided_of(decided: Decided, n: int, classes: Sequence[str], offered: Sequence[bool]) -> dict[str, Any]:
    """What was decided of one row, as far as a decision says something of it."""
    intervals = None
    if decided.intervals is not None:
        pairs = zip(classes, decided.intervals[n].tolist(), offered, strict=True)
        intervals = {label: (low, high) for label, (low, high), there in pairs if there}
    sets, costs = decided.sets, decided.expected_costs
    return {
        "reason": decided.reasons[n],
        "answered": None if decided.answered is None else bool(decided.answered[n]),
        "prediction_set": None if sets is None else tuple(itertools.compress(classes, sets[n].tolist())),
        "band": None if decided.bands is None else decided.bands[n],
        "expected_cost": None if costs is None else float(costs[n]),
        "intervals": intervals,
    }


def text_answers_of(generations: Generations) -> Iterator[TextAnswer]:
    """One answer for each prompt."""
    shares, likelihood = generations.agreement.tolist(), generations.log_likelihood_per_token.tolist()
    several = generations.num_draws > 1
    for n, (name, majority) in enumerate(zip(generations.ids, generations.majority, strict=True)):
        answers = generations.answers[n]
        draw = answers.index(majority)
        votes = Counter(answer for answer in answers if answer is not None)
        yield TextAnswer(
            id=name,
            text=generations.texts[n][draw],
            answer=majority,
            agreement=shares[n] if several else None,
            answers={answer: count / generations.num_draws for answer, count in votes.most_common()},
            log_likelihood_per_token=likelihood[n],
            finished=bool(generations.finished[n, draw]),
        )
