"""Texts in step: joined, parted, of several adapters, on models that keep more than keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from models import lora, tiny_llama
from tiny_tokenizers import byte_bpe
from varlora.serve.decoding_batch import DecodingBatch, prefill_groups
from varlora.serve.language_model import BASE, mixes
from varlora.serve.sequences import Sampling, TextSequence
from varlora.serve.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_bpe()


def two_adapters(base: Any, **config: Any) -> PeftModel:
    model = lora(base, b_std=0.3, **config)
    model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.second" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(3))
    return model.eval()


def sequence(tokenizer: Any, length: int, *, adapter: str = "default", tokens: int = 8) -> TextSequence:
    prompt = torch.randint(4, len(tokenizer), (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return TextSequence(
        prompt=prompt,
        max_new_tokens=tokens,
        sampling=Sampling(),
        draw=None,
        top=None,
        echo=False,
        stream=TextStream(tokenizer),
        ends=frozenset(),
        adapter=adapter,
    )


def finish(batch: DecodingBatch) -> None:
    while batch.sequences:
        batch.step()


def told(sequences: list[TextSequence]) -> list[tuple[list[int], float]]:
    return [([one.token for one in each.scored], pytest.approx(each.log_likelihood, abs=1e-4)) for each in sequences]


def plan(tokenizer: Any, adapters: tuple[str, ...]) -> list[TextSequence]:
    lengths = ((5, 12), (23, 4), (2, 9), (14, 1), (9, 7))
    return [
        sequence(tokenizer, length, adapter=adapters[n % len(adapters)], tokens=tokens)
        for n, (length, tokens) in enumerate(lengths)
    ]


def alone(model: Any, tokenizer: Any, adapters: tuple[str, ...]) -> list[TextSequence]:
    written = plan(tokenizer, adapters)
    for one in written:
        finish(DecodingBatch(model, [one]))
    return written


def test_newcomers_join_and_nobody_notices(tokenizer: Any) -> None:
    adapters = ("default", "second", BASE)
    model = two_adapters(tiny_llama(vocab_size=len(tokenizer)))
    expected = alone(model, tokenizer, adapters)
    assert len({tuple(tokens) for tokens, _ in told(expected)}) == 5
    together = plan(tokenizer, adapters)
    running = DecodingBatch(model, together[:2])
    running.step()
    running.step()
    newcomers = DecodingBatch(model, together[2:])
    assert running.can_join(newcomers)
    running.join(newcomers)
    gone = sequence(tokenizer, 30, tokens=50)
    running.join(DecodingBatch(model, [gone]))
    running.step()
    running.drop({gone})
    assert running.mask.shape[1] < 30, "the longest has left, and its padding stays"
    finish(running)
    assert told(together) == told(expected)
    assert len(gone.scored) == 2


def test_a_sliding_window_is_written_in_turn(tokenizer: Any) -> None:
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=6,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    expected = alone(model, tokenizer, (BASE,))
    together = plan(tokenizer, (BASE,))
    first, second = DecodingBatch(model, together[:3]), DecodingBatch(model, together[3:])
    assert not first.can_join(second)
    finish(first)
    finish(second)
    assert told(together) == told(expected)


def test_dora_has_a_lane_of_its_own(tokenizer: Any) -> None:
    model = two_adapters(tiny_llama(vocab_size=len(tokenizer)), use_dora=True)
    assert not mixes(model.peft_config["default"])
    assert mixes(LoraConfig())
    one, other = sequence(tokenizer, 7), sequence(tokenizer, 7, adapter="second")
    finish(DecodingBatch(model, [one]))
    finish(DecodingBatch(model, [other]))
    assert told([one]) != told([other])


def test_prompts_of_like_length_are_read_together(tokenizer: Any) -> None:
    lengths = [40, 3, 4, 44, 300, 5]
    groups = [[len(one.prompt) for one in group] for group in prefill_groups([sequence(tokenizer, n) for n in lengths])]
    assert groups == [[3, 4, 5], [40, 44], [300]]


def test_a_stop_string_is_found_across_tokens_and_never_shown(tokenizer: Any) -> None:
    stream, shown = TextStream(tokenizer, stops=["film La"]), ""
    for token in tokenizer("a fine film Labels: negative")["input_ids"]:
        stream.push(token)
        shown += stream.take()
        assert "film" not in shown
    assert stream.stopped
    assert stream.text == shown + stream.take() == "a fine "


def test_a_character_is_shown_when_it_is_whole(tokenizer: Any) -> None:
    text = "naïve 🎬 né"
    tokens = tokenizer(text)["input_ids"]
    stream, pieces = TextStream(tokenizer), []
    for token in tokens:
        stream.push(token)
        pieces.append(stream.take())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    cut = TextStream(tokenizer)
    for token in tokenizer("🎬")["input_ids"][:-1]:
        cut.push(token)
    assert cut.take() == ""
    cut.end()
    assert "\ufffd" in cut.take(last=True)
