"""The reproduction ledger: what is compared with what, and what is said to be missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ledger import Published, ledger, ours, read_published

from varlora.report import Comparison, Row
from varlora.report.study import Block, Study

PUBLISHED = Path(__file__).parents[2] / "recipes" / "published.yaml"
LABELS = torch.tensor([0] * 10)


def row(method: str, seed: int, right: int) -> Row:
    """The first `right` of ten rows answered right, each with probability .8."""
    answers = torch.tensor([0] * right + [1] * (10 - right))
    probs = torch.where(torch.nn.functional.one_hot(answers, 2) == 1, 0.8, 0.2)
    return Row(method=method, seed=seed, split="test", log_probs=probs.double().log(), labels=LABELS)


def block(task: str, rights: dict[str, tuple[int, ...]], model: str = "llama") -> Block:
    rows = [row(method, seed, right) for method, found in rights.items() for seed, right in enumerate(found)]
    return Block(model=model, task=task, comparison=Comparison(task=task, rows=rows, resamples=40))


def study(*blocks: Block) -> Study:
    return Study(name="plan", reference="AdamW", blocks=blocks)


def published(**changes: Any) -> Published:
    given: dict[str, Any] = {
        "what": "llama, two tasks",
        "source": "a paper",
        "recipe": "r.yaml",
        "model": "llama",
        "tasks": ("a", "b"),
        "row": "IVON",
        "values": {"accuracy": 70.0, "nll": 0.5},
    }
    return Published(**{**given, **changes})


BOTH = study(block("a", {"AdamW": (5, 7), "IVON": (6, 8)}), block("b", {"AdamW": (9, 9), "IVON": (8, 10)}))


def test_our_mean_is_over_the_published_tasks_and_then_over_seeds() -> None:
    found = ours(published(), BOTH, "accuracy")
    assert found is not None
    assert found.mean == pytest.approx(80.0)  # seeds: (60 + 80) / 2 = 70 and (80 + 100) / 2 = 90
    assert found.se == pytest.approx(10.0)  # sd 10 √2 over √2
    assert found.seeds == 2
    nll = ours(published(tasks=("a",)), BOTH, "nll")
    assert nll is not None
    each = [-(right * math.log(0.8) + (10 - right) * math.log(0.2)) / 10 for right in (6, 8)]
    assert nll.mean == pytest.approx(sum(each) / 2)


def test_a_published_difference_is_set_against_our_difference() -> None:
    found = ours(published(against="AdamW", values={"accuracy": 1.3}), BOTH, "accuracy")
    assert found is not None
    assert found.mean == pytest.approx(5.0)  # (10 - 10) / 2 = 0 and (10 + 10) / 2 = 10
    assert "| +1.3 | +5.0 ± 5.0 | 2 |" in ledger(
        [published(against="AdamW", values={"accuracy": 1.3})], {"r.yaml": BOTH}, {}
    )


@pytest.mark.parametrize(
    "missing",
    [
        study(block("a", {"AdamW": (5,), "IVON": (6,)})),
        study(*BOTH.blocks[:1], Block(model="llama", task="b", comparison=None, missing=("all",))),
        study(*BOTH.blocks[:1], block("b", {"AdamW": (5,)})),
        study(*BOTH.blocks[:1], block("b", {"AdamW": (5,), "IVON": (6,)}, model="another")),
    ],
)
def test_a_mean_over_tasks_of_which_one_was_not_run_is_not_given(missing: Study) -> None:
    assert ours(published(), missing, "accuracy") is None
    assert "| 70.0 | not run here | – |" in ledger([published()], {"r.yaml": missing}, {})


def test_a_published_number_keeps_its_digits() -> None:
    text = ledger([published(values={"accuracy": 17.95, "nll": 0.5}, prompt_style="laplace-lora")], {}, {})
    assert "| accuracy % | 17.95 | not run here | – | laplace-lora |" in text
    assert "| nll | 0.500 |" in text


def test_one_seed_has_no_error() -> None:
    one = study(block("a", {"AdamW": (5,), "IVON": (6,)}))
    found = ours(published(tasks=("a",)), one, "accuracy")
    assert found is not None
    assert (found.se, found.seeds) == (None, 1)


def test_a_study_of_another_recipe_is_not_ours() -> None:
    assert "not run here" in ledger([published()], {"other.yaml": BOTH}, {})


def test_small_variants_are_listed_with_what_is_missing() -> None:
    small = study(*BOTH.blocks, Block(model="llama", task="c", comparison=None, missing=("AdamW: seed 0",)))
    text = ledger([published()], {}, {"r.yaml": small})
    assert "**`varlora compare r.yaml --small`**" in text
    assert "| llama | a | IVON | 70.0 |" in text
    assert "| llama | c | AdamW: seed 0 | – |" in text


def test_the_published_values_are_read() -> None:
    rows = read_published(PUBLISHED)
    assert {row.recipe for row in rows} >= {"recipes/cong2024-llama-2-7b.yaml", "recipes/cong2025-llama-3.2-3b.yaml"}
    for found in rows:
        assert (PUBLISHED.parents[1] / found.recipe).is_file()
    workshop = {found.row: dict(found.values) for found in rows if found.model == "llama-2-7b"}
    assert workshop["IVON, 10 samples"] == {"accuracy": 77.8, "ece_10": 10.6, "nll": 1.11}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must hold a list of published rows"),
        ("- what: x", "row 1 lacks source, recipe, model, tasks, row, values"),
        ("- [1]", "row 1: .* must be a mapping"),
        ("- {what: x, sorce: y}", "row 1: unknown field 'sorce'; did you mean 'source'"),
        ("- {what: x, source: y, recipe: r, model: m, tasks: a, row: l, values: {nll: 1}}", "tasks must be a list"),
        ("- {what: x, source: y, recipe: r, model: m, tasks: [], row: l, values: {nll: 1}}", "at least one task"),
        (
            "- {what: x, source: y, recipe: r, model: m, tasks: [a], row: l, values: {acc: 1}}",
            "no metric 'acc'",
        ),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "published.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_published(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file of published values .*absent\.yaml"):
        read_published(tmp_path / "absent.yaml")
