"""What `varlora tasks` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser
from varlora.tasks import PROMPT_STYLES


def parser() -> CommandParser:
    """The task, and whether to load it."""
    command = CommandParser(
        "tasks",
        about=(
            "List the named tasks, and the shapes of rows that can be trained on; or show one task: its prompts, "
            "answers, splits, licence, source, and what published work does otherwise with it."
        ),
        examples=(
            "  varlora tasks arc_easy\n"
            "  varlora tasks boolq --prompt_style laplace-lora --model_name_or_path models/my-llama\n"
            "  varlora tasks sst2 --task_dir data/sst2        count its rows, and those that two splits share\n"
            "  varlora train --task arc_easy ..."
        ),
        usage="[NAME] [OPTIONS]",
    )
    command.add_argument("name", metavar="NAME", nargs="?", help="The task to show; all are listed otherwise.")
    command.option(
        "prompt_style", "Show the prompt of this style; of all styles otherwise.", choices=list(PROMPT_STYLES)
    )
    command.option("model_name_or_path", "Model whose answer tokens are shown.", metavar="MODEL")
    command.option("task_dir", "Load the task from this folder, and count its rows.")
    command.flag("load", "Load the task from the hub, and count its rows.")
    command.option("choices", "Questions to keep of a loaded task.", choices=["all", "four"], default="all")
    return command
