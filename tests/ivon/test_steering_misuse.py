"""Held-out rows that are not there, or say nothing: a warning and λ as it is, or an error where they are asked for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from models import lora, tiny_bert_classifier, tiny_llama, token_ids
from steered_tasks import Classifier, Rows, VariationalTrainer, arguments, group_of, state_of, trainer_of
from varlora import VariationalCallback
from varlora.ivon.trainer_held_out import held_out_batches, model_logits

START = 32_000.0


def unsteered(trainer: Trainer, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    """Trains; λ must stay, no row be withheld, and one warning say why."""
    with caplog.at_level(logging.WARNING, logger="varlora"):
        trainer.train()
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("varlora")]
    assert len(warnings) == 1, warnings
    assert "no held-out rows steer ess" in warnings[0]
    assert reason in warnings[0]
    assert "held_out" not in group_of(trainer)
    assert group_of(trainer)["ess"] == group_of(trainer)["auto_ess"]


class Streamed(IterableDataset[dict[str, Tensor]]):
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter([self.rows[i] for i in range(len(self.rows))])


class StreamedWithLength(Streamed):
    def __len__(self) -> int:
        return len(self.rows)


NO_VALIDATION: dict[str, Any] = {
    "none": None,
    "a dict of data sets": {"a": Rows(40, seed=1), "b": Rows(40, seed=2)},
    "a stream": Streamed(Rows(40, seed=1)),
    "a stream with a length": StreamedWithLength(Rows(40, seed=1)),
    "no rows": Rows(0),
}


@pytest.mark.parametrize("kind", NO_VALIDATION)
def test_without_validation_rows_training_rows_steer(tmp_path: Path, kind: str) -> None:
    trainer = trainer_of(tmp_path, validation=NO_VALIDATION[kind], num_train_epochs=2)
    trainer.train()
    assert group_of(trainer)["held_out_source"] == "train"


@pytest.mark.parametrize("kind", NO_VALIDATION)
def test_too_few_training_rows_are_all_trained_on(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tmp_path, train=Rows(299), validation=NO_VALIDATION[kind], num_train_epochs=1)
    unsteered(trainer, caplog, "no eval_dataset with rows and a length, and the training set has fewer than 300 rows")
    assert isinstance(trainer.model, Classifier)
    assert sorted(trainer.model.trained_on) == list(range(299))


@pytest.mark.parametrize("kind", NO_VALIDATION)
def test_validation_rows_by_name_must_be_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match="held_out='validation' cannot be: there is no eval_dataset"):
        trainer_of(tmp_path, held_out="validation", validation=NO_VALIDATION[kind])


@pytest.mark.parametrize("train", [Rows(299), Streamed(Rows(320)), StreamedWithLength(Rows(320))])
def test_training_rows_by_name_must_be_enough(tmp_path: Path, train: Any) -> None:
    with pytest.raises(ValueError, match="held_out='train' cannot be: the training set has fewer than 300 rows"):
        trainer_of(tmp_path, held_out="train", train=train, validation=Rows(40), max_steps=2)


def test_three_hundred_rows_are_enough(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, held_out="train", train=Rows(300), max_steps=40)
    trainer.train()
    assert group_of(trainer)["held_out_rows"] == 30


def test_a_stream_of_training_rows_is_steered_by_validation_rows(tmp_path: Path) -> None:
    class Stream(VariationalTrainer):
        def add_callback(self, callback: Any) -> None:
            if isinstance(callback, VariationalCallback):
                callback.num_examples = 320  # a stream has no length
            super().add_callback(callback)

    trainer = Stream(
        model=Classifier(),
        args=arguments(tmp_path, max_steps=200, learning_rate=1e-4, per_device_train_batch_size=64),
        train_dataset=Streamed(Rows(320)),
        eval_dataset=Rows(200, seed=1),
    )
    trainer.train()
    assert group_of(trainer)["held_out"]["measurements"] == 11
    assert group_of(trainer)["ess"] > START


@pytest.mark.parametrize("by_name", [False, True])
def test_an_order_that_is_not_random(tmp_path: Path, by_name: bool, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"train_sampling_strategy": "sequential", "num_train_epochs": 1}
    trainer = trainer_of(tmp_path, held_out="train" if by_name else None, **options)
    if by_name:
        with pytest.raises(ValueError, match=r"held_out='train' cannot be: .* random order only.*SequentialSampler"):
            trainer.train()
    else:
        unsteered(trainer, caplog, "from a random order only, and the sampler is SequentialSampler")
        assert isinstance(trainer.model, Classifier)
        assert trainer.model.trained_on == list(range(320))


class WithoutLogits(Classifier):
    def forward(self, features: Tensor, row: Tensor, labels: Tensor | None = None) -> Any:
        output = super().forward(features, row, labels)
        return SequenceClassifierOutput(loss=output.loss)


class WithoutLabel(Rows):
    """Its rows' labels have a name of their own."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = super().__getitem__(index)
        return {**{k: v for k, v in row.items() if k != "labels"}, "truth": row["labels"]}


