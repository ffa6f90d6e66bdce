"""What a trainer is asked for is done, or refused before the first step."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from models import lora, tiny_llama, token_ids
from varlora import IVON, IVONConfig, NoiseController, VariationalCallback, VariationalTrainer, VariationalTrainerMixin
from varlora.ivon.held_out import HeldOut
from varlora.ivon.trainer_checks import check_arguments, check_labels, check_skipped

CONFIG = IVONConfig(lr=1e-3, ess=1e4)


def rows(count: int = 8, masked: int = 0) -> Dataset:
    ids = token_ids(rows=count).tolist()
    labels = [[-100] * len(row) if i < masked else row for i, row in enumerate(ids)]
    return Dataset.from_dict({"input_ids": ids, "labels": labels}).with_format("torch")


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given = {"max_steps": 6, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True}
    quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), **(given | quiet | options))


class CountSteps(TrainerCallback):
    """How many steps began."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1


def train(*, mixin: bool, config: IVONConfig = CONFIG, callbacks: Any = (), **options: Any) -> None:
    """By the mixin, or by an unmodified Trainer with the callback."""
    trainer: Trainer
    if mixin:
        trainer = VariationalTrainer(**options, variational=config, callbacks=[*callbacks])
    else:
        chosen = (IVON, config.optimizer_kwargs())
        trainer = Trainer(**options, optimizer_cls_and_kwargs=chosen, callbacks=[VariationalCallback(), *callbacks])
    trainer.train()


def refused(match: str, folder: Path, model: nn.Module, data: Dataset | None = None, *, mixin: bool = True) -> None:
    """Training is refused before the first step."""
    count = CountSteps()
    with pytest.raises(ValueError, match=match):
        train(mixin=mixin, model=model, args=arguments(folder), train_dataset=data or rows(), callbacks=[count])
    assert count.steps == 0


# The class -------------------------------------------------------------------------------------------------


def test_the_mixin_behind_a_trainer_is_refused_with_the_right_line() -> None:
    """It trained AdamW to the end."""
    with pytest.raises(TypeError, match=r"Write: class Mine\(VariationalTrainerMixin, Trainer\):"):

        class Mine(Trainer, VariationalTrainerMixin):
            pass


def test_classes_in_the_right_order_may_be_derived_from() -> None:
    class Mine(VariationalTrainerMixin, Trainer):
        pass

    class Other:
        pass

    class Further(Other, Mine):
        pass

    assert issubclass(Further, VariationalTrainerMixin)


# Options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optim": "adafactor"}, r"optim='adafactor'\) has no effect: the optimizer is IVON"),
        ({"optim": "sgd"}, r"optim='sgd'\) has no effect"),
        ({"optim_args": "rank=4"}, r"optim_args='rank=4'\) has no effect"),
        ({"adam_beta1": 0.8}, r"adam_beta1=0\.8\) has no effect: IVON has its own, 0\.9\. Set IVONConfig\(betas="),
        ({"adam_beta2": 0.95}, r"adam_beta2=0\.95\) has no effect: .* Set IVONConfig\(adam_beta2\)"),
        ({"adam_epsilon": 1e-6}, r"adam_epsilon=1e-06\) has no effect: .* Set IVONConfig\(adam_eps\)"),
    ],
)
@pytest.mark.parametrize("mixin", [True, False])
def test_another_optimizers_options_are_refused(
    tmp_path: Path, given: dict[str, Any], message: str, mixin: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        train(mixin=mixin, model=lora(tiny_llama()), args=arguments(tmp_path, **given), train_dataset=rows())


@pytest.mark.parametrize(
    "given", [{}, {"optim": "adamw_torch"}, {"optim": "adamw_torch_fused"}, {"adam_beta2": 0.95, "adam_epsilon": 1e-6}]
)
def test_options_that_are_as_asked_or_the_default_pass(tmp_path: Path, given: dict[str, Any]) -> None:
    config = IVONConfig(lr=1e-3, adam_beta2=given.get("adam_beta2"), adam_eps=given.get("adam_epsilon"))
    check_arguments(arguments(tmp_path, **given), config.optimizer_kwargs())


@pytest.mark.parametrize("which", ["optimizers[0]", "optimizers[1]", "optimizer_cls_and_kwargs"])
def test_an_optimizer_or_schedule_beside_the_mixins_is_refused(tmp_path: Path, which: str) -> None:
    model = lora(tiny_llama())
    own = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(own)
    given: dict[str, Any] = {
        "optimizers[0]": {"optimizers": (own, None)},
        "optimizers[1]": {"optimizers": (None, schedule)},
        "optimizer_cls_and_kwargs": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})},
    }[which]
    with pytest.raises(ValueError, match=r"would take the place of IVON") as error:
        VariationalTrainer(model=model, args=arguments(tmp_path), train_dataset=rows(), **given)
    assert str(error.value).startswith(f"{which} (")


