"""transformers without what it shows of each model that it loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as progress_bars


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block there are no bars of weights, and no report of those that a checkpoint lacks.

    Ours are of the work, and a head that the base model lacks is trained, or comes with the adapter.
    """
    shown, models = progress_bars.is_progress_bar_enabled(), logging.getLogger("transformers.modeling_utils")
    progress_bars.disable_progress_bar()  # type: ignore[no-untyped-call]
    models.addFilter(_is_error)  # of a logger with a level of its own transformers verifies plans for several GPUs
    try:
        yield
    finally:
        models.removeFilter(_is_error)
        if shown:
            progress_bars.enable_progress_bar()  # type: ignore[no-untyped-call]


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