class ByTruth(Classifier):
    def forward(self, features: Tensor, row: Tensor, truth: Tensor | None = None) -> Any:  # type: ignore[override]
        return super().forward(features, row, truth)


@pytest.mark.parametrize("source", ["validation", "train"])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(
    ("model", "rows", "reason"),
    [
        (WithoutLogits, Rows, "need logits of one dimension more; found none"),
        (ByTruth, WithoutLabel, "have no 'labels', only features, row, truth"),
    ],
)
def test_rows_that_say_nothing(
    tmp_path: Path,
    source: str,
    by_name: bool,
    model: type[Classifier],
    rows: type[Rows],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = trainer_of(
        tmp_path,
        model=model(),
        train=rows(320),
        validation=rows(40, seed=1) if source == "validation" else None,
        held_out=source if by_name else None,
        num_train_epochs=1,
        label_names=["labels"],
    )
    assert isinstance(trainer.model, Classifier)
    if by_name:
        with pytest.raises(ValueError, match=f"held_out='{source}' cannot be: .*{reason}"):
            trainer.train()
        assert not trainer.model.trained_on
    else:
        unsteered(trainer, caplog, reason)
        assert sorted(trainer.model.trained_on) == list(range(320)), "nothing is withheld for nothing"


def test_a_label_of_another_name_is_found_by_label_names(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_train_epochs": 5, "label_names": ["truth"]}
    trainer = trainer_of(tmp_path, model=ByTruth(), train=WithoutLabel(320), held_out="train", **options)
    trainer.train()
    assert group_of(trainer)["held_out"]["measurements"] == 2


def test_rows_with_several_labels_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tmp_path, num_train_epochs=1, label_names=["labels", "row"])
    unsteered(trainer, caplog, "several labels, labels, row")


def test_collated_rows_that_are_no_mapping_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of trainers that make their batches themselves (TRL's GRPO)."""

    class Listed(VariationalTrainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return {key: torch.stack([row[key] for row in inputs]) for key in inputs[0]} if inputs else {}

    trainer = Listed(
        model=Classifier(),
        args=arguments(tmp_path, num_train_epochs=1),
        train_dataset=Rows(320),
        data_collator=lambda rows: list(rows),
    )
    trainer.compute_loss = lambda model, inputs, **kwargs: (  # type: ignore[method-assign,assignment]
        Trainer.compute_loss(trainer, model, trainer._prepare_inputs(inputs) if isinstance(inputs, list) else inputs)
    )
    trainer.training_step = lambda model, inputs, *args: Trainer.training_step(trainer, model, inputs)  # type: ignore
    unsteered(trainer, caplog, "a batch of held-out rows must map names to tensors, but one is list")


def test_a_run_that_is_steered_can_be_resumed_by_one_that_is_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 40, "save_strategy": "steps", "save_steps": 20}
    trainer_of(tmp_path, validation=Rows(40, seed=1), **options).train()
    resumed = trainer_of(tmp_path, ess=1e3, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert resumed.state.global_step == 40
    assert "held_out" in state_of(resumed)  # the checkpoint's λ and record, which nothing moves any more


# Collating ----------------------------------------------------------------------------------------------------


class Masking:
    """A collator that draws."""

    def __call__(self, rows: Any) -> dict[str, Tensor]:
        stacked = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        return {**stacked, "features": stacked["features"] * (torch.rand(len(rows), 1) > 0.5)}


def test_batches_are_the_same_for_everyone_and_leave_no_trace(tmp_path: Path) -> None:
    found = []
    for spent in (0, 3):
        trainer = trainer_of(tmp_path, validation=Rows(40, seed=1))
        trainer.data_collator = Masking()
        torch.rand(spent)
        before = torch.get_rng_state()
        found.append(held_out_batches(trainer, trainer.eval_dataset, [5, 1, 39]))
        assert torch.equal(torch.get_rng_state(), before)
    [first], [second] = found
    assert first["row"].tolist() == [5, 1, 39]
    assert torch.equal(first["features"], second["features"])
    assert not torch.equal(first["features"], Rows(40, seed=1).features[[5, 1, 39]])


def test_loaders_that_the_trainer_keeps_stay_its_own(tmp_path: Path) -> None:
    """With persistent workers it keeps its evaluation's loader: that must not become one of 256 rows."""
    options: dict[str, Any] = {"dataloader_persistent_workers": True, "dataloader_num_workers": 1}
    trainer = trainer_of(tmp_path, validation=Rows(40, seed=1), **options)
    trainer.evaluate()
    assert [len(b["row"]) for b in held_out_batches(trainer, trainer.eval_dataset, [1, 2])] == [2]
    assert isinstance(trainer.model, Classifier)
    trainer.model.predicted.clear()
    trainer.evaluate()
    assert sorted(trainer.model.predicted) == list(range(40))


def test_columns_that_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"input_ids": ids, "label": 1, "text": "a"} for ids in token_ids(rows=5).tolist()])
    trainer = VariationalTrainer(
        model=tiny_bert_classifier(), args=arguments(tmp_path), train_dataset=rows, eval_dataset=rows
    )
    [batch] = held_out_batches(trainer, rows, [3, 0])
    assert sorted(batch) == ["input_ids", "labels"]
    assert batch["input_ids"].tolist() == [rows[3]["input_ids"], rows[0]["input_ids"]]


