"""What asking the rows that steer λ costs, whatever the evaluation batch and however short the training.

A small random Llama with LoRA on all linear layers, rows of 32 random tokens with labels, 256 held-out rows. The budget
counts rows (`varlora.ivon.measuring`); this looks at process time. Asking changes nothing else of a training than λ, so
that "times plain" is all of its time to what is left without collating, checking and measuring. Medians of the rounds
with their quartiles.

    python -m benchmarks.steering_cost                       # a table in Markdown
    python -m benchmarks.steering_cost --steps 350 --batch 16 --evaluation_batch 125 --layers 4 --top 1 --json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from benchmarks.measuring import parser_of, quartiles, show
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainingArguments

from varlora import IVONConfig, VariationalTrainer
from varlora.ivon.held_out import HeldOut
from varlora.posterior.held_out_record import HeldOutRecord

LENGTH, WORDS = 32, 256
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class TimedTrainer(VariationalTrainer):
    """Counts the seconds of process time that held-out rows take, and how often they are asked."""

    asking = 0.0
    asked: tuple[int, ...] = ()

    def held_out_rows(self) -> HeldOut | Literal["none"] | None:
        """As the trainer's, with a clock beside it."""
        begun = time.process_time()
        held_out = super().held_out_rows()
        self.asking += time.process_time() - begun
        if isinstance(held_out, HeldOut):
            measured = held_out.measured

            def timed(model: nn.Module, noise: Any, record: HeldOutRecord, rows: int) -> HeldOutRecord:
                begun = time.process_time()
                found = measured(model, noise, record, rows)
                self.asking += time.process_time() - begun
                self.asked = (*self.asked, rows)
                return found

            held_out.measured = timed  # type: ignore[method-assign]
        return held_out


def rows(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, which are their own labels."""
    ids = torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


def adapted(model: str | None, layers: int, top: int | None) -> nn.Module:
    """A model with LoRA on all linear layers of its `top` layers, or of all."""
    torch.manual_seed(0)
    base = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        if model is not None
        else LlamaForCausalLM(
            LlamaConfig(
                vocab_size=WORDS,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
    )
    last = base.config.num_hidden_layers
    where = None if top is None else list(range(last - top, last))
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, layers_to_transform=where))


def train_once(model: nn.Module, evaluation_batch: int, *, steps: int, batch: int, validation: int) -> dict[str, Any]:
    """Seconds of process time of one training and of asking in it, and how many rows were asked."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = TimedTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=batch,
                per_device_eval_batch_size=evaluation_batch,
                max_steps=steps,
                learning_rate=1e-3,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=rows(640, seed=0),
            eval_dataset=rows(validation, seed=1),
            variational=IVONConfig(held_out="validation"),
        )
        begun = time.process_time()
        trainer.train()
        seconds = time.process_time() - begun
    return {
        "asked": list(trainer.asked),
        "asking": trainer.asking,
        "seconds": seconds,
        "times": seconds / (seconds - trainer.asking),
    }


def row(given: argparse.Namespace, evaluation_batch: int, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table, of repeated trainings."""
    asked = runs[0]["asked"]
    return {
        "rows trained on": f"{given.steps * given.batch:,}",
        "a step": given.batch,
        "evaluation batch": evaluation_batch,
        "measurements × rows": f"{len(asked)} × {asked[0]}" if asked else "none",
        "asking, s": quartiles([run["asking"] for run in runs]),
        "training, s": quartiles([run["seconds"] for run in runs]),
        "times plain": f"{quartiles([run['times'] for run in runs]):.3f}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--model", help="a causal LM in place of the small Llama: a folder")
    parser.add_argument("--layers", type=int, default=2, help="of the small Llama")
    parser.add_argument("--top", type=int, help="how many layers from the top have LoRA; all, unless given")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--evaluation_batch", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--validation", type=int, default=256)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)

    def train(evaluation_batch: int, steps: int, validation: int) -> dict[str, Any]:
        model = adapted(given.model, given.layers, given.top)
        return train_once(model, evaluation_batch, steps=steps, batch=given.batch, validation=validation)

    train(8, steps=2, validation=8)  # warms up
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in given.evaluation_batch}
    for _ in range(given.rounds):
        for size, runs in found.items():
            runs.append(train(size, given.steps, given.validation))
    show({"What asking held-out rows costs": [row(given, size, runs) for size, runs in found.items()]}, given)


if __name__ == "__main__":
    main()
