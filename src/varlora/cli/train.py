"""`varlora train`: one run, from the model and the rows to the folder."""

from __future__ import annotations

from argparse import Namespace

from accelerate import PartialState
from rich.markup import escape

from varlora.cli.console import out
from varlora.cli.health import show_health
from varlora.cli.parsing import CommandParser
from varlora.cli.tables import metrics_tables
from varlora.prediction import modes_of
from varlora.runs import RunConfig, run, run_health

MODES = {
    "mean": "mean: one set of weights, the posterior's mean (an ensemble's first member)",
    "samples": "samples: the average over its draws",
    "linearised": "linearised: the average over draws of the linearised model's logits",
}

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


def execute(arguments: Namespace) -> None:
    """Runs it."""
    config = parser().build(RunConfig, arguments)
    try:
        result = run(config, overwrite=arguments.overwrite, resume=arguments.resume, progress=not arguments.no_progress)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            "interrupted. The same command with --resume goes on from the last checkpoint, if there is one yet "
            f"(--save_steps is {config.save_steps}); with --overwrite it starts afresh."
        ) from stop
    if not PartialState().is_main_process:  # under torchrun one process speaks for all
        return
    for table in metrics_tables(result.metrics):
        out.print(table)
    validation = result.predictions.get("validation", {})
    show_health(run_health(result.posterior, validation, config.samples), config.output_dir)
    where = f"[bold]{escape(config.output_dir)}[/bold]"
    out.print(f"Trained in {result.seconds['train']:.0f} s. The run is in {where}.", soft_wrap=True)
    explained = [MODES[mode] for mode in modes_of(result.posterior, config.samples)]
    if len(explained) > 1:
        out.print(f"[dim]{'; '.join(explained)}.[/dim]", highlight=False)
    following = f"varlora eval {config.output_dir}"
    following += f"   or   varlora predict {config.output_dir} --input_file new.jsonl --output_file answers.jsonl"
    out.print(f"Next: [cyan]{escape(following)}[/cyan]", highlight=False, soft_wrap=True)  # a path stays whole
