"""`varlora export`: a posterior as plain PEFT adapters, for servers that know of no posterior."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rich.markup import escape

from varlora.cli.console import say
from varlora.cli.operation import check_output
from varlora.io.words import counted
from varlora.prediction.prediction_setup import choose_default_config, remove_tuning
from varlora.runs.any_posterior import read_posterior
from varlora.runs.export import export_adapters
from varlora.runs.finished import run_now
from varlora.runs.folder import EXPORT, is_run, read_config, read_run
from varlora.runs.merged import export_merged


def execute(arguments: Namespace) -> None:
    """Exports."""
    check_output(arguments.output_dir, [arguments.source], overwrite=arguments.overwrite, marker=EXPORT)
    if arguments.merged:
        _merge(arguments)
        return
    if arguments.quantization is not None:
        raise ValueError("--quantization has no effect without --merged; leave it out.")
    source = Path(arguments.source)
    q = read_posterior(arguments.source)
    q = remove_tuning(q) if arguments.untuned else q
    config = read_config(source) if is_run(source) else None
    samples, seed = arguments.samples, arguments.seed
    if config is not None:
        samples = choose_default_config(q, samples, config.samples).draws(config.samples)
        seed = config.seed if seed is None else seed
    export = export_adapters(
        q,
        arguments.output_dir,
        samples=samples,
        seed=seed or 0,
        name=arguments.name,
        base_model=arguments.model_name_or_path,
        source=source if config is not None else None,
        overwrite=arguments.overwrite,
    )
    for adapter in export.adapters:
        say(f"{adapter.name}  [dim]{adapter.weight:.4g}[/dim]")
    weights = ", with their weights in the average" if len(export.adapters) > 1 else ""
    number = counted(len(export.adapters), "adapter")
    _say(f"{number} of {escape(export.base_model)}{weights}", arguments.output_dir)
    if export.not_plain:
        say(f"vLLM and SGLang do not load them: they have {escape(', '.join(export.not_plain))}.")


def _merge(arguments: Namespace) -> None:
    """One model."""
    if given := [name for name in ("samples", "seed", "name") if getattr(arguments, name) is not None]:
        raise ValueError(f"--{given[0]} is about adapters, and --merged writes one model of the mean; leave one out.")
    run = run_now(
        read_run(arguments.source), quantization=arguments.quantization, model_name_or_path=arguments.model_name_or_path
    )
    export = export_merged(run, arguments.output_dir, untuned=arguments.untuned, overwrite=arguments.overwrite)
    _say(f"The mean, merged into {escape(export.base_model)}", arguments.output_dir)


def _say(what: str, output_dir: str) -> None:
    say(f"{what}; written to [bold]{escape(output_dir)}[/bold], whose README.md has the commands that serve it.")
