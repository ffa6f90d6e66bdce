"""Draws as rows of one forward against one draw after another, over models, dtypes, chunks and kinds of answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from adapted_models import ADAPTED
from models import lora, tiny_bert_classifier, tiny_llama, tiny_qwen3, token_ids
from varlora.adapters import trained_tensors
from varlora.posterior import DiagonalGaussian, Mixture, PointMass, Posterior, batched_draws
from varlora.posterior.batched_draws import over_batches
from varlora.posterior.draws import over_draws, weight_draws
from varlora.prediction.completions import predict_completions
from varlora.prediction.prediction import predict
from varlora.readout.draws_as_rows import DrawsAsRows
from varlora.readout.frozen_layers import cached_frozen_layers
from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead, Readout
from varlora.tasks import Collator

ANSWERS = AnswerTokens(token_ids=(7, 11, 40), answers=("A", "B", "C"))
HEAD = ClassHead(classes=("x", "y", "z"))
BY_ROWS = {
    "llama": (lambda: lora(tiny_llama()), ANSWERS),
    "qwen3, many modules": (lambda: lora(tiny_qwen3(), target_modules=("q_proj", "up_proj", "down_proj")), ANSWERS),
    "rank-stabilised, top layer": (
        lambda: lora(tiny_llama(layers=3), use_rslora=True, layers_to_transform=[2], r=2),
        ANSWERS,
    ),
    "biases of the factors": (lambda: lora(tiny_llama(), lora_bias=True), ANSWERS),
    "output layer": (lambda: lora(tiny_llama(), target_modules=("v_proj", "lm_head")), ANSWERS),
    "trained output layer": (lambda: lora(tiny_llama(), modules_to_save=["lm_head"]), ANSWERS),
    "encoder and its head": (
        lambda: lora(tiny_bert_classifier(), target_modules=("query", "value"), task_type="SEQ_CLS"),
        HEAD,
    ),
    "biases of the adapted layers": (
        lambda: lora(tiny_bert_classifier(), target_modules=("query", "value"), bias="lora_only", task_type="SEQ_CLS"),
        HEAD,
    ),
    "top of an encoder": (
        lambda: lora(
            tiny_bert_classifier(layers=3), target_modules=("query",), task_type="SEQ_CLS", layers_to_transform=[2]
        ),
        HEAD,
    ),
}
IN_TURN = ["dora", "embedding", "all biases", "new tokens", "bare parameters"]


def gaussian(model: nn.Module, sd: float = 0.2) -> DiagonalGaussian:
    mean = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    return DiagonalGaussian(mean=mean, precision={key: torch.full_like(m, sd**-2) for key, m in mean.items()})


def batches(side: str = "left", size: int = 3, rows: int = 7) -> list[dict[str, Any]]:
    data = [
        {"id": f"r{i}", "input_ids": [5 + i + j for j in range(2 + i % 4)], "labels": i % 3, "num_choices": 3}
        for i in range(rows)
    ]
    collate = Collator(pad_token_id=0, num_classes=3, padding_side=side, ids=True)  # type: ignore[arg-type]
    return [collate(data[i : i + size]) for i in range(0, rows, size)]


@contextmanager
def counted(model: PeftModel) -> Iterator[list[int]]:
    """The number of rows of each forward of the base model."""
    rows: list[int] = []

    def count(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        rows.append(len(kwargs["input_ids"]))

    hook = model.get_base_model().register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def in_turn(model: nn.Module, q: Posterior, readout: Readout, held: list[dict[str, Any]], **options: Any) -> Tensor:
    """Log-probabilities (N, S, C), one draw after another."""

    def one_pass() -> Tensor:
        return torch.cat([readout.logits(model, batch).double().log_softmax(-1) for batch in held])

    return over_draws(model, q, options.pop("samples"), one_pass, **{"antithetic": True, "seed": 0, **options})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BY_ROWS)
def test_draws_as_rows_give_the_numbers_of_single_draws(name: str, side: str) -> None:
    make, readout = BY_ROWS[name]
    model = make().eval()
    q, held = gaussian(model), batches("right" if readout is HEAD else side)
    predict(model, q, held, 2, readout=readout)  # which compares once

    with counted(model) as rows:
        together = predict(model, q, held, 5, readout=readout, seed=3).log_probs

    assert [n for n in rows if n > 1] == [5 * len(batch["labels"]) for batch in held for _ in range(rows.count(3) + 1)]
    expected = in_turn(model, q, readout, held, samples=5, seed=3)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
    assert (expected[:, 0] - expected[:, 1]).abs().max() > 0.01, "the draws must differ for this to show anything"


def test_in_float64_the_numbers_are_the_same_to_the_last_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora(tiny_llama(layers=3), layers_to_transform=[1, 2]).double().eval()
    q, held = gaussian(model), batches(size=2)
    expected = in_turn(model, q, ANSWERS, held, samples=7)
    for tokens, bytes_of_draws in ((10_000, 2**30), (25, 2**30), (10_000, 1), (25, 3 * bytes_in(q))):
        monkeypatch.setitem(batched_draws.TOKENS, "cpu", tokens)
        monkeypatch.setattr(batched_draws, "BYTES_OF_DRAWS", bytes_of_draws)
        together = predict(model, q, held, 7, readout=ANSWERS).log_probs
        torch.testing.assert_close(together, expected, rtol=1e-7, atol=1e-7)  # the answers' softmax is in float32


def bytes_in(q: DiagonalGaussian) -> int:
    return sum(m.nbytes for m in q.mean.values())


def test_on_a_base_in_half_precision_the_numbers_are_those_of_its_rounding() -> None:
    model = get_peft_model(
        tiny_llama().to(torch.bfloat16),
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    ).eval()
    q, held = gaussian(model), batches()
    with counted(model) as rows:
        together = predict(model, q, held, 4, readout=ANSWERS).log_probs
    assert 12 in rows, "three rows under four draws"
    torch.testing.assert_close(together, in_turn(model, q, ANSWERS, held, samples=4), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("tokens", [512, 1])
def test_within_autocast_every_draw_is_its_own(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batched_draws.TOKENS, "cpu", tokens)
    model = lora(tiny_llama(), lora_bias=True).eval()
    q, held = gaussian(model), batches()
    with torch.autocast("cpu", torch.bfloat16):
        with counted(model) as rows:
            found = predict(model, q, held, 4, readout=ANSWERS).log_probs
        expected = in_turn(model, q, ANSWERS, held, samples=4)
    assert (12 in rows) == (tokens > 1)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(found, in_turn(model, q, ANSWERS, held, samples=4), rtol=0.02, atol=0.05)


class EightBit(nn.Module):
    """A frozen linear layer whose weight is kept as whole numbers and scales of its rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def test_frozen_weights_of_another_kind_are_called_as_they_are() -> None:
    model = lora(tiny_llama()).eval()
    for module in list(model.modules()):
        if isinstance(base := module._modules.get("base_layer"), nn.Linear):
            module.base_layer = EightBit(base)
    q, held = gaussian(model), batches()
    with counted(model) as rows:
        together = predict(model, q, held, 4, readout=ANSWERS).log_probs
    assert 12 in rows
    torch.testing.assert_close(together, in_turn(model, q, ANSWERS, held, samples=4), rtol=1e-5, atol=1e-5)


