"""Test rows of other tasks as further splits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny_tokenizers import byte_bpe, word_level
from varlora.tasks import Collator, Task, add_shift_tasks, encode
from varlora.tasks.build import build_task
from varlora.tasks.description import Wording
from varlora.tasks.rows import Records


def questions(count: int, choices: int, name: str = "q") -> list[dict[str, Any]]:
    return [
        {"question": f"{name} {i}?", "choices": [f"choice {c}" for c in range(choices)], "answer": i % choices}
        for i in range(count)
    ]


def task_of(name: str, style: str = "varlora", **splits: list[dict[str, Any]]) -> Task:
    sources = {split: Records(where=split, rows=rows) for split, rows in splits.items()}
    return build_task(name, sources, wording=Wording(prompt_style=style), licence="CC0", source=f"the source of {name}")


TRAINED = task_of("trained", train=questions(6, 4), test=questions(2, 4, "t"))


def test_the_test_split_is_added_under_the_tasks_name() -> None:
    other = task_of("other", train=questions(3, 3), validation=questions(2, 3), test=questions(4, 3, "o"))

    task = add_shift_tasks(TRAINED, {"arc": other})

    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 6, "test": 2, "arc": 4}
    assert task.rows("arc")["prompt"] == other.rows("test")["prompt"]
    assert (task.answers, task.name) == (TRAINED.answers, "trained")
    assert "arc: 4 test rows of other (the source of other; CC0)" in task.notes


def test_a_task_of_several_test_sets_adds_each() -> None:
    other = task_of("mmlu", chemistry=questions(2, 4, "c"), physics=questions(3, 4, "p"))

    task = add_shift_tasks(TRAINED, {"mmlu": other})

    assert {split: len(rows) for split, rows in task.splits.items() if "mmlu" in split} == {
        "mmlu_chemistry": 2,
        "mmlu_physics": 3,
    }


def test_letters_are_extended_to_the_longest_question_and_the_others_stay_masked() -> None:
    other = task_of("other", train=questions(2, 6), test=[*questions(2, 3, "o"), *questions(5, 5, "p")])

    task = add_shift_tasks(TRAINED, {"o": other})

    assert task.answers == ("A", "B", "C", "D", "E"), (
        "of the rows that are added, not of the other task's training rows"
    )
    assert task.continuations == (" A", " B", " C", " D", " E")
    collate = Collator.of(task, word_level())
    batch = collate([encode(task, "o", word_level(), None)[i] for i in (0, 6)])
    assert batch["choice_mask"].tolist() == [[True, True, True, False, False], [True] * 5]
    assert batch["labels"].tolist() == [0, 4]
    trained = collate(list(encode(task, "train", word_level(), None)))
    assert trained["choice_mask"].tolist() == [[True] * 4 + [False]] * 6
    assert any("answers A, B, C, D extended to A, B, C, D, E" in note for note in task.notes)


def test_training_rows_are_the_same_with_and_without() -> None:
    task = add_shift_tasks(TRAINED, {"o": task_of("other", test=questions(5, 5, "p"))})

    with_, without = (encode(one, "train", byte_bpe(), None) for one in (task, TRAINED))
    assert with_.to_dict() == without.to_dict()
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    mask = Collator.of(task, byte_bpe())(list(with_))["choice_mask"]
    wide = logits.masked_fill(~mask, -torch.inf).log_softmax(1)
    assert torch.allclose(wide[:, :4], logits[:, :4].log_softmax(1))


def test_rows_that_training_has_seen_are_counted() -> None:
    other = task_of("other", test=[*questions(2, 4), *questions(2, 4, "o")])

    notes = add_shift_tasks(TRAINED, {"o": other}).notes

    assert "o: 2 of 4 prompts are in train too (kept)" in notes
    assert not any("test:" in note for note in notes), "the task's own splits were counted when it was loaded"


def test_classes_must_be_the_trained_ones() -> None:
    films = [{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(4)]
    reviews = [{"text": f"review {i}", "label": ("bad", "good")[i % 2]} for i in range(4)]
    topics = [{"text": f"news {i}", "label": ("sport", "art")[i % 2]} for i in range(4)]
    films_task = task_of("films", train=films)

    shifted = add_shift_tasks(films_task, {"reviews": task_of("reviews", train=reviews, test=reviews)})

    assert shifted.answers == ("bad", "good")
    assert len(shifted.rows("reviews")) == 4
    with pytest.raises(ValueError, match=r"'topics' has the classes art, sport, and 'films' has bad, good"):
        add_shift_tasks(films_task, {"topics": task_of("topics", train=topics, test=topics)})


def test_what_does_not_fit_is_refused() -> None:
    yes_no = [{"passage": "p", "question": "q", "answer": True}]
    with pytest.raises(ValueError, match=r"'yn' is of kind 'label', and 'trained' of kind 'choice'"):
        add_shift_tasks(TRAINED, {"yn": task_of("yn", test=yes_no)})
    with pytest.raises(ValueError, match=r"'o' has no test set; it has train"):
        add_shift_tasks(TRAINED, {"o": task_of("o", train=questions(1, 4))})
    with pytest.raises(ValueError, match=r"'test' gives the split 'test', which is there already"):
        add_shift_tasks(TRAINED, {"test": task_of("o", test=questions(1, 4))})
    with pytest.raises(ValueError, match=r"'m_a' gives the split 'm_a', which is there already"):
        add_shift_tasks(TRAINED, {"m": task_of("m", a=questions(1, 4)), "m_a": task_of("m_a", test=questions(1, 4))})
    trained = task_of("trained", train=yes_no)
    with pytest.raises(ValueError, match=r"answered by \(' False', ' True'\).*load both with one prompt_style"):
        add_shift_tasks(trained, {"o": task_of("o", "blob", test=yes_no)})
