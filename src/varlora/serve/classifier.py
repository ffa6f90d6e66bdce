"""A predictor as the server asks it: rows in, plain JSON out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from varlora.predictor.predictor import Predictor
from varlora.serve.row_batcher import Row
from varlora.tasks.prompt_template import PromptTemplate
from varlora.tasks.rows import READ_BESIDE, SHAPES

COLUMNS = frozenset(field for fields in (*SHAPES.values(), *READ_BESIDE.values()) for field in fields) - {
    *("label", "answer", "completion"),
}
"""What a row may hold, whatever its task."""


class PredictorClassifier:
    """Answers rows by a predictor, on the worker's thread.

    Args:
        name: of the model that is served.
        predictor: of classes or choices.
    """

    def __init__(self, name: str, predictor: Predictor) -> None:
        self.name, self.predictor = name, predictor

    @property
    def columns(self) -> frozenset[str]:
        """What a row may hold."""
        template, decision = self.predictor.loaded.config.prompt_template, self.predictor.decision
        fields = () if template is None else PromptTemplate.read(template).fields
        group = () if decision is None or decision.group_column is None else (decision.group_column,)
        return COLUMNS.union(fields, group)

    def facts(self) -> dict[str, Any]:
        """What an answer says of the model."""
        return {
            "kind": self.predictor.kind,
            "classes": list(self.predictor.classes),
            "num_draws": self.predictor.num_draws,
        }

    def answer(self, rows: Sequence[Row], *, draws: bool) -> list[dict[str, Any]]:
        """An answer for each row; `draws` adds a list for each draw, of the probabilities of the row's choices."""
        found, prediction = self.predictor.answers_with_prediction(list(rows))
        answers = [answer.to_dict() for answer in found]
        if draws:
            for answer, log_probs in zip(answers, prediction.log_probs, strict=True):
                offered = [self.predictor.classes.index(label) for label in answer["probabilities"]]
                answer["draws"] = log_probs[:, offered].exp().tolist()
        return answers
