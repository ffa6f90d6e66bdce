"""TRL's trainers that generate their own rows, with the mixin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from models import lora, tiny_llama
from tiny_tokenizers import word_level
from varlora import IVONConfig, VariationalCallback, VariationalTrainerMixin
from varlora.posterior.wrapped import unwrapped

trl = pytest.importorskip("trl")

CONFIG: dict[str, Any] = {"lr": 1e-3, "ess": 1e4, "hess_init": 1e-2, "betas": (0.9, 0.99), "variance": "hessian"}


class VariationalGRPOTrainer(VariationalTrainerMixin, trl.GRPOTrainer):  # type: ignore[misc,name-defined]
    """GRPO with IVON."""


class VariationalRLOOTrainer(VariationalTrainerMixin, trl.RLOOTrainer):  # type: ignore[misc,name-defined]
    """RLOO with IVON."""


def reward(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 97) for text in completions]


def trainer_of(kind: Any, config: Any, folder: Path, **options: Any) -> Any:
    tokenizer = word_level()
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        max_steps=2,
        beta=0.1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    return kind(
        model=lora(tiny_llama(vocab_size=len(tokenizer)), b_std=0.5),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a fine film"}, {"prompt": "which one barks?"}] * 4),
        processing_class=tokenizer,
        variational=IVONConfig(**CONFIG, **options),
    )


class SeeSampling(TrainerCallback):
    """Notes, at every forward of the model, whether it has gradients and whether it is at sampled weights."""

    def __init__(self, layer: nn.Module, trainer: Any) -> None:
        self.seen: set[tuple[bool, bool]] = set()
        callbacks = trainer.callback_handler.callbacks
        self.callback = next(found for found in callbacks if isinstance(found, VariationalCallback))
        layer.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, args: Any) -> None:
        assert self.callback.noise is not None
        self.seen.add((torch.is_grad_enabled(), self.callback.noise.sampling))


KINDS = [(VariationalGRPOTrainer, trl.GRPOConfig), (VariationalRLOOTrainer, trl.RLOOConfig)]


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_rows_are_generated_at_the_mean_and_learned_from_at_a_draw(kind: Any, config: Any, tmp_path: Path) -> None:
    """The inputs are a list of prompts, which crashed; old log-probabilities are the mean's, as the rows are."""
    trainer = trainer_of(kind, config, tmp_path)
    see = SeeSampling(trainer.model.get_submodule("base_model.model.model.layers.0"), trainer)
    trainer.train()
    assert see.seen == {(False, False), (True, True)}
    optimizer = unwrapped(trainer.optimizer)
    assert (optimizer.step_index, optimizer.skipped_steps) == (2, 0)
    assert all((state["hessian"] != CONFIG["hess_init"]).any() for state in optimizer.state.values())


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_several_draws_of_generated_rows_are_refused(kind: Any, config: Any, tmp_path: Path) -> None:
    """Each pass would take the next rows from the trainer's buffer."""
    with pytest.raises(ValueError, match=r"draws=2\) cannot be with .*makes new rows in each training step"):
        trainer_of(kind, config, tmp_path, draws=2)
