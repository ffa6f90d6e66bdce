"""The models of a server: who answers under which name, on which worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varlora.serve.errors import RequestError, invalid
from varlora.serve.language_model import LanguageModel
from varlora.serve.row_batcher import Classifier, RowBatcher
from varlora.serve.text_batcher import TextBatcher
from varlora.serve.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model.

    Attributes:
        name: as requests have it.
        worker: the thread of its base model.
        row_batcher, text_batcher: where its rows and texts wait.
        classifier: what answers rows; None where it has no classes.
        language: what writes texts; None where it writes none.
        facts: what /v1/models says of it.
    """

    name: str
    worker: Worker
    row_batcher: RowBatcher
    text_batcher: TextBatcher
    classifier: Classifier | None
    language: LanguageModel | None
    facts: Mapping[str, Any]


class Directory:
    """Finds the model that a request names.

    Args:
        served: all of them.
        created: when the server started, in seconds since 1970.
    """

    def __init__(self, served: Sequence[Served], created: int) -> None:
        self.served, self.created = {one.name: one for one in served}, created

    @property
    def workers(self) -> list[Worker]:
        """Each worker once."""
        return list(dict.fromkeys(one.worker for one in self.served.values()))

    def classifying(self, name: str | None) -> Served:
        """The model that is to classify; None is the only one that does.

        Raises:
            RequestError: there is none of that name, or it writes texts, or several classify and none is named.
        """
        return self._find(
            name, lambda one: one.classifier is not None, "classifies", "it writes texts: /v1/chat/completions"
        )

    def writing(self, name: str | None) -> Served:
        """The model that is to write; None is the only one that does.

        Raises:
            RequestError: as `classifying`.
        """
        return self._find(name, lambda one: one.language is not None, "writes texts", "it classifies: /v1/classify")

    def cards(self) -> list[dict[str, Any]]:
        """All models, as OpenAI's API lists them, with what is ours beside."""
        return [self.card(name) for name in self.served]

    def card(self, name: str) -> dict[str, Any]:
        """One model.

        Raises:
            RequestError: there is none of that name.
        """
        one = self._named(name)
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "varlora",
            **({"max_model_len": one.language.context} if one.language is not None and one.language.context else {}),
            "varlora": dict(one.facts),
        }

    def _find(self, name: str | None, can: Callable[[Served], bool], does: str, instead: str) -> Served:
        able = [one for one in self.served.values() if can(one)]
        if name is None:
            if len(able) == 1:
                return able[0]
            names = ", ".join(one.name for one in able)
            raise invalid(
                "model",
                f"say which model: {names}." if able else f"no model of this server {does}.",
                code="model_missing",
            )
        one = self._named(name)
        if not can(one):
            raise invalid("model", f"model {name!r} cannot do this; {instead}.", code="wrong_model")
        return one

    def _named(self, name: str) -> Served:
        if name not in self.served:
            raise RequestError(
                404,
                f"there is no model {name[:200]!r}; there is {', '.join(self.served)}.",
                param="model",
                code="model_not_found",
            )
        return self.served[name]
