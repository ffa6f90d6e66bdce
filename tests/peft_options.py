"""PEFT's option space on tiny models: any combination of options, drawn from a seed, and what becomes of it."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from models import INITIAL_STD, tiny_bert_classifier, tiny_llama, tiny_qwen3, token_ids
from varlora.adapters import applied, check_base, trained_tensors
from varlora.ivon import IVON
from varlora.ivon.noise import NoiseController
from varlora.posterior import posterior_of
from varlora.posterior.folder import load_posterior, save_posterior


def tiny_moe() -> Qwen3MoeForCausalLM:
    """A causal LM with stacked experts."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        initializer_range=INITIAL_STD,
        pad_token_id=0,
    )
    return Qwen3MoeForCausalLM(config).eval()


BASES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "untied": tiny_llama,
    "tied": tiny_qwen3,
    "moe": tiny_moe,
    "encoder": tiny_bert_classifier,
}
NEW_ROWS = 6

TARGETS: Mapping[str, list[Any]] = {
    "decoder": [["q_proj"], ["q_proj", "v_proj"], ["q_proj", "embed_tokens"], ["v_proj", "lm_head"], r".*\.k_proj"],
    "encoder": [["query"], ["query", "dense"], ["value", "word_embeddings"], r".*\.key"],
}
AXES: Mapping[str, list[Any]] = {
    "init_lora_weights": [*[True] * 6, False, "gaussian", "orthogonal", "mica", "pissa", "pissa_niter_2", "olora"],
    "bias": ["none", "none", "lora_only", "all"],
    "use_dora": [False, False, True],
    "use_rslora": [False, True],
    "lora_bias": [False, False, True],
    "lora_dropout": [0.0, 0.1],
    "rank_pattern": [{}, {}, {"q_proj": 2, "query": 2}],
    "alpha_pattern": [{}, {"v_proj": 3, "query": 3}],
    "layers_to_transform": [None, None, [1]],
    "ensure_weight_tying": [False, False, True],
}
KEPT_MODULES = {"decoder": [None, None, ["lm_head"], ["embed_tokens"], ["norm"]], "encoder": [None, ["classifier"]]}
TOKENS = [None, None, None, [1, 63]]


def drawn(seed: int) -> dict[str, Any]:
    """Options, and which base they are for, under "base" and "resized"."""
    chosen = random.Random(seed)
    base = chosen.choice(list(BASES))
    family = "encoder" if base == "encoder" else "decoder"
    options = {name: chosen.choice(values) for name, values in AXES.items()}
    options["target_modules"] = chosen.choice(TARGETS[family])
    options["modules_to_save"] = chosen.choice(KEPT_MODULES[family])
    options["trainable_token_indices"] = chosen.choice(TOKENS)
    if family == "encoder":
        options["task_type"] = chosen.choice(["SEQ_CLS", None])
    if base == "moe" and chosen.random() < 0.7:
        options["target_parameters"] = ["mlp.experts.gate_up_proj"]
        options |= {"lora_dropout": 0.0, "use_dora": False}  # all that PEFT takes there
    if options["use_dora"] or options["init_lora_weights"] not in (True, False):
        options["lora_bias"] = False  # the same
    if isinstance(options["target_modules"], str):
        options["layers_to_transform"] = None
    resized = chosen.random() < 0.4
    if resized and options["trainable_token_indices"]:
        options["trainable_token_indices"] = [1, 64]
    return {"base": base, "resized": resized, "r": 4, **options}


def outcome(options: Mapping[str, Any], bases: Mapping[str, PreTrainedModel], folder: Path) -> str:
    """What becomes of options.

    Args:
        options: as `drawn`.
        bases: by name, models whose `name_or_path` holds their config.json.
        folder: an empty one.

    Returns:
        "not peft's" (PEFT does not take them), "refused" (before the first step), "exact", or by how much it is not.
    """
    config = {name: value for name, value in options.items() if name not in ("base", "resized")}

    def base(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = copy.deepcopy(bases[options["base"]])
        if options["resized"]:
            model.resize_token_embeddings(64 + NEW_ROWS, mean_resizing=False)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            start = base(seed=1)
            if options["resized"]:
                with torch.no_grad():
                    for layer in filter(None, (start.get_input_embeddings(), start.get_output_embeddings())):
                        layer.weight[64:] = torch.randn(NEW_ROWS, layer.weight.shape[1])
            model = get_peft_model(start, LoraConfig(**copy.deepcopy(config)))
            logits(model)
        except (ValueError, TypeError, NotImplementedError, KeyError, IndexError, AttributeError, RuntimeError):
            return "not peft's"
        try:
            optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=0.1, ess=1e4, hess_init=0.1)
            NoiseController(model, optimizer).detach()
            trained = trained_tensors(model)
        except ValueError:
            return "refused"
        with torch.no_grad():
            for p in trained.values():
                p.add_(0.1 * torch.randn_like(p))
        expected = logits(model)
        save_posterior(posterior_of(model, optimizer), folder / "q")
        q = load_posterior(folder / "q")
        loaded = PeftModel.from_pretrained(base(seed=2), folder / "q")
        if (gap := (logits(loaded) - expected).abs().max().item()) > 0:
            return f"PEFT's reload differs by {gap:.3g}"
        anew = get_peft_model(base(seed=3), LoraConfig(**copy.deepcopy(config)))
        check_base(anew, q.point.keys(), q.meta.base_fingerprint, q.meta.base_model)
        with applied(anew, q.point):
            gap = (logits(anew) - expected).abs().max().item()
        return "exact" if gap == 0 else f"varlora's reload differs by {gap:.3g}"


def logits(model: nn.Module) -> torch.Tensor:
    """In eval mode."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=token_ids()).logits
        return found
