"""A folder on the hub, fetched once: the files that a predictor reads, and no others."""

from __future__ import annotations

import os
import re
from pathlib import Path

from varlora.runs.folder import TOKENIZER_FILES

NEEDED = (
    *("config.yaml", "run.json", "posterior.json", "decision.json", "adapter_config.json"),
    *("adapter_model.safetensors", "posterior.safetensors"),
    *(f"{start}*{end}" for start in TOKENIZER_FILES for end in (".json", ".jinja", ".model", ".txt")),
)
"""Names and patterns; none is of a pickle."""
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(name: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder itself, or the copy of one on the hub, which is fetched unless it is there.

    Args:
        name: a folder, or "OWNER/NAME" on the hub.
        revision: branch, tag or commit, of one on the hub.

    Raises:
        ValueError: there is no such folder, and nothing under that name on the hub.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> local_folder(folder) == Path(folder)
        True
    """
    path = Path(name)
    if path.exists() or not _NAME.fullmatch(os.fspath(name)):
        if revision is not None:
            raise ValueError(f"revision is {revision!r}, and {path} is no name on the hub; leave it out.")
        return path
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        fetched = huggingface_hub.snapshot_download(os.fspath(name), revision=revision, allow_patterns=list(NEEDED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"there is no folder {path} here, and nothing could be fetched from the hub under that name ({first}). "
            "Give a folder that `varlora train` has written, or OWNER/NAME of one on the hub; without a network "
            "(HF_HUB_OFFLINE=1) it must have been fetched before."
        ) from error
    return Path(fetched)
