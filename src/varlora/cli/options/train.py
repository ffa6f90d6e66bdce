"""What `varlora train` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser
from varlora.run_config import RunConfig

EXAMPLES = """
  varlora train --model_name_or_path Qwen/Qwen3-0.6B --task arc_challenge --output_dir runs/arc
  varlora train --model_name_or_path models/my-llama --train_file train.jsonl --test_file test.jsonl \\
      --method ivon --num_train_epochs 3 --output_dir runs/mine
  varlora train --config recipe.yaml --seed 1 --output_dir runs/seed1
  varlora train --config recipe.yaml --resume        after an interruption
"""


def parser() -> CommandParser:
    """Every field of `RunConfig`, and how to treat what is there already."""
    made = CommandParser(
        "train",
        about=(
            "Fine-tune a model with LoRA on a task, keep the posterior over the adapter's weights, and measure it on "
            "every split. The folder it writes is an ordinary PEFT adapter (the posterior's mean) with the posterior "
            "beside it."
        ),
        examples=EXAMPLES,
        options=RunConfig,
    )
    made.option("config", "YAML file of options; what the command line says goes before it.", metavar="FILE")
    made.flag("overwrite", "Replace the output folder, and what is left of an unfinished run.")
    made.flag("resume", "Go on from the last checkpoint of an interrupted run with the same settings.")
    made.flag("no_progress", "Show no progress bars.")
    return made
