"""`POST /v1/classify`: rows or texts in, the predictor's answers out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from varlora.serve.errors import invalid
from varlora.serve.metrics import ServerMetrics
from varlora.serve.request_body import RequestBody, check_length, check_unicode
from varlora.serve.row_batcher import RowJob
from varlora.serve.served import Directory
from varlora.serve.settings import ServeSettings
from varlora.serve.waiting import QueuePlace, next_event
from varlora.serve.worker import QueueCapacity


class ClassifyRequest(RequestBody):
    """What is asked."""

    model: str | None = None
    texts: list[str] | None = None
    rows: list[dict[str, Any]] | None = None
    draws: bool = Field(default=False, description="Whether the probabilities of each draw are wanted.")


def classify_router(
    directory: Directory, room: QueueCapacity, settings: ServeSettings, metrics: ServerMetrics
) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/classify")
    async def classify(asked: ClassifyRequest, request: Request) -> dict[str, Any]:
        served = directory.classifying(asked.model)
        assert served.classifier is not None
        rows, ids = _rows_of(asked, served.classifier.columns, settings)
        job = RowJob(served.classifier, rows, draws=asked.draws, seconds=settings.timeout)
        place = QueuePlace(room, served.worker, served.row_batcher, job)
        place.enter()
        try:
            answers = await next_event(job, request)
        finally:
            place.leave()
        for answer in answers:
            metrics.count_row(served.name, answer["answered"])
        return {
            "object": "classification",
            "model": served.name,
            **served.classifier.facts(),
            "answers": [{**answer, "id": name} for answer, name in zip(answers, ids, strict=True)],
        }

    return router


def _rows_of(
    asked: ClassifyRequest, columns: frozenset[str], settings: ServeSettings
) -> tuple[list[Any], list[str | int]]:
    """The rows as the predictor reads them, without ids, and their ids: their own, or their numbers from 0.

    Raises:
        RequestError: there are none or too many, or one is too long or has columns that nothing reads.
    """
    if (asked.texts is None) == (asked.rows is None):
        raise invalid("texts", "give either texts, a list of strings, or rows, a list of objects.", code="no_rows")
    param = "rows" if asked.texts is None else "texts"
    given: list[Any] = list(asked.texts if asked.texts is not None else asked.rows or [])
    if not 1 <= len(given) <= settings.max_rows:
        raise invalid(param, f"{param} has {len(given)} entries; allowed: 1 to {settings.max_rows}.", code="row_count")
    rows, ids = [], []
    for number, row in enumerate(given):
        where = f"{param}[{number}]"
        check_length(_characters(row, where), where, settings.max_text_length)
        name: Any = number
        if isinstance(row, dict):
            row = dict(row)
            name = row.pop("id", number)
            if type(name) not in (str, int):
                raise invalid(f"{where}.id", f"the id of {where} must be a string or a whole number.")
            if unread := sorted(set(row) - columns):
                raise invalid(
                    where,
                    f"{where} has the column {unread[0][:80]!r}, which this model does not read; it reads "
                    f"{', '.join(sorted(columns))}, and keeps id.",
                    code="unknown_column",
                )
        rows.append(row)
        ids.append(name)
    return rows, ids


def _characters(value: Any, where: str, depth: int = 0) -> int:
    """How many characters a row's texts have together.

    Raises:
        RequestError: one cannot be written as UTF-8, or lists stand in lists in lists.
    """
    if isinstance(value, str):
        check_unicode(value, where)
        return len(value)
    if depth > 4:
        raise invalid(where, f"{where} is nested too deeply.")
    if isinstance(value, dict):
        return sum(_characters(part, where, depth + 1) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return sum(_characters(part, where, depth + 1) for part in value)
    return 0
