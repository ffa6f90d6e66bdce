"""What one training step costs, to one by torch's fused AdamW: forward, backward, step and zeroing of gradients.

    python -m benchmarks.training_step                               # random weights
    python -m benchmarks.training_step --model FOLDER --models       # a causal language model in float32, alone

LoRA of rank 8 on all linear layers of blocks; in every round each way makes one step of its own adapter over the same
frozen weights, on the same batch. Processor time on the CPU. ivon-opt is a peer where it is installed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from benchmarks.measuring import has_ivon_opt, parser_of, quartiles, ratios, show, take_turns
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from varlora import IVON, IVONConfig, NoiseController
from varlora.methods.blob import Blob
from varlora.methods.mean_field_optimizer import MeanFieldAdamW

LR, ESS, HESS_INIT = 1e-4, 1e4, 1e-3
CLASSES = 6


def llama(width: int, layers: int, vocabulary: int, heads: int) -> nn.Module:
    """A Llama of random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=vocabulary,
        )
    )


def minilm(layers: int = 6) -> nn.Module:
    """A classifier of MiniLM-L6's shapes."""
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=384,
            num_hidden_layers=layers,
            num_attention_heads=12,
            intermediate_size=1536,
            num_labels=CLASSES,
        )
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "Llama of the demo, .4M": (lambda: llama(128, 3, 200, 4), 8, 32),
    "Llama, 20M": (lambda: llama(512, 6, 8000, 8), 4, 64),
    "BERT, MiniLM's shapes, 22M": (minilm, 8, 32),
}
"""By name: how it is made, rows of a batch, tokens of a row."""


def adapted(base: nn.Module, *, dropout: float = 0.0, **options: Any) -> nn.Module:
    """The model with a trained-looking adapter."""
    causal = not isinstance(base, BertForSequenceClassification)
    if not causal:
        options.setdefault("target_modules", r".*encoder.*(query|key|value|dense)")
    config = LoraConfig(
        lora_alpha=16,
        lora_dropout=dropout,
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
        **{"r": 8, "target_modules": "all-linear", **options},
    )
    model = get_peft_model(base, config)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    return model.train()


def batch_of(base: nn.Module, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random tokens, with labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (rows, tokens), generator=generator)
    classes = torch.randint(0, CLASSES, (rows,), generator=generator)
    labels = classes if isinstance(base, BertForSequenceClassification) else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def steps(base: nn.Module, batch: dict[str, Tensor]) -> dict[str, Callable[[], None]]:
    """One training step by each way; the base's weights are shared."""

    def fresh(dropout: float = 0.0) -> tuple[nn.Module, list[nn.Parameter]]:
        torch.manual_seed(1)
        memo = {id(t): t for t in [*base.parameters(), *base.buffers()]}
        model = adapted(copy.deepcopy(base, memo), dropout=dropout)
        return model, [p for p in model.parameters() if p.requires_grad]

    def plain(model: nn.Module, optimizer: torch.optim.Optimizer, seen: Any = None) -> Callable[[], None]:
        def step() -> None:
            loss = model(**batch).loss
            if seen is not None:
                seen.observe_loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def adamw(dropout: float = 0.0, **options: bool) -> Callable[[], None]:
        model, trained = fresh(dropout)
        return plain(model, torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, **options))

    def ivon(recipe: Any) -> Callable[[], None]:
        model, trained = fresh()
        config = IVONConfig(recipe=recipe, lr=LR, ess=ESS, **({} if recipe == "auto" else {"hess_init": HESS_INIT}))
        optimizer = IVON(trained, **config.optimizer_kwargs())
        return plain(model, optimizer, NoiseController(model, optimizer, seed=0))

    def blob() -> Callable[[], None]:
        model, _ = fresh()
        factors = Blob().random_factors(model, 0)
        optimizer = MeanFieldAdamW(
            [p for p in model.parameters() if p.requires_grad],
            gaussians=[(factor.mean, factor.sqrt_std) for factor in factors.factors],
            prior_std=0.1,
            num_examples=1000,
            cycle=None,
            lr=LR,
            kl_lr=LR,
            betas=(0.9, 0.999),
            eps=1e-8,
        )
        factors.follow(optimizer)
        return plain(model, optimizer)

    def ivon_opt() -> Callable[[], None]:
        import ivon

        model, trained = fresh()
        optimizer = ivon.IVON(trained, lr=LR, ess=ESS, hess_init=HESS_INIT)

        def step() -> None:
            with optimizer.sampled_params(train=True):
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    found = {
        "AdamW, fused": adamw(fused=True),
        "AdamW, foreach": adamw(foreach=True),
        "IVON, by default": ivon("auto"),
        "IVON, cong2025": ivon("cong2025"),
        "MC dropout": adamw(dropout=0.1, fused=True),
        "BLoB": blob(),
    }
    return {**found, **({"ivon-opt": ivon_opt()} if has_ivon_opt() else {})}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--model", help="folder of a causal language model")
    parser.add_argument("--batch", type=int, nargs=2, default=[4, 64], help="rows and tokens for --model")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    makers = {name: MODELS[name] for name in given.models}
    if given.model:
        rows, tokens = given.batch
        makers[given.model.rstrip("/").rpartition("/")[2]] = (
            lambda: AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
            rows,
            tokens,
        )
    table = []
    for name, (make, rows, tokens) in makers.items():
        torch.manual_seed(0)
        base = make().requires_grad_(False)
        seconds = take_turns(steps(base, batch_of(base, rows, tokens)), given.rounds)
        for way, ratio in ratios(seconds, "AdamW, fused").items():
            table.append(
                {
                    "model": name,
                    "batch": f"{rows} × {tokens}",
                    "way": way,
                    "ms": 1e3 * quartiles(seconds[way]).median,
                    "to fused AdamW": ratio,
                }
            )
    table.append(
        {"model": "Llama-3.2-3B on a GPU", "batch": "8 × 320", "way": "", "ms": "not run", "to fused AdamW": ""}
    )
    show({"A training step, CPU": table}, given)


if __name__ == "__main__":
    main()
