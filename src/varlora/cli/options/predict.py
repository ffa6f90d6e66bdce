"""What `varlora predict` is asked."""

from __future__ import annotations

from varlora.cli.options.finished import add_options
from varlora.cli.options.selective import add_selective
from varlora.cli.parsing import CommandParser

MODES = ("mean", "samples", "linearised")
EXAMPLES = """
  varlora predict runs/arc --input_file questions.jsonl --output_file answers.jsonl
  varlora predict runs/sst2 --input_file reviews.jsonl --output_file answers.parquet --samples 32
  varlora predict runs/arc --input_file questions.jsonl --output_file answers.jsonl --target_accuracy 0.95
  echo '{"text": "a fine film"}' | varlora predict runs/sst2 --input_file - --output_file -
"""
FIRST = (
    "input_file output_file samples coverage target_accuracy prediction_sets untuned model_name_or_path "
    "per_device_eval_batch_size overwrite"
)


def parser() -> CommandParser:
    """The run, the rows, and where to write."""
    command = CommandParser(
        "predict",
        about=(
            'Answer rows with a finished run. The rows need no labels: {"text": ...}, {"question": ..., '
            '"choices": [...]} or {"passage": ..., "question": ...}, as in training. For each: its columns, '
            "prediction, confidence, probabilities, predictive_entropy, and mutual_information (how far the draws "
            'disagree) where the posterior is sampled. A run on completions writes on after {"prompt": ...} or '
            '{"messages": [...]}: prediction (the final answer that most draws give, or their text), agreement (their '
            "share), answers (all of them with their shares), text, log_likelihood_per_token and finished."
        ),
        examples=EXAMPLES,
        usage="RUN --input_file FILE --output_file FILE [OPTIONS]",
        first=FIRST,
    )
    command.option(
        "input_file",
        "Rows: JSONL, CSV or Parquet, or - for standard input; labels in it are not looked at.",
        required=True,
    )
    command.option(
        "output_file",
        "File to write, .jsonl or .parquet, with all columns of the input, or - for JSONL on standard output.",
        required=True,
    )
    command.option(
        "mode",
        "How to predict: at the posterior's mean, by its draws, or by draws of the linearised model's logits.",
        choices=MODES,
    )
    add_selective(command)
    command.option(
        "check_exchangeability",
        "Say whether these rows still look drawn as those that the decision is from, by their confidences; X is the "
        "chance of a false alarm, 0.01 unless given.",
        type=float,
        nargs="?",
        const=0.01,
    )
    command.flag("undecided", "Answer every row: leave aside what `varlora decide` chose.")
    add_options(command, auto=True)
    return command
