"""Runs on completions with a final answer: written, judged, stored, read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from models import tiny_llama
from small_runs import config, save_model, write_rows
from tiny_runs import save_chat_model
from tiny_tokenizers import byte_bpe, word_level
from varlora.io.files import finite
from varlora.posterior import PointMass, PredictionConfig
from varlora.posterior.ops import temper
from varlora.prediction.generation import Generations, generate
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.config import RunConfig
from varlora.runs.folder import CompletionScores, read_run
from varlora.runs.generation import generate_split
from varlora.runs.predict import predict_encoded
from varlora.runs.result import RunResult
from varlora.runs.run import run
from varlora.runs.setting import load_setting, reload_setting
from varlora.tasks import encode_prompts

NUMBERS = ("one", "two", "three", "four")
WORDS = ("+", "=", "so", "is", "####", *NUMBERS, *map(str, range(2, 9)))


def sums(rows: int = 16) -> list[dict[str, Any]]:
    """Sums of two words from one to four, some with a longer prompt; all differ."""
    pairs = [(i, j) for i in range(4) for j in range(4)][:rows]
    return [
        {
            "id": f"{i}-{j}",
            "prompt": f"{'so ' * (j % 3)}{NUMBERS[i]} + {NUMBERS[j]} =",
            "completion": f" {NUMBERS[i]} is so #### {i + j + 2}",
        }
        for i, j in pairs
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = word_level(words=WORDS)
    llama = tiny_llama(vocab_size=len(tokenizer), hidden_size=64)
    return save_model(tmp_path_factory.mktemp("model"), llama, tokenizer)


def settings_for(folder: Path, model: str, **options: Any) -> RunConfig:
    folder.mkdir(parents=True, exist_ok=True)
    file = write_rows(folder / "sums.jsonl", sums(8))
    given = {
        "train_file": file,
        "validation_file": write_rows(folder / "one.jsonl", sums(1)),
        "test_file": file,
        "final_answer": "number",
        "max_new_tokens": 8,
        "samples": 3,
        "held_out": "none",
        "lora_dropout": 0.0,
        "ess": 1e4,
        "hess_init": 0.5,
        "variance": "hessian",
        "learning_rate": 0.03,
        "max_steps": 90,
        **options,
    }
    return config(folder, model, **{name: value for name, value in given.items() if value != "unset"})


@pytest.fixture(scope="module")
def finished(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunResult]:
    settings = settings_for(tmp_path_factory.mktemp("sums"), model)
    return settings, run(settings, progress=False)


def test_sums_that_were_learned_by_heart_are_answered(finished: tuple[RunConfig, RunResult]) -> None:
    _, result = finished
    assert result.setting.task.final_answer == "number"
    for mode, draws in (("mean", 1), ("samples", 3)):
        found = result.generations["test"][mode]
        assert found.num_draws == draws
        assert found.ids == tuple(row["id"] for row in sums(8)), "in the order of the rows, whatever their lengths"
        assert found.references == tuple(row["completion"].split()[-1] for row in sums(8))
        assert found.majority == found.references
        metrics = result.metrics["test"][mode]
        assert metrics["exact_match"] == 1.0
        assert finite(metrics).items() >= finite(found.metrics()).items()
        assert {"nll_per_token", "perplexity", "exact_match", "likelihood_auroc"} <= metrics.keys()
        assert ("agreement_ece_10" in metrics) is (draws > 1)
        assert isinstance(result.predictions["test"][mode], CompletionScores)
    assert [row[0] for row in found.texts] == [row["completion"].strip() for row in sums(8)]


def test_the_likelihood_of_a_text_is_that_of_the_completion_it_is(finished: tuple[RunConfig, RunResult]) -> None:
    """Decoding with a cache and left padding, and one pass over what was given, agree where the texts do."""
    _, result = finished
    scores, found = result.predictions["test"]["mean"], result.generations["test"]["mean"]
    assert isinstance(scores, CompletionScores)
    given = [row["completion"].split() for row in sums(8)]
    assert [row[0].split() for row in found.texts] == given
    assert scores.ids == found.ids
    assert found.num_tokens[:, 0].tolist() == scores.num_tokens.tolist()
    torch.testing.assert_close(found.log_likelihoods, scores.log_likelihoods, atol=1e-4, rtol=1e-4)


def test_the_folder_keeps_texts_and_metrics_and_gives_them_again(finished: tuple[RunConfig, RunResult]) -> None:
    settings, result = finished
    folder = read_run(settings.output_dir)
    assert folder.metrics == finite(result.metrics)
    assert folder.facts["task"]["final_answer"] == "number"
    assert {"generate/test/mean", "generate/validation/samples"} <= folder.facts["seconds"].keys()
    stored = folder.generations("test", "samples")
    assert stored.texts == result.generations["test"]["samples"].texts
    with pytest.raises(ValueError, match=r"has no texts test\.linearised"):
        folder.generations("test", "linearised")
    card = (folder.path / "README.md").read_text(encoding="utf-8")
    assert "Exact match % ↑" in card
    assert f"{100 * result.metrics['test']['samples']['exact_match']:.1f}" in card

    again = reload_setting(replace(folder, config=settings))
    found = generate_split(again, folder.posterior, "test", PredictionConfig())
    assert (found.texts, found.seed, found.antithetic) == (stored.texts, settings.seed, True)
    torch.testing.assert_close(found.log_likelihoods, stored.log_likelihoods)
    point = PointMass(mean=folder.posterior.mean, meta=folder.posterior.meta)
    at_mean = generate_split(again, point, "test", choose_config(point), judged=False)
    assert (at_mean.texts, at_mean.references) == (result.generations["test"]["mean"].texts, ())


def smaller(settings: RunConfig) -> RunConfig:
    return replace(settings, per_device_eval_batch_size=3)


def test_texts_do_not_depend_on_batches_nor_draws_on_how_many_follow(finished: tuple[RunConfig, RunResult]) -> None:
    settings, result = finished
    q = temper(result.posterior, 30.0)
    whole = generate_split(result.setting, q, "test", PredictionConfig())
    assert len(set(zip(*whole.texts, strict=True))) == 3, "the draws must differ for this to show anything"
    rows = encode_prompts(result.setting.task, "test", result.setting.tokenizer, None)
    options: dict[str, Any] = {"tokenizer": result.setting.tokenizer, "max_new_tokens": 8, "seed": settings.seed}
    plain = generate(
        result.setting.model, q, replace(result.setting, config=smaller(settings)).batches(rows), 3, **options
    )
    assert len(set(plain.num_tokens.sum(1).tolist())) > 1, "or their order could not be seen"
    assert (whole.texts, whole.ids) == (plain.texts, plain.ids)
    assert torch.equal(whole.num_tokens, plain.num_tokens)
    assert torch.equal(whole.finished, plain.finished)
    torch.testing.assert_close(whole.log_likelihoods, plain.log_likelihoods, atol=1e-4, rtol=1e-4)
    fewer = generate_split(result.setting, q, "test", PredictionConfig(samples=2))
    assert fewer.texts == tuple(row[:2] for row in whole.texts)
    reseeded = replace(result.setting, config=replace(settings, seed=1))
    assert generate_split(reseeded, q, "test", PredictionConfig()).texts != whole.texts


def test_a_linearised_prediction_of_completions_is_refused(finished: tuple[RunConfig, RunResult]) -> None:
    """It drew, without a word."""
    _, result = finished
    with pytest.raises(ValueError, match="completions have no classes"):
        predict_encoded(result.setting, result.posterior, result.setting.encoded("test"), "linearised", 2)


def test_completions_without_a_final_answer_are_not_written(model: str, tmp_path: Path) -> None:
    for value in ("none", "unset"):
        settings = settings_for(tmp_path / value, model, final_answer=value, max_steps=1, max_new_tokens=999)
        result = run(settings, progress=False)
        assert result.generations == {}
        assert result.metrics["test"]["mean"].keys() == {"nll_per_token", "nll_per_row", "perplexity"}
        assert not (Path(settings.output_dir) / "generations").exists()


@pytest.mark.parametrize(
    ("options", "completion", "message"),
    [
        ({}, " is so", "row 'bad': its completion has no final number"),
        ({"max_new_tokens": 128}, " 4", "max_new_tokens is 128, and the model's context has room for 128 tokens"),
        ({"max_length": 7, "max_new_tokens": 4}, " 4", "row 'bad' has 8 tokens, more than the 7 that leave room"),
        ({"max_new_tokens": 121}, " 4", "row 'bad' has 8 tokens, more than the 7 that leave room"),
    ],
)
def test_what_cannot_be_written_or_judged_is_refused_before_training(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    completion: str,
    message: str,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(Trainer, "train", never)
    test = write_rows(tmp_path / "test.jsonl", [{"id": "bad", "prompt": "so " * 7 + "=", "completion": completion}])
    settings = settings_for(tmp_path / "run", model, test_file=test, **options)
    with pytest.raises(ValueError, match=message):
        run(settings, progress=False)


def test_final_answers_are_for_completions(model: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="final_answer 'number'; allowed: none, it is for completions"):
        load_setting(config(tmp_path, model, final_answer="number"))
    with pytest.raises(ValueError, match="max_new_tokens is 0; it must be at least 1"):
        config(tmp_path, model, max_new_tokens=0)


def test_a_chats_answer_is_compared_without_its_special_tokens(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog </s>"}]},
        {"messages": [{"role": "user", "content": "cow"}, {"role": "assistant", "content": "hen </s>"}]},
    ] * 4
    file = write_rows(tmp_path / "chat.jsonl", rows)
    files = {"train_file": file, "validation_file": None, "validation_size": 1, "test_file": file}
    learned = {"learning_rate": 0.03, "max_steps": 40}
    model = save_chat_model(tmp_path / "model")
    settings = settings_for(tmp_path / "run", model, **files, **learned, final_answer="text")
    result = run(settings, progress=False)
    found = result.generations["test"]["mean"]
    assert found.references == ("dog", "hen") * 4
    assert result.metrics["test"]["mean"]["exact_match"] == 1.0
    assert found.texts[0] == ("dog",)
    assert json.loads((Path(settings.output_dir) / "run.json").read_text())["task"]["final_answer"] == "text"
    assert Generations.load(Path(settings.output_dir) / "generations" / "test.mean.parquet").references[0] == "dog"


def test_gsm8k_runs_from_its_files_to_its_texts(tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1?", "answer": f"<<{i}+1={i + 1}>>\n#### {i + 1}"} for i in range(6)]
    for file in ("train.jsonl", "test.jsonl"):
        write_rows(tmp_path / file, rows)
    tokenizer = byte_bpe(bos=True)
    settings = config(
        tmp_path / "run",
        save_model(tmp_path / "model", tiny_llama(vocab_size=len(tokenizer), layers=1), tokenizer),
        task="gsm8k",
        task_dir=str(tmp_path),
        train_file=None,
        validation_file=None,
        test_file=None,
        validation_size=2,
        max_new_tokens=9,
        max_steps=1,
        samples=2,
        held_out="none",
    )
    result = run(settings, progress=False)
    found = result.generations["test"]["samples"]
    assert found.references == tuple(str(i + 1) for i in range(6))
    assert (found.final_answer, found.max_new_tokens, found.num_draws) == ("number", 9, 2)
    assert result.setting.task.rows("test")["prompt"][0] == "Question: 0 + 1?\nAnswer:"
    assert result.metrics["validation"]["mean"].keys() >= {"nll_per_token", "exact_match", "answered"}
