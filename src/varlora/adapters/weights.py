"""Puts tensors into a model: within a block, one set after another, or for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from varlora.adapters.tensors import (
    first_keys,
    is_base_embedding,
    is_peft_model,
    live_tensors,
    shortened,
    trained_among,
    unwrapped_model,
)


@contextmanager
def applied(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, the model computes with `tensors`; afterwards its weights are back, bit for bit.

    Values are copied into the parameters' own storage, so compiled graphs and tied references stay valid and
    `.grad` is untouched. Works under `torch.inference_mode`. A graph recorded before or inside the block cannot
    be differentiated after it: autograd then says that a variable was modified in place.

    Args:
        model: as in `trained_tensors`. An adapter loaded for inference has no trained parameter; then every
            tensor of the adapter must be given.
        tensors: values by checkpoint key, of the parameters' shapes; converted to their dtype and device.

    Raises:
        ValueError: keys are missing or unknown, shapes differ, or the adapter is merged. Nothing is changed then.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> with applied(model, {"weight": torch.tensor([[2.0]])}):
        ...     model(torch.ones(1, 1)).item()
        2.0
    """
    with applying(model, tensors) as apply:
        apply(tensors)
        yield


@contextmanager
def applying(model: nn.Module, like: Mapping[str, Tensor]) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
    """`applied` for several sets of tensors in turn: the block gets the function that puts one into the model.

    The model is searched for its tensors once, which for a small model costs more than a forward.

    Args:
        model: as in `applied`.
        like: tensors with the keys and shapes of all that will be put in.

    Raises:
        ValueError: as `applied`; the function raises it for other keys or shapes than those of `like`.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> with applying(model, {"weight": torch.zeros(1, 1)}) as apply:
        ...     for value in (2.0, 3.0):
        ...         apply({"weight": torch.tensor([[value]])})
        ...         print(model(torch.ones(1, 1)).item())
        2.0
        3.0
    """
    targets = _fitting(model, like)
    saved = {key: target.detach().clone() for key, target in targets.items()}

    def apply(tensors: Mapping[str, Tensor]) -> None:
        if tensors.keys() != targets.keys():
            raise ValueError(f"the tensors differ in their keys: {shortened(sorted(tensors.keys() ^ targets.keys()))}.")
        if wrong := [key for key, target in targets.items() if tensors[key].shape != target.shape]:
            raise ValueError(f"the tensors differ in their shapes: {shortened(wrong)}.")
        _copy(tensors, targets)

    try:
        yield apply
    finally:
        try:
            _copy(saved, targets)
        except KeyboardInterrupt:
            _copy(saved, targets)
            raise


def load_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes `tensors` (a posterior's mean, say) into the model for good, with the checks of `applied`.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> load_into(model, {"weight": torch.tensor([[2.0]])})
        >>> model.weight.item()
        2.0
    """
    _copy(tensors, _fitting(model, tensors))


def _fitting(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The live tensors that `tensors` are for, once keys and shapes are known to fit."""
    named = live_tensors(model)
    required = set(trained_among(model, first_keys(named)))
    if not required and is_peft_model(unwrapped_model(model)):
        required = set(first_keys(named))
    if tensors.keys() - named.keys() and is_peft_model(unwrapped_model(model)):
        named = {**live_tensors(model, embeddings=True), **named}
    problems = []
    if unknown := sorted(tensors.keys() - named.keys()):
        problems.append(f"{len(unknown)} unknown key(s): {shortened(unknown)}")
    if missing := sorted(required - tensors.keys()):
        problems.append(f"{len(missing)} missing key(s): {shortened(missing)}")
    wrong = sorted(key for key in tensors.keys() & named.keys() if tensors[key].shape != named[key].shape)
    if wrong:
        shapes = [f"{key} is {tuple(tensors[key].shape)}, the model's is {tuple(named[key].shape)}" for key in wrong]
        problems.append(f"{len(wrong)} wrong shape(s): {shortened(shapes)}")
    if problems:
        resized = [tensors[key].shape[0] for key in wrong if is_base_embedding(key) and tensors[key].ndim == 2]
        hint = f" Its vocabulary was resized: call resize_token_embeddings({resized[0]}) first." if resized else ""
        raise ValueError(
            f"the tensors do not fit the model: {'; '.join(problems)}. Use the base model and the LoRA "
            f"configuration that they were trained with.{hint}"
        )
    return {key: named[key] for key in tensors}


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    for key, target in targets.items():
        target.copy_(tensors[key])
    torch.clear_autocast_cache()  # within torch.autocast, casts of the former weights would be taken again
