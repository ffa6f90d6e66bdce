"""Folders that `varlora train` has not written: one short training in a Trainer, saved in every way there is."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from small_runs import TARGETS, films, save_model, write_rows
from varlora import AnswerTokens, Collator, VariationalTrainer, encode, load_jsonl, posterior_of, save_posterior
from varlora.posterior import Posterior
from varlora.prediction.prediction import Prediction, predict
from varlora.tasks import Task, answer_tokens

LENGTH = 12
"""Most tokens of a row: less than some have with their prompt, so that these are cut."""


@dataclass(frozen=True, kw_only=True)
class TrainerFolders:
    """What a training has left.

    Attributes:
        model: the base model.
        test: a file of labelled rows.
        saved: what `trainer.save_model` wrote.
        checkpoint: a checkpoint of the trainer's.
        bare: the same as an unmodified trainer leaves it, without a posterior.
        posterior: what `save_posterior` wrote, with the readout.
        plain: what PEFT's `save_pretrained` wrote.
    """

    model: Path
    test: Path
    saved: Path
    checkpoint: Path
    bare: Path
    posterior: Path
    plain: Path


def train_folders(folder: Path) -> TrainerFolders:
    """Trains on `films` for four steps, as the README does, with a readout."""
    save_model(folder / "model", layers=1)
    train = write_rows(folder / "train.jsonl", [{**row, "text": row["text"] + " film" * 4} for row in films(16)])
    test = write_rows(
        folder / "test.jsonl", [{**row, "text": "a film " * 5 + row["text"]} for row in films(9, offset=3)]
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    task = load_jsonl({"train": train}, validation_size=2)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=TARGETS),
    )
    trainer = VariationalTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "run"),
            learning_rate=0.02,
            max_steps=4,
            save_steps=4,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=encode(task, "train", tokenizer, LENGTH, truncation="left"),
        data_collator=Collator.of(task, tokenizer),
        readout=readout_of(task, "train", tokenizer),
    )
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    q = posterior_of(model, trainer.optimizer, readout=trainer.readout.to_dict())
    save_posterior(q, folder / "posterior")
    model.save_pretrained(folder / "plain")
    checkpoint = folder / "run" / "checkpoint-4"
    bare = Path(shutil.copytree(checkpoint, folder / "bare" / "checkpoint-4"))
    for name in ("posterior.json", "posterior.safetensors", "checkpoint_files.json"):
        (bare / name).unlink()
    return TrainerFolders(
        model=folder / "model",
        test=Path(test),
        saved=folder / "saved",
        checkpoint=checkpoint,
        bare=bare,
        posterior=folder / "posterior",
        plain=folder / "plain",
    )


def readout_of(task: Task, split: str, tokenizer: object) -> AnswerTokens:
    """The answers' tokens."""
    tokens = answer_tokens(tokenizer, task.rows(split)["prompt"], task.continuations)  # type: ignore[arg-type]
    return AnswerTokens(token_ids=tokens, answers=task.answers)


def predict_by_hand(
    folders: TrainerFolders, folder: Path, q: Posterior | None, samples: int, *, cut: bool = True
) -> Prediction:
    """The test rows by the Python API alone, as the README predicts."""
    tokenizer = AutoTokenizer.from_pretrained(folders.model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folders.model), folder)
    task = load_jsonl({"test": folders.test}, label_names=["negative", "positive"])
    rows = encode(task, "test", tokenizer, LENGTH if cut else None, truncation="left" if cut else "error")
    batches = DataLoader(rows, batch_size=4, collate_fn=Collator.of(task, tokenizer, ids=True))  # type: ignore[arg-type]
    return predict(model.eval(), q, batches, samples, readout=readout_of(task, "test", tokenizer))
