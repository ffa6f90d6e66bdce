"""What a trainer was asked for and IVON would not do: told before the first step."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from varlora.ivon.config import IVONConfig
from varlora.ivon.skipped import MOST_SKIPPED, mostly_skipped

logger = logging.getLogger(__name__)

MOST_ROWS = 100
"""Training rows whose labels are looked at."""
IGNORED = -100
"""The label that losses of PyTorch and transformers leave out."""

_ADAMW = ("adamw_torch", "adamw_torch_fused")
"""The trainer's own default, of one version or another: nobody has asked for it."""
_OF_ADAM: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], float | None]]] = {
    "adam_beta1": ("betas=(β1, ...)", lambda group: group["betas"][0] if "betas" in group else None),
    "adam_beta2": ("adam_beta2", lambda group: group.get("adam_beta2")),
    "adam_epsilon": ("adam_eps", lambda group: group.get("adam_eps")),
}


def check_arguments(args: TrainingArguments, group: Mapping[str, Any], *, optimizer: str = "IVON") -> None:
    """Refuses training arguments that choose or set another optimizer.

    Args:
        args: the trainer's.
        group: the optimizer's options: `IVONConfig.optimizer_kwargs()`, or a parameter group.
        optimizer: its name.

    Raises:
        ValueError: an argument would have no effect, or IVON cannot follow what it asks for.

    Example:
        >>> args = TrainingArguments("run", optim="adafactor", report_to="none", use_cpu=True)
        >>> check_arguments(args, IVONConfig(lr=1e-4).optimizer_kwargs())          # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: TrainingArguments(optim='adafactor') has no effect: the optimizer is IVON. Leave it out, ...
    """
    fields = type(args).__dataclass_fields__
    optim = str(getattr(args.optim, "value", args.optim))
    if optim not in (*_ADAMW, str(getattr(fields["optim"].default, "value", fields["optim"].default))):
        raise ValueError(
            f"TrainingArguments(optim={optim!r}) has no effect: the optimizer is {optimizer}. Leave it out, or train "
            "with that optimizer in a trainer without varlora."
        )
    for name in ("optim_args", "optim_target_modules"):
        if value := getattr(args, name, None):
            raise ValueError(
                f"TrainingArguments({name}={value!r}) has no effect: it is of other optimizers than {optimizer}. Set "
                "options where that is made (IVON's are IVONConfig's), and leave it out."
            )
    for name, (option, own) in _OF_ADAM.items():
        value = getattr(args, name)
        if own(group) is not None and value not in (fields[name].default, own(group)):
            raise ValueError(
                f"TrainingArguments({name}={value}) has no effect: {optimizer} has its own, {own(group)}. Set "
                f"IVONConfig({option}) and leave the former out."
            )
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs and would copy the model over them in every step "
            "(torch.nn.DataParallel), which IVON cannot follow. Start one process per GPU (torchrun or accelerate "
            "launch), or set CUDA_VISIBLE_DEVICES to one."
        )
    if args.deepspeed:
        raise ValueError("IVON does not run under DeepSpeed, which replaces the optimizer. Use DDP or FSDP2.")
    if args.load_best_model_at_end and args.save_only_model:
        raise ValueError(
            "load_best_model_at_end with save_only_model=True would join the best checkpoint's mean to the last step's "
            "variance. Set save_only_model=False, so that the checkpoint holds both."
        )


def check_bases(trainer: type, mixin: type) -> None:
    """Refuses a trainer class in which the mixin does not come first.

    Raises:
        TypeError: a trainer's methods go before the mixin's, so that it would train with its own optimizer.
    """
    order = trainer.__mro__
    own = [base for base in order[: order.index(mixin)] if issubclass(base, Trainer) and not issubclass(base, mixin)]
    if own:
        raise TypeError(
            f"{trainer.__name__} would train with the optimizer of {own[0].__name__}, without noise: "
            f"{mixin.__name__} must come first. Write: class {trainer.__name__}({mixin.__name__}, {own[0].__name__}):"
        )


