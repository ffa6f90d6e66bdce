"""`varlora train`: options, YAML, folders, and going on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback

from cli.workshop import Outcome, Workshop, reviews, write_rows
from models import tiny_bert_classifier
from tiny_tokenizers import word_piece
from varlora import load_posterior
from varlora.cli.options.train import parser
from varlora.cli.train import config_of
from varlora.runs.folder import read_run
from varlora.runs.run import train

Call = Callable[..., Outcome]


def test_a_run_says_what_was_done_and_what_to_do_next(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    done = call(*workshop.training(tmp_path / "run"))

    assert done.code == 0
    assert "validation: 2 rows cut from the 24 of train" in done.err
    for word in ("Accuracy", "NLL", "ECE", "Brier", "validation", "samples", f"varlora eval {tmp_path / 'run'}"):
        assert word in done.out
    assert "train_runtime" not in done.out + done.err
    assert not (tmp_path / "run.checkpoints").exists()


def test_plain_peft_loads_the_run_folder(run_folder: Path, workshop: Workshop) -> None:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workshop.model), run_folder)

    key = next(key for key in load_posterior(run_folder).mean if "lora_B" in key)
    loaded = model.get_parameter(key.replace(".weight", ".default.weight"))
    assert torch.equal(loaded, load_posterior(run_folder).mean[key])


def test_the_command_line_goes_before_yaml_and_yaml_before_defaults(
    call: Call, workshop: Workshop, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "lora_alpha: 4\nlearning_rate: 1e-2\nseed: 3\nmax_length:\nbf16: false\nmethod: adamw\n"
        "lora_target_modules: [q_proj, o_proj]\n"
    )
    words = workshop.training(tmp_path / "run", max_steps=1)

    assert call(*words, "--config", recipe, "--seed", "5", "--lora-dropout=0").code == 0

    config = read_run(tmp_path / "run").config
    assert (config.lora_alpha, config.seed, config.lora_dropout) == (4, 5, 0.0)
    assert (config.method, config.method_options) == ("adamw", {"learning_rate": 0.01})
    assert config.lora_target_modules == "q_proj,o_proj"


def test_a_trained_run_is_tested_on_other_tasks(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    """Shift tasks from YAML, in a published prompt style; `eval` asks another file's rows in the same style."""

    def questions(name: str, count: int, choices: int) -> list[dict[str, object]]:
        return [{"question": f"{name} {i}", "choices": list("vwxyz")[:choices], "answer": i % 2} for i in range(count)]

    for task, files in {"arc_easy": ("train", "validation", "test"), "mmlu": ("chemistry",)}.items():
        (tmp_path / task).mkdir()
        for file in files:
            write_rows(tmp_path / task / f"{file}.jsonl", questions(f"{task} {file}", 6, 5 if file == "test" else 4))
    train = [*questions("own", 20, 4), {"context": "c", **questions("mmlu chemistry", 1, 4)[0]}]
    write_rows(tmp_path / "arc_easy" / "test.jsonl", [{"why": "w", **q} for q in questions("arc_easy test", 6, 5)])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"shift_tasks: [arc_easy, mmlu_chemistry]\nshift_task_dir: {tmp_path}\nprompt_style: laplace-lora\n"
        f"train_file: {write_rows(tmp_path / 'train.jsonl', train)}\n"
        f"validation_file: {write_rows(tmp_path / 'held.jsonl', questions('held', 6, 4))}\n"
        "lora_target_modules: all-linear\n"
    )

    done = call(
        *workshop.training(tmp_path / "run", train_file=None, test_file=None, method="adamw"), "--config", recipe
    )

    assert (done.code, done.code and done.err) == (0, 0)
    run = read_run(tmp_path / "run")
    assert set(run.metrics) == {"validation", "arc_easy", "mmlu_chemistry"}
    assert run.prediction("arc_easy", "mean").classes == ("A", "B", "C", "D", "E")
    assert run.prediction("mmlu_chemistry", "mean").probs[:, 4].tolist() == [0.0] * 6
    assert run.facts["task"]["overlap"] == {
        "validation": {"train": 0},
        "arc_easy": {"train": 0, "validation": 0},
        "mmlu_chemistry": {"train": 1, "validation": 0},
    }
    assert "1 of 6 rows of mmlu\\_chemistry is in train" in (tmp_path / "run" / "README.md").read_text("utf-8")
    assert "mmlu_chemistry: 1 of 6 prompts is in train too (kept)" in done.err
    assert run.facts["task"]["not_read"] == {"train": ["context"], "arc_easy": ["why"]}
    assert "not read: context (train)" in done.err
    assert "not read: context (train), why (arc\\_easy)" in (tmp_path / "run" / "README.md").read_text("utf-8")

    again, other = tmp_path / "again.json", tmp_path / "other.json"
    assert call("eval", tmp_path / "run", "--output_file", again, "--resamples=0").code == 0
    assert json.loads(again.read_text())["metrics"] == run.metrics
    file = tmp_path / "arc_easy" / "test.jsonl"
    assert call("eval", tmp_path / "run", "--test_file", file, "--output_file", other, "--resamples=0").code == 0
    assert json.loads(other.read_text())["metrics"]["test"] == run.metrics["arc_easy"]


