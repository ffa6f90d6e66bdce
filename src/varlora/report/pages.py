"""How the templates of pages are read: escaped, and strict about what they are given."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


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
