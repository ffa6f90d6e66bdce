"""Log-likelihoods of completions against a slow loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from varlora.adapters import applied, trained_tensors
from varlora.posterior import DiagonalGaussian
from varlora.posterior.draws import weight_draws
from varlora.prediction.completions import completion_log_likelihood, predict_completions
from varlora.tasks import Collator

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
COMPLETIONS = [[13, 2], [14, 15, 16, 2], [17]]
ROWS = [
    {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
]


def slow(model: PeftModel) -> Tensor:
    values = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        value = 0.0
        for i, token in enumerate(completion):
            logits = model(input_ids=torch.tensor([prompt + completion[:i]])).logits[0, -1]
            value += logits.double().log_softmax(-1)[token].item()
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


def test_log_likelihoods_add_up_token_by_token_on_either_side(llama_lora: PeftModel) -> None:
    model = llama_lora.eval()

    for side in ("left", "right"):
        batch = Collator(pad_token_id=0, padding_side=side)(ROWS)
        values, counts = completion_log_likelihood(model, batch)

        torch.testing.assert_close(values.detach().double(), slow(model), atol=1e-5, rtol=1e-5)
        assert counts.tolist() == [2, 4, 1]


def test_draws_are_held_for_all_batches(llama_lora: PeftModel) -> None:
    model = llama_lora.eval()
    mean = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    q = DiagonalGaussian(mean=mean, precision={key: torch.full_like(m, 25.0) for key, m in mean.items()})
    collate = Collator(pad_token_id=0)

    values, counts = predict_completions(model, q, [collate(ROWS[:2]), collate(ROWS[2:])], samples=3, seed=4)

    expected = []
    for draw in weight_draws(q, 3, seed=4):
        with applied(model, draw):
            expected.append(slow(model))
    torch.testing.assert_close(values, torch.stack(expected, 1), atol=1e-5, rtol=1e-5)
    assert counts.tolist() == [2, 4, 1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_completions_of_one_prompt_share_it(llama_lora: PeftModel, side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama_lora.eval()
    mean = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    q = DiagonalGaussian(mean=mean, precision={key: torch.full_like(m, 25.0) for key, m in mean.items()})
    prompt = list(range(20, 29))
    texts = [(prompt, [13, 2]), ([8, 9], [17]), (prompt, [14, 15, 2]), (prompt, [13, 2]), ([*prompt[:-1], 3], [4])]
    rows = [{"input_ids": p + text, "labels": [-100] * len(p) + text} for p, text in texts]
    batches = [Collator(pad_token_id=0, padding_side=side)(some) for some in (rows, rows[:2])]
    found, counts = predict_completions(model, q, batches, samples=3, seed=4)
    shapes: list[tuple[int, ...]] = []
    hook = model.get_base_model().register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    predict_completions(model, q, batches[:1], samples=3, seed=4)
    hook.remove()
    assert shapes == [(3 * 3, 8 + 3 + 4 + 3)], "three prompts under three draws; the longest row has three texts"
    monkeypatch.setattr("varlora.prediction.completions._by_prompt", lambda batch: (None, batch))
    expected, same_counts = predict_completions(model, q, batches, samples=3, seed=4)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert counts.tolist() == same_counts.tolist() == [2, 1, 3, 2, 1, 2, 1]


def test_a_completion_without_tokens_is_certain(llama_lora: PeftModel) -> None:
    rows = [{"input_ids": [20, 21, 22], "labels": [-100] * 3}] * 2
    rows += [{"input_ids": [20, 21, 22, 13], "labels": [-100] * 3 + [13]}]
    found, counts = predict_completions(llama_lora.eval(), None, [Collator(pad_token_id=0)(rows)])
    assert counts.tolist() == [0, 0, 1]
    assert found[:2].flatten().tolist() == [0.0, 0.0]
    assert found[2].item() < 0
