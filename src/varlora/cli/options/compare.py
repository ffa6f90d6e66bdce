"""What `varlora compare` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser

EXECUTORS = ("inline", "local", "slurm", "ray")
EXAMPLES = """
  varlora compare recipes/cong2025-llama-3.2-3b.yaml --dry_run   what is there, what is missing, what runs elsewhere
  varlora compare recipes/cong2025-llama-3.2-3b.yaml --small     the same on a laptop, with the embedded small Llama
  varlora compare plan.yaml --executor local --workers 2
  varlora compare plan.yaml --executor slurm --workers 8 --slurm partition=gpu gpus_per_node=1 time=720
  varlora compare plan.yaml --launcher "accelerate launch --num_processes 8"
  varlora compare plan.yaml --only task=arc_easy method=ivon seed=0,1
"""
FIRST = "dry_run small output_dir data seeds only executor workers slurm launcher"


def parser() -> CommandParser:
    """The plan, what of it to run, and where."""
    command = CommandParser(
        "compare",
        about=(
            "Run every model × task × method × seed of a plan that has not been run, then show the tables and write "
            "them, and a page with figures, into the plan's folder. Each run is kept under a hash of all its settings, "
            "its data and varlora's source: the same command goes on where it was interrupted, and results of "
            "different settings never mix. Any number of them may run at once, on machines that share the folder: each "
            "takes cells that no other has."
        ),
        examples=EXAMPLES,
        usage="PLAN [OPTIONS]",
        first=FIRST,
    )
    command.add_argument("plan", metavar="PLAN", help="YAML file; docs/compare.md says what may stand in it.")
    command.flag("dry_run", "Show the cells, their states, and how long cells like them took; run nothing.")
    command.flag("small", "The plan with its section `small` over it: a small model and few rows.")
    command.option("output_dir", "In place of the plan's; runs/NAME where neither says.")
    command.option(
        "data", "Folder that holds the named tasks' folders of JSONL files; the hub otherwise.", metavar="FOLDER"
    )
    command.option("seeds", "In place of the plan's: one training of everything each.", type=int, nargs="+")
    command.option(
        "only",
        "Run these cells only: model=, task=, method= or seed= with names, comma-separated.",
        nargs="+",
        metavar="WHICH",
        default=[],
    )
    command.option(
        "executor",
        "Where cells run: in this process, in processes of this machine, in Slurm jobs, or in tasks of Ray.",
        choices=EXECUTORS,
        default="inline",
    )
    command.option("workers", "Processes that take cells; by default of local and ray one for each GPU.", type=int)
    command.option(
        "slurm",
        "Options of the Slurm jobs, as submitit names them: partition=, time= (minutes), gpus_per_node=, mem=, ...",
        nargs="+",
        metavar="KEY=VALUE",
        default=[],
    )
    command.option(
        "launcher",
        "What starts the processes of each cell, e.g. 'accelerate launch --num_processes 8'.",
        metavar="COMMAND",
    )
    command.option(
        "code_version",
        "Take cells as they are that another version of varlora's source has made; may be repeated.",
        action="append",
        metavar="HASH",
        default=[],
    )
    command.flag("no_progress", "Show no progress bar.")
    return command
