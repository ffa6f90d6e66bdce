"""What a method is: how to train an adapter, and what posterior comes out.

A method is one frozen dataclass in one file: its fields are its options. `trainer` builds the transformers
Trainer that trains it; `posterior` reads the result out of the trained model; `calibrate` may use validation
predictions, never test ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar

import datasets
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from varlora.posterior import DiagonalGaussian, PointMass
from varlora.prediction import Prediction
from varlora.readout import Readout

AnyPosterior = PointMass | DiagonalGaussian


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained on what; the same for every method.

    Attributes:
        model: the model with its adapter attached.
        arguments: transformers' training arguments.
        train: encoded training rows.
        validation: encoded validation rows, or None.
        collate: makes a batch of rows.
        readout: how the answer is read; None trains on completions with the model's own loss.
        callbacks: more of the trainer's callbacks.
    """

    model: nn.Module
    arguments: TrainingArguments
    train: datasets.Dataset
    validation: datasets.Dataset | None
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]
    readout: Readout | None
    callbacks: Sequence[TrainerCallback] = ()

    def trainer_options(self) -> dict[str, Any]:
        """Keyword arguments that every trainer class takes."""
        return {
            "model": self.model,
            "args": self.arguments,
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "data_collator": self.collate,
            "callbacks": list(self.callbacks),
        }


class Method(Protocol):
    """A way to train an adapter and to get a posterior from it."""

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def samples(self) -> bool:
        """Whether the posterior can be sampled."""

    def trainer(self, job: Job) -> Trainer:
        """The trainer, ready for `train()`."""

    def posterior(self, job: Job, trainer: Trainer) -> AnyPosterior:
        """The posterior of the trained model."""

    def calibrate(self, q: AnyPosterior, validation: Prediction) -> AnyPosterior:
        """The posterior with whatever the method fits on predictions for validation rows at the mean."""


M = TypeVar("M")


def with_options(method: Callable[..., M], options: Mapping[str, Any]) -> M:
    """The method with the given options; those that are None keep the method's default.

    Args:
        method: a method's class.
        options: option names and values, as from a command line.

    Raises:
        ValueError: an option was given that the method does not have.

    Example:
        >>> from varlora.methods import AdamW
        >>> with_options(AdamW, {"weight_decay": 0.1, "ess": None}).weight_decay
        0.1
    """
    given = {name: value for name, value in options.items() if value is not None}
    known = {f.name for f in fields(method)}  # type: ignore[arg-type]
    if strange := sorted(given.keys() - known):
        raise ValueError(
            f"method {getattr(method, 'name', method)!r} has no option {', '.join(strange)}; "
            f"it has {', '.join(sorted(known))}. Leave out what does not apply to it."
        )
    return method(**given)
