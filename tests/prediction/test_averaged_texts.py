"""One text under averaged probabilities, against a loop without caches that averages by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import PeftModel

from models import lora, tiny_llama
from texts_of_draws import OPTIONS, ROWS, TOKENIZER, batches, posterior
from varlora.adapters import applied
from varlora.posterior import DropoutMasks, PointMass, batched_draws
from varlora.posterior.draws import weight_draws
from varlora.prediction.averaged_texts import generate_averaged
from varlora.prediction.generation import generate


@pytest.fixture
def model() -> PeftModel:
    return lora(tiny_llama(vocab_size=len(TOKENIZER)), task_type="CAUSAL_LM", lora_dropout=0.3)


def by_hand(model: PeftModel, draws: list[Any], prompt: list[int], end: int) -> tuple[list[int], Any, Any, float]:
    """Tokens, entropies, mutual information and the log-likelihood, every token by whole forwards of every draw."""
    ids, entropies, information, total = list(prompt), [], [], 0.0
    model.eval()
    while len(entropies) < OPTIONS["max_new_tokens"]:
        probs = []
        for weights in draws:
            with applied(model, weights), torch.no_grad():
                probs.append(model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1))
        average = torch.stack(probs).mean(0)
        entropies.append(torch.special.entr(average).sum().item())
        information.append(entropies[-1] - torch.special.entr(torch.stack(probs)).sum(-1).mean().item())
        total += math.log(average.max().item())
        ids.append(int(average.argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :], entropies, information, total


@pytest.mark.parametrize("tokens", [512, 3])
def test_texts_and_their_uncertainty_are_those_of_the_averaged_probabilities(
    model: PeftModel, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batched_draws.TOKENS, "cpu", tokens)  # all rows of a batch at once, or one after another
    q = posterior(model)
    found = generate_averaged(model, q, batches(), 4, seed=3, **OPTIONS)
    draws = list(weight_draws(q, 4, seed=3))
    for one, row in zip(found, ROWS, strict=True):
        ids, entropies, information, total = by_hand(model, draws, row["input_ids"], TOKENIZER.eos_token_id)
        assert one.text == TOKENIZER.decode(ids, skip_special_tokens=True)
        assert one.id == row["id"]
        assert one.finished == (ids[-1] == TOKENIZER.eos_token_id)
        torch.testing.assert_close(one.entropies, torch.tensor(entropies).double(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one.mutual_information, torch.tensor(information).double(), atol=1e-5, rtol=1e-5)
        assert one.log_likelihood == pytest.approx(total, abs=1e-5)
        assert max(information) > 0.01


def test_one_draw_writes_what_it_writes_alone(model: PeftModel) -> None:
    q = posterior(model)
    found = generate_averaged(model, q, batches(), 0, **OPTIONS)
    alone = generate(model, PointMass(mean=q.mean), batches(), **OPTIONS)
    assert [one.text for one in found] == [row[0] for row in alone.texts]
    assert not any(one.mutual_information.any() for one in found)


def test_a_model_whose_draws_cannot_be_rows_is_refused() -> None:
    dora = lora(tiny_llama(vocab_size=len(TOKENIZER)), task_type="CAUSAL_LM", use_dora=True)
    with pytest.raises(ValueError, match=r"3 draws cannot be averaged at every token.*varlora.generate"):
        generate_averaged(dora, posterior(dora), batches(), 3, **OPTIONS)
    masked = lora(tiny_llama(vocab_size=len(TOKENIZER)), task_type="CAUSAL_LM", lora_dropout=0.1)
    with pytest.raises(ValueError, match="cannot be averaged"):
        generate_averaged(masked, DropoutMasks(mean=posterior(masked).mean, rate=0.1), batches(), 3, **OPTIONS)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generate_averaged(masked, None, batches(), tokenizer=TOKENIZER, max_new_tokens=0)
