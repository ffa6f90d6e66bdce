"""What `varlora completion` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser

SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """
  varlora completion bash > ~/.local/share/bash-completion/completions/varlora
  varlora completion zsh > ~/.zsh/completions/_varlora               a folder of $fpath
  varlora completion fish > ~/.config/fish/completions/varlora.fish
"""


def parser() -> CommandParser:
    """Which shell."""
    command = CommandParser(
        "completion",
        about=(
            "Print a script with which a shell completes commands, options, their values and files. It is made once "
            "and runs no Python; make it anew after an update. Needs pip install 'varlora[completion]'."
        ),
        examples=EXAMPLES,
        usage="SHELL",
    )
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"One of {', '.join(SHELLS)}.")
    return command
