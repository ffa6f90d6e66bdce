"""A health report in words."""

from __future__ import annotations

from typing import Any

import pytest

from varlora.report import Health
from varlora.report.course import Course
from varlora.report.health import HeldOutEnd
from varlora.report.health_text import remarks, scale_table, sentence, statements
from varlora.report.sampling import Agreement, Learned, Paired
from varlora.report.scales import ScaleGroup, TensorScale


def health(difference: float | None = -0.12, error: float = 0.03, **changes: Any) -> Health:
    given: dict[str, Any] = {
        "kind": "diagonal_gaussian",
        "method": "ivon",
        "draws": 10,
        "sampling_rows": 300,
        "validation_rows": 300,
        "temperatures": (1.52, 1.31),
        **changes,
    }
    if difference is not None:
        given["sampling"] = Paired(difference=difference, standard_error=error)
    return Health(**given)


def end(log_temperature: float, error: float = 0.1, source: Any = "validation") -> HeldOutEnd:
    return HeldOutEnd(source=source, rows=64, log_temperature=log_temperature, error=error)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            health(-0.12),
            "Sampling helps here (validation NLL −0.12 ± 0.03, each at its own T): use samples=10 (T = 1.31).",
        ),
        (
            health(-0.03),
            "Sampling gives no gain here (validation NLL −0.03 ± 0.03, each at its own T): use the mean (samples=0, "
            "T = 1.52), it is ten times cheaper.",
        ),
        (
            health(0.03, draws=32, temperatures=None),
            "gives no gain here (validation NLL +0.03 ± 0.03, both at T = 1): use the mean (samples=0), it is 32",
        ),
        (
            health(0.0, 0.0, draws=1, temperatures=(1.0, 1.0)),
            "(validation NLL 0.00 ± 0.00, each at its own T): use the mean (samples=0), which is simpler.",
        ),
        (
            health(0.036),
            "Sampling hurts here (validation NLL +0.04 ± 0.03, each at its own T): use the mean (samples=0, T = 1.52).",
        ),
        (health(-0.0009, 0.0004), "Sampling gives no gain here (validation NLL −0.0009 ± 0.0004, each"),
        (
            health(in_training=True, temperatures=None),
            "Sampling helps here (NLL of validation rows in training −0.12 ± 0.03, both at T = 1): use samples=10.",
        ),
        (health(sampling_source="train", in_training=True), "(NLL of withheld training rows −0.12 ± 0.03, "),
        (health(completions=True), "(validation NLL of completions −0.12 ± 0.03, "),
        (
            health(linearised=True, draws=100),
            "The linearised posterior helps here (validation NLL −0.12 ± 0.03, each at its own T): use it (T = 1.31).",
        ),
        (health(0.0, linearised=True), "use the mean (samples=0, T = 1.52), which is cheaper."),
        (health(0.2, kind="mixture", draws=3), "use the first member (samples=0, T = 1.52)."),
        (health(0.2, kind="dropout_masks"), "use one pass without dropout (samples=0, T = 1.52)."),
        (health(kind="point_mass"), "It holds one set of weights, so there is nothing to sample"),
        (
            health(None, unknown="there are no predictions for validation rows"),
            "Nothing can be said of sampling here: there are no predictions for validation rows. Train with 20 "
            "labelled validation rows or more (validation_file or validation_size) to know.",
        ),
        (health(None, unknown="x", derived=True), "here: x. `varlora tune` predicts the validation rows of the run"),
        (
            health(None, unknown="validation rows were predicted at the mean only"),
            "`varlora tune` tries draws on them",
        ),
        (health(None, unknown="x", linearised=True), "Nothing can be said of the linearised posterior here: x."),
    ],
)
def test_one_sentence(found: Health, expected: str) -> None:
    assert expected in sentence(found)


