"""Folders that `varlora train` has not written, read as finished runs: the numbers of the Python API, and refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from models import tiny_bert_classifier, tiny_llama
from small_runs import save_model, write_rows
from tiny_tokenizers import word_level, word_piece
from trainer_folders import TrainerFolders, predict_by_hand
from varlora.posterior import DiagonalGaussian, PointMass, Posterior
from varlora.posterior.folder import load_posterior, save_posterior
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import choose_config
from varlora.runs.any_posterior import read_health, read_posterior
from varlora.runs.data import load_new_rows
from varlora.runs.finished import read_finished_folder
from varlora.runs.folder import RunFolder
from varlora.runs.folder_config import FolderConfig
from varlora.runs.predict import predict_split
from varlora.runs.setting import Setting, reload_setting
from varlora.tasks import load_jsonl
from varlora.tasks.description import TaskDescription
from varlora.tasks.files import read_records


def loaded(run: RunFolder, file: Path | str) -> Setting:
    task = load_new_rows(str(file), run, split="test", labelled=True)
    return reload_setting(run, task)


def predicted(run: RunFolder, file: Path | str, samples: int = 4) -> Prediction:
    setting = loaded(run, file)
    found = predict_split(setting, run.posterior, "test", choose_config(run.posterior, samples))
    assert isinstance(found, Prediction)
    return found


@pytest.mark.parametrize("kind", ["saved", "checkpoint", "posterior", "bare"])
def test_what_training_knew_gives_the_numbers_of_the_python_api(folders: TrainerFolders, kind: str) -> None:
    """Classes, wording, length and cut come from the folder; no option says them."""
    folder = getattr(folders, kind)
    run = read_finished_folder(folder)
    by_hand = predict_by_hand(folders, folder, run.posterior, 4)

    found = predicted(run, folders.test)

    assert isinstance(run.posterior, DiagonalGaussian)
    assert (found.classes, found.num_draws) == (("negative", "positive"), 4)
    torch.testing.assert_close(found.log_probs, by_hand.log_probs, rtol=0, atol=1e-6)
    assert found.ids == by_hand.ids
    uncut = predict_by_hand(folders, folder, run.posterior, 4, cut=False)
    assert float((uncut.log_probs - by_hand.log_probs).abs().max()) > 1e-3, "the cut decides the numbers"


def test_a_plain_adapter_is_a_point_mass_and_is_told_its_classes_and_wording(folders: TrainerFolders) -> None:
    rows = read_records(folders.test)
    with pytest.raises(ValueError, match=r"does not name its classes. .*--answers a,b,c, or --label_names_file FILE"):
        read_finished_folder(folders.plain, rows=rows)
    with pytest.raises(ValueError, match=r"worded for the model.*--prompt_style varlora"):
        read_finished_folder(folders.plain, rows=rows, answers=["negative", "positive"])
    with pytest.raises(ValueError, match=r"does not say what it was trained on.*--answers"):
        read_finished_folder(folders.plain)

    run = read_finished_folder(folders.plain, answers=["negative", "positive"], prompt_style="varlora")
    found = predicted(run, folders.test)

    assert (type(run.posterior), found.mode, found.num_draws) == (PointMass, "mean", 1)
    by_hand = predict_by_hand(folders, folders.plain, None, 0, cut=False)
    torch.testing.assert_close(found.log_probs, by_hand.log_probs, rtol=0, atol=1e-6)


def test_what_the_folder_says_is_not_gainsaid(folders: TrainerFolders) -> None:
    for given, message in (
        ({"answers": ["positive", "negative"]}, r"answers is \('positive', 'negative'\), and .* was trained with"),
        (
            {"prompt_style": "cloze"},
            "prompt_style is 'cloze', and .* was trained with 'varlora'; leave",
        ),
        ({"kind": "choice"}, "kind is 'choice'"),
        ({"prompt_stile": "varlora"}, "unknown setting 'prompt_stile'; did you mean 'prompt_style'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_finished_folder(folders.saved, **given)
    run = read_finished_folder(folders.saved, prompt_style="varlora", max_length=64, truncation="error")
    assert (run.config.max_length, run.config.truncation, run.config.model_class) == (64, "error", "causal")


def test_a_posterior_without_a_description_is_told_its_wording(folders: TrainerFolders, tmp_path: Path) -> None:
    """As versions before this one saved it: the classes are known by the readout alone."""
    q = load_posterior(folders.posterior)
    save_posterior(with_meta(q, task=None, base_loading=None), tmp_path / "former")

    with pytest.raises(ValueError, match="--prompt_style"):
        read_finished_folder(tmp_path / "former")
    run = read_finished_folder(tmp_path / "former", prompt_style="varlora", max_length=12, truncation="left")

    assert run.facts["task"]["kind"] == "label"
    assert torch.equal(
        predicted(run, folders.test).log_probs,
        predicted(read_finished_folder(folders.posterior), folders.test).log_probs,
    )


def test_who_was_trained_on_completions_may_be_asked_questions(tmp_path: Path) -> None:
    """A wording is the task's even where training read none: that of its own questions."""
    save_model(tmp_path / "model", layers=1)
    adapter = plain_adapter(tmp_path)
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "a fine", "completion": " film"}])
    described = TaskDescription.of(load_jsonl({"test": prompts})).to_dict()
    save_posterior(with_meta(read_posterior(adapter), task=described), tmp_path / "q")
    question = {"question": "which one barks?", "choices": ["cat", "dog", "cow"], "answer": 1}
    questions = write_rows(tmp_path / "q.jsonl", [question])

    asked = read_finished_folder(tmp_path / "q", rows=read_records(questions))
    assert (asked.facts["task"]["kind"], asked.facts["task"]["answers"]) == ("choice", ["A", "B", "C"])
    assert predicted(asked, questions).classes == ("A", "B", "C")
    assert read_finished_folder(tmp_path / "q", rows=read_records(prompts)).facts["task"]["kind"] == "completion"
    assert read_finished_folder(tmp_path / "q").facts["task"]["kind"] == "completion"


