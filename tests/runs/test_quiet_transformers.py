"""What transformers shows of a model that it loads is not shown, its errors are."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertModel

from models import tiny_bert_classifier
from varlora.runs.quiet_transformers import quiet_transformers


def test_a_missing_head_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: BertModel = tiny_bert_classifier(vocab_size=20, layers=1, num_labels=2).bert
    encoder.save_pretrained(tmp_path)
    told: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    loggers = [logging.getLogger("transformers"), logging.getLogger("transformers.modeling_utils")]
    monkeypatch.setattr(loggers[0], "handlers", [handler])

    with quiet_transformers():
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
        loggers[1].error("no such file")
    assert told == ["no such file"]
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert "classifier.weight" in told[1]
