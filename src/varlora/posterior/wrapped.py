"""Optimizers inside the wrappers of accelerate, and their states in a trainer's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from varlora.posterior.gaussian_optimizer import GaussianOptimizer

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

Kind = TypeVar("Kind")


def unwrapped(optimizer: Any) -> Any:
    """The innermost optimizer.

    Example:
        >>> plain = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> unwrapped(plain) is plain
        True
    """
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def unwrapped_as(optimizer: Any, kind: type[Kind], method: str) -> Kind:
    """The innermost optimizer, of the kind that a method trains with.

    Args:
        optimizer: possibly inside accelerate's wrapper.
        kind: the class it must be of.
        method: whose it is, for the message.

    Raises:
        TypeError: it is another.

    Example:
        >>> unwrapped_as(torch.optim.SGD([torch.zeros(1)], lr=0.1), torch.optim.AdamW, "swag")
        Traceback (most recent call last):
        TypeError: swag needs its own AdamW, but the trainer's optimizer is SGD.
    """
    inner = unwrapped(optimizer)
    if not isinstance(inner, kind):
        raise TypeError(f"{method} needs its own AdamW, but the trainer's optimizer is {type(inner).__name__}.")
    return inner


def restore_from(optimizer: torch.optim.Optimizer | GaussianOptimizer, checkpoint: str | Path) -> None:
    """Loads the optimizer's state from a `checkpoint-N` folder, as after training has gone back to its best weights.

    Raises:
        FileNotFoundError: the folder holds no optimizer state.
    """
    file = Path(checkpoint) / "optimizer.pt"
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing: the best checkpoint's weights were loaded, but not its posterior variance. "
            "Keep the optimizer state in the checkpoints (save_only_model=False)."
        )
    optimizer.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def restore_best(
    optimizer: torch.optim.Optimizer | GaussianOptimizer, args: TrainingArguments, state: TrainerState
) -> None:
    """Takes the optimizer back to the best checkpoint, where a trainer has taken its weights there.

    Args:
        optimizer: the trainer's.
        args: the trainer's: `load_best_model_at_end`.
        state: the trainer's, when training has ended.

    Raises:
        FileNotFoundError: as `restore_from`.
    """
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        restore_from(optimizer, state.best_model_checkpoint)
