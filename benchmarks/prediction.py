"""What S draws cost, in passes at the mean: as rows of one forward, one after another, and as PEFT's mixed batch.

    python -m benchmarks.prediction                                   # shapes of a small language model, random weights
    python -m benchmarks.prediction --model my-model --rows 1 8 --json

Processor seconds on one thread (of a GPU: of the clock, synchronised). In every round all ways take turns on the same
rows, and each is divided by the mean's pass of that round: medians and quartiles of these ratios. Answers are read at
each row's last token; texts are written greedily, by each draw or as one text by all; choices are four texts of five
tokens behind one question, in passes at the mean over the question and one choice. "Floor" is what S draws cost if a
forward's time were its multiplications alone: the layers below the first adapted one once, the others S times.

PEFT's way is `adapter_names`: S copies of the adapter, the batch repeated, each row by its adapter's name.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from benchmarks.measuring import parser_of, processor_seconds, quartiles, ratios, show, take_turns
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from varlora.adapters import trained_tensors
from varlora.posterior import DiagonalGaussian
from varlora.posterior.batched_draws import over_batches
from varlora.posterior.draws import over_draws, weight_draws
from varlora.prediction.averaged_texts import generate_averaged
from varlora.prediction.decoding import Greedy
from varlora.prediction.prediction import predict
from varlora.readout import choice_log_likelihoods
from varlora.readout.readout import AnswerTokens, ChoiceTexts

SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
READOUT = AnswerTokens(token_ids=(330, 389, 340, 422), answers=("A", "B", "C", "D"))
CHOICES = ChoiceTexts(answers=("A", "B", "C", "D"))
IN_TURN = ("one after another", "draws, question for each choice")
TASKS = ("answers", "choices", "texts", "peers")
ADAPTERS = {"all layers": 0.0, "top quarter": 0.75}
"""Where the adapted layers begin, as a share of all."""


class NoText:
    """A tokenizer for which nothing ends a text, so that every text is as long."""

    eos_token_id = None
    pad_token_id = 0

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        """The tokens' numbers."""
        return " ".join(map(str, tokens))


def adapted(name: str | None, share: float, device: str) -> PeftModel:
    """The model with LoRA of rank 8 on queries and values, from a share of its layers on."""
    torch.manual_seed(0)
    base: PreTrainedModel
    if name is None:
        base = LlamaForCausalLM(LlamaConfig(**SMALL))
    else:
        base = AutoModelForCausalLM.from_pretrained(name, dtype="auto" if device == "cuda" else torch.float32)
    layers = base.config.num_hidden_layers
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "v_proj"],
        layers_to_transform=list(range(round(share * layers), layers)),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base.to(device), config).eval()
    with torch.no_grad():
        for key, p in trained_tensors(model).items():
            if "lora_B" in key:
                p.normal_(std=0.02)
    base.generation_config.eos_token_id = None
    return model


def gaussian(model: PeftModel) -> DiagonalGaussian:
    """A posterior of standard deviation .01."""
    mean = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    return DiagonalGaussian(mean=mean, precision={key: torch.full_like(m, 1e4) for key, m in mean.items()})


def ways_to_answer(model: PeftModel, batch: Mapping[str, Any], samples: int) -> dict[str, Callable[[], object]]:
    """Each way to predict the batch, the mean first."""
    q = gaussian(model)

    def one_pass() -> Tensor:
        return READOUT.logits(model, batch)

    return {
        "the mean": lambda: predict(model, q, [batch], 0, readout=READOUT),
        "draws as rows": lambda: predict(model, q, [batch], samples, readout=READOUT),
        "one after another": lambda: over_draws(model, q, samples, one_pass, antithetic=True, seed=0),
    }


def ways_to_write(model: PeftModel, batch: Mapping[str, Any], samples: int, tokens: int) -> dict[str, Any]:
    """Each way to write behind the batch's rows, the mean first."""
    q = gaussian(model)
    decode = Greedy(model, NoText(), tokens)  # type: ignore[arg-type]

    def passes(number: int) -> object:
        return over_batches(
            model,
            q,
            number,
            [batch],
            lambda b: decode(b).rows(),
            what="texts",
            antithetic=True,
            seed=0,
            compare=decode.next_logits,
            size=decode.size,
        )

    return {
        "the mean": lambda: passes(0),
        "draws as rows": lambda: passes(samples),
        "draws as rows, one text": lambda: generate_averaged(
            model,
            q,
            [batch],
            samples,
            tokenizer=NoText(),  # type: ignore[arg-type]
            max_new_tokens=tokens,
        ),
        "one after another": lambda: over_draws(
            model, q, samples, lambda: decode(batch).log_likelihoods, antithetic=True, seed=0
        ),
    }


