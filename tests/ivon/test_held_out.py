"""Rows that steer λ: which are withheld, what a measurement says about them, and that it leaves no trace."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steered_tasks
from models import lora, tiny_bert_classifier, tiny_llama, token_ids
from varlora import IVON, NoiseController
from varlora.ivon.held_out import CHUNK, HeldOut
from varlora.ivon.measuring import (
    COST,
    MOST_MEASUREMENTS,
    PAIRS,
    PASSES,
    PASSES_TO_COMPARE,
    ROWS_OF_CHECK,
    measuring_plan,
    own_rows_per_step,
    work_of_a_row,
)
from varlora.ivon.withholding import WithholdingSampler, number_withheld, withheld_rows
from varlora.posterior.held_out_record import HeldOutRecord

CLASSES = 3


class Classifier(nn.Module):
    """Dropout and two layers, so that modes and random numbers would show."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.dropout, self.last = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.tanh(self.first(x))))  # type: ignore[no-any-return]


def attached(model: nn.Module) -> NoiseController:
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=0.1, ess=50.0, hess_init=1.0)
    return NoiseController(model, optimizer, seed=7)


def batch(rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    return {"x": torch.randn(rows, 4, generator=generator), "labels": labels}


def classified(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return model(batch["x"]), batch["labels"]


def next_tokens(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]


# Which rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "expected"), [(0, 0), (299, 0), (300, 30), (2559, 255), (2560, 256), (10**6, 256)])
def test_a_tenth_is_withheld_within_bounds(rows: int, expected: int) -> None:
    assert number_withheld(rows) == expected
    withheld = withheld_rows(rows, seed=3)
    assert len(withheld) == len(set(withheld)) == expected
    assert withheld == sorted(withheld) == withheld_rows(rows, seed=3)
    assert all(0 <= row < rows for row in withheld)


def test_other_seeds_withhold_other_rows_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    assert withheld_rows(400, seed=0) != withheld_rows(400, seed=1)
    list(WithholdingSampler(range(20), withheld=[3], epochs_withheld=1, seed=0))
    assert torch.equal(before, torch.get_rng_state())


def epochs_of(sampler: WithholdingSampler, count: int) -> list[list[int]]:
    orders = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def test_withheld_rows_are_replaced_and_come_back() -> None:
    withheld = withheld_rows(300, seed=0)
    sampler = WithholdingSampler(range(300), withheld=withheld, epochs_withheld=2, seed=5)
    orders = epochs_of(sampler, 4)
    assert [len(order) for order in orders] == [len(sampler)] * 4 == [300] * 4
    kept = set(range(300)) - set(withheld)
    for order in orders[:2]:
        counts = torch.bincount(torch.tensor(order), minlength=300)
        assert set(order) == kept, "every other row is seen"
        assert counts.max() == 2, "no row takes two places of others"
        assert (counts == 2).sum() == len(withheld)
    for order in orders[2:]:
        assert sorted(order) == list(range(300))
    assert len({tuple(order) for order in orders}) == 4
    replaced = [{row for row in order if order.count(row) == 2} for order in orders[:2]]
    assert replaced[0] != replaced[1], "not always the same rows in their places"


def test_an_order_depends_on_seed_and_epoch_only() -> None:
    first, again = (WithholdingSampler(range(50), withheld=[1, 2], epochs_withheld=2, seed=5) for _ in range(2))
    orders = epochs_of(first, 4)
    torch.manual_seed(99)
    again.set_epoch(2)  # as a resumed run does
    assert list(again) == orders[2]
    other = WithholdingSampler(range(50), withheld=[1, 2], epochs_withheld=2, seed=6)
    assert epochs_of(other, 1)[0] != orders[0]


def test_more_rows_than_can_be_replaced_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 5 rows are withheld; at most half"):
        WithholdingSampler(range(5), withheld=[0, 1, 2], epochs_withheld=1, seed=0)


# A measurement ------------------------------------------------------------------------------------------------


def by_hand(noise: NoiseController, model: nn.Module, rows: list[tuple[Any, list[tuple[Any, int]]]]) -> HeldOutRecord:
    """A row at a time and an answer at a time, from probabilities in float64: `rows` has the model's arguments and the
    (index of the logits, label) of the answers."""
    twin = copy.deepcopy(model).eval()
    optimizer = noise.optimizer
    means = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    held = dict(model.named_parameters())
    weights = [means]
    for pair in range(PAIRS):
        for sign in (1, -1):
            likes = {f"evaluation/{name}": mean for name, mean in means.items()}
            eps = noise.source.draw(likes, step=optimizer.step_index, draw=pair, rank=0)
            scales = {name: optimizer.noise_scale(held[name]) for name in means}
            weights.append({n: mean + sign * scales[n] * eps[f"evaluation/{n}"] for n, mean in means.items()})
    found: dict[str, list[float]] = {}
    for arguments, answers in rows:
        logits = []
        for tensors in weights:
            with torch.no_grad():
                output = torch.func.functional_call(twin, tensors, **arguments)
            logits.append(getattr(output, "logits", output)[0].double())
        values: dict[str, list[float]] = {}
        for index, label in answers:
            chosen = [(f if index is None else f[index]) for f in logits]
            at_mean, two_pairs = told(chosen[:1], label), told(chosen[1:], label)
            of_pairs = [told(chosen[1:3], label), told(chosen[3:], label)]
            one_pair = {name: sum(of[name] for of in of_pairs) / 2 for name in at_mean}
            ten = {name: 1.6 * two_pairs[name] - 0.6 * one_pair[name] for name in at_mean}
            answer = {
                "slope": ten["slope"],
                "information": two_pairs["information"],
                "gain": at_mean["loss"] - ten["loss"],
                "loss": ten["loss"],
                "mean_slope": at_mean["slope"],
                "mean_information": at_mean["information"],
            }
            for name, value in answer.items():
                values.setdefault(name, []).append(value)
        for name, many in values.items():
            found.setdefault(name, []).append(sum(many) / len(many))
    return HeldOutRecord().with_rows(**{name: torch.tensor(v, dtype=torch.float64) for name, v in found.items()})


def told(logits: list[Tensor], label: int) -> dict[str, float]:
    """Slope, information and loss of an average of draws for one answer."""
    probs = [f.softmax(-1) for f in logits]
    of_label = torch.stack([p[label] for p in probs])
    expected = torch.stack([(p * f).sum() - f[label] for p, f in zip(probs, logits, strict=True)])
    spread = [(p * f**2).sum() - (p * f).sum() ** 2 for p, f in zip(probs, logits, strict=True)]
    return {
        "slope": float((of_label / of_label.sum() * expected).sum()),
        "information": float(torch.stack(spread).mean()),
        "loss": -math.log(of_label.mean()),
    }


def assert_same_record(found: HeldOutRecord, expected: HeldOutRecord) -> None:
    for name, value in expected.to_dict().items():
        assert found.to_dict()[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name


def test_a_measurement_of_classes_against_a_loop() -> None:
    model = Classifier()
    noise = attached(model)
    batches = [batch(20), batch(9, seed=1)]
    batches[1]["labels"][2] = -1  # a row without an answer
    found = HeldOut(batches=batches, logits=classified).measured(model, noise, HeldOutRecord(), rows=29)
    rows = [
        ({"args": (part["x"][i : i + 1],)}, [(None, int(part["labels"][i]))])
        for part in batches
        for i in range(len(part["x"]))
        if part["labels"][i] >= 0
    ]
    assert found.measurements == 1
    assert_same_record(found, by_hand(noise, model, rows))


def test_a_measurement_of_tokens_against_a_loop() -> None:
    """The mean over a row's tokens, whatever their number; rows and tokens of label -100 are left out."""
    model = lora(tiny_llama())
    noise = attached(model)
    parts = []
    for seed, (rows, length) in enumerate([(5, 7), (3, 5)]):
        ids = token_ids(rows=rows, length=length, seed=seed)
        labels = ids.clone()
        labels[0, :4], labels[1], labels[:, -1] = -100, -100, -100
        parts.append({"input_ids": ids, "labels": labels})
    found = HeldOut(batches=parts, logits=next_tokens).measured(model, noise, HeldOutRecord(), rows=8)
    rows = []
    for part in parts:
        for ids, labels in zip(part["input_ids"], part["labels"], strict=True):
            answers = [(t - 1, int(label)) for t, label in enumerate(labels) if label >= 0 and t]
            if answers:
                rows.append(({"args": (), "kwargs": {"input_ids": ids[None]}}, answers))
    assert len(rows) == 5
    assert len({len(answers) for _, answers in rows}) > 1
    assert_same_record(found, by_hand(noise, model, rows))


def test_chunks_and_cuts_change_nothing() -> None:
    model = Classifier()
    noise = attached(model)
    whole = batch(2 * CHUNK + 7)
    count = len(whole["x"])
    record = HeldOut(batches=[whole], logits=classified).measured(model, noise, HeldOutRecord(), rows=count)
    assert record.measurements == 1
    few = HeldOut(batches=[whole], logits=classified)
    measured = [few.measured(model, noise, HeldOutRecord(measurements=i), rows=100) for i in range(11)]
    alone = HeldOut(batches=[{k: v[:100] for k, v in whole.items()}], logits=classified)
    assert_same_record(measured[0], alone.measured(model, noise, HeldOutRecord(), rows=100))
    around = HeldOut(
        batches=[{k: torch.cat([v[1000:], v[: 1100 - count]]) for k, v in whole.items()}], logits=classified
    )
    assert_same_record(
        measured[10], dataclasses.replace(around.measured(model, noise, HeldOutRecord(), rows=100), measurements=11)
    )


POSITIONS = torch.arange(3)[None, :, None].repeat(3, 1, 2)  # three coordinates of the tokens of three rows
ONE_WHOLE = {"patches": torch.zeros(50, 2)}  # whose rows they are is not known


@pytest.mark.parametrize(
    ("sizes", "others", "rows", "turns"),
    [
        ([128], {}, 32, [[range(32)], [range(32, 64)], [range(64, 96)], [range(96, 128)], [range(32)]]),
        ([16] * 3, {}, 20, [[range(16), range(16, 20)], [range(20, 32), range(32, 40)], [range(40, 48), range(12)]]),
        ([5], {}, 5, [[range(5)], [range(5)]]),
        (
            [8, 8, 8, 3],
            ONE_WHOLE,
            20,
            [[range(8), range(8, 16)], [range(16, 24), range(24, 27)], [range(8), range(8, 16)]],
        ),
        ([8, 8], ONE_WHOLE, 1, [[range(8)], [range(8, 16)]]),
        ([3], {"position_ids": POSITIONS}, 2, [[range(2)], [range(2, 3), range(1)]]),
        ([4], {"note": "a", "scale": torch.tensor(1.0), "ids": list("abcd")}, 3, [[range(3)], [range(3, 4), range(2)]]),
    ],
)
def test_rows_take_turns_whatever_the_batch(
    sizes: list[int], others: dict[str, Any], rows: int, turns: list[list[range]]
) -> None:
    model = Classifier()
    noise = attached(model)
    seen: list[list[int]] = []

    def logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        seen.append(batch["number"].tolist())
        assert len(batch.get("ids", seen[-1])) == len(seen[-1])
        assert batch.get("position_ids", torch.tensor([[seen[-1]]]).mT)[0, :, 0].tolist() == seen[-1]
        return classified(model, batch)

    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    batches = [
        {**batch(n), **others, "number": torch.arange(start, start + n)} for start, n in zip(starts, sizes, strict=True)
    ]
    held_out = HeldOut(batches=batches, logits=logits)
    assert held_out.num_rows() == sum(sizes)
    record = HeldOutRecord()
    for expected in turns:
        seen.clear()
        record = held_out.measured(model, noise, record, rows=rows)
        assert seen == [list(part) for part in expected] * PASSES


def top_llama() -> nn.Module:
    return lora(tiny_llama(layers=3), layers_to_transform=[2])


def top_bert() -> nn.Module:
    """Its head trains too."""
    named = {"target_modules": ("query", "value"), "layers_to_transform": [2], "task_type": "SEQ_CLS"}
    return lora(tiny_bert_classifier(layers=3), **named)  # type: ignore[arg-type]


def classes(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return model(input_ids=batch["input_ids"]).logits, batch["labels"][:, 0] % CLASSES


@pytest.mark.parametrize(
    ("build", "logits", "part"),
    [(top_llama, next_tokens, "layers.{}.mlp"), (top_bert, classes, "layer.{}.intermediate")],
)
def test_draws_are_rows_that_share_the_lower_layers(
    build: Any, logits: Any, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of one draw after another; every row goes once through the layers that no draw changes."""
    model = build()
    noise = attached(model)
    ids = token_ids(rows=12, length=7)
    held_out = HeldOut(
        batches=[{"input_ids": ids[:8], "labels": ids[:8]}, {"input_ids": ids[8:], "labels": ids[8:]}], logits=logits
    )
    held_out.measured(model, noise, HeldOutRecord(), rows=10)  # where it is seen whether the numbers agree
    passed: dict[str, int] = {"below": 0, "above": 0}

    def count(name: str) -> Any:
        return lambda module, args: passed.__setitem__(name, passed[name] + len(args[0]))

    for name, number in (("below", 0), ("above", 2)):
        [module] = [module for path, module in model.named_modules() if path.endswith(part.format(number))]
        module.register_forward_pre_hook(count(name))
    before = [module.__dict__.get("forward") for module in model.modules()]
    weights = [p.detach().clone() for p in model.parameters()]
    together = held_out.measured(model, noise, HeldOutRecord(), rows=10)
    assert passed == {"below": 10, "above": 10 * PASSES}
    assert [module.__dict__.get("forward") for module in model.modules()] == before
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    monkeypatch.setattr("varlora.ivon.held_out.drawn_as_rows", lambda *args, **options: None)
    assert_same_record(together, held_out.measured(model, noise, HeldOutRecord(), rows=10))
    assert passed["below"] == 10 + 10 * PASSES


def test_what_another_optimizer_trains_is_the_same_in_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    model = top_bert()
    drawn = [p for name, p in model.named_parameters() if "lora_" in name]
    assert any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)  # its head
    noise = NoiseController(model, IVON(drawn, lr=0.1, ess=50.0, hess_init=1.0), seed=7)
    ids = token_ids(rows=8, length=7)
    held_out = HeldOut(batches=[{"input_ids": ids, "labels": ids}], logits=classes)
    together = held_out.measured(model, noise, HeldOutRecord(), rows=8)
    monkeypatch.setattr("varlora.ivon.held_out.drawn_as_rows", lambda *args, **options: None)
    assert_same_record(together, held_out.measured(model, noise, HeldOutRecord(), rows=8))


def test_a_measurement_without_answers_is_counted_only() -> None:
    model = Classifier()
    part = batch(8)
    part["labels"][:] = -100
    found = HeldOut(batches=[part], logits=classified).measured(model, attached(model), HeldOutRecord(), rows=8)
    assert found == HeldOutRecord(measurements=1)


@pytest.mark.parametrize("fails", [False, True])
def test_a_measurement_leaves_no_trace(fails: bool) -> None:
    model = Classifier()
    noise = attached(model)
    model.train()
    model.first.eval()  # one module in a mode of its own
    optimizer = noise.optimizer
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    modes = [module.training for module in model.modules()]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    weights = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    calls: list[bool] = []

    def logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        calls.append(torch.is_grad_enabled() or model.training)
        if fails and len(calls) == 3:
            raise KeyboardInterrupt
        return classified(model, batch)

    held_out = HeldOut(batches=[batch(8)], logits=logits)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            held_out.measured(model, noise, HeldOutRecord(), rows=8)
    else:
        held_out.check(model)
        held_out.measured(model, noise, HeldOutRecord(), rows=8)
    assert not any(calls)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert len(gradients) == 4
    for found, expected in zip([p.grad for p in model.parameters()], gradients, strict=True):
        assert found is not None
        assert torch.equal(found, expected)
    for p, before in zip(model.parameters(), weights, strict=True):
        assert torch.equal(p, before)
    assert not noise.sampling


# What it costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 128, 256])
@pytest.mark.parametrize("others", [{}, ONE_WHOLE])
@pytest.mark.parametrize(("rows_per_step", "steps"), [(8, 80), (8, 20), (16, 200), (64, 500), (512, 3), (1, 1), (8, 0)])
def test_all_measurements_cost_a_tenth_at_most(size: int, others: Any, rows_per_step: int, steps: int) -> None:
    """Counted as they are predicted: of whatever batch, however short the training."""
    passed = 0

    def logits(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        nonlocal passed
        passed += len(batch["labels"])
        return classified(model, batch)

    model = Classifier()
    noise = attached(model)
    held_out = HeldOut(batches=[{**batch(size), **others} for _ in range(256 // size)], logits=logits)
    plan = held_out.plan(3 * rows_per_step, steps=steps, begin=steps // 5, end=steps)
    held_out.check(model)
    record = HeldOutRecord()
    for _ in plan.steps:
        record = held_out.measured(model, noise, record, rows=plan.rows)
    assert passed <= COST * 3 * rows_per_step * steps or not plan.steps
    assert len(plan.steps) == len(set(plan.steps)) <= MOST_MEASUREMENTS
    assert all(steps // 5 < step <= steps for step in plan.steps)
    assert plan.steps[-1:] in ((), (steps,))


@pytest.mark.parametrize(
    ("rows", "rows_per_step", "steps", "expected"),
    [
        (256, 16, 1000, (14, 64)),
        (256, 16, 10_000, (24, 256)),  # no more than is needed
        (256, 16, 2500, (24, 99)),
        (256, 8, 80, (1, 35)),
        (256, 8, 40, (1, 16)),
        (256, 8, 30, (0, 64)),  # 11 rows say too little
        (40, 8, 80, (1, 35)),
        (5, 8, 80, (7, 5)),
    ],
)
def test_a_measurement_takes_sixty_four_rows_and_more_where_there_is_time(
    rows: int, rows_per_step: int, steps: int, expected: tuple[int, int]
) -> None:
    plan = HeldOut(batches=[batch(rows)], logits=classified).plan(
        3 * rows_per_step, steps=steps, begin=steps // 5, end=steps
    )
    assert (len(plan.steps), plan.rows) == expected
    assert plan.affordable == int((0.3 * rows_per_step * steps - ROWS_OF_CHECK - PASSES_TO_COMPARE) / PASSES)


def share_trained(model: nn.Module) -> float:
    numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in numbers if trains) / sum(n for n, _ in numbers)


def test_what_a_training_row_costs_follows_from_what_trains() -> None:
    """Forward, backward, and gradients of weights for the share of them that trains."""
    assert work_of_a_row(Classifier()) == 3.0
    model = lora(tiny_llama())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert work_of_a_row(model) == 2 + trained / sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("data", "rows"), [(None, 32.0), (range(64), 32.0), (range(80), 80 / 3), (range(20), 20.0), (range(0), 32.0)]
)
def test_a_step_of_a_small_data_set_has_no_more_rows_than_there_are(tmp_path: Path, data: Any, rows: float) -> None:
    args = steered_tasks.arguments(tmp_path, per_device_train_batch_size=16, gradient_accumulation_steps=2)
    assert own_rows_per_step(args, data) == rows


def test_longer_rows_are_asked_less() -> None:
    given: dict[str, Any] = {"work": 48, "steps": 1000, "begin": 200, "end": 1000}
    plans = [measuring_plan(256, length=length, **given) for length in (0.5, 1.0, 4.0)]
    assert [(len(plan.steps), plan.affordable) for plan in plans] == [(24, 1916), (14, 956), (3, 236)]


def test_rows_are_counted_by_their_labels() -> None:
    """Other tensors may be longer: the patches of images, the ends of packed sequences."""
    batches = [{**batch(6), "patches": torch.zeros(50, 2)}, {**batch(2), "scale": torch.tensor(1.0)}]
    assert HeldOut(batches=batches, logits=classified).num_rows() == 8
    unnamed = HeldOut(batches=[{"x": torch.zeros(5, 4), "answer": torch.zeros(5), "note": "a"}], logits=classified)
    assert unnamed.num_rows() == 5


# What cannot be measured --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"HeldOut\(batches=\.\.\.\) is empty"),
        ([[{"x": 1}]], "but one is list"),
        ([{"x": [1, 2], "y": "a"}], "holds no tensor, only x, y"),
    ],
)
def test_batches_that_are_none_are_refused(batches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeldOut(batches=batches, logits=classified)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda model, batch: (model(batch["x"])[:, 0], batch["labels"]), r"logits of shape \(4,\)"),
        (lambda model, batch: (model(batch["x"])[:2], batch["labels"]), r"logits of shape \(2, 3\)"),
        (lambda model, batch: (model(batch["x"]), batch["labels"].float()), "whole-numbered labels"),
        (lambda model, batch: (model(batch["x"]), batch["labels"] + 5), "a held-out row has label .*, but there are 3"),
        (lambda model, batch: (model(batch["x"]), batch["answers"]), "KeyError: 'answers'"),
        (lambda model, batch: (model(batch["x"]).logits, batch["labels"]), "AttributeError"),
        (lambda model, batch: (model(input_ids=batch["x"]), batch["labels"]), "TypeError.*input_ids"),
        (lambda model, batch: (model(batch["x"][:, :3]), batch["labels"]), "RuntimeError"),
    ],
)
def test_answers_that_do_not_fit_are_found_out_by_a_check(logits: Any, message: str) -> None:
    model = Classifier().train()
    with pytest.raises(ValueError, match=message):
        HeldOut(batches=[{**batch(4), "x": torch.zeros(4, 4)}], logits=logits).check(model)
    assert model.dropout.training


def test_rows_without_a_label_stand_among_others_which_are_asked() -> None:
    unlabelled = {**batch(4), "labels": torch.full((4,), -100)}
    HeldOut(batches=[unlabelled, batch(4)], logits=classified).check(Classifier())
    with pytest.raises(ValueError, match="none of the 4 rows has a label"):
        HeldOut(batches=[unlabelled], logits=classified).check(Classifier())
    named = {**{name: value for name, value in batch(4).items() if name != "labels"}, "answer": unlabelled["labels"]}
    with pytest.raises(ValueError, match="none of the 4 rows has a label"):
        HeldOut(
            batches=[named],
            label_names=["answer"],
            logits=lambda model, batch: classified(model, {**batch, "labels": batch["answer"]}),
        ).check(Classifier())
