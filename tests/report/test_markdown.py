"""Whatever a name holds, Markdown shows it and does nothing with it."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from varlora.io.visible import visible
from varlora.report import model_card
from varlora.report.latex import escape_latex
from varlora.report.markdown import escape_markdown, inline_code

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")
NAMES = (
    "a ``<img src=x onerror=alert(1)>`` b",
    "`", "``", "a`", "`a ``b``` c````",
    "<script>alert(1)</script>", "</code><b>x", "]]>", "<!-- x", "&lt;",
    "a | b", "|---|", "a\nb\n\n# c", "\r\n<b>", "[x](javascript:alert(1))", "![x](y)", "<http://x.y>",
    "* a", "- a", "+ a", "1. a", "2) a", "# a", "> a", "---", "===", "***", "___", "~~~", "```", "~~a~~", "    a",
    "\u202egnp.exe", "\x1b[31mred", "\ud800", "a\u2028b", "\\", "a\\", "\\`", "\\|",
)  # fmt: skip
TEXTS = st.one_of(st.sampled_from(NAMES), st.text("`~*_[]()<>&|\\#-+=1.!:/ \n\t\rab\u202e\x1b", max_size=12))


def shown(text: str) -> str:
    return " ".join(visible(text).split())


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(TEXTS)
def test_text_is_shown_as_it_is_wherever_it_stands(text: str) -> None:
    escaped, expected = escape_markdown(text), html.escape(shown(text), quote=False)
    for before, after in (("", "<p>{}</p>"), ("# ", "<h1>{}</h1>"), ("- ", "<ul>\n<li>{}</li>\n</ul>")):
        if expected:
            assert _plain(MARKDOWN.render(before + escaped)) == after.format(expected)
    cells = re.findall(r"<td>(.*?)</td>", _plain(MARKDOWN.render(f"| a | b |\n| --- | --- |\n| {escaped} | c |")))
    assert cells == [expected, "c"]


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(TEXTS)
def test_code_is_shown_as_it_is(text: str) -> None:
    expected = html.escape(shown(text), quote=False)
    rendered = _plain(MARKDOWN.render(f"- Answers: {inline_code(text)} and {inline_code('b')}."))
    code = f"<code>{expected}</code>" if expected else "(empty)"
    assert rendered == f"<ul>\n<li>Answers: {code} and <code>b</code>.</li>\n</ul>"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_puts_nothing_into_a_card(name: str) -> None:
    meta = {
        "method": name,
        "base_model": name,
        "adapter_config": {},
        "readout": {"kind": "class_head", "classes": [name]},
    }
    task = {"name": name, "kind": "label", "answers": [name, "b"], "source": name, "licence": name, "notes": [name]}
    metrics = {name: {"mean": {"nll": 0.5, "accuracy": 1.0}}}
    card = model_card(name=name, kind="point_mass", meta=meta, metrics=metrics, task=task, versions={"varlora": name})
    plain = model_card(
        name="a", kind="point_mass", meta={**meta, "method": "a", "base_model": "a"},
        metrics={"a": metrics[name]}, versions={"varlora": "a"},
        task={**task, "name": "a", "answers": ["a", "b"], "source": "a", "licence": "a", "notes": ["a"]},
    )  # fmt: skip
    body = card.split("---\n\n", 1)[1]
    tags = re.findall(r"<[a-z0-9/!][^>]*>", MARKDOWN.render(body))
    assert tags == re.findall(r"<[a-z0-9/!][^>]*>", MARKDOWN.render(plain.split("---\n\n", 1)[1]))
    card.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u2028]", card)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_puts_nothing_into_latex(name: str) -> None:
    escaped = escape_latex(name)
    escaped.encode("utf-8")
    assert not re.search("[\x00-\x1f\u202e]", escaped)
    commands = re.findall(r"\\[a-zA-Z]+", escaped)
    assert set(commands) <= {r"\textbackslash", r"\textasciitilde", r"\textless", r"\textgreater", r"\textbar"}


def _plain(rendered: str) -> str:
    return rendered.strip().replace("&quot;", '"')