def test_tuning_is_pointed_out_where_it_can_be_done_and_was_not() -> None:
    assert remarks(health(), "runs/a") == [
        "`varlora tune runs/a` chooses how to predict with it on the 300 validation rows."
    ]
    assert remarks(health(validation_rows=19)) == []
    assert "all of this is as trained" in remarks(health(tuned=True))[0]
    assert remarks(health(kind="point_mass")) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"held_out": end(0.3)}, "still over-confident at the end (log T̂ +0.30 ± 0.10): λ had not settled"),
        ({"held_out": end(-0.3)}, "still under-confident at the end"),
        ({"held_out": end(0.3)}, "divide the logits (`varlora tune here`)"),
        ({"held_out": end(0.3), "validation_rows": 0}, "where there are validation rows"),
        ({"ess": 100.0, "ess_start": 1000.0}, "lower bound, λ_0/10: the model is over-confident"),
        ({"ess": 100.0, "ess_start": 1000.0, "held_out": end(0.3)}, "λ_0/10 (log T̂ +0.30 ± 0.10): "),
        (
            {"ess": 100.0, "ess_start": 1000.0, "logit_temperature": 1.5},
            "as much noise as is allowed, and its logits are divided (T = 1.50).",
        ),
        ({"ess": 100.0, "ess_start": 1000.0, "fitted": True}, "and a temperature was fitted, which stays at 1."),
        ({"ess": 1e5, "ess_start": 1000.0}, "upper bound, 100 λ_0, where the noise is as good as off"),
    ],
)
def test_what_has_not_settled_is_said_with_what_to_do(changes: dict[str, Any], expected: str) -> None:
    told = remarks(health(**changes), "here")
    assert expected in told[0]


def test_where_the_rows_have_kept_the_temperature_at_one_no_other_is_advised() -> None:
    assert not any("divide" in one for one in remarks(health(held_out=end(0.3), fitted=True)))


OVERTRAINED = {"ess": 100.0, "ess_start": 1000.0, "course": Course(epochs=3.0, falling=False)}
UNLEARNED = Learned(rows=100, right=52, most_frequent=55)


@pytest.mark.parametrize(
    ("changes", "fewer"),
    [
        ({}, True),
        ({"learned": Learned(rows=100, right=80, most_frequent=55)}, True),
        ({"learned": UNLEARNED}, False),
        ({"course": Course(epochs=0.8, falling=False)}, False),
        ({"course": Course(epochs=3.0, falling=True)}, False),
        ({"course": None}, False),
        ({"course": Course()}, False),
    ],
)
def test_fewer_steps_are_advised_only_after_a_training_that_may_be_too_long(
    changes: dict[str, Any], fewer: bool
) -> None:
    told = " ".join(remarks(health(**{**OVERTRAINED, **changes}), "here"))
    assert "λ ended at its lower bound" in told
    assert ("Train for fewer steps, or divide the logits" in told) == fewer
    assert ("Divide the logits" in told) != fewer


@pytest.mark.parametrize("kind", ["diagonal_gaussian", "point_mass"])
def test_a_model_that_has_not_learned_the_task_is_told_so_first(kind: str) -> None:
    told = remarks(health(kind=kind, learned=UNLEARNED))
    assert told[0].startswith(
        "The model has not learned the task yet: it is right on 52.0 % of 100 validation rows (95 % interval 42 to 62 "
        "%), and the most frequent answer on 55.0 %. Train for more steps, or with a higher learning rate"
    )
    assert not any("not learned" in one for one in remarks(health(kind=kind)))


@pytest.mark.parametrize(
    ("rows", "right", "most_frequent"),
    [(30, 19, 15), (6, 4, 3), (6, 2, 3), (1, 1, 1)],  # more often right than that answer, or too few to tell
)
def test_where_rows_cannot_tell_whether_it_is_learned_that_is_what_is_said(
    rows: int, right: int, most_frequent: int
) -> None:
    told = remarks(health(learned=Learned(rows=rows, right=right, most_frequent=most_frequent)))[0]
    assert told.startswith("It is not shown that the model has learned the task: it is right on ")
    assert f" of {rows} validation row" in told
    assert "or give more validation rows" in told


@pytest.mark.parametrize("kind", ["diagonal_gaussian", "point_mass"])
def test_skipped_steps_are_counted_and_said(kind: str) -> None:
    found = health(kind=kind, steps=6, skipped_steps=4)
    assert ("Skipped steps", "4 of 6", "for a gradient that was not finite") in statements(found)
    assert remarks(found)[0].startswith("4 of 6 steps were skipped")
    assert not any("kipped" in one for one in remarks(health(kind=kind, steps=6)))