# Logits of transformers' models: their own loss says which belong to which label -------------------------------


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "num_labels": 5,
}


def seq2seq() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


@pytest.mark.parametrize(
    ("build", "classes"),
    [
        (tiny_llama, 64),
        (lambda: lora(tiny_llama()), 64),
        (lambda: torch.compile(tiny_llama(layers=1), backend="eager"), 64),
        (lambda: BertForMaskedLM(BertConfig(**SMALL)), 64),
        (lambda: BertForTokenClassification(BertConfig(**SMALL)), 5),
        (seq2seq, 64),
    ],
    ids=["causal", "adapted", "compiled", "masked", "token classes", "encoder and decoder"],
)
def test_logits_are_those_of_the_models_own_loss(build: Any, classes: int) -> None:
    torch.manual_seed(0)
    model = build().eval()
    ids = token_ids(rows=3, length=6)
    labels = ids % classes
    labels[0, 3:], labels[2, 0] = -100, -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # wrapped is enough; compiling takes seconds
        expected = model(**batch).loss
        logits, truth = model_logits(model, batch)
        found = nn.functional.cross_entropy(logits[truth >= 0], truth[truth >= 0])
    torch.testing.assert_close(found, expected)


def test_classes_have_one_answer_a_row(bert_lora: nn.Module) -> None:
    batch = {"input_ids": token_ids(rows=3), "labels": torch.tensor([0, 2, 1])}
    logits, labels = model_logits(bert_lora.eval(), batch)
    torch.testing.assert_close(nn.functional.cross_entropy(logits, labels), bert_lora(**batch).loss)


def test_a_token_model_of_ones_own_must_say_what_it_predicts() -> None:
    class Tokens(nn.Module):
        def forward(self, input_ids: Tensor) -> Any:
            return SequenceClassifierOutput(logits=torch.zeros(*input_ids.shape, 4))

    ids = token_ids(rows=2)
    with pytest.raises(ValueError, match=r"Tokens predicts a token or the one after .* overriding answer_logits"):
        model_logits(Tokens(), {"input_ids": ids, "labels": ids})


@pytest.mark.parametrize("labels", [torch.zeros(3, 3), torch.zeros(3, 6, 2).long()])
def test_labels_of_other_kinds_are_refused(labels: Tensor) -> None:
    """Several classes a row, a number of a regression with more outputs, ..."""
    with pytest.raises(ValueError, match="need logits of one dimension more; found of shape"):
        model_logits(tiny_bert_classifier(), {"input_ids": token_ids(rows=3), "labels": labels})


def test_a_regression_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_list([{"input_ids": ids, "labels": 0.5} for ids in token_ids(rows=40).tolist()])
    trainer = VariationalTrainer(
        model=tiny_bert_classifier(num_labels=1),
        args=arguments(tmp_path, max_steps=2),
        train_dataset=rows.with_format("torch"),
        eval_dataset=rows.with_format("torch"),
    )
    unsteered(trainer, caplog, "whole-numbered labels")
