"""Finds the trained tensors of a model.

Tensors are keyed as in PEFT's `adapter_model.safetensors` (no adapter name, `modules_to_save` removed), or by
parameter name where the model holds no adapter. PEFT itself says which tensors belong to an adapter and what
their keys are, so LoRA, DoRA, embeddings, biases and trained heads need no rules of ours.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, kw_only=True)
class SavedTensors:
    """The live tensors that a file of the adapter (or of a plain module) holds, by checkpoint key, in sorted order.

    Attributes:
        trained: as `trained_tensors`.
        fixed: as `fixed_tensors`.
        resized: whether the vocabulary is not the base model's, so that its embeddings are among them.
    """

    trained: Mapping[str, nn.Parameter]
    fixed: Mapping[str, Tensor]
    resized: bool

    def tensors(self) -> dict[str, Tensor]:
        """Those that train, then the others."""
        return {**self.trained, **self.fixed}


def saved_tensors(model: nn.Module) -> SavedTensors:
    """What `trained_tensors` and `fixed_tensors` give, by one search of the model.

    Raises:
        ValueError: as `trained_tensors`.

    Example:
        >>> import torch
        >>> saved = saved_tensors(torch.nn.Linear(2, 1))
        >>> list(saved.trained), list(saved.fixed)
        (['bias', 'weight'], [])
    """
    named = first_keys(live_tensors(model))
    trained = trained_among(model, named)
    peft_model = unwrapped_model(model)
    if not is_peft_model(peft_model):
        return SavedTensors(trained=trained, fixed={}, resized=False)
    resized = is_resized(peft_model)
    return SavedTensors(trained=trained, fixed=_fixed(peft_model, named, resized=resized), resized=resized)


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The live parameters that train (`requires_grad`), by checkpoint key, in sorted order.

    Args:
        model: a PEFT model (its active adapter is read), or any other module; wrappers of DDP and
            `torch.compile` are looked through.

    Raises:
        ValueError: the adapter is merged, several adapters are active, or a trained parameter is not part of
            the adapter, so that saving the adapter would lose it.

    Example:
        >>> import torch
        >>> list(trained_tensors(torch.nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    return trained_among(model, first_keys(live_tensors(model)))


def trained_among(model: nn.Module, named: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Those of a model's named tensors that train, which have to be all that trains."""
    trained = {key: t for key, t in named.items() if isinstance(t, nn.Parameter) and t.requires_grad}
    held = {id(t) for t in trained.values()}
    outside = [n for n, p in unwrapped_model(model).named_parameters() if p.requires_grad and id(p) not in held]
    if outside:
        inner = unwrapped_model(model)
        config = inner.peft_config[active_adapter(inner)] if is_peft_model(inner) else None
        if config is not None and config.is_prompt_learning:
            raise ValueError(
                f"this adapter is by {type(config).__name__}, which trains a prompt and not weights of the model: it "
                "would be lost. Use LoRA or another adapter of weights."
            )
        raise ValueError(
            f"{len(outside)} trained parameter(s) are not part of the adapter and would be lost: {shortened(outside)}. "
            "Freeze them, or name their modules in LoraConfig(modules_to_save=...)."
        )
    return trained