@pytest.mark.parametrize(
    "changes",
    [
        {"held_out": end(0.2)},
        {"held_out": end(-0.2)},
        {"held_out": end(0.3), "logit_temperature": 1.4},
        {"ess": 500.0, "ess_start": 1000.0},
    ],
)
def test_what_has_settled_or_is_divided_already_is_not(changes: dict[str, Any]) -> None:
    assert not any("Train for" in told for told in remarks(health(**changes)))


def test_each_number_with_its_meaning() -> None:
    told = health(
        one_draw=Paired(difference=0.05, standard_error=0.01),
        agreement=Agreement(rows=310, single=0.973, all_draws=0.91, mutual_information=0.0123),
        num_examples=10,
        ess=312.0,
        ess_start=1000.0,
        held_out=end(0.05, source="train"),
        hessian_moved=0.0,
        hessian_kept=True,
        rate=0.1,
    )
    found = {name: (value, meaning) for name, value, meaning in statements(told)}
    assert found["Sampled − mean NLL"] == (
        "−0.12 ± 0.03",
        "nats, on 300 validation rows, paired; 10 draws averaged; each at its own T, fitted to "
        "others of them; all ask for 1.52 at the mean, 1.31 of the draws",
    )
    assert found["Cost of the noise"][0] == "+0.05 ± 0.01"
    assert found["Agreement of draws"] == (
        "97.3 %",
        "of the draws' answers are the mean's; on 91.0 % of 310 validation rows all 10 are",
    )
    assert found["Mutual information"][0] == "0.0123"
    assert found["λ/N"] == (
        "31.2",
        "from 100 at the start, steered by held-out rows; no distance from Bayes' rule, since h was not learned",
    )
    assert found["Missing temperature log T̂"][0] == "+0.05 ± 0.10"
    assert "64 withheld training rows" in found["Missing temperature log T̂"][1]
    assert found["Movement of h"] == ("0 %", "median |h/h0 − 1|: kept at h0 by the recipe")
    assert found["Dropout rate"][0] == "0.1"


def test_what_is_not_known_is_left_out() -> None:
    assert statements(health(None)) == []
    assert scale_table(health()) is None
    learned = {name: meaning for name, _, meaning in statements(health(None, hessian_moved=0.9))}
    assert "learned from the data" in learned["Movement of h"]
    plain = health(None, ess=10.0, num_examples=10, hessian_moved=0.9)
    unsteered = {name: meaning for name, _, meaning in statements(plain)}
    assert unsteered["λ/N"] == "weight of the data against the prior: plain Bayes"
    stayed = statements(health(None, ess=10.0, ess_start=10.0, num_examples=10))
    assert "as at the start" in stayed[0][2]
    in_training = statements(health(sampling_source="train", in_training=True))
    assert "300 withheld training rows" in in_training[0][2]
    assert in_training[0][2].endswith("as of 10 draws averaged; each at its own T: the mean's 1.52, the draws' 1.31")
    at_one = statements(health(sampling_source="train", in_training=True, temperatures=None))
    assert at_one[0][2].endswith("training, 4 draws averaged; both at T = 1")


def test_a_table_of_scales_names_the_middle_and_the_widest() -> None:
    stem = "base_model.model.model.layers"
    tensors = tuple(
        TensorScale(key=f"{stem}.{i}.self_attn.{p}_proj.lora_A.weight", noise=noise, weights=1.0, entries=4)
        for i, p, noise in ((0, "q", 0.1), (1, "v", 0.5), (1, "q", 3.0))
    )
    head = TensorScale(key="base_model.model.score.weight", noise=1.0, weights=0.0, entries=2)
    groups = ScaleGroup(name="LoRA A", tensors=tensors), ScaleGroup(name="head", tensors=(head,))
    table = scale_table(health(groups=groups, exact=2))
    assert table is not None
    lines = table.to_markdown().splitlines()
    assert lines[2] == (
        "| LoRA A (3) | 1.8 | 0.5<br>layers.1.self\\_attn.v\\_proj | 3<br>layers.1.self\\_attn.q\\_proj |"
    )
    assert lines[3] == "| head (1) | ∞ | ∞<br>score | ∞<br>score |"
    assert "2 other tensors have no noise" in lines[-1]


def test_the_words_of_a_mixture() -> None:
    names = [name for name, *_ in statements(health(kind="mixture", one_draw=Paired(difference=0.0, standard_error=1)))]
    assert names == ["Sampled − first member NLL", "One draw − first member"]
