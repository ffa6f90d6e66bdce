"""Monte Carlo prediction against a slow loop, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader

from models import lora, tiny_llama
from varlora.adapters import trained_tensors
from varlora.posterior import DiagonalGaussian, PointMass, PosteriorMeta
from varlora.posterior.draws import weight_draws
from varlora.prediction.prediction import Prediction, predict
from varlora.readout.readout import AnswerTokens, ClassHead, Readout
from varlora.tasks import Collator

READOUTS: dict[str, Readout] = {
    "llama_lora": AnswerTokens(token_ids=(7, 11, 40), answers=("A", "B", "C")),
    "qwen3_lora": AnswerTokens(token_ids=(7, 11, 40), answers=("A", "B", "C")),
    "bert_lora": ClassHead(classes=("x", "y", "z")),
}
ROWS: list[dict[str, Any]] = [
    {"id": f"r{i}", "input_ids": [5 + i + j for j in range(2 + i % 4)], "labels": i % 3, "num_choices": 3 - (i == 4)}
    for i in range(7)
]


def gaussian(model: PeftModel, sd: float = 0.2, **meta: Any) -> DiagonalGaussian:
    mean = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    precision = {key: torch.full_like(m, sd**-2) for key, m in mean.items()}
    return DiagonalGaussian(mean=mean, precision=precision, meta=PosteriorMeta(**meta))


def batches(model: PeftModel, size: int = 3, rows: list[dict[str, Any]] = ROWS, side: str = "") -> list[dict[str, Any]]:
    padding: Any = side or (
        "right" if model.peft_type and model.base_model.model.config.model_type == "bert" else "left"
    )
    collate = Collator(pad_token_id=0, num_classes=3, padding_side=padding, ids=True)
    return [collate(rows[i : i + size]) for i in range(0, len(rows), size)]


def slow_log_probs(model: PeftModel, readout: Readout, weights: Any, temperature: float = 1.0) -> Tensor:
    """One row at a time, unpadded, whole logits; the weights written in by hand."""
    live = trained_tensors(model)
    before = {key: p.detach().clone() for key, p in live.items()}
    log_probs = []
    with torch.no_grad():
        for key, p in live.items():
            p.copy_(weights[key])
        for row in ROWS:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            if isinstance(readout, AnswerTokens):
                logits = logits[-1, list(readout.token_ids)]
            logits = logits.double() / temperature
            kept = logits[: row["num_choices"]]
            log_probs.append(torch.full((3,), -torch.inf, dtype=torch.float64))
            log_probs[-1][: row["num_choices"]] = kept - kept.exp().sum().log()
        for key, p in live.items():
            p.copy_(before[key])
    return torch.stack(log_probs)


@pytest.fixture(params=READOUTS)
def case(request: pytest.FixtureRequest) -> tuple[PeftModel, Readout]:
    return request.getfixturevalue(request.param).eval(), READOUTS[request.param]


@pytest.mark.parametrize("antithetic", [True, False])
def test_each_draw_is_one_set_of_weights_for_all_rows(case: tuple[PeftModel, Readout], antithetic: bool) -> None:
    model, readout = case
    q = gaussian(model, logit_temperatures={"mean": 1.7})

    prediction = predict(model, q, batches(model), samples=3, readout=readout, antithetic=antithetic, seed=5)

    draws = list(weight_draws(q, 3, antithetic=antithetic, seed=5))
    expected = torch.stack([slow_log_probs(model, readout, draw, 1.7) for draw in draws], dim=1)
    assert prediction.log_probs.shape == (7, 3, 3)
    torch.testing.assert_close(prediction.log_probs, expected, atol=1e-5, rtol=1e-5)
    assert prediction.labels.tolist() == [row["labels"] for row in ROWS]
    assert prediction.ids == tuple(row["id"] for row in ROWS)
    assert (prediction.mode, prediction.seed, prediction.antithetic) == ("samples", 5, antithetic)
    assert prediction.logit_temperature == 1.7


def test_the_mean_and_the_model_as_it_stands(case: tuple[PeftModel, Readout]) -> None:
    model, readout = case
    q = gaussian(model)
    shifted = DiagonalGaussian(mean={k: m + 0.3 for k, m in q.mean.items()}, precision=q.precision)

    stands = predict(model, None, batches(model), readout=readout)
    mean = predict(model, shifted, batches(model), samples=0, readout=readout)
    point = predict(model, PointMass(mean=shifted.mean), batches(model), samples=10, readout=readout)

    assert stands.log_probs.shape == mean.log_probs.shape == point.log_probs.shape == (7, 1, 3)
    assert (stands.mode, mean.mode, point.mode) == ("model", "mean", "mean")
    assert mean.seed is None
    torch.testing.assert_close(stands.log_probs[:, 0], slow_log_probs(model, readout, q.mean), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean.log_probs[:, 0], slow_log_probs(model, readout, shifted.mean), atol=1e-5, rtol=1e-5)
    assert torch.equal(point.log_probs, mean.log_probs)


def test_antithetic_draws_mirror_each_other_and_average_to_the_mean() -> None:
    q = DiagonalGaussian(mean={"w": torch.arange(5.0)}, precision={"w": torch.full((5,), 4.0)})

    draws = [draw["w"] for draw in weight_draws(q, 5, seed=3)]

    assert len(draws) == 5
    torch.testing.assert_close(torch.stack(draws[:4]).mean(0), q.mean["w"])
    assert not torch.allclose(draws[0], draws[2]), "each pair has its own noise"
    single = [draw["w"] for draw in weight_draws(q, 3, antithetic=False, seed=3)]
    assert [torch.equal(draws[2 * i], single[i]) for i in range(3)] == [True] * 3, "the same noise, once each"


def test_probabilities_are_averaged_not_logits() -> None:
    log_probs = torch.tensor([[[0.98, 0.02], [0.3, 0.7]]], dtype=torch.float64).log()

    prediction = Prediction(log_probs=log_probs, labels=torch.tensor([0]))

    torch.testing.assert_close(prediction.probs, torch.tensor([[0.64, 0.36]], dtype=torch.float64))
    assert not torch.allclose(log_probs.mean(1).softmax(-1), prediction.probs)


def test_the_average_survives_probabilities_below_the_smallest_double() -> None:
    log_probs = torch.tensor([[[-1e4, 0.0], [-1.1e4, 0.0]]], dtype=torch.float64)

    averaged = torch.logsumexp(log_probs, 1) - math.log(2)

    assert Prediction(log_probs=log_probs, labels=torch.tensor([1])).probs.tolist() == [[0.0, 1.0]]
    assert averaged[0, 0].item() == pytest.approx(-1e4 - math.log(2))


def test_missing_choices_have_probability_zero(case: tuple[PeftModel, Readout]) -> None:
    model, readout = case

    probs = predict(model, gaussian(model), batches(model), samples=4, readout=readout).probs

    assert torch.equal(
        probs == 0,
        torch.tensor([row["num_choices"] == 2 for row in ROWS])[:, None] & torch.tensor([False, False, True]),
    )
    torch.testing.assert_close(probs.sum(1), torch.ones(7, dtype=torch.float64))


def test_batches_and_padding_do_not_matter(case: tuple[PeftModel, Readout]) -> None:
    model, readout = case
    q = gaussian(model)
    sides = ("left", "right") if isinstance(readout, AnswerTokens) else ("right",)

    results = [
        predict(model, q, batches(model, size, side=side), samples=4, readout=readout).log_probs
        for size in (1, 3, 7)
        for side in sides
    ]

    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5)


def test_the_seed_alone_decides_the_draws(llama_lora: PeftModel) -> None:
    q, readout = gaussian(llama_lora), READOUTS["llama_lora"]

    torch.manual_seed(1)
    first = predict(llama_lora, q, batches(llama_lora), samples=2, readout=readout, seed=1)
    torch.manual_seed(2)
    again = predict(llama_lora, q, batches(llama_lora), samples=2, readout=readout, seed=1)
    other = predict(llama_lora, q, batches(llama_lora), samples=2, readout=readout, seed=2)

    assert torch.equal(first.log_probs, again.log_probs)
    assert not torch.allclose(first.log_probs, other.log_probs)


class Fails:
    """Reads two batches, then fails."""

    num_classes = 3

    def __init__(self) -> None:
        self.calls = 0

    def logits(self, model: Any, batch: Any) -> Tensor:
        self.calls += 1
        torch.rand(1)
        if self.calls == 5:
            raise KeyboardInterrupt
        return READOUTS["llama_lora"].logits(model, batch)

    def to_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("fails", [True, False])
def test_weights_modes_and_random_state_are_as_before(llama_lora: PeftModel, fails: bool) -> None:
    model, q = llama_lora.train(), gaussian(llama_lora)
    model.base_model.model.lm_head.eval()
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.ones_like(p)
    rows = DataLoader(ROWS, batch_size=3, collate_fn=Collator(pad_token_id=0, num_classes=3))  # type: ignore[arg-type]
    before = (
        {name: (p.data_ptr(), p.detach().clone(), p.grad) for name, p in model.named_parameters()},
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    )

    if fails:
        with pytest.raises(KeyboardInterrupt):
            predict(model, q, rows, samples=4, readout=Fails())
    else:
        predict(model, q, rows, samples=4, readout=READOUTS["llama_lora"])

    assert torch.equal(torch.get_rng_state(), before[2])
    assert [m.training for m in model.modules()] == before[1]
    for name, p in model.named_parameters():
        pointer, value, gradient = before[0][name]
        assert p.data_ptr() == pointer
        assert torch.equal(p, value)
        assert p.grad is gradient
    READOUTS["llama_lora"].logits(model, batches(model)[0]).sum().backward()  # the next training step works


def test_dropout_is_off() -> None:
    model = lora(tiny_llama(), task_type="CAUSAL_LM", lora_dropout=0.5).train()
    q, readout = gaussian(model), READOUTS["llama_lora"]

    trained = predict(model, q, batches(model), samples=2, readout=readout)
    evaluated = predict(model.eval(), q, batches(model), samples=2, readout=readout)

    assert torch.equal(trained.log_probs, evaluated.log_probs)
    with torch.no_grad():
        one, two = (readout.logits(model.train(), batches(model)[0]) for _ in range(2))
    assert not torch.allclose(one, two), "there was dropout to switch off"


def test_a_generator_of_batches_is_read_once(llama_lora: PeftModel) -> None:
    q, readout = gaussian(llama_lora), READOUTS["llama_lora"]

    def once() -> Iterator[dict[str, Any]]:
        yield from batches(llama_lora)

    streamed = predict(llama_lora, q, once(), samples=3, readout=readout)

    assert torch.equal(
        streamed.log_probs, predict(llama_lora, q, batches(llama_lora), samples=3, readout=readout).log_probs
    )


def test_a_prediction_survives_its_file(llama_lora: PeftModel, tmp_path: Path) -> None:
    saved = predict(llama_lora, gaussian(llama_lora), batches(llama_lora), samples=3, readout=READOUTS["llama_lora"])

    loaded = Prediction.load(saved.save(tmp_path / "predictions.parquet"))

    assert torch.equal(loaded.log_probs, saved.log_probs), "bit for bit, -inf included"
    assert torch.equal(loaded.labels, saved.labels)
    for field in ("classes", "ids", "mode", "antithetic", "seed", "logit_temperature"):
        assert getattr(loaded, field) == getattr(saved, field)
    table = pq.read_table(tmp_path / "predictions.parquet")
    assert table["prediction"].to_pylist() == saved.probs.argmax(1).tolist()
    assert table["confidence"].to_pylist() == saved.probs.amax(1).tolist()


def test_another_file_is_not_taken_for_a_prediction(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")

    for name in ("other.parquet", "text.parquet"):
        with pytest.raises(ValueError, match=f"{name} is not a saved prediction"):
            Prediction.load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": -1}, r"samples is -1; allowed: 0 \(the mean\), 1, 2"),
        ({"logit_temperature": 0.0}, "logit temperature must be positive and finite, got 0.0"),
        ({"batches": []}, "no batch to predict"),
        ({"batches": [{"input_ids": None, "inputs_embeds": torch.ones(0, 2, 4)}]}, "no batch to predict"),
        ({"batches": [{"input_ids": torch.ones(0, 2), "labels": torch.zeros(0).long()}]}, "no batch to predict"),
        ({"batches": [{"input_ids": torch.ones(1, 2)}]}, "batch 0 has no 'labels'"),
        ({"batches": [{"labels": torch.tensor([3])}]}, "label 3 for a readout of 3 classes"),
        ({"batches": [{"labels": torch.zeros(1, 2)}]}, "see predict_completions"),
    ],
)
def test_what_does_not_fit_is_refused(llama_lora: PeftModel, change: dict[str, Any], message: str) -> None:
    arguments = {"batches": batches(llama_lora), "readout": READOUTS["llama_lora"], **change}
    with pytest.raises(ValueError, match=message):
        predict(llama_lora, gaussian(llama_lora), **arguments)


def test_broken_weights_are_named(llama_lora: PeftModel) -> None:
    with torch.no_grad():
        llama_lora.base_model.model.lm_head.weight.fill_(torch.nan)

    with pytest.raises(ValueError, match="NaN logits, first for example 0"):
        predict(llama_lora, None, batches(llama_lora), readout=READOUTS["llama_lora"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_probs": torch.zeros(2, 3)}, "float64 of shape"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be int64 of shape \(2,\)"),
        ({"classes": ("a",)}, "1 class names for 3 classes"),
        ({"ids": ("a",)}, "1 ids for 2 rows"),
        ({"mode": "median"}, "mode 'median'; allowed: model, mean, samples"),
    ],
)
def test_a_prediction_checks_its_parts(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "log_probs": torch.zeros(2, 1, 3, dtype=torch.float64),
        "labels": torch.zeros(2, dtype=torch.int64),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        Prediction(**parts)