def fixed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What PEFT saves with the adapter though it does not train, by checkpoint key; a reload needs it.

    Usually empty. A frozen `lora_A` and the running statistics of a trained head are found here, and the base model's
    embeddings where PEFT keeps them: where the vocabulary was resized (`is_resized`), or the embeddings are adapted.
    Always empty for a model without an adapter.
    """
    peft_model = unwrapped_model(model)
    if not is_peft_model(peft_model):
        return {}
    return _fixed(peft_model, first_keys(live_tensors(model)), resized=is_resized(peft_model))


def _fixed(model: PeftModel, named: Mapping[str, Tensor], *, resized: bool) -> dict[str, Tensor]:
    """Those of an adapter's tensors that do not train, and the base model's embeddings where a file holds them."""
    held = {id(t) for t in named.values()}
    beside = live_tensors(model, embeddings=True if resized else "auto")
    embeddings = first_keys({key: t for key, t in beside.items() if id(t) not in held})
    return {key: t for key, t in sorted({**named, **embeddings}.items()) if not t.requires_grad}


def is_resized(model: PeftModel) -> bool:
    """Whether the vocabulary is not the base model's, by the config.json that the base model came with.

    False where there is none: PEFT takes it so, too.
    """
    base: Any = model.get_base_model()
    size = getattr(getattr(base, "config", None), "vocab_size", None)
    name, revision = base_model_of(model)
    if size is None or not name or not hasattr(base, "get_input_embeddings"):
        return False
    try:
        return bool(type(base.config).from_pretrained(name, revision=revision).vocab_size != size)
    except OSError:
        return False


def base_model_of(model: nn.Module) -> tuple[str | None, str | None]:
    """The name or path of the pre-trained model, and its revision; None where it is unknown.

    Example:
        >>> import torch
        >>> base_model_of(torch.nn.Linear(2, 1))
        (None, None)
    """
    inner, base = unwrapped_model(model), base_module(model)
    name = revision = None
    if is_peft_model(inner):
        config = inner.peft_config[active_adapter(inner)]
        name, revision = config.base_model_name_or_path, config.revision
    commit = getattr(getattr(base, "config", None), "_commit_hash", None)
    return name or getattr(base, "name_or_path", None) or None, commit or revision


def checkpoint_key(name: str, adapter: str | None = "default") -> str:
    """The checkpoint key of a parameter, from its name alone.

    For optimizer states read without their model; with a model at hand, use `trained_tensors`.

    Args:
        name: as in `model.named_parameters()`, wrappers included.
        adapter: name of the PEFT adapter; None for a plain module, where the key is the parameter's name.

    Example:
        >>> checkpoint_key("base_model.model.q_proj.lora_A.default.weight")
        'base_model.model.q_proj.lora_A.weight'
        >>> checkpoint_key("base_model.model.classifier.modules_to_save.default.bias")
        'base_model.model.classifier.bias'
    """
    name = re.sub(r"^((module|_orig_mod)\.)+", "", name)  # DistributedDataParallel, torch.compile
    if adapter is None:
        return name
    adapter = re.escape(adapter)
    key = re.sub(rf"\.modules_to_save\.{adapter}(?=\.)", "", name)
    if key != name:
        return key
    key = re.sub(rf"(\.lora_magnitude_vector)\.{adapter}\.weight$", r"\1", name)
    return re.sub(rf"\.{adapter}(?=(\.[^.]+)?$)", "", key)


def is_base_embedding(key: str) -> bool:
    """Whether a checkpoint key is of the base model's embeddings, which PEFT may keep beside an adapter.

    Example:
        >>> is_base_embedding("base_model.model.model.embed_tokens.base_layer.weight")
        True
        >>> is_base_embedding("base_model.model.model.embed_tokens.lora_embedding_A")
        False
    """
    from peft.utils.other import EMBEDDING_LAYER_NAMES

    module, _, last = key.rpartition(".")
    return last in ("weight", "bias") and module.removesuffix(".base_layer").endswith(tuple(EMBEDDING_LAYER_NAMES))


def first_keys(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tied tensor under its first key alone; in sorted order."""
    first_key: dict[int, str] = {}
    for key in sorted(named):
        first_key.setdefault(id(named[key]), key)
    return {key: named[key] for key in first_key.values()}


def live_tensors(model: nn.Module, *, embeddings: bool | Literal["auto"] = False) -> dict[str, Tensor]:
    """By every key that PEFT saves (a plain module has), the live tensor; tied tensors under each of their keys."""
    model = unwrapped_model(model)
    refuse_merged(model)
    if is_peft_model(model):
        from peft import get_peft_model_state_dict

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")  # it is what is asked for
            state = get_peft_model_state_dict(
                model,
                state_dict=model.state_dict(keep_vars=True),  # keep_vars hands out the live parameters
                adapter_name=active_adapter(model),
                save_embedding_layers=embeddings,
            )
        return {key: t for key, t in state.items() if t.is_floating_point()}
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "this model got its adapter by model.add_adapter(), which varlora does not read. "
            "Wrap the base model with peft.get_peft_model(model, config) instead."
        )
    return dict(model.named_parameters())


def refuse_merged(model: nn.Module) -> None:
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = [n for n, module in model.named_modules() if isinstance(module, BaseTunerLayer) and module.merged]
    if merged:
        raise ValueError(
            f"the adapter is merged into the base weights ({shortened(merged)}), so it can be neither read nor "
            "sampled. Call model.unmerge_adapter() first."
        )


def is_peft_model(model: nn.Module) -> TypeIs[PeftModel]:
    """Whether PEFT wraps the model. Importing PEFT takes seconds: where nobody has, it wraps none.

    Example:
        >>> is_peft_model(nn.Linear(2, 1))
        False
    """
    if "peft" not in sys.modules:
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def active_adapter(model: PeftModel) -> str:
    active = model.active_adapters
    if len(active) != 1:
        raise ValueError(f"exactly one adapter must be active, not {active}; call model.set_adapter(name).")
    return str(active[0])


def base_module(model: nn.Module) -> Any:
    """The model without wrappers, PEFT's included; its layers may be those of an adapter."""
    inner = unwrapped_model(model)
    return inner.get_base_model() if is_peft_model(inner) else inner


def unwrapped_model(model: nn.Module) -> nn.Module:
    """The model inside data-parallel and torch.compile wrappers, in whatever order; its names do not depend on them.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> unwrapped_model(torch.compile(model)) is model
        True
    """
    from accelerate.utils import extract_model_from_parallel

    while not is_peft_model(model) or "_orig_mod" in model.__dict__:  # or accelerate would look at every module
        inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
        if inner is model:
            break
        model = inner
    return model


def shortened(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
