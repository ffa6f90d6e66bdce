"""Options that `eval`, `predict` and `tune` share: a finished run, and how to predict with it."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser


def add_options(made: CommandParser) -> None:
    """The run, how to predict with it, and the output; a command's own options come before."""
    made.option(
        "samples",
        "Posterior draws; 0 is the mean alone. Otherwise what was tuned, or the run's own number; `predict` then draws "
        "only if validation rows have shown that draws help.",
        type=int,
    )
    made.option(
        "dataset_columns",
        "Columns of a file that is given by our names, e.g. 'text=sentence'; those of the run's data otherwise, where "
        "the file has them.",
        metavar="PAIRS",
    )
    made.option("max_new_tokens", "Most tokens of a text that is written; the run's own otherwise.", type=int)
    made.flag("untuned", "Predict as training left the posterior: leave aside what `varlora tune` chose.")
    add_run(made)
    made.flag("overwrite", "Replace the output file.")


def add_run(made: CommandParser) -> None:
    """The run, and where and how it is run now."""
    made.add_argument("run", metavar="RUN", help="Folder of a finished run.")
    made.option("model_name_or_path", "Where the base model is now, if not where it was in training.", metavar="MODEL")
    made.option("gguf_file", "Name of the GGUF file there, if it is one.", metavar="FILE")
    made.option("truncation", "What to do with rows that are too long.", choices=["error", "left", "right"])
    made.option("per_device_eval_batch_size", "Rows per device.", type=int)
    made.flag("no_progress", "Show no progress bars.")
