"""Plain adapters on one base model: what their label log-probabilities, read over HTTP, average to."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import torch

from serving import served
from small_runs import herds
from varlora.posterior.folder import load_posterior
from varlora.predictor.predictor import Predictor
from varlora.readout.readout import AnswerTokens, readout_from_dict
from varlora.runs.export import export_adapters
from varlora.serve import create_app
from varlora.serve.language_model import LanguageModel
from varlora.serve.load import LoadOptions, load_models, named_folders
from varlora.tasks.prompts import label_prompt

TEXTS = [row["text"] for row in herds(4, offset=40)]


def test_the_adapters_of_an_export_average_to_the_prediction(
    trained: Path, predictor: Predictor, tmp_path: Path
) -> None:
    export = export_adapters(load_posterior(trained), tmp_path / "out", samples=6, source=trained)
    names = [adapter.name for adapter in export.adapters]
    models = load_models(named_folders([str(tmp_path / "out" / name) for name in names]), LoadOptions())
    assert list(models) == names
    assert len({id(model.base) for model in models.values() if isinstance(model, LanguageModel)}) == 1
    readout = readout_from_dict(export.readout or {})
    assert isinstance(readout, AnswerTokens)
    tokens = list(readout.token_ids)
    found = torch.zeros(len(TEXTS), len(tokens), dtype=torch.float64)
    with served(create_app(models)) as url, httpx.Client(base_url=url, timeout=30, verify=False) as client:
        for name in names:
            body = {
                "model": name,
                "prompt": [label_prompt(text, predictor.classes) for text in TEXTS],
                "max_tokens": 1,
                "logprobs": 0,
                "logprob_token_ids": tokens,
                "return_tokens_as_token_ids": True,
            }
            choices = client.post("/v1/completions", json=body).json()["choices"]
            top = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
            log_probs = torch.tensor([[row[f"token_id:{token}"] for token in tokens] for row in top]).double()
            found += (log_probs / export.logit_temperature).softmax(-1) / len(names)
        there = Predictor.from_pretrained(tmp_path / "out", backend=f"{url}/v1").predict_proba(TEXTS)
    assert there.tolist() == [pytest.approx(row, abs=1e-6) for row in found.tolist()]
    for row, answer in zip(found.tolist(), predictor(TEXTS), strict=True):
        assert row == pytest.approx(list(answer.probabilities.values()), abs=1e-5)


def test_an_adapter_of_classes_alone_is_refused(base: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"task_type": "SEQ_CLS", "base_model_name_or_path": "x"}')
    with pytest.raises(ValueError, match="is an adapter of task_type SEQ_CLS"):
        load_models({"a": str(tmp_path)}, LoadOptions())
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/absent/base"}')
    with pytest.raises(ValueError, match="no base model folder /absent/base"):
        load_models({"a": str(tmp_path)}, LoadOptions())
