"""What `varlora lm-eval` is asked."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence

from varlora.cli.parsing import CommandParser

EXAMPLES = """
  varlora lm-eval --model_args posterior=runs/arc --tasks arc_easy,arc_challenge --batch_size 8
  varlora lm-eval --model_args posterior=runs/arc,samples=0 --tasks arc_easy               at the posterior's mean
  varlora lm-eval --model_args pretrained=BASE,posterior=runs/arc,samples=32,seed=1 --tasks arc_easy \\
      --include_path my-tasks --output_path results --log_samples
  varlora lm-eval ls tasks                                                                 the harness's other commands
  varlora lm-eval run --help                                                               all of the harness's options
"""
MODEL_ARGUMENTS: Mapping[str, str] = {
    "posterior=RUN": "Folder of a finished run, or of a posterior.",
    "pretrained=BASE": "Where the base model is now, if not where it was in training.",
    "samples=S": "Posterior draws; 0 is the mean alone. What was tuned, or the run's own number, otherwise.",
    "seed=N": "Decides the draws; the run's own, and so the draws of `varlora eval`, otherwise.",
    "antithetic=BOOL": "Draw in mirrored pairs. [default: true]",
    "average=HOW": (
        "`choices`: each draw divides its probability among a row's choices, as in `varlora eval`; `completions`: each "
        "text's own probability. [default: choices]"
    ),
    "logit_temperature=T": "Of the choices; the posterior's own otherwise.",
    "untuned=BOOL": "Leave aside what `varlora tune` chose. [default: false]",
    "dtype, revision, ...": "Of the base model, and whatever else the harness's model `hf` takes.",
}


class _Parser(CommandParser):
    """Reads `--help` and `--debug`; everything else is the harness's."""

    def parse(self, words: Sequence[str]) -> Namespace:
        if not words or words[0] in ("-h", "--help"):
            self.finish_help()
            self.print_help()
            raise SystemExit(0 if words else 2)
        return Namespace(words=[word for word in words if word != "--debug"])


def parser() -> CommandParser:
    """The arguments of our model; the harness reads its own."""
    command = _Parser(
        "lm-eval",
        about=(
            "Measure a posterior on the tasks of EleutherAI's lm-evaluation-harness (pip install 'varlora[lm-eval]'): "
            "probabilities of answers are averaged over the posterior's draws. What follows is handed to the harness's "
            "own command line, with --model varlora; `varlora lm-eval run --help` shows its options."
        ),
        examples=EXAMPLES,
        usage="--model_args posterior=RUN[,NAME=VALUE ...] --tasks TASK[,...] [OPTIONS OF lm-eval]",
    )
    group = command.titled_group("what --model_args takes")
    for name, help_text in MODEL_ARGUMENTS.items():
        group.add_argument(name, metavar=name, nargs="?", help=help_text)
    return command
