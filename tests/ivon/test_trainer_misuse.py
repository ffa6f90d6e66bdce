"""What people do to trainers: start again, on the same model, with batches that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from models import lora, tiny_llama, token_ids
from varlora import IVON, IVONConfig, NoiseController, VariationalTrainerMixin
from varlora.posterior import posterior_of

CONFIG = IVONConfig(recipe="cong2024", lr=1.0, ess=1e4, hess_init=1e-2, betas=(0.9, 0.99))


class VariationalTrainer(VariationalTrainerMixin, Trainer):
    """transformers' Trainer with IVON."""


def rows(count: int = 10) -> Dataset:
    ids = token_ids(rows=count)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()}).with_format("torch")


def trainer(model: PeftModel, folder: Path, *, count: int = 10, **options: Any) -> VariationalTrainer:
    callbacks = options.pop("callbacks", [])
    given = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "seed": 3,
    }
    args = TrainingArguments(output_dir=str(folder), **(given | options))
    return VariationalTrainer(
        model=model, args=args, train_dataset=rows(count), variational=CONFIG, callbacks=callbacks
    )


def llama() -> PeftModel:
    return lora(tiny_llama(), task_type="CAUSAL_LM")


def adapter(model: PeftModel) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def unwrapped(optimizer: Any) -> IVON:
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, IVON)
    return optimizer


def test_training_twice_goes_on_from_the_posterior_reached(tmp_path: Path) -> None:
    model = llama()
    twice = trainer(model, tmp_path, lr_scheduler_type="linear")
    twice.train()
    first, hessian = adapter(model), [s["hessian"].clone() for s in unwrapped(twice.optimizer).state.values()]
    twice.train()
    optimizer = unwrapped(twice.optimizer)
    assert optimizer.step_index == 8  # so the noise is not that of the first training again
    assert {float(state["step"]) for state in optimizer.state.values()} == {8.0}
    assert not equal(first, adapter(model))  # the schedule has started anew: it had ended at 0
    assert not equal(hessian, [state["hessian"] for state in optimizer.state.values()])
    q = posterior_of(model, twice.optimizer)
    assert all((variance > 0).all() for variance in q.variance.values())


class Interrupt(TrainerCallback):
    """Ctrl-C within a step, after its backward pass."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_a_new_trainer_on_the_model_of_an_interrupted_one_trains_as_if_alone(tmp_path: Path) -> None:
    results = []
    for interrupted in (False, True):
        model = llama()
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                trainer(model, tmp_path, callbacks=[Interrupt()]).train()
            model.zero_grad()
        trainer(model, tmp_path).train()
        results.append(adapter(model))
    assert equal(*results)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_change_nothing_under_the_trainer(tmp_path: Path, reentrant: bool) -> None:
    results = []
    for options in (
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ):
        model = llama()
        trainer(model, tmp_path, **options).train()
        results.append(adapter(model))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_the_last_step_of_an_epoch_has_fewer_and_shorter_batches(tmp_path: Path) -> None:
    # 9 rows in batches of 2, three batches a step: steps of 6 and of 3 rows, the last batch of one.
    model, twin = llama(), llama()
    options: dict[str, Any] = {"gradient_accumulation_steps": 3, "max_steps": 2}
    by_trainer = trainer(model, tmp_path, count=9, **options)
    by_trainer.train()

    torch.manual_seed(0)
    optimizer = IVON([p for p in twin.parameters() if p.requires_grad], **CONFIG.optimizer_kwargs())
    noise = NoiseController(twin, optimizer, seed=3)
    order = trainer(llama(), tmp_path, count=9, **options).get_train_dataloader()
    batches = list(order)
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 2, 2, 1]
    twin.train()
    for group in (batches[:3], batches[3:]):
        total = sum(len(batch["input_ids"]) for batch in group)
        for batch in group:
            loss = twin(input_ids=batch["input_ids"], labels=batch["labels"]).loss
            (loss * len(batch["input_ids"]) / total).backward()
        optimizer.step()
        optimizer.zero_grad()
    noise.detach()
    for a, b in zip(adapter(model), adapter(twin), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for p, q in zip(unwrapped(by_trainer.optimizer).state.values(), optimizer.state.values(), strict=True):
        torch.testing.assert_close(p["hessian"], q["hessian"], rtol=1e-4, atol=1e-7)