def check_options_given(variational: Any) -> None:
    """Refuses IVON's options in another form than theirs.

    Raises:
        ValueError: it is neither an `IVONConfig` nor None.

    Example:
        >>> check_options_given({"ess": 1e4})
        Traceback (most recent call last):
        ValueError: variational= is of type dict, not IVONConfig. Write variational=IVONConfig(ess=10000.0).
    """
    if variational is None or isinstance(variational, IVONConfig):
        return
    shown = "..."
    if isinstance(variational, Mapping):
        shown = ", ".join(f"{name}={value!r}" for name, value in variational.items())
    raise ValueError(
        f"variational= is of type {type(variational).__name__}, not IVONConfig. Write variational=IVONConfig({shown})."
    )


def check_own_optimizer(trainer: Any) -> None:
    """Refuses an optimizer or a scheduler that was handed to a trainer which makes IVON itself.

    Raises:
        ValueError: there is one.
    """
    given = [
        f"{name} ({type(thing).__name__})"
        for name, thing in (
            ("optimizers[0]", trainer.optimizer),
            ("optimizers[1]", trainer.lr_scheduler),
            ("optimizer_cls_and_kwargs", getattr(trainer, "optimizer_cls_and_kwargs", None)),
        )
        if thing is not None
    ]
    if given:
        raise ValueError(
            f"{' and '.join(given)} would take the place of IVON, which VariationalTrainerMixin makes by variational= "
            "and TrainingArguments(lr_scheduler_type=...). Leave it out; for an IVON of your own, take a trainer "
            "without the mixin and callbacks=[VariationalCallback()]."
        )


def check_labels(loader: DataLoader[Any] | None, label_names: list[str] | None = None) -> None:
    """Looks for rows without a label among at most 100 training rows, collated as in training.

    Random generators are left alone. Data without a length, or without labels, say nothing here.

    Args:
        loader: the training rows'.
        label_names: where a batch keeps its labels; None: "labels".

    Raises:
        ValueError: no row has a label, so that nothing would be learned.

    Example:
        >>> def collate(rows):
        ...     return {"labels": torch.tensor([row["labels"] for row in rows])}
        >>> check_labels(DataLoader([{"labels": [-100, -100]}] * 3, collate_fn=collate))   # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: all labels of the 3 training rows looked at are -100, which losses leave out: ...
    """
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__") or collate is None or not len(dataset):
        return
    number = min(len(dataset), MOST_ROWS)
    seen = unlabelled = 0
    with _generators_alone():
        for i in range(number):
            batch = collate([dataset[i * len(dataset) // number]])
            labels = _labels(batch, label_names)
            if labels is None:
                return
            without = (labels == IGNORED).flatten(1).all(1) if labels.ndim > 1 else (labels == IGNORED)
            seen, unlabelled = seen + len(labels), unlabelled + int(without.sum())
    if seen and unlabelled == seen:
        raise ValueError(
            f"all labels of the {seen} training rows looked at are {IGNORED}, which losses leave out: nothing would be "
            "learned. Look at what masks them: a prompt template that does not occur in the rows, a max_length that "
            "cuts the answers off, assistant_only_loss without assistant turns."
        )
    if unlabelled:
        logger.warning(
            "%d of the %d training rows looked at have no label (all are %d): nothing is learned from them.",
            unlabelled,
            seen,
            IGNORED,
        )


def check_skipped(steps: int, taken: int) -> None:
    """Says how many steps of a training were skipped, and refuses one that was mostly skipped.

    Args:
        steps: of the training.
        taken: how many of them changed the weights; the others had a number that was not finite.

    Raises:
        ValueError: more than half of the steps were skipped.

    Example:
        >>> check_skipped(6, taken=2)                                      # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: 4 of 6 steps skipped for numbers that are not finite. That is more than half, and the rest is no ...
    """
    skipped = steps - taken
    if skipped <= 0:
        return
    if skipped > MOST_SKIPPED * steps:
        raise ValueError(mostly_skipped(skipped, steps))
    logger.warning(
        "%d of %d steps skipped for numbers that are not finite: the posterior is of the others.", skipped, steps
    )


def _labels(batch: Any, names: list[str] | None) -> Tensor | None:
    if not isinstance(batch, Mapping):
        return None
    labels = [batch[name] for name in names or ["labels"] if isinstance(batch.get(name), Tensor)]
    return labels[0] if len(labels) == 1 and labels[0].ndim and not labels[0].is_floating_point() else None


@contextmanager
def _generators_alone() -> Iterator[None]:
    states = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])  # noqa: NPY002