def tiny_mixture_of_experts() -> Qwen2MoeForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "moe_intermediate_size": 8,
        "vocab_size": 64,
        "pad_token_id": 0,
    }
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 16}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, **heads, **experts)).eval()


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("options", "as_rows"),
    [
        ({"target_modules": ("q_proj", "v_proj")}, True),
        ({"target_modules": ("q_proj", "shared_expert.up_proj", "shared_expert.down_proj")}, True),
        ({"target_modules": ("q_proj",), "target_parameters": EXPERTS}, False),
    ],
    ids=["attention", "shared expert", "experts"],
)
def test_a_mixture_of_experts_is_rows_but_for_its_experts(
    options: dict[str, Any], as_rows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = lora(tiny_mixture_of_experts(), **options).eval()
    q, held = gaussian(model), batches()
    with counted(model) as rows, caplog.at_level(logging.INFO, logger="varlora"):
        for _ in range(2):
            found = predict(model, q, held, 4, readout=ANSWERS).log_probs
    assert (12 in rows) == as_rows
    assert caplog.text.count("one after another") == (0 if as_rows else 1)
    torch.testing.assert_close(found, in_turn(model, q, ANSWERS, held, samples=4), rtol=1e-5, atol=1e-5)


class Experts(nn.Module):
    """Experts that each see the rows that are theirs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(8, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids).flatten(0, 1)
        output, odd = torch.zeros_like(x), input_ids.flatten() % 2 == 1
        for expert, rows in zip(self.experts, (odd, ~odd), strict=True):
            output[rows] = expert(x[rows])
        return output.view(*input_ids.shape, -1)


def test_layers_that_see_some_rows_alone_are_known_by_their_place(caplog: pytest.LogCaptureFixture) -> None:
    model = Experts()
    mean = {key: p.detach().clone() for key, p in model.named_parameters() if "experts" in key}
    q = DiagonalGaussian(mean=mean, precision={key: torch.ones_like(m) for key, m in mean.items()})
    model.embed.weight.requires_grad_(False)
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])}
    with caplog.at_level(logging.INFO, logger="varlora"):
        passes = over_batches(model, q, 3, [batch], lambda b: model(b["input_ids"]), what="x", antithetic=True, seed=0)
    assert "belongs to one of several experts" in caplog.text
    expected = over_draws(model, q, 3, lambda: model(batch["input_ids"]), antithetic=True, seed=0)
    assert torch.equal(torch.stack([found[0] for found in passes], 1), expected)


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_mixture_draws_from_each_of_its_components(antithetic: bool) -> None:
    model = lora(tiny_llama()).eval()
    q = gaussian(model)
    points = [PointMass(mean=dict(weights)) for weights in weight_draws(q, 3, antithetic=False, seed=8)]
    for mixture, number in ((Mixture(components=points), 3), (Mixture(components=[q, q]), 4)):
        options: dict[str, Any] = {"samples": 4, "antithetic": antithetic, "seed": 2}
        together = predict(model, mixture, batches(), readout=ANSWERS, **options).log_probs
        assert together.shape[1] == number
        torch.testing.assert_close(
            together, in_turn(model, mixture, ANSWERS, batches(), **options), rtol=1e-5, atol=1e-5
        )


def test_choices_as_texts_and_completions_go_as_rows_too() -> None:
    model = lora(tiny_llama(), layers_to_transform=[1]).eval()
    q, readout = gaussian(model), ChoiceTexts(answers=("A", "B", "C"))
    ids = token_ids(rows=6, length=7).view(2, 3, 7)
    exists = torch.tensor([[True, True, True], [True, True, False]])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "choice_mask": exists,
        "choice_lengths": torch.tensor([[1, 2, 3], [2, 2, 0]]),
        "labels": torch.tensor([0, 1]),
    }
    with counted(model) as rows:
        together = predict(model, q, [batch], 4, readout=readout).log_probs
    assert rows[-1] == 4 * 5
    torch.testing.assert_close(together, in_turn(model, q, readout, [batch], samples=4), rtol=1e-5, atol=1e-5)

    labels = ids[:, 0].masked_fill(torch.arange(7) < 4, -100)
    texts = [{"input_ids": ids[:, 0], "attention_mask": torch.ones(2, 7, dtype=torch.int64), "labels": labels}]
    with counted(model) as rows:
        together, counts = predict_completions(model, q, texts, 4)
    assert rows[-1] == 4 * 2
    assert counts.tolist() == [3, 3]
    for s, weights in enumerate(weight_draws(q, 4)):
        alone, _ = predict_completions(model, PointMass(mean=dict(weights)), texts)
        torch.testing.assert_close(together[:, s], alone[:, 0], rtol=1e-5, atol=1e-5)


def test_layers_that_no_draw_changes_are_computed_once_for_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora(tiny_llama(layers=3), layers_to_transform=[2]).eval()
    q, held = gaussian(model), batches()
    expected = in_turn(model, q, ANSWERS, held, samples=6)
    predict(model, q, held, 2, readout=ANSWERS)
    layers = model.get_base_model().model.layers
    seen: dict[int, list[int]] = {0: [], 2: []}
    for number, rows in seen.items():
        layer = layers[number].self_attn
        layer.register_forward_hook(lambda *a, rows=rows: rows.append(len(a[2][0])))
    for tokens in (10_000, 1):  # all draws at once, and each by itself
        monkeypatch.setitem(batched_draws.TOKENS, "cpu", tokens)
        for rows in seen.values():
            rows.clear()
        together = predict(model, q, held, 6, readout=ANSWERS).log_probs
        torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
        assert seen[0] == [3, 3, 1]
        assert sum(seen[2]) == 6 * 7


def test_frozen_layers_that_are_cached_stay_cached() -> None:
    model = lora(tiny_llama(layers=3), layers_to_transform=[2]).eval()
    q, held = gaussian(model), batches()
    expected = in_turn(model, q, ANSWERS, held, samples=4)
    with cached_frozen_layers(model), counted(model) as rows:
        together = predict(model, q, held, 4, readout=ANSWERS).log_probs
        assert 12 in rows
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", IN_TURN)
def test_what_cannot_be_rows_is_predicted_in_turn_and_says_so_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = ADAPTED[name]().eval()
    q = gaussian(model)
    batch = {"input_ids": token_ids()}
    read: Callable[[Mapping[str, Any]], Tensor] = lambda batch: model(input_ids=batch["input_ids"]).logits  # noqa: E731
    with caplog.at_level(logging.INFO, logger="varlora"), counted(model) as rows:
        for _ in range(2):
            passes = over_batches(model, q, 3, [batch], read, what="logits", antithetic=True, seed=1)
    assert rows == [2] * 6
    assert caplog.text.count("one after another") == 1
    expected = over_draws(model, q, 3, lambda: read(batch), antithetic=True, seed=1)
    assert torch.equal(torch.stack([found[0] for found in passes], 1), expected)


class TimeFirst(nn.Module):
    """A model whose layer sees positions along the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        states = torch.nn.functional.one_hot(input_ids, 3).float().transpose(0, 1)
        return self.linear(states).transpose(0, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_whose_rows_are_not_in_front_is_seen_by_its_numbers(
    trained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = TimeFirst()
    if not trained:  # its point is that of a new adapter, whose B is zero
        nn.init.zeros_(model.linear.weight)
        nn.init.zeros_(model.linear.bias)
    batch = {"input_ids": torch.tensor([[0, 1, 2, 0], [2, 1, 1, 1]])}
    with caplog.at_level(logging.INFO, logger="varlora"):
        passes = over_batches(
            model, gaussian(model), 2, [batch], lambda b: model(b["input_ids"]), what="x", antithetic=True, seed=0
        )
    assert "the numbers are others" in caplog.text
    expected = over_draws(model, gaussian(model), 2, lambda: model(batch["input_ids"]), antithetic=True, seed=0)
    assert torch.equal(torch.stack([found[0] for found in passes], 1), expected)


def test_without_the_memory_half_as_many_draws_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    model = lora(tiny_llama()).eval()
    q, held, sizes = gaussian(model), batches(size=2, rows=4), list[int]()

    def read(batch: Mapping[str, Any]) -> Tensor:
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return ANSWERS.logits(model, batch)

    with caplog.at_level(logging.INFO, logger="varlora"):
        passes = over_batches(model, q, 8, held, read, what="answers", antithetic=True, seed=0)
    assert sizes[3:] == [16, 8, 4, 4, 4, 4, 16, 8, 4, 4, 4, 4]
    assert "4 draws at once need more memory than there is; taking 2" in caplog.text
    expected = in_turn(model, q, ANSWERS, held, samples=8)
    together = torch.stack([torch.cat(found) for found in passes], 1).double().log_softmax(-1)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)

    def never(batch: Mapping[str, Any]) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        over_batches(model, q, 8, held, never, what="answers", antithetic=True, seed=0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_what_it_was(fails: bool) -> None:
    model = lora(tiny_llama(layers=3), layers_to_transform=[1, 2], lora_dropout=0.3).train()
    q, held = gaussian(model), batches()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()

    def read(batch: Mapping[str, Any]) -> Tensor:
        if fails and len(batch["input_ids"]) > 6:
            raise KeyboardInterrupt
        return ANSWERS.logits(model, batch)

    try:
        over_batches(model, q, 4, held, read, what="answers", antithetic=True, seed=0)
    except KeyboardInterrupt:
        assert fails
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_large_batch_is_predicted_one_draw_after_another_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batched_draws.TOKENS, "cpu", 20)
    model = lora(tiny_llama()).eval()
    q, held = gaussian(model), [{**batches(rows=6, size=6)[0]}]
    with counted(model) as rows:
        found = predict(model, q, held, 3, readout=ANSWERS).log_probs
    assert max(rows) == 6
    assert torch.equal(found, in_turn(model, q, ANSWERS, held, samples=3))


def test_layers_below_are_shared_whatever_is_longer_than_the_batch() -> None:
    model = lora(tiny_llama(layers=3), layers_to_transform=[2]).eval()
    q, batch = gaussian(model), {"input_ids": token_ids(rows=2, length=6)}
    longer = {"position_ids": torch.arange(6)[None], "cache_position": torch.arange(6)}

    def read(given: Mapping[str, Any]) -> Tensor:
        return model(input_ids=given["input_ids"], **longer, use_cache=False).logits  # type: ignore[no-any-return]

    with counted(model) as rows:
        passes = over_batches(model, q, 4, [batch], read, what="logits", antithetic=True, seed=1)
    assert 8 in rows
    expected = over_draws(model, q, 4, lambda: read(batch), antithetic=True, seed=1)
    torch.testing.assert_close(torch.stack([found[0] for found in passes], 1), expected, rtol=1e-5, atol=1e-5)


def test_draws_of_other_shapes_are_refused() -> None:
    model = lora(tiny_llama()).eval()
    rows = DrawsAsRows(model, trained_tensors(model))
    draw = {key: torch.zeros(*p.shape, 1) for key, p in trained_tensors(model).items()}
    with pytest.raises(ValueError, match=r"is \(4, 16\) in the model and \(4, 16, 1\) in a draw"), rows.of([draw]):
        pass
