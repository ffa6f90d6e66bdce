"""A template is words and names, and nothing of it is evaluated."""

from __future__ import annotations

import pytest

from varlora.tasks.prompt_template import PromptTemplate

BAD = {
    "{text.__class__}": r"has \{text\.__class__\}; allowed in braces: the name of a field alone",
    "{text[0]}": r"has \{text\[0\]\}; allowed",
    "{0}": r"has \{0\}; allowed",
    "{}": r"has \{\}; allowed",
    "{text!r}": r"has \{text!r\}; allowed",
    "{text:>10000000000}": r"has \{text:>10000000000\}; allowed",
    "{text:{width}}": r"has \{text:\{width\}\}; allowed",
    "{text.format.__globals__[os]}": "allowed in braces: the name of a field alone",
    "{": "does not read: .*write {{ and }} for braces that are no field",
    "a } b {text}": "does not read: .*write {{ and }}",
    "{text": "does not read: .*write {{ and }}",
    "Label:": "has no field, so that all rows would be asked alike",
    "{{text}}": "has no field",
    "{text} Label: ": "ends in a space; leave it out",
}


@pytest.mark.parametrize(("template", "message"), BAD.items(), ids=BAD)
def test_anything_but_a_name_is_refused(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTemplate.read(template)


def test_texts_are_put_in_as_they_are_and_found_again() -> None:
    template = PromptTemplate.read("{{Q}} {question} of {my column}: {question}\n")
    values = {"question": "{my column} {0} {{}} %s", "my column": "${x} {{ cycler.__init__ }}"}

    text, places = template.filled(values)

    assert text == f"{{Q}} {values['question']} of {values['my column']}: {values['question']}\n"
    assert [(name, text[start:end]) for name, (start, end) in places] == [
        (name, values[name]) for name in ("question", "my column", "question")
    ]
    assert template.fields == ("question", "my column")
    assert template.ends_with_line


def test_a_field_at_the_end_leaves_no_spaces_before_the_answer() -> None:
    text, places = PromptTemplate.read("Q: {text}").filled({"text": "a film \n"})

    assert (text, places) == ("Q: a film", [("text", (3, 9))])