@pytest.mark.parametrize(
    ("row", "kind", "answers"),
    [
        ({"question": "which?", "choices": ["a", "b"], "answer": 0}, "choice", ["A", "B"]),
        ({"passage": "a film", "question": "fine", "answer": True}, "label", ["no", "yes"]),
        ({"prompt": "a", "completion": " film"}, "completion", []),
    ],
)
def test_columns_tell_the_kind_of_a_plain_adapter(
    tmp_path: Path, row: dict[str, Any], kind: str, answers: list[str]
) -> None:
    save_model(tmp_path / "model", layers=1)
    rows = read_records(write_rows(tmp_path / "rows.jsonl", [row]))

    run = read_finished_folder(plain_adapter(tmp_path), rows=rows, prompt_style="varlora")

    assert (run.facts["task"]["kind"], run.facts["task"]["answers"]) == (kind, answers)
    assert load_new_rows(rows, run, split="test", labelled=True).kind == kind
    assert (run.posterior.meta.readout is None) is (kind == "completion")


def test_a_plain_encoder_reads_bare_texts_by_its_head(tmp_path: Path) -> None:
    tokenizer = word_piece()
    save_model(tmp_path / "model", tiny_bert_classifier(vocab_size=len(tokenizer), layers=1), tokenizer)
    shutil.rmtree(tmp_path / "head", ignore_errors=True)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model = get_peft_model(base, config).eval()
    torch.nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].weight)
    model.save_pretrained(tmp_path / "plain")
    texts = ["a fine film", "a dull film", "dull"]
    file = write_rows(tmp_path / "t.jsonl", [{"text": t, "label": c} for t, c in zip(texts, "abc", strict=True)])

    run = read_finished_folder(tmp_path / "plain", answers=["a", "b", "c"])
    found = predicted(run, file)

    batch = AutoTokenizer.from_pretrained(tmp_path / "model")(texts, padding=True, return_tensors="pt")
    by_hand = model(**batch).logits.double().log_softmax(-1)
    torch.testing.assert_close(found.log_probs[:, 0], by_hand, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"does not fit .*as many answers as it has outputs"):
        predicted(
            read_finished_folder(tmp_path / "plain", answers=["a", "b"]),
            Path(write_rows(tmp_path / "u.jsonl", [{"text": "a", "label": "a"}])),
        )


def test_a_head_that_nobody_has_trained_is_refused(tmp_path: Path) -> None:
    tokenizer = word_piece()
    save_model(tmp_path / "model", tiny_bert_classifier(vocab_size=len(tokenizer), layers=1).bert, tokenizer)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=2)
    get_peft_model(base, LoraConfig(r=2, target_modules=["query"])).save_pretrained(tmp_path / "plain")
    file = write_rows(tmp_path / "t.jsonl", [{"text": "a film", "label": "a"}])

    run = read_finished_folder(tmp_path / "plain", answers=["a", "b"], model_class="encoder")

    with pytest.raises(ValueError, match=r"lacks the weights of classifier.*drawn anew"):
        loaded(run, file)