def ways_to_choose(model: PeftModel, batch: Mapping[str, Any], samples: int) -> dict[str, Callable[[], object]]:
    """Each way to score texts of five tokens behind the batch's rows, a single one of them at the mean first."""
    q, choices = gaussian(model), len(CHOICES.answers)
    ids = batch["input_ids"][:, None].repeat(1, choices, 1)
    texts = torch.randint(5, 4000, (*ids.shape[:2], 5), generator=torch.Generator().manual_seed(2)).to(ids.device)
    ids = torch.cat([ids, texts], -1)
    exists = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
    one = exists.clone()
    one[:, 1:] = False
    every = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "choice_lengths": torch.full_like(ids[..., 0], 5),
        "choice_mask": exists,
        "labels": torch.zeros(len(ids), dtype=torch.int64),
    }

    def way(number: int, shared: bool, chosen: Tensor) -> Callable[[], object]:
        def call() -> object:
            takes = choice_log_likelihoods.takes_packed
            try:
                if not shared:
                    choice_log_likelihoods.takes_packed = lambda model: False
                return predict(model, q, [{**every, "choice_mask": chosen}], number, readout=CHOICES)
            finally:
                choice_log_likelihoods.takes_packed = takes

        return call

    return {
        "one choice at the mean": way(0, False, one),
        "the mean, question shared": way(0, True, exists),
        "the mean, question for each choice": way(0, False, exists),
        "draws, question shared": way(samples, True, exists),
        "draws, question for each choice": way(samples, False, exists),
    }


def mixed_batch(model: PeftModel, batch: Mapping[str, Any], samples: int) -> Callable[[], object]:
    """PEFT's own way: S adapters by name. The model keeps them."""
    q = gaussian(model)
    names = [f"draw{s}" for s in range(samples)]
    for name, weights in zip(names, weight_draws(q, samples), strict=True):
        model.add_adapter(name, model.peft_config["default"])
        live = dict(model.named_parameters())
        for key, value in weights.items():
            live[key.replace(".weight", f".{name}.weight")].data.copy_(value)
    model.set_adapter("default")
    rows = len(batch["input_ids"])
    repeated = {key: batch[key].repeat(samples, 1) for key in ("input_ids", "attention_mask")}
    by_row = [name for name in names for _ in range(rows)]

    @torch.no_grad()
    def answers() -> Tensor:
        logits: Tensor = model(**repeated, adapter_names=by_row, logits_to_keep=1, use_cache=False).logits
        return logits[:, -1, list(READOUT.token_ids)]

    return answers


def seconds_on(device: str) -> Callable[[Callable[[], object]], float]:
    """How long a way takes: of the processor, or by the clock once the device has done what it was asked."""
    if device == "cpu":
        return processor_seconds

    def seconds(way: Callable[[], object]) -> float:
        start = time.perf_counter()
        way()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--model", help="name or folder of a causal language model")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8], help="of a batch of answers or choices")
    parser.add_argument("--tokens", type=int, default=60, help="of a row")
    parser.add_argument("--new_tokens", type=int, default=16, help="of a text")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--adapters", nargs="*", choices=list(ADAPTERS), default=list(ADAPTERS))
    parser.add_argument("--fast", action="store_true", help="leave out what takes as many passes as there are draws")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table: list[dict[str, Any]] = []
    for where in given.adapters:
        model = adapted(given.model, ADAPTERS[where], device)
        floor = ADAPTERS[where] + given.samples * (1 - ADAPTERS[where])
        for task in given.tasks:
            for rows in [1] if task == "texts" else given.rows:
                ids = torch.randint(5, 4000, (rows, given.tokens), generator=torch.Generator().manual_seed(1)).to(
                    device
                )
                batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(rows).long()}
                what, limit = f"{rows} × {given.tokens} tokens, answers", f"{floor:.1f}"
                if task == "answers":
                    ways = ways_to_answer(model, batch, given.samples)
                elif task == "choices":
                    what, limit = f"{rows} × {given.tokens} tokens, {len(CHOICES.answers)} choices of 5", ""
                    ways = ways_to_choose(model, batch, given.samples)
                elif task == "texts":
                    what, limit = f"1 prompt of {given.tokens}, {given.new_tokens} new tokens", ""
                    ways = ways_to_write(model, batch, given.samples, given.new_tokens)
                else:
                    peer = adapted(given.model, ADAPTERS[where], device)
                    ways = {
                        "the mean": ways_to_answer(model, batch, 1)["the mean"],
                        "PEFT's mixed batch": mixed_batch(peer, batch, given.samples),
                    }
                if given.fast:
                    ways = {name: way for name, way in ways.items() if name not in IN_TURN}
                seconds = take_turns(ways, given.rounds, seconds_on(device))
                mean, *others = seconds
                found = ratios(seconds, to=mean)
                for name in others:
                    cells = {"what": what, "adapter": where, "way": name, "passes at the mean": found[name]}
                    table.append({**cells, "s of the mean": f"{quartiles(seconds[mean]):.3g}", "floor": limit})
                print(f"{what}, {where}", file=sys.stderr)
    on = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    show({"Draws in passes at the mean": table}, given, samples=given.samples, device=on)


if __name__ == "__main__":
    main()