@pytest.mark.parametrize(
    ("words", "ess"), [([], None), (["--ess", "auto"], "auto"), (["--ess=2e3"], 2000.0), (["--config", "YAML"], 3000.0)]
)
def test_ess_is_a_number_or_auto(words: list[str], ess: float | str | None, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("ess: 3e3\nhess_init: auto\n")
    made = parser()
    least = ["--model_name_or_path=m", "--task=sst2", "--output_dir=o", "--recipe=cong2025", "--update=newton"]
    arguments = made.parse([*least, *(str(recipe) if word == "YAML" else word for word in words)])
    config = config_of(arguments)
    options = config.method_options
    assert (options.get("ess"), options["recipe"], options["update"]) == (ess, "cong2025", "newton")
    assert options.get("hess_init") == ("auto" if "YAML" in words else None)


def test_neither_a_number_nor_auto_is_refused(call: Call) -> None:
    done = call("train", "--ess", "many", "--model_name_or_path=m", "--task=sst2", "--output_dir=o")
    assert (done.code, "--ess: invalid number or 'auto' value: 'many'" in done.err) == (2, True)


def test_messages_speak_of_options_and_files_not_of_a_trainers_arguments(
    call: Call, workshop: Workshop, tmp_path: Path
) -> None:
    refused = call(*workshop.training(tmp_path / "none", held_out="train"))
    assert "held_out='train' cannot be: the training set has fewer than 300 rows" in refused.err
    assert "Give validation rows (validation_file, validation_size) or" in refused.err
    both = call(*workshop.training(tmp_path / "none", held_out="train", ess=5))
    assert (refused.code, both.code) == (1, 1)
    for said in (refused.err, both.err):
        assert not any(word in said for word in ("IVONConfig", "TrainingArguments", "eval_dataset"))


@pytest.mark.parametrize("rank", ["--lora_r", "--lora-r"])
def test_both_spellings_are_known(call: Call, rank: str) -> None:
    assert (
        "lora_r is 0; it must be at least 1"
        in call("train", rank, 0, "--model_name_or_path=m", "--task=sst2", "--output_dir=o").err
    )


def test_a_killed_run_resumes_to_the_same_bits(
    call: Call, workshop: Workshop, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 3:
                raise KeyboardInterrupt

    target = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[train.__module__], "train", lambda *a, **k: train(*a, **k, callbacks=[Kill()]))
        killed = call(*workshop.training(target))
    assert killed.code == 130
    assert "--resume" in killed.err
    assert not target.exists()
    assert "an unfinished run" in call(*workshop.training(target)).err
    other = call(*workshop.training(target, seed=7), "--resume")
    assert (other.code, "had other settings" in other.err) == (1, True)

    assert call(*workshop.training(target), "--resume").code == 0

    for name in ("posterior.safetensors", "adapter_model.safetensors"):
        assert (target / name).read_bytes() == (run_folder / name).read_bytes()


def test_sigterm_saves_and_the_run_is_resumed_and_left_alone_when_finished(
    call: Call, workshop: Workshop, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signal(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    target = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[train.__module__], "train", lambda *a, **k: train(*a, **k, callbacks=[Signal()]))
        stopped = call(*workshop.training(target))
    assert stopped.code == 143
    assert "stopped by SIGTERM at step 3 of 4; saved in" in stopped.err
    assert "The same command with --resume goes on." in stopped.err

    assert call(*workshop.training(target), "--resume").code == 0

    for name in ("posterior.safetensors", "adapter_model.safetensors"):
        assert (target / name).read_bytes() == (run_folder / name).read_bytes()
    again = call(*workshop.training(target), "--resume")
    assert (again.code, again.err) == (0, "")
    assert "is already finished, with these settings; nothing in it was changed." in again.out


def test_sigterm_elsewhere_than_in_training_ends_in_order(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned = []

    def execute(arguments: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned.append(True)

    monkeypatch.setattr("varlora.cli.methods.execute", execute)
    before = signal.getsignal(signal.SIGTERM)
    stopped = call("methods")
    assert (stopped.code, stopped.err) == (143, "error: stopped by SIGTERM.")
    assert cleaned == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_taken_folder_asks_for_overwrite(call: Call, workshop: Workshop, run_folder: Path, tmp_path: Path) -> None:
    taken = shutil.copytree(run_folder, tmp_path / "taken")

    refused = call(*workshop.training(taken, max_steps=1))
    assert (refused.code, "--overwrite" in refused.err) == (1, True)

    assert call(*workshop.training(taken, max_steps=1), "--overwrite").code == 0
    assert read_run(taken).config.max_steps == 1


def test_completions_train(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    rows = [{"prompt": f"Answer {i}:", "completion": " yes"} for i in range(12)]
    file = write_rows(tmp_path / "free.jsonl", rows)

    done = call(*workshop.training(tmp_path / "run", train_file=file, test_file=None, max_steps=1))

    assert (done.code, "Perplexity" in done.out) == (0, True)
    assert "Exact match" not in done.out, "nobody has said which answer is right"
    again = call("eval", tmp_path / "run", "--no_progress", "--output_file", tmp_path / "m.json")
    assert again.code == 0
    measured = json.loads((tmp_path / "m.json").read_text())["metrics"]
    assert measured == json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_an_encoder_trains_with_rows_out_of_scope(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    tokenizer = word_piece()
    tiny_bert_classifier(vocab_size=len(tokenizer), layers=1, num_labels=2).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    outside = write_rows(tmp_path / "ood.jsonl", [{"text": f"cat {i}", "label": -1} for i in range(5)])

    done = call(*workshop.training(tmp_path / "run", model_name_or_path=tmp_path / "bert", ood_file=outside))

    assert (done.code, done.err) == (0, done.err)
    assert "AUROC" in done.out
    again = call(
        *("eval", tmp_path / "run", "--no_progress", "--split", "ood", "--output_file", tmp_path / "m.json"),
    )
    assert again.code == 0
    own = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert json.loads((tmp_path / "m.json").read_text())["metrics"] == {"ood": own["ood"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be positive"),
        ({"ess": -1}, "ess is -1.0; it must be positive"),
        ({"method": "ivom"}, "did you mean 'ivon'?"),
        ({"method": "adamw", "ess": 10}, "method 'adamw' has no option ess"),
        ({"train_file": None, "test_file": None, "task": "sst"}, "unknown task 'sst'; did you mean 'sst2'?"),
        ({"model_name_or_path": "./nowhere"}, "there is no model folder ./nowhere"),
        ({"model_name_or_path": "models/mine/nowhere"}, "there is no model folder models/mine/nowhere"),
        (
            {"model_name_or_path": "someone/nothing"},
            "model_name_or_path is 'someone/nothing', and nothing can be loaded",
        ),
        ({"train_file": "nowhere.jsonl"}, "there is no file nowhere.jsonl"),
        ({"max_length": 5}, "more than the 5 allowed"),
    ],
)
def test_bad_settings(call: Call, workshop: Workshop, tmp_path: Path, options: dict[str, object], message: str) -> None:
    refused = call(*workshop.training(tmp_path / "run", **options))

    assert refused.code == 1
    assert message in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"text": "a film"}], "line 1: missing column 'label'"),
        ([*reviews(4), {"text": "x", "label": 1}], "line 5, field 'label'"),
        ([{"question": "q", "choices": ["a", "b"], "answer": 2}], "line 1, field 'answer': got 2"),
        (reviews(4) + [{"text": "fine " * 200, "label": "positive"}] * 8, "tokens, more than the 128 allowed"),
    ],
)
def test_bad_rows(call: Call, workshop: Workshop, tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    file = write_rows(tmp_path / "rows.jsonl", rows)

    refused = call(*workshop.training(tmp_path / "run", train_file=file, test_file=None))

    assert (refused.code, message) == (1, message if message in refused.err else refused.err)


def test_an_unknown_label_in_another_file(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "other.jsonl", [{"text": "a film", "label": "neutral"}])

    refused = call(*workshop.training(tmp_path / "run", test_file=file))

    assert refused.code == 1
    assert "other.jsonl, line 1, field 'label': got 'neutral'; allowed: negative, positive" in refused.err
