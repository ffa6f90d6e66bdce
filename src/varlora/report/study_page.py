"""The interactive page of a study: one HTML file with its numbers, its script and its style, and no network.

The numbers are in the page as JSON (`varlora.report.study_data`), and a script of its own draws tables and figures from
them. The page's policy (CSP) lets nothing else run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from varlora.io.folders import atomic_file
from varlora.report.study import Study
from varlora.report.study_data import study_data

SCRIPTS = ("study_dom.js", "study_charts.js", "study_figures.js", "study.js")


def page_templates() -> Environment:
    """The templates; whatever is put into one is escaped, and a name that is not given is an error.

    Example:
        >>> page_templates().from_string("{{ title }}").render(title="a < b")
        'a &lt; b'
    """
    return Environment(
        loader=PackageLoader("varlora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_study(study: Study, *, version: str = "") -> str:
    """The page as HTML; the same bytes for the same study.

    Args:
        study: What was found.
        version: Of varlora, for the foot of the page.

    Example:
        >>> page = render_study(Study(name="arc", reference="AdamW", blocks=()))
        >>> "default-src 'none'" in page
        True
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        page_templates()
        .get_template("study.html")
        .render(
            name=study.name,
            data=Markup(_json(study)),
            script=Markup(script),
            script_hash=Markup(f"sha256-{digest}"),
            version=version,
        )
    )


def write_study(study: Study, path: Path, *, version: str = "", overwrite: bool = True) -> Path:
    """`render_study` into a file, which holds the old page or the new one and never half of it.

    Args:
        study: What was found.
        path: The file.
        version: Of varlora.
        overwrite: Replace the file if it exists.

    Raises:
        ValueError: It exists and may not be replaced.
    """
    page = render_study(study, version=version)
    with atomic_file(path, overwrite=overwrite) as file:
        file.write_text(page, encoding="utf-8")
    return path


def _json(study: Study) -> str:
    """The numbers, so that nothing in them can end the element that they stand in."""
    text = json.dumps(study_data(study), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for symbol in "<>&\u2028\u2029":
        text = text.replace(symbol, f"\\u{ord(symbol):04x}")
    return text


def _script() -> str:
    """The page's script, in a scope of its own."""
    folder = Path(__file__).parent / "templates"
    parts = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();'
