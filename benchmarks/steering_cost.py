"""What share of a short training's time goes into asking the rows that steer λ.

A small random Llama with LoRA on all linear layers, rows of 32 random tokens with labels, steps of 8 rows, 256 held-out
rows; by evaluation batch. The budget counts rows (`varlora.ivon.held_out`); this looks at the clock. Median of the
repeats.

    python benchmarks/steering_cost.py                  # a table in Markdown
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from varlora import IVONConfig, VariationalCallback, VariationalTrainer

LENGTH, WORDS = 32, 256


def rows(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Random tokens, which are their own labels."""
    ids = torch.randint(0, WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


def share(evaluation_batch: int, *, steps: int, batch: int, validation: int) -> tuple[int, float, float]:
    """Measurements, their seconds, and those of the whole training."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = VariationalTrainer(
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
        trainer.train()
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, VariationalCallback))
    steering = callback.steering
    if steering is None:
        return 0, 0.0, 1.0
    return len(steering.plan.steps), steering.spent, steering.elapsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[80])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--evaluation_batch", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--validation", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args(arguments)
    print("| steps | evaluation batch | measurements | measuring, s | training, s | share |")
    print("| --- | --- | --- | --- | --- | --- |")
    share(8, steps=4, batch=given.batch, validation=8)  # warms up
    for steps in given.steps:
        for size in given.evaluation_batch:
            found = [
                share(size, steps=steps, batch=given.batch, validation=given.validation) for _ in range(given.repeats)
            ]
            count, spent, elapsed = sorted(found, key=lambda one: one[1] / one[2])[given.repeats // 2]
            print(
                f"| {steps} | {size} | {count} | {spent:.2f} | {elapsed:.2f} | {100 * spent / elapsed:.0f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
