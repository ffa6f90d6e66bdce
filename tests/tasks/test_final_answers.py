"""Final answers read from texts."""

from __future__ import annotations

import datasets
import pytest

from varlora.tasks import Task, final_number
from varlora.tasks.final_answers import whole_text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs\n#### 9", "9"),
        ("#### 42\n\nQuestion: another\n#### 17", "42"),  # the first, where a text runs on
        ("####42", "42"),
        ("#### $1,234.50", "1234.5"),
        ("#### -7 degrees", "-7"),
        ("#### none, but 12 before 13", "13"),  # nothing behind the mark: the last number
        ("She pays $18.00.", "18"),
        ("It is 1,000,000 dollars", "1000000"),
        ("between 1, 2 and 3,4", "4"),  # commas that part no thousands
        ("1,2345", "2345"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5.50", "-5.5"),
        ("a loss of −3", "-3"),
        ("x=-4", "-4"),
        ("10-3", "3"),
        ("(2)-1", "1"),
        ("half is .5", "0.5"),
        ("007", "7"),
        ("-0.0", "0"),
        ("0.10", "0.1"),
        ("100", "100"),
        ("75%", "75"),
        ("123456789012345678901234567890123.50", "123456789012345678901234567890123.5"),
        ("no number", None),
        ("", None),
        ("####", None),
    ],
)
def test_the_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_the_whole_text() -> None:
    assert whole_text(" a  fine\nfilm ") == "a fine film"
    assert whole_text(" \n") is None


def task_of(*completions: str, final_answer: str | None = "number") -> Task:
    rows = [{"id": f"r{i}", "prompt": "p", "completion": text} for i, text in enumerate(completions)]
    return Task(
        name="sums",
        kind="completion",
        answers=(),
        splits={"test": datasets.Dataset.from_list(rows)},
        final_answer=final_answer,  # type: ignore[arg-type]
    )


def test_a_tasks_right_answers() -> None:
    assert task_of("2 and 2 is 4", "#### 1,5").right_answers("test") == ("4", "1")
    chat = task_of("yes <|end_3|>\n", final_answer="text")
    assert chat.right_answers("test", special_tokens=["<|end_3|>"]) == ("yes",)
    with pytest.raises(ValueError, match=r"sums', test, row 'r1': its completion has no final number: 'none'"):
        task_of("4", "none").right_answers("test")
    with pytest.raises(ValueError, match="has no final answers; set final_answer"):
        task_of("4", final_answer=None).right_answers("test")


def test_only_completions_have_final_answers_and_only_those_known() -> None:
    with pytest.raises(ValueError, match="final_answer 'letter'; allowed: number, text"):
        task_of("4", final_answer="letter")
    rows = datasets.Dataset.from_list([{"id": "0", "prompt": "p", "label": 0, "num_choices": 2}])
    with pytest.raises(ValueError, match="of kind label: final_answer 'number'; allowed: none"):
        Task(name="t", kind="label", answers=("a", "b"), splits={"test": rows}, final_answer="number")
