"""`create_app`: the server of some models as an application, for uvicorn or any other ASGI server."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

from varlora.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from varlora.predictor.predictor import Predictor
    from varlora.serve.language_model import LanguageModel

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """Whether what a server needs is installed.

    Raises:
        ValueError: it is not; the message says what to install.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"a server needs {', '.join(missing)}: pip install 'varlora[serve]'.")


def create_app(models: Mapping[str, Predictor | LanguageModel], *, settings: ServeSettings | None = None) -> FastAPI:
    """The server of some models.

    Args:
        models: by the names that requests give. A predictor of classes or choices answers `/v1/classify`; one whose
            model is a causal language model writes texts, too, as a `LanguageModel` alone does. Those that share a
            base model share a thread.
        settings: limits and the token; the defaults otherwise.

    Raises:
        ValueError: there is no model, or the extra `serve` is not installed.
    """
    check_installed()
    from varlora.predictor.predictor import Predictor
    from varlora.serve.app import build_app
    from varlora.serve.classifier import PredictorClassifier
    from varlora.serve.facts import model_facts
    from varlora.serve.language_model import LanguageModel
    from varlora.serve.load import writer
    from varlora.serve.metrics import ServerMetrics
    from varlora.serve.row_batcher import RowBatcher
    from varlora.serve.served import Served
    from varlora.serve.text_batcher import TextBatcher
    from varlora.serve.worker import QueueCapacity, Worker

    if not models:
        raise ValueError("there is no model to serve; give one or more.")
    settings = settings if settings is not None else ServeSettings()
    room = QueueCapacity(settings.max_waiting)
    metrics = ServerMetrics(lambda: room.waiting)
    bases: dict[int, tuple[Worker, RowBatcher, TextBatcher]] = {}
    served = []
    for name, model in models.items():
        predictor = model if isinstance(model, Predictor) else None
        language = model if isinstance(model, LanguageModel) else writer(name, model)
        classifies = predictor is not None and predictor.kind != "completion"
        base = language.base if language is not None else predictor.loaded.model  # type: ignore[union-attr]
        if id(base) not in bases:
            rows = RowBatcher(settings.batch_rows, metrics)
            texts = TextBatcher(settings.batch_rows, settings.batch_tokens, metrics)
            bases[id(base)] = (Worker(name, [rows, texts]), rows, texts)
        worker, rows, texts = bases[id(base)]
        served.append(
            Served(
                name=name,
                worker=worker,
                row_batcher=rows,
                text_batcher=texts,
                classifier=PredictorClassifier(name, predictor) if classifies and predictor is not None else None,
                language=language,
                facts=model_facts(predictor if classifies else None, language),
            )
        )
    return build_app(served, room, metrics, settings)