@pytest.mark.parametrize(
    ("given", "shown"), [({"ess": 1e4}, r"IVONConfig\(ess=10000\.0\)"), ("auto", r"IVONConfig\(\.\.\.\)")]
)
def test_ivons_options_in_another_form_are_refused(tmp_path: Path, given: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"variational= is of type \w+, not IVONConfig\. Write variational={shown}"):
        VariationalTrainer(model=lora(tiny_llama()), args=arguments(tmp_path), train_dataset=rows(), variational=given)


@pytest.mark.parametrize("num_examples", [0, -5, True, float("nan")])
def test_a_number_of_examples_is_a_positive_number(num_examples: Any) -> None:
    with pytest.raises(ValueError, match="num_examples="):
        VariationalCallback(num_examples=num_examples)


def test_held_out_rows_in_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="held_out of type Dataset; it must be a HeldOut"):
        VariationalCallback(held_out=rows())  # type: ignore[arg-type]
    assert HeldOut(batches=[{"labels": torch.zeros(1)}], logits=lambda *_: (torch.ones(1), torch.ones(1)))


def test_no_held_out_rows_are_not_warned_about_where_none_were_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(tmp_path, max_steps=1, learning_rate=1e-3)
    with caplog.at_level(logging.WARNING, logger="varlora"):
        config = IVONConfig(held_out="none")
        VariationalTrainer(model=lora(tiny_llama()), args=args, train_dataset=rows(), variational=config).train()
        assert not caplog.records
        chosen = (IVON, IVONConfig(lr=1e-3).optimizer_kwargs())
        for held_out in ("none", None):
            Trainer(
                model=lora(tiny_llama()),
                args=args,
                train_dataset=rows(),
                optimizer_cls_and_kwargs=chosen,
                callbacks=[VariationalCallback(held_out=held_out)],  # type: ignore[arg-type]
            ).train()
            assert bool(caplog.records) == (held_out is None)


# The model -------------------------------------------------------------------------------------------------


def two_active() -> nn.Module:
    model = lora(tiny_llama())
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return model


def added_adapter() -> nn.Module:
    model = tiny_llama()
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return model


def prompt_tuning() -> nn.Module:
    return get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def outside() -> nn.Module:
    model = lora(tiny_llama())
    model.get_parameter("base_model.model.lm_head.weight").requires_grad_(True)
    return model


def merged() -> nn.Module:
    model = lora(tiny_llama())
    model.merge_adapter()
    return model


def frozen() -> nn.Module:
    return lora(tiny_llama()).requires_grad_(False)


MODELS = {
    two_active: "exactly one adapter must be active",
    added_adapter: r"model\.add_adapter\(\)",
    prompt_tuning: "by PromptTuningConfig, which trains a prompt",
    outside: "not part of the adapter and would be lost",
    merged: "merged into the base weights",
    frozen: r"is_trainable=True",
}


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("way", ["mixin", "callback", "loop"])
def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path: Path, build: Any, way: str) -> None:
    model = build()
    if way == "loop":
        optimizer = IVON([*model.parameters()], lr=0.1, ess=10.0, hess_init=1.0)
        with pytest.raises(ValueError, match=MODELS[build]):
            NoiseController(model, optimizer)
    else:
        refused(MODELS[build], tmp_path, model, mixin=way == "mixin")


