"""Settings that are texts and may be written in files of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varlora.io.files import LARGEST_JSON, read_text

logger = logging.getLogger(__name__)

TEXTS = ("prompt_template", "system_prompt")


def read_texts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the texts of the files that @FILE names, without the line break at their end.

    For what a user writes, a command line or a plan: a run's folder holds the texts, and opens no file.

    Args:
        settings: by name.

    Raises:
        ValueError: a file is not there, or is no text.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "prompt.txt")
        >>> _ = file.write_text("{text}\\nSentiment:\\n", encoding="utf-8")
        >>> read_texts({"prompt_template": f"@{file}"})
        {'prompt_template': '{text}\\nSentiment:'}
    """
    texts = dict(settings)
    for name in TEXTS:
        value = settings.get(name)
        if not isinstance(value, str):
            continue
        if not value.startswith("@"):
            if "\\n" in value and "\n" not in value:
                logger.warning(
                    "%s has a backslash and an n, which are no line break: write it as @FILE, or in bash as $'...'",
                    name,
                )
            continue
        file = Path(value[1:])
        if not file.is_file():
            raise ValueError(f"{name} is {value!r}, and there is no file {file}.")
        text = read_text(file, largest=LARGEST_JSON)
        texts[name] = text.removesuffix("\n").removesuffix("\r")
    return texts
