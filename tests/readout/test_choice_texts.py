"""Choices' log-likelihoods against a full forward of each choice alone, and under what must not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import lora, tiny_llama, tiny_qwen3
from readout.test_readout import CAUSAL
from varlora.readout.answer_logits import _full_logits
from varlora.readout.choice_log_likelihoods import choice_log_likelihoods
from varlora.readout.readout import ChoiceTexts
from varlora.tasks import Collator

ROWS: list[dict[str, Any]] = [  # prompts of 3, 2 and 1 tokens
    {"input_ids": [[5, 6, 7, 8], [5, 6, 7, 9, 10, 11], [5, 6, 7, 12, 13]], "choice_lengths": [1, 3, 2]},
    {"input_ids": [[20, 21, 22, 23], [20, 21, 24]], "choice_lengths": [2, 1]},
    {"input_ids": [[30, 31, 32, 33, 34, 35, 36], [30, 9], [30, 37]], "choice_lengths": [6, 1, 1]},
]
READOUT = ChoiceTexts(answers=("A", "B", "C"))
BYTES = ChoiceTexts(answers=("A", "B", "C"), length_normalization="bytes")


def batch_of(side: Any = "left", rows: Sequence[dict[str, Any]] = ROWS) -> dict[str, Any]:
    encoded = [
        {**row, "choice_bytes": [7, 3, 5][: len(row["input_ids"])], "labels": 1, "num_choices": len(row["input_ids"])}
        for row in rows
    ]
    return Collator(pad_token_id=0, num_classes=3, padding_side=side)(encoded)


def slow_scores(model: nn.Module, rows: Sequence[dict[str, Any]] = ROWS) -> Tensor:
    """One forward a choice, without padding; the softmax over the vocabulary at every position."""
    scores = torch.full((len(rows), 3), -torch.inf)
    for n, row in enumerate(rows):
        for c, (ids, length) in enumerate(zip(row["input_ids"], row["choice_lengths"], strict=True)):
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            scores[n, c] = sum(log_probs[t - 1, ids[t]] for t in range(len(ids) - length, len(ids)))
    return scores


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_score_is_the_sum_of_the_texts_log_probabilities(name: str, side: str) -> None:
    model = CAUSAL[name]()

    scores = READOUT.logits(model, batch_of(side)).detach()

    torch.testing.assert_close(scores, slow_scores(model), atol=1e-5, rtol=1e-5)
    assert torch.isneginf(scores).tolist() == [[False] * 3, [False, False, True], [False] * 3]


def test_by_byte_it_is_divided_by_the_texts_bytes() -> None:
    model = tiny_llama()

    scores = BYTES.logits(model, batch_of()).detach()

    torch.testing.assert_close(scores, slow_scores(model) / torch.tensor([7.0, 3.0, 5.0]), atol=1e-6, rtol=1e-5)


def test_a_compiled_model_is_read_whole() -> None:
    """As of answers' tokens (`test_readout.py`), where it is really compiled, which takes seconds."""
    model = tiny_llama(layers=1).requires_grad_(False)  # an output layer that trains is read whole in any case
    compiled = torch.compile(model, backend="eager")

    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape))

    with torch.compiler.set_stance("force_eager"):
        scores = READOUT.logits(compiled, batch_of()).detach()

    assert [shape[1] > 1 for shape in seen] == [True]  # at every position

    torch.testing.assert_close(scores, slow_scores(model), atol=1e-5, rtol=1e-5)


def test_the_vocabulary_is_scored_at_the_texts_positions_alone() -> None:
    model = lora(tiny_llama(), task_type="CAUSAL_LM").eval()
    READOUT.logits(model, batch_of())  # compares with the full forward, once
    seen: list[torch.Size] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _module, args, _out: seen.append(args[0].shape))

    READOUT.logits(model, batch_of())

    hook.remove()
    assert seen == [(17, 1, 16)]  # tokens of all texts


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3])
def test_its_gradients_are_those_of_the_full_forward(build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora(build(), task_type="CAUSAL_LM").eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1.0, 0.0], [-1.0, 2.0, 4.0]])

    def gradients(scores: Tensor) -> list[Tensor]:
        total = (scores.masked_fill(torch.isneginf(scores), 0.0) * weights).sum()
        return list(torch.autograd.grad(total, trained))

    found = gradients(READOUT.logits(model, batch_of()))
    expected = gradients(slow_scores(model))

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr("varlora.readout.answer_logits._narrow_logits", _full_logits)
    for one, other in zip(gradients(READOUT.logits(model, batch_of())), found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice_lengths": None}, "lacks choice_lengths; make it by `encode`"),
        ({"input_ids": torch.ones(3, 4, dtype=torch.int64)}, r"input_ids \(B, C, T\) and choice_mask"),
        ({"choice_lengths": torch.full((3, 3), 7)}, "no token before it to predict it from"),
    ],
)
def test_another_batch_is_refused(change: dict[str, Any], message: str) -> None:
    batch = {name: value for name, value in {**batch_of(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        choice_log_likelihoods(tiny_llama(), batch)


def test_another_number_of_choices_is_refused() -> None:
    with pytest.raises(ValueError, match="3 choices a row, the readout 2"):
        ChoiceTexts(answers=("A", "B")).logits(tiny_llama(), batch_of())