def test_an_adapter_loaded_for_inference_is_refused_with_the_way_to_load_it(tmp_path: Path) -> None:
    lora(tiny_llama()).save_pretrained(tmp_path / "adapter")
    refused("is_trainable=True", tmp_path, PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter"))


# The labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixin", [True, False])
def test_rows_without_any_label_are_refused(tmp_path: Path, mixin: bool) -> None:
    """They trained nothing: the loss is 0 / 0, every step was skipped, and rc was 0."""
    refused(
        r"all labels of the 8 training rows looked at are -100", tmp_path, lora(tiny_llama()), rows(8, 8), mixin=mixin
    )


def loader(data: Dataset) -> DataLoader[Any]:
    return DataLoader(data, batch_size=2, shuffle=True)


def test_some_rows_without_a_label_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="varlora"):
        check_labels(loader(rows(8, masked=0)))
        assert not caplog.records
        check_labels(loader(rows(8, masked=3)))
    assert "3 of the 8 training rows looked at have no label" in caplog.text


@pytest.mark.parametrize(
    "data",
    [[{"labels": torch.tensor(-100)}], [{"labels": torch.tensor([-100])}], [{"start": torch.tensor(-100)}]],
    ids=["a class", "tokens", "another name"],
)
def test_labels_of_any_form_are_looked_at(data: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="all labels of the 1 training rows"):
        check_labels(loader(data), ["start"] if "start" in data[0] else None)  # type: ignore[arg-type]


def test_looking_at_labels_leaves_the_generators_alone() -> None:
    def drawn() -> tuple[float, ...]:
        return torch.rand(1).item(), random.random(), numpy.random.random()  # noqa: NPY002

    def collate(found: list[Any]) -> dict[str, Any]:
        drawn()
        return {"labels": torch.tensor([1])}

    set_seed(0)
    expected = drawn()
    set_seed(0)
    check_labels(DataLoader(rows(), collate_fn=collate))
    assert drawn() == expected


# Skipped steps ---------------------------------------------------------------------------------------------


class Poisoned(VariationalTrainerMixin, Trainer):
    """Its loss is not finite in the first steps."""

    poisoned = 0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        return loss * torch.nan if self.state.global_step < self.poisoned else loss


def poisoned(folder: Path, number: int, **options: Any) -> Poisoned:
    model = lora(tiny_llama())
    trainer = Poisoned(model=model, args=arguments(folder, **options), train_dataset=rows(), variational=CONFIG)
    trainer.poisoned = number
    return trainer


def test_skipped_steps_are_told_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="varlora"):
        poisoned(tmp_path, 2).train()
    assert "2 of 6 steps skipped" in caplog.records[-1].getMessage()


def test_a_training_that_was_mostly_skipped_is_an_error(tmp_path: Path) -> None:
    """It ended with rc 0 and no word."""
    with pytest.raises(ValueError, match=r"4 of 6 steps skipped .* more than half"):
        poisoned(tmp_path, 4).train()


def test_a_long_training_that_is_mostly_skipped_does_not_go_on_to_its_end() -> None:
    model = nn.Linear(2, 1)
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0)
    NoiseController(model, optimizer)

    def steps(count: int, factor: float) -> None:
        for _ in range(count):
            (model(torch.ones(1, 2)).sum() * factor).backward()
            optimizer.step()
            optimizer.zero_grad()

    steps(9, 1.0)
    steps(10, torch.nan)
    with pytest.raises(ValueError, match="11 of 20 steps skipped"):
        steps(1, torch.nan)


def test_a_second_training_counts_its_own_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = poisoned(tmp_path, 3)
    trainer.train()
    trainer.poisoned = 1
    with caplog.at_level(logging.WARNING, logger="varlora"):
        trainer.train()
    assert "1 of 6 steps skipped" in caplog.records[-1].getMessage()


def test_no_word_where_nothing_was_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="varlora"):
        check_skipped(6, taken=6)
    assert not caplog.records


# Draws -----------------------------------------------------------------------------------------------------


def test_several_draws_average_a_loss_that_a_user_wrote(tmp_path: Path) -> None:
    """A subclass's own compute_loss hid the mixin's weight of 1/S: S draws gave S times the gradient."""
    norms: list[float] = []
    for draws in (1, 4):

        class Own(VariationalTrainerMixin, Trainer):
            def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                return model(**inputs).loss

        class Norms(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
                norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

        cold = IVONConfig(lr=1e-3, ess=1e4, draws=draws)  # next to no noise: nothing is fitted
        args = arguments(tmp_path, max_steps=1, max_grad_norm=0.0)
        model = lora(tiny_llama())
        Own(model=model, args=args, train_dataset=rows(), variational=cold, callbacks=[Norms()]).train()
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
