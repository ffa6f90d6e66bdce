"""A mean that is merged into its base model answers as the adapter does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from models import tiny_qwen3
from small_runs import WORDS, finish_herds, save_model
from tiny_runs import save_encoder
from tiny_tokenizers import word_level
from varlora import Export, PredictionConfig
from varlora.posterior.manifest import write_tuned
from varlora.readout.readout import readout_from_dict
from varlora.runs.export_folder import read_export
from varlora.runs.folder import read_run
from varlora.runs.merged import export_merged
from varlora.runs.predict import predict_split
from varlora.runs.setting import reload_setting


@pytest.fixture(scope="module", params=["causal", "encoder"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = save_encoder(folder / "model") if request.param == "encoder" else save_model(folder / "model", layers=1)
    return finish_herds(folder, model, max_steps=6, samples=2, temperature_scaling=True)


def test_the_merged_model_is_the_mean(trained: Path, tmp_path: Path) -> None:
    write_tuned(trained, PredictionConfig(samples=2, prune=0.3, temperature=2), [{"op": "tune"}])
    run = read_run(trained)
    setting = reload_setting(run)
    expected = predict_split(setting, run.posterior, "test", PredictionConfig(mode="mean", prune=0.3))

    export = export_merged(run, tmp_path / "merged")

    assert Export.load(tmp_path / "merged") == export
    assert (export.kind, export.mode, export.adapters) == ("merged", "mean", ())
    loader = AutoModelForSequenceClassification if setting.family == "encoder" else AutoModelForCausalLM
    merged = loader.from_pretrained(tmp_path / "merged").eval()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(setting.tokenizer)
    if setting.family == "encoder":
        assert merged.config.id2label == {0: "negative", 1: "positive"}
    readout = readout_from_dict(export.readout or {})
    with torch.no_grad():
        logits = torch.cat([readout.logits(merged, batch) for batch in setting.batches(setting.encoded("test"))])
    log_probs = (logits.double() / export.logit_temperature).log_softmax(-1)
    torch.testing.assert_close(log_probs, expected.log_probs[:, 0], atol=1e-5, rtol=0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"lacks config\.yaml"):
        read_export(tmp_path / "merged")


@pytest.mark.parametrize("targets", ["v_proj,lm_head", "v_proj,embed_tokens"])
def test_an_update_of_tied_embeddings_is_merged_where_it_belongs(targets: str, tmp_path: Path) -> None:
    tokenizer = word_level(words=WORDS)
    model = save_model(tmp_path / "model", tiny_qwen3(vocab_size=len(tokenizer), layers=1), tokenizer)
    settings = {"lora_target_modules": targets, "max_steps": 4, "method": "adamw", "learning_rate": 0.02}
    run = read_run(finish_herds(tmp_path, model, **settings))
    setting = reload_setting(run)
    expected = predict_split(setting, run.posterior, "test", PredictionConfig(mode="mean"))

    export = export_merged(run, tmp_path / "merged")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    readout = readout_from_dict(export.readout or {})
    with torch.no_grad():
        logits = torch.cat([readout.logits(merged, batch) for batch in setting.batches(setting.encoded("test"))])
    log_probs = logits.double().log_softmax(-1)
    torch.testing.assert_close(log_probs, expected.log_probs[:, 0], atol=1e-5, rtol=0)  # type: ignore[union-attr]


def test_a_quantized_base_is_not_merged_into(trained: Path, tmp_path: Path) -> None:
    run = read_run(trained)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, quantization="4bit"))
    with pytest.raises(ValueError, match=r"quantization '4bit', and merging would round .*--quantization none"):
        export_merged(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
