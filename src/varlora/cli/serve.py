"""`varlora serve`: models behind HTTP."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace

from rich.markup import escape

from varlora.cli.console import say
from varlora.serve.create import check_installed, create_app
from varlora.serve.load import LoadOptions, load_models, named_folders
from varlora.serve.settings import API_KEY, NAMES, ServeSettings


def execute(arguments: Namespace) -> None:
    """Loads, and serves until the process is asked to end."""
    check_installed()
    from varlora.serve.server import serve

    settings = ServeSettings(**{name: getattr(arguments, name) for name in NAMES})
    if settings.api_key is None and API_KEY in os.environ:
        settings = dataclasses.replace(settings, api_key=os.environ[API_KEY])
    folders = named_folders(arguments.folders)
    options = LoadOptions(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(LoadOptions)})
    app = create_app(load_models(folders, options), settings=settings)

    def ready(address: str) -> None:
        names = ", ".join(escape(name) for name in folders)
        say(f"Serving {names} at [bold]{address}[/bold], where a page asks, too. Ctrl-C stops.")

    serve(app, settings, ready)
