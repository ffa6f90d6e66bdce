"""Decisions: applied to predictions, by group, kept in a folder and read back."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from varlora.metrics import CannotGuaranteeError, evaluate
from varlora.metrics.costs import Costs
from varlora.metrics.recalibration import Temperatures
from varlora.metrics.venn_abers import VennAbers
from varlora.posterior import PointMass, PredictionConfig
from varlora.posterior.folder import save_posterior
from varlora.posterior.manifest import write_tuned
from varlora.prediction.prediction import Prediction
from varlora.runs.calibration import Calibration, ChosenOn
from varlora.runs.choose_decision import Wanted, WantedBands, choose_decision
from varlora.runs.decision import Decision, Groups


def predicted(rows: int, *, seed: int = 0, draws: int = 3, unknown: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, draws, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1).mean(1), 1, generator=generator).squeeze(-1)
    labels[:unknown] = -1
    return Prediction(log_probs=logits.log_softmax(-1), labels=labels)


def calibration_of(rows: Prediction) -> Calibration:
    return Calibration(prediction=rows, chosen_on=ChosenOn(source="validation", rows=len(rows.labels)))


def chosen(wanted: Wanted, rows: Prediction, groups: Groups | None = None) -> Decision:
    column = None if groups is None else "kind"
    return choose_decision(wanted, calibration_of(rows), group_column=column, groups=groups)


def test_what_is_answered_is_measured_on_labelled_rows() -> None:
    decision = chosen(Wanted(coverage=Fraction("0.6")), predicted(100))
    found = decision.measure(predicted(80, seed=1, unknown=30))["answered"]
    known = dataclasses.replace(
        (both := predicted(80, seed=1, unknown=30)), log_probs=both.log_probs[30:], labels=both.labels[30:]
    )
    assert found == decision.measure(known)["answered"]
    assert found["rows"] == 50
    assert found["accuracy_of_all"] == pytest.approx(evaluate(known.log_probs, known.labels)["accuracy"])
    answered = decision.decide(known).answered
    assert answered is not None
    assert found["answered"] == int(answered.sum())


def test_rows_without_labels_are_counted() -> None:
    decision = chosen(Wanted(coverage=Fraction("0.6"), sets=Fraction("0.9")), predicted(100))
    found = decision.measure(predicted(40, seed=1, unknown=40))
    assert found["answered"].keys() == {"rows", "answered", "share_answered"}
    assert found["sets"].keys() == {"mean_size", "share_empty", "share_singleton"}


def test_nothing_is_chosen_that_was_not_asked_for() -> None:
    rows = predicted(50)
    only_sets = chosen(Wanted(sets=Fraction("0.9")), rows)
    assert only_sets.decide(rows).answered is None
    assert only_sets.measure(rows).keys() == {"sets"}
    only_answers = chosen(Wanted(accuracy=Fraction("0.1")), rows)
    assert only_answers.decide(rows).sets is None
    assert only_answers.measure(rows).keys() == {"answered"}
    with pytest.raises(CannotGuaranteeError):
        chosen(Wanted(accuracy=Fraction("0.99")), rows)


def test_the_measure_of_sureness_decides() -> None:
    rows = predicted(100)
    answered = [
        chosen(Wanted(coverage=Fraction("0.5"), by=by), rows).decide(rows).answered  # type: ignore[arg-type]
        for by in ("confidence", "entropy", "mutual_information")
    ]
    assert all(one is not None and int(one.sum()) == 51 for one in answered)
    assert not torch.equal(answered[0], answered[2])  # type: ignore[arg-type]


def test_rows_that_are_not_answered_say_why() -> None:
    rows = predicted(100)
    for by, word in (("confidence", "is below"), ("entropy", "is above"), ("mutual_information", "is above")):
        decided = chosen(Wanted(coverage=Fraction("0.5"), by=by), rows).decide(rows)  # type: ignore[arg-type]
        assert decided.answered is not None
        assert [reason is None for reason in decided.reasons] == decided.answered.tolist()
        assert all(word in reason for reason in decided.reasons if reason is not None)


def two_kinds(rows: int, *, seed: int) -> tuple[Prediction, list[str | None]]:
    """Three easy rows to one hard; every fifth hard row is of a rare kind."""
    kinds = ["hard" if n % 4 == 0 else "easy" for n in range(rows)]
    kinds = ["rare" if n % 20 == 0 else kind for n, kind in enumerate(kinds)]
    generator = torch.Generator().manual_seed(seed)
    sharp = torch.tensor([4.0 if kind == "easy" else 0.7 for kind in kinds], dtype=torch.float64)
    logits = sharp[:, None] * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    return Prediction(log_probs=logits.log_softmax(-1)[:, None], labels=labels), list(kinds)


def test_a_guarantee_holds_in_every_group_that_is_large_enough() -> None:
    """Over 100 draws of the rows the common threshold fails the hard ones, and their own does not."""
    covered = {"own": [], "common": []}
    answered = {"own": [], "common": []}
    test, kinds = two_kinds(2000, seed=10_000)
    hard = torch.tensor([kind == "hard" for kind in kinds])
    wanted = Wanted(coverage=Fraction("0.8"), sets=Fraction("0.8"))
    for seed in range(100):
        rows, groups = two_kinds(200, seed=seed)
        decision = chosen(wanted, rows, groups)
        assert set(decision.group_thresholds) == set(decision.group_sets) == {"easy", "hard", "rare"}
        for which, one in (("own", decision), ("common", chosen(wanted, rows))):
            decided = one.decide(test, kinds if which == "own" else None)
            assert decided.sets is not None
            assert decided.answered is not None
            right = decided.sets.gather(1, test.labels[:, None]).squeeze(1)
            covered[which].append(float(right[hard].double().mean()))
            answered[which].append(float(decided.answered[hard].double().mean()))
    for shares in (covered, answered):
        mean = {which: sum(found) / len(found) for which, found in shares.items()}
        assert 0.79 < mean["own"] < 0.84  # 40 rows: at most 1/41 above 0.8
        assert mean["common"] < 0.7


def test_a_group_that_is_too_small_or_new_goes_by_the_common_threshold() -> None:
    rows, groups = two_kinds(100, seed=0)
    assert groups.count("rare") == 5
    decision = chosen(Wanted(coverage=Fraction("0.9"), sets=Fraction("0.9")), rows, groups)
    assert set(decision.group_thresholds) == set(decision.group_sets) == {"easy", "hard"}  # 9 rows are needed
    assert decision.group_rows == {"easy": 75, "hard": 20, "rare": 5}
    common = dataclasses.replace(decision, group_column=None).decide(rows)
    for name in ("rare", "never seen", None):
        decided = decision.decide(rows, [name] * 100)
        assert torch.equal(decided.answered, common.answered)  # type: ignore[arg-type]
        assert torch.equal(decided.sets, common.sets)  # type: ignore[arg-type]
    own = chosen(
        Wanted(coverage=Fraction("0.9")),
        dataclasses.replace(
            rows,
            log_probs=rows.log_probs[[g == "hard" for g in groups]],
            labels=rows.labels[[g == "hard" for g in groups]],
        ),
    )
    assert decision.group_thresholds["hard"] == own.threshold


def test_a_group_whose_accuracy_cannot_be_guaranteed_goes_by_the_common_threshold() -> None:
    sure = torch.linspace(0.51, 0.99, 300, dtype=torch.float64)
    labels = torch.zeros(300, dtype=torch.int64)
    labels[::30] = 1  # ten of them wrong, all in the group "b"
    rows = Prediction(log_probs=torch.stack([sure, 1 - sure], -1).log()[:, None], labels=labels)
    groups: list[str | None] = ["b" if n % 3 == 0 else "a" for n in range(300)]
    decision = chosen(Wanted(accuracy=Fraction("0.9")), rows, groups)
    assert set(decision.group_thresholds) == {"a"}
    assert decision.threshold is not None
    with pytest.raises(CannotGuaranteeError):
        chosen(
            Wanted(accuracy=Fraction("0.9")),
            dataclasses.replace(rows, log_probs=rows.log_probs[::3], labels=labels[::3]),
        )


def test_groups_that_do_not_fit_are_refused() -> None:
    rows, groups = two_kinds(100, seed=0)
    decision = chosen(Wanted(coverage=Fraction("0.9")), rows, groups)
    with pytest.raises(ValueError, match="goes by the rows' 'kind': give groups"):
        decision.decide(rows)
    with pytest.raises(ValueError, match="there are 3 groups for 100 rows"):
        decision.decide(rows, ["easy"] * 3)
    with pytest.raises(ValueError, match="give group_column and groups, or neither"):
        choose_decision(Wanted(coverage=Fraction("0.9")), calibration_of(rows), group_column="kind")


def test_a_prediction_made_otherwise_is_refused() -> None:
    rows = predicted(50)
    decision = chosen(Wanted(coverage=Fraction("0.9")), rows)
    for other in (
        predicted(50, draws=2),
        dataclasses.replace(rows, mode="mean"),
        dataclasses.replace(rows, logit_temperature=2.0),
    ):
        with pytest.raises(ValueError, match="its thresholds are of other probabilities"):
            decision.decide(other)
    with pytest.raises(ValueError, match="is for the classes"):
        decision.decide(dataclasses.replace(rows, classes=("a", "b", "c", "d")))


def test_a_decision_is_kept_and_read_back(tmp_path: Path) -> None:
    folder = save_posterior(PointMass(mean={"w": torch.ones(1)}), tmp_path / "q")
    assert Decision.load(folder) is None
    rows, groups = two_kinds(100, seed=0)
    for wanted in (
        Wanted(coverage=Fraction("0.9"), sets=Fraction("0.9"), by="entropy"),
        Wanted(coverage=Fraction(1), sets=Fraction(1), set_score="aps"),  # infinite thresholds
        Wanted(accuracy=Fraction("0.5"), delta=0.1),
        Wanted(costs=Costs.of(tuple("abcd"), wrong={"a": 5, "*": 1}, abstain=0.3)),
        Wanted(bands=WantedBands(names=("high", "low"), cuts=(0.7,)), recalibrate=("temperature",)),
        Wanted(bands=WantedBands(names=("high", "low"), accuracies=(0.99,)), recalibrate=("venn_abers",)),
    ):
        for one in (chosen(wanted, rows, groups), chosen(wanted, rows)):
            one.save(folder, overwrite=True)
            assert Decision.load(folder) == one
    write_tuned(folder, PredictionConfig(mode="mean", logit_temperature=2.0), [{"op": "tune"}])
    with pytest.raises(ValueError, match="was chosen for another posterior"):
        Decision.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "has format version 2; this varlora reads 1"),
        ({"by": "margin"}, "'by'"),
        ({"threshold": {"value": 0.5}}, "this is no decision"),
        ({"chosen_on": {}}, "this is no decision"),
        ({"sets": 3}, "'sets'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    file = chosen(Wanted(coverage=Fraction("0.9")), predicted(50)).save(tmp_path)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        Decision.load(tmp_path)


def test_costs_decide_the_answer_and_whether_it_is_given() -> None:
    rows = dataclasses.replace(predicted(200), classes=tuple("abcd"))
    costs = Costs.of(rows.classes, wrong={"a": 20, "*": 1}, abstain=0.4)
    decision = chosen(Wanted(costs=costs), rows)
    decided = decision.decide(rows)
    assert decided.answered is not None
    assert decided.cheapest is not None
    assert torch.equal(decided.answered, costs.answered(rows.probs))
    assert torch.equal(decided.cheapest, costs.cheapest(rows.probs)[0])
    assert not torch.equal(decided.cheapest, rows.probs.argmax(1))
    assert [reason is None for reason in decided.reasons] == decided.answered.tolist()
    assert "abstaining 0.4" in str(next(reason for reason in decided.reasons if reason is not None))
    assert decision.cost_of_rules[0].rule == "least expected cost"
    right = decided.cheapest == rows.labels
    assert decision.measure(rows)["answered"]["accuracy_of_all"] == pytest.approx(float(right.double().mean()))
    with pytest.raises(ValueError, match="a coverage, an accuracy or costs, one of them"):
        chosen(Wanted(costs=costs, coverage=Fraction("0.9")), rows)


def too_sure(rows: int, *, seed: int) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return Prediction(log_probs=(6 * logits).log_softmax(-1)[:, None], labels=labels)


def test_what_is_guaranteed_is_chosen_on_rows_to_which_nothing_was_fitted() -> None:
    """Sets of Venn–Abers probabilities cover what they promise, over 60 draws of 80 rows, and use 40 of them."""
    test, covered = too_sure(2000, seed=10_000), []
    for seed in range(60):
        decision = chosen(Wanted(sets=Fraction("0.9"), recalibrate=("venn_abers",)), too_sure(80, seed=seed))
        assert decision.chosen_on.rows == 40
        decided = decision.decide(test)
        assert decided.sets is not None
        covered.append(float(decided.sets.gather(1, test.labels[:, None]).double().mean()))
    assert 0.89 < sum(covered) / 60 < 0.95  # at most 1/41 above where no scores are tied, and isotonic ones are


def test_probabilities_are_recalibrated_before_they_are_decided_by() -> None:
    rows, test = too_sure(800, seed=0), too_sure(400, seed=1)
    plain = chosen(Wanted(coverage=Fraction("0.9")), rows).decide(test)
    assert torch.equal(plain.probs, test.probs)
    nll = {"as they are": evaluate(test.log_probs, test.labels)["nll"]}
    for way, kind in (("temperature", Temperatures), ("venn_abers", VennAbers)):
        decision = chosen(Wanted(coverage=Fraction("0.9"), recalibrate=(way,)), rows)  # type: ignore[arg-type]
        assert isinstance(decision.recalibration, kind)
        assert "cross-validated NLL" in decision.recalibration_said
        decided = decision.decide(test)
        nll[way] = evaluate(decided.probs, test.labels)["nll"]
        assert (decided.intervals is not None) is (way == "venn_abers")
    assert decided.intervals is not None
    low, high = decided.intervals.unbind(-1)
    assert bool(((low <= decided.probs + 1e-12) & (decided.probs <= high + 1e-12)).all())
    assert max(nll["temperature"], nll["venn_abers"]) < 0.8 * nll["as they are"]
    with pytest.raises(ValueError, match="Venn–Abers gives one probability for all draws"):
        chosen(Wanted(coverage=Fraction("0.9"), by="mutual_information", recalibrate=("venn_abers",)), predicted(60))


def test_bands_are_of_what_is_decided_by() -> None:
    rows = predicted(300)
    by_cuts = chosen(Wanted(bands=WantedBands(names=("high", "medium", "low"), cuts=(0.8, 0.5))), rows)
    named = by_cuts.decide(rows).bands
    assert named is not None
    confidence = rows.probs.amax(1)
    assert [name == "high" for name in named] == (confidence >= 0.8).tolist()
    assert [band.rows for band in by_cuts.bands] == [named.count(name) for name in ("high", "medium", "low")]
    with pytest.raises(ValueError, match="by cuts or by accuracies"):
        WantedBands(names=("high", "low"))


def test_rows_of_another_kind_are_called_out() -> None:
    decision = chosen(Wanted(coverage=Fraction("0.9")), predicted(300))
    assert decision.check_exchangeability(predicted(200, seed=1)).exchangeable
    harder = predicted(200, seed=2)
    harder = dataclasses.replace(harder, log_probs=(0.4 * harder.log_probs).log_softmax(-1))
    check = decision.check_exchangeability(harder)
    assert not check.exchangeable
    assert check.reference_rows == 300
    assert decision.martingale(alpha=0.005).update(harder.probs.amax(1)).alarm_at == check.alarm_at
    many = chosen(Wanted(coverage=Fraction("0.9")), predicted(2500, draws=1))
    assert len(many.reference) == 2000


def test_one_row() -> None:
    row = predicted(1)
    for wanted in (
        Wanted(coverage=Fraction("0.9"), sets=Fraction("0.9")),
        Wanted(costs=Costs.of(tuple("abcd"), wrong=1, abstain=0.2)),
        Wanted(bands=WantedBands(names=("high", "low"), cuts=(0.7,))),
    ):
        chosen(wanted, row, ["only"]).decide(row, ["other"])
    with pytest.raises(ValueError, match="on half of the rows, and there is one"):
        chosen(Wanted(coverage=Fraction("0.9"), recalibrate=("temperature",)), row)
