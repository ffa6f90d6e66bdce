"""Templates of pages are strict."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from varlora.report.study_page import page_templates


def test_a_name_that_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        page_templates().from_string("{{ titel }}").render(title="x")


def test_what_is_put_in_is_escaped() -> None:
    assert page_templates().from_string("{{ x }}").render(x="</script>") == "&lt;/script&gt;"
