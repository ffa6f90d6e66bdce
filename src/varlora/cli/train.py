"""`varlora train`: one run, from the model and the rows to the folder."""

from __future__ import annotations

from argparse import Namespace

from rich.markup import escape

from varlora.cli.console import out, say
from varlora.runs.config import RunConfig, setting_names
from varlora.runs.text_settings import read_texts
from varlora.training.stopping import Stopped, reworded

MODES = {
    "mean": "mean: one set of weights, the posterior's mean (an ensemble's first member)",
    "samples": "samples: the average over its draws",
    "linearised": "linearised: the average over draws of the linearised model's logits",
}


def config_of(arguments: Namespace) -> RunConfig:
    """The settings of a run among the arguments.

    Raises:
        ValueError: they do not fit.
    """
    known = set(setting_names([arguments.method]))
    return RunConfig.from_dict(read_texts({name: value for name, value in vars(arguments).items() if name in known}))


def execute(arguments: Namespace) -> None:
    """Runs it."""
    config = config_of(arguments)  # a mistake in it is told before torch is imported
    from accelerate import PartialState

    from varlora.cli.health import say_verdict
    from varlora.cli.tables import metrics_tables, temperatures_of
    from varlora.prediction.prediction_setup import modes_of
    from varlora.runs.run import AlreadyFinishedError, run

    try:
        result = run(config, overwrite=arguments.overwrite, resume=arguments.resume, progress=not arguments.no_progress)
    except AlreadyFinishedError as finished:
        if PartialState().is_main_process:
            say(escape(str(finished)))
        return
    except Stopped as stop:
        raise reworded(stop, f"{stop} The same command with --resume goes on.") from stop
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            "interrupted. The same command with --resume goes on from the last checkpoint, if there is one yet "
            f"(--save_steps is {config.save_steps}); with --overwrite it starts afresh."
        ) from stop
    if not PartialState().is_main_process:  # under torchrun one process speaks for all
        return
    for table in metrics_tables(result.metrics, temperatures=temperatures_of(result.posterior)):
        out.print(table)
    say_verdict(result.health, config.output_dir)
    say(f"[dim]The numbers behind it: varlora health {escape(config.output_dir)}[/dim]")
    where = f"[bold]{escape(config.output_dir)}[/bold]"
    since = " since it was resumed" if result.resumed else ""
    out.print(f"Trained in {result.seconds['train']:.0f} s{since}. The run is in {where}.", soft_wrap=True)
    explained = [MODES[mode] for mode in modes_of(result.posterior, config.samples)]
    if len(explained) > 1:
        say(f"[dim]{'; '.join(explained)}.[/dim]")
    following = f"varlora eval {config.output_dir}"
    following += f"   or   varlora predict {config.output_dir} --input_file new.jsonl --output_file answers.jsonl"
    say(f"Next: [cyan]{escape(following)}[/cyan]")  # a path stays whole
