"""`varlora export`: a posterior as plain PEFT adapters, for servers that know of no posterior."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from rich.markup import escape

from varlora.cli.console import out
from varlora.cli.operation import check_output, read_posterior
from varlora.prediction.prediction_setup import choose_default_config, remove_tuning
from varlora.runs.export import MANIFEST, export_adapters
from varlora.runs.folder import is_run, read_config


def execute(arguments: Namespace) -> None:
    """Exports."""
    source = Path(arguments.source)
    check_output(arguments.output_dir, [arguments.source], overwrite=arguments.overwrite, marker=MANIFEST)
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
        out.print(f"{adapter.name}  [dim]{adapter.weight:.4g}[/dim]", highlight=False)
    number = "1 adapter" if len(export.adapters) == 1 else f"{len(export.adapters)} adapters"
    out.print(
        f"{number} of {escape(export.base_model)}, with their weights in the average; written to "
        f"[bold]{escape(arguments.output_dir)}[/bold], whose README.md has the commands that serve them.",
        highlight=False,
        soft_wrap=True,
    )
    if export.not_plain:
        out.print(
            f"vLLM and SGLang do not load them: they have {escape(', '.join(export.not_plain))}.",
            highlight=False,
            soft_wrap=True,
        )
