"""A finished run predicts the same when it is read back: by us, and at the mean by PEFT alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from small_runs import config, save_model, write_rows
from tiny_runs import save_chat_model, save_encoder, uneven_films
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config
from varlora.readout.readout import readout_from_dict
from varlora.runs.folder import RunFolder, read_run
from varlora.runs.predict import predict_split
from varlora.runs.run import run
from varlora.runs.setting import reload_model, reload_setting


def finish(folder: Path, model: str, **options: Any) -> RunFolder:
    """A short run with rows of different lengths, in batches that do not come out even."""
    rows = write_rows(folder / "uneven.jsonl", uneven_films(20))
    settings = config(folder, model, test_file=rows, max_steps=6, per_device_eval_batch_size=7, **options)
    run(settings, progress=False)
    return read_run(settings.output_dir)


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "causal": {},
    "encoder": {},
    "bfloat16": {"dtype": "bfloat16"},
    "autocast": {"bf16": True},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """Finished runs by their kind, each made when it is first asked for."""

    @functools.cache
    def made(kind: str) -> RunFolder:
        folder = tmp_path_factory.mktemp(kind)
        model = save_encoder(folder / "model") if kind == "encoder" else save_model(folder / "model")
        return finish(folder, model, **OPTIONS[kind])

    return made


@pytest.fixture(params=["causal", "encoder", "bfloat16"])
def finished(request: pytest.FixtureRequest, runs: Callable[[str], RunFolder]) -> RunFolder:
    return runs(request.param)


def test_predictions_are_the_same_to_the_last_bit(finished: RunFolder) -> None:
    setting = reload_setting(finished)

    for mode, samples in (("mean", 0), ("samples", 4)):
        again = predict_split(setting, finished.posterior, "test", choose_config(finished.posterior, samples))
        stored = finished.prediction("test", mode)
        assert isinstance(again, Prediction)
        assert torch.equal(again.log_probs, stored.log_probs), mode
        assert (again.ids, again.classes, again.mode) == (stored.ids, stored.classes, stored.mode)
        assert torch.equal(again.labels, stored.labels)


def test_predictions_stand_in_the_order_of_the_file(finished: RunFolder) -> None:
    rows = uneven_films(20)

    stored = finished.prediction("test", "mean")
    assert list(stored.ids) == [row["id"] for row in rows]
    assert [stored.classes[label] for label in stored.labels] == [row["label"] for row in rows]


def test_peft_alone_gives_the_mean(runs: Callable[[str], RunFolder]) -> None:
    finished = runs("causal")
    base = AutoModelForCausalLM.from_pretrained(finished.config.model_name_or_path)
    model = PeftModel.from_pretrained(base, str(finished.path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.path)
    assert finished.posterior.meta.readout is not None
    readout = readout_from_dict(finished.posterior.meta.readout)
    stored = finished.prediction("test", "mean").log_probs[:, 0]

    for row, log_probs in zip(uneven_films(20), stored, strict=True):
        prompt = f"{row['text']}\nLabels: negative, positive\nLabel:"
        with torch.no_grad():
            logits = readout.logits(model, tokenizer(prompt, return_tensors="pt"))
        torch.testing.assert_close(logits[0].double().log_softmax(0), log_probs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_in_half_precision_the_adapter_stays_in_full(kind: str, runs: Callable[[str], RunFolder]) -> None:
    finished = runs(kind)

    model = reload_setting(finished).model
    frozen = {p.dtype for name, p in model.named_parameters() if "lora_" not in name}
    assert frozen == {torch.bfloat16 if kind == "bfloat16" else torch.float32}
    assert {tensor.dtype for tensor in finished.posterior.mean.values()} == {torch.float32}


def test_chats_are_read_with_the_models_own_template(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in uneven_films(12)
    ]
    files = {f"{split}_file": write_rows(tmp_path / f"{split}.chat", rows) for split in ("train", "validation")}
    settings = config(tmp_path, save_chat_model(tmp_path / "model"), **files, test_file=None, max_steps=2)

    result = run(settings, progress=False)

    row = result.setting.task.rows("train")[1]
    assert row["prompt"] == "user : a fine cat film film \nassistant :"
    assert row["completion"].strip() == "positive"
    finished = read_run(settings.output_dir)
    setting = reload_setting(finished)
    again = predict_split(setting, finished.posterior, "validation", PredictionConfig(samples=4))
    assert again.metrics() == finished.metrics["validation"]["samples"]  # type: ignore[union-attr]


def test_an_adapter_in_the_base_models_place_is_named(runs: Callable[[str], RunFolder]) -> None:
    run = runs("causal")
    moved = replace(run, config=replace(run.config, model_name_or_path=str(run.path)))

    with pytest.raises(ValueError, match="holds an adapter, not a base model; its base model is"):
        reload_model(moved)
