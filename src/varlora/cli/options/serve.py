"""What `varlora serve` is asked."""

from __future__ import annotations

from varlora.cli.parsing import CommandParser
from varlora.serve.settings import ServeSettings

EXAMPLES = """
  varlora serve runs/reviews
  varlora serve runs/reviews support=runs/2024-06 --port 9000
  VARLORA_API_KEY=... varlora serve runs/reviews --host 0.0.0.0
  varlora serve exported/NAME-draw*
"""
FIRST = "host port api_key samples text_samples base_model device dtype timeout max_waiting"


def parser() -> CommandParser:
    """The folders, how they are loaded, where and for whom the server listens."""
    command = CommandParser(
        "serve",
        about=(
            "Answer over HTTP: /v1/classify (texts or rows in; classes, probabilities, entropy, mutual information and "
            "abstention out), /v1/chat/completions and /v1/completions as OpenAI's client asks them, /v1/models, "
            "/healthz, /metrics, and a page at /. Requests are computed together as they come. Folders on one base "
            "model share it. Needs the extra: pip install 'varlora[serve]'."
        ),
        examples=EXAMPLES,
        usage="FOLDER [FOLDER ...] [OPTIONS]",
        options=ServeSettings,
        first=FIRST,
    )
    command.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="+",
        help="A finished run, a posterior's or a Trainer's folder, a plain PEFT adapter, or a causal language "
        "model; NAME=FOLDER says by which name requests ask for it, else the folder's own is.",
    )
    command.option(
        "samples",
        "Posterior draws of an answer; 0 is the mean. Otherwise what was tuned, or the run's own number if its "
        "validation rows have shown that draws help.",
        type=int,
    )
    command.flag("untuned", "Predict as training left the posterior: leave aside what `varlora tune` chose.")
    command.flag("undecided", "Answer every row: leave aside what `varlora decide` chose.")
    command.option("base_model", "Where the base model is now, if not where it was in training.", metavar="MODEL")
    command.option("device", "Where the models go, such as cpu or cuda:1; a CUDA GPU where there is one.")
    command.option(
        "dtype",
        "Data type of the frozen weights; as in training otherwise.",
        choices=["float32", "bfloat16", "float16"],
    )
    command.option("truncation", "What to do with rows that are too long.", choices=["error", "left", "right"])
    return command
