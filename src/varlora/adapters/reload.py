"""What of a model its adapter's file does not hold: refused before training, instead of being missed after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from varlora.adapters.tensors import (
    SavedTensors,
    active_adapter,
    is_peft_model,
    is_resized,
    saved_tensors,
    trained_tensors,
    unwrapped_model,
)

if TYPE_CHECKING:
    from peft import PeftModel

# Starts that leave the base model's weights alone. The others (pissa, olora, corda, loftq, lora_ga) subtract from them
# what the adapter starts with, by a draw or by a decomposition whose rounding is another machine's own.
_STARTS_BESIDE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva", "mica")


def check_trainable(model: nn.Module, saved: SavedTensors | None = None) -> None:
    """Refuses, before training, what saving would refuse after it, and a model of which nothing trains.

    Args:
        model: the model with its adapter, or a plain module.
        saved: its `saved_tensors`, where they are at hand; None: they are searched for.

    Raises:
        ValueError: nothing trains, several adapters are active, what trains is not all of the adapter's, or
            `refuse_unreloadable` refuses the model.

    Example:
        >>> check_trainable(nn.Linear(2, 1).requires_grad_(False))
        Traceback (most recent call last):
        ValueError: no parameter of the model trains (requires_grad), so there is nothing to have a posterior over. ...
    """
    if not (trained_tensors(model) if saved is None else saved.trained):
        raise ValueError(
            "no parameter of the model trains (requires_grad), so there is nothing to have a posterior over. A loaded "
            "adapter is frozen unless it is asked for: PeftModel.from_pretrained(..., is_trainable=True)."
        )
    refuse_unreloadable(model, saved)


def refuse_unreloadable(model: nn.Module, saved: SavedTensors | None = None) -> None:
    """Refuses a model that no saved adapter would bring back, whatever is trained; any other passes.

    Args:
        model: the model with its adapter, or a plain module.
        saved: as in `check_trainable`.

    Raises:
        ValueError: the adapter's initialisation has changed the base model's own weights; the vocabulary was resized
            and PEFT would not save all of the embeddings; or two `modules_to_save` are tied. It says what to do.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> config = LoraConfig(r=1, target_modules=["0"], init_lora_weights="olora")
        >>> refuse_unreloadable(get_peft_model(nn.Sequential(nn.Linear(2, 2)), config))
        Traceback (most recent call last):
        ValueError: init_lora_weights='olora' has changed the base model's own weights, which ...
    """
    peft_model = unwrapped_model(model)
    if not is_peft_model(peft_model):
        return
    config = peft_model.peft_config[active_adapter(peft_model)]
    start = getattr(config, "init_lora_weights", True)
    changed = f"init_lora_weights={start!r}" if start not in _STARTS_BESIDE_THE_BASE else None
    if getattr(config, "kasa_config", None) is not None:
        changed = "kasa_config"
    if changed is not None:
        raise ValueError(
            f"{changed} has changed the base model's own weights, which an adapter's file does not hold: loaded again, "
            "it would be another model. Save the changed base as a model of its own and train on that "
            "(docs/trainers.md, 'A start that changes the base model'), or use init_lora_weights=True."
        )
    _refuse_tied_modules(peft_model)
    if is_resized(peft_model) if saved is None else saved.resized:
        _refuse_lost_embeddings(peft_model, saved_tensors(model) if saved is None else saved)


def _refuse_tied_modules(model: PeftModel) -> None:
    """PEFT loads trained modules that share a tensor (`ensure_weight_tying`) from a file with both names."""
    from peft.utils.other import ModulesToSaveWrapper

    adapter, seen = active_adapter(model), set[int]()
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            own = {id(p) for p in module.modules_to_save[adapter].parameters()}
            if own & seen:
                raise ValueError(
                    "two modules of modules_to_save share one tensor (ensure_weight_tying=True), which a posterior "
                    "holds once and PEFT loads twice. Leave ensure_weight_tying out, or adapt these modules by "
                    "target_modules."
                )
            seen |= own


def _refuse_lost_embeddings(model: PeftModel, saved: SavedTensors) -> None:
    """Of an adapter that names an embedding PEFT saves the adapted ones alone, even where both were resized."""
    held = {id(t) for t in saved.tensors().values()}
    base: Any = model.get_base_model()
    for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
        if layer is None:
            continue
        inner = layer
        while hasattr(inner, "base_layer") or hasattr(inner, "original_module"):
            inner = inner.base_layer if hasattr(inner, "base_layer") else inner.original_module
        if not any(id(p) in held for p in layer.parameters() if p.shape == inner.weight.shape):
            raise ValueError(
                "the vocabulary was resized, and of this adapter PEFT would save the adapted embeddings alone, and "
                "lose the others. Put the others into LoraConfig(modules_to_save=[...]), or save the resized base "
                "model as a model of its own and train on that."
            )
