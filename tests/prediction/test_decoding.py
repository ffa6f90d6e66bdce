"""Greedy decoding against a loop without a cache, and what may not change what it writes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from models import lora, tiny_bert_classifier, tiny_llama, tiny_qwen3
from tiny_tokenizers import word_level
from varlora.prediction.decoding import Greedy, end_tokens
from varlora.tasks import Collator

TOKENIZER = word_level()
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
STEPS = 8


def model_of(architecture: str = "llama") -> PeftModel:
    make = {"llama": tiny_llama, "qwen3": tiny_qwen3}[architecture]
    return lora(make(vocab_size=len(TOKENIZER)), task_type="CAUSAL_LM").eval()


def batch_of(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    return Collator(pad_token_id=0)([{"input_ids": list(prompt)} for prompt in prompts])


def slow(model: PeftModel, prompt: Sequence[int], ends: Sequence[int]) -> tuple[list[int], float]:
    """Token by token, each time from the start."""
    tokens, total = list(prompt), 0.0
    while len(tokens) < len(prompt) + STEPS:
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        tokens.append(int(log_probs.argmax()))
        total += float(log_probs.max())
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :], total


def text_of(tokens: Sequence[int]) -> str:
    return str(TOKENIZER.decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_what_is_written_is_the_likeliest_token_by_token(architecture: str) -> None:
    model = model_of(architecture)
    expected = [slow(model, prompt, [2]) for prompt in PROMPTS]

    together = Greedy(model, TOKENIZER, STEPS)(batch_of(PROMPTS))
    alone = [Greedy(model, TOKENIZER, STEPS)(batch_of([prompt])) for prompt in PROMPTS]

    assert together.texts == [one.texts[0] for one in alone] == [text_of(tokens) for tokens, _ in expected]
    assert together.num_tokens.tolist() == [len(tokens) for tokens, _ in expected]
    scores = torch.tensor([score for _, score in expected], dtype=torch.float64)
    torch.testing.assert_close(together.log_likelihoods, scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([one.log_likelihoods for one in alone]), scores, atol=1e-4, rtol=1e-4)


def test_a_text_ends_at_the_first_end_token_which_counts_and_is_not_shown() -> None:
    model = model_of()
    free, _ = slow(model, PROMPTS[0], [])
    end = next(token for token in free[2:] if token not in free[:2] and token > 3)
    model.get_base_model().generation_config = GenerationConfig(eos_token_id=[2, end])
    expected = [slow(model, prompt, [2, end]) for prompt in PROMPTS]
    assert expected[0][0] == free[: free.index(end) + 1]

    written = Greedy(model, TOKENIZER, STEPS)(batch_of(PROMPTS))

    assert written.num_tokens.tolist() == [len(tokens) for tokens, _ in expected]
    assert written.finished.tolist() == [tokens[-1] in (2, end) for tokens, _ in expected]
    assert written.finished[0]
    assert written.texts[0] == text_of(free[: free.index(end)])
    torch.testing.assert_close(
        written.log_likelihoods, torch.tensor([score for _, score in expected]).double(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("filler", [0, 2, 7])
def test_what_fills_the_padding_does_not_matter(filler: int) -> None:
    batch = Collator(pad_token_id=filler)([{"input_ids": prompt} for prompt in PROMPTS])

    assert (
        Greedy(model_of(), TOKENIZER, STEPS)(batch).texts
        == Greedy(model_of(), TOKENIZER, STEPS)(batch_of(PROMPTS)).texts
    )


def test_without_an_end_token_a_text_has_its_full_length() -> None:
    model, tokenizer = model_of(), word_level()
    model.get_base_model().generation_config = GenerationConfig()
    tokenizer.eos_token = None
    expected = [slow(model, prompt, [])[0] for prompt in PROMPTS]

    written = Greedy(model, tokenizer, STEPS)(batch_of(PROMPTS))

    assert written.num_tokens.tolist() == [STEPS] * 3
    assert not written.finished.any()
    assert written.texts == [str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in expected]


def test_nothing_but_the_ends_is_taken_from_the_generation_configuration() -> None:
    model = model_of()
    plain = Greedy(model, TOKENIZER, STEPS)(batch_of(PROMPTS))
    own = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, suppress_tokens=[5, 6, 7], eos_token_id=2, num_beams=3
    )
    model.get_base_model().generation_config = own

    assert Greedy(model, TOKENIZER, STEPS)(batch_of(PROMPTS)).texts == plain.texts
    assert model.get_base_model().generation_config is own
    assert end_tokens(model.get_base_model(), TOKENIZER) == {2}


def test_what_cannot_be_decoded_is_refused() -> None:
    model = model_of()
    decode = Greedy(model, TOKENIZER, STEPS)
    right = Collator(pad_token_id=0, padding_side="right")([{"input_ids": prompt} for prompt in PROMPTS])
    context = model.config.max_position_embeddings
    fits = batch_of([[5] * (context - STEPS)])
    with pytest.raises(ValueError, match="batch 4 is not padded on the left"):
        decode.check([fits] * 4 + [right])
    decode.check([fits])
    with pytest.raises(ValueError, match=f"a prompt of {context - STEPS + 1} tokens, behind which {STEPS} new ones"):
        decode.check([batch_of([[5] * (context - STEPS + 1), [5]])])
    with pytest.raises(ValueError, match="BertForSequenceClassification cannot generate text"):
        Greedy(tiny_bert_classifier(), TOKENIZER, STEPS)