def test_a_vocabulary_that_grew_and_a_tokenizer_of_the_folders_own(tmp_path: Path) -> None:
    """PEFT keeps the larger embeddings in the adapter, and a Trainer the tokenizer beside it."""
    tokenizer = word_level()
    save_model(tmp_path / "model", tiny_llama(vocab_size=len(tokenizer), layers=1), tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    larger = AutoTokenizer.from_pretrained(tmp_path / "model")
    larger.add_tokens(["owl"])
    base.resize_token_embeddings(len(larger))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "plain")
    larger.save_pretrained(tmp_path / "plain")
    file = write_rows(tmp_path / "t.jsonl", [{"prompt": "an owl", "completion": " film"}])

    run = read_finished_folder(tmp_path / "plain", rows=read_records(file))
    setting = loaded(run, file)

    assert len(setting.tokenizer) == len(larger) == len(setting.model.get_input_embeddings().weight)
    assert setting.encoded("test")["input_ids"][0][1] == larger.convert_tokens_to_ids("owl")


def test_the_base_model_is_loaded_as_in_training_unless_told(folders: TrainerFolders) -> None:
    assert read_finished_folder(folders.saved).config.dtype == "float32"
    assert read_finished_folder(folders.saved, dtype="bfloat16").config.dtype == "bfloat16"
    moved = read_finished_folder(folders.saved, model_name_or_path="elsewhere").config
    assert isinstance(moved, FolderConfig)
    assert moved.model_name_or_path == "elsewhere"


def test_folders_that_hold_nothing_say_where_to_look(folders: TrainerFolders, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(folders.plain, tmp_path / "several" / "mine")
    nameless = Path(shutil.copytree(folders.plain, tmp_path / "nameless"))
    config = json.loads((nameless / "adapter_config.json").read_text())
    (nameless / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    settings, manifest, half = (tmp_path / name for name in ("settings", "manifest", "half"))
    weights = tmp_path / "weights"
    for folder in (settings, manifest, half, weights):
        folder.mkdir()
    shutil.copy(folders.plain / "adapter_model.safetensors", weights)
    for file in (settings / "config.yaml", half / "config.yaml", half / "run.json"):
        file.write_text("{}")
    exported = Path(shutil.copytree(half, tmp_path / "exported"))
    (exported / "export.json").write_text("{}")
    shutil.copy(folders.posterior / "posterior.json", manifest)
    pickled = Path(shutil.copytree(folders.plain, tmp_path / "pickled"))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    for folder, message in {
        tmp_path / "none": "is not a folder that exists",
        tmp_path / "empty": "holds no adapter and no posterior: it is empty. Give the output_dir",
        settings: "posterior: it holds config.yaml. Its config.yaml says how to train, .*varlora train --config .*yaml",
        weights: "needs the adapter_config.json that PEFT writes beside it",
        manifest: r"adapter_config.json, .*adapter_model.safetensors, .*posterior.safetensors do not exist",
        half: "has a run's config.yaml and run.json and lacks its posterior, posterior.json: it is not whole. Copy",
        exported: "is an export, for servers. Give the run's own folder",
        folders.checkpoint.parent: "give one of them: .*checkpoint-4",
        tmp_path / "several": "give one of them: .*mine",
        folders.model: "It holds a whole model",
        nameless: "--model_name_or_path MODEL",
        pickled: "adapter_model.bin is a pickle",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_finished_folder(folder, answers=["negative", "positive"], prompt_style="varlora")


def test_another_optimizers_checkpoint_is_its_weights(
    folders: TrainerFolders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folders.plain, tmp_path / "checkpoint-1")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint-1" / "optimizer.pt")

    assert isinstance(read_posterior(tmp_path / "checkpoint-1"), PointMass)
    assert "the weights alone are read" in caplog.text
    (tmp_path / "checkpoint-1" / "adapter_config.json").unlink()
    (tmp_path / "checkpoint-1" / "adapter_model.safetensors").rename(tmp_path / "checkpoint-1" / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds no adapter and no posterior: it holds .*optimizer\.pt"):
        read_posterior(tmp_path / "checkpoint-1")


def test_health_knows_how_far_a_trainer_went(folders: TrainerFolders) -> None:
    health = read_health(folders.checkpoint)

    assert health.course is not None
    assert health.course.epochs == 2.0
    assert "validation" in health.unknown


def test_a_description_that_is_none_is_refused_by_file(folders: TrainerFolders, tmp_path: Path) -> None:
    q = load_posterior(folders.posterior)
    save_posterior(with_meta(q, task={"kind": "label"}), tmp_path / "q")

    with pytest.raises(ValueError, match=r"posterior\.json: the task's description lacks answers"):
        read_finished_folder(tmp_path / "q")
    described = TaskDescription.from_dict(q.meta.task or {})
    assert TaskDescription.from_dict(described.to_dict()) == described


def plain_adapter(folder: Path) -> Path:
    """An adapter that has learned nothing, as PEFT writes it."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).save_pretrained(
        folder / "plain"
    )
    return folder / "plain"


def with_meta(q: Posterior, **changes: Any) -> Posterior:
    """The posterior with other meta."""
    return dataclasses.replace(q, meta=dataclasses.replace(q.meta, **changes))  # type: ignore[type-var]
