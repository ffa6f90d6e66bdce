"""What `varlora health` is asked."""

from __future__ import annotations

from varlora.cli.options.operation import add_source
from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora health runs/ivon
  varlora health runs/ivon.checkpoints/checkpoint-500        what the optimizer holds so far
"""


def parser() -> CommandParser:
    """The run."""
    command = CommandParser(
        "health",
        about=(
            "Show how a posterior does: whether sampling helps on the validation rows and what to use, its noise "
            "beside its weights, where λ ended, how far the Hessian has moved, whether draws agree. It reads the "
            "folder, what was predicted for the validation rows included; no model is loaded, and no other split is "
            "looked at."
        ),
        examples=EXAMPLES,
        usage="SOURCE",
    )
    add_source(command)
    return command
