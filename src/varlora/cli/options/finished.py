"""Options that `eval`, `predict` and `tune` share: a finished run, and how to predict with it."""

from __future__ import annotations

from argparse import ArgumentTypeError
from functools import partial

from varlora.cli.parsing import CommandParser


def number_or_auto(text: str) -> int | str:
    """A number of draws, or "auto"."""
    try:
        return text if text == "auto" else int(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no number and not 'auto'") from error


def add_options(command: CommandParser, *, auto: bool = False) -> None:
    """The run, how to predict with it, and the output; a command's own options come before.

    Args:
        command: its parser.
        auto: whether each row may take as many draws as it needs.
    """
    command.option(
        "samples",
        "Posterior draws; 0 is the mean alone. Otherwise what was tuned, or the run's own number; `predict` then draws "
        "only if validation rows have shown that draws help."
        + (" auto: 4, 8 or 16 draws for each row, until its probabilities are sure to .01." if auto else ""),
        type=number_or_auto if auto else int,
    )
    add_columns(command)
    command.option("max_new_tokens", "Most tokens of a text that is written; the run's own otherwise.", type=int)
    command.flag("untuned", "Predict as training left the posterior: leave aside what `varlora tune` chose.")
    add_run(command)
    command.flag("overwrite", "Replace the output file.")


def add_columns(command: CommandParser) -> None:
    """The names of a file's columns."""
    command.option(
        "dataset_columns",
        "Columns of a file that is given by our names, e.g. 'text=sentence'; those of the run's data otherwise, where "
        "the file has them.",
        metavar="PAIRS",
    )


def add_run(command: CommandParser) -> None:
    """The run, where and how it is run now, and what a folder of another program does not say."""
    command.add_argument(
        "run",
        metavar="RUN",
        help="Folder of a finished run; or of save_posterior, a Trainer (or its checkpoint), PEFT's save_pretrained.",
    )
    command.option(
        "model_name_or_path", "Where the base model is now, if not where it was in training.", metavar="MODEL"
    )
    command.option("gguf_file", "Name of the GGUF file there, if it is one.")
    command.option("dtype", "Data type of the frozen weights.", choices=["auto", "float32", "bfloat16", "float16"])
    command.option("quantization", "Frozen weights in 8 or 4 bit.", choices=["none", "8bit", "4bit"])
    command.option("max_length", "Most tokens in a row.", type=int)
    command.option("truncation", "What to do with rows that are too long.", choices=["error", "left", "right"])
    command.option("per_device_eval_batch_size", "Rows per device.", type=int)
    command.flag("no_progress", "Show no progress bars.")
    option = partial(command.option, title="Of a folder that `varlora train` has not written, where it does not say")
    option("answers", "Names of the classes in the model's order, comma-separated.", metavar="A,B,C")
    option("label_names_file", "The same in a file: a JSON list, or one name a line.")
    option("prompt_style", "How rows are worded for a causal LM: varlora, cloze, ... (`varlora tasks NAME`).")
    option("label_answers", "How a causal LM names a class.", choices=["names", "letters"])
    option("prompt_template", "Words of your own around rows, text or @FILE of it.")
    option("prompt_format", "Rows as they are, or as the user's turn of a chat.", choices=["plain", "chat"])
    option("system_prompt", "The system's turn before it, text or @FILE of it.")
