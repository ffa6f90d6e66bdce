"""The token that really follows a prompt, for every tokenizer family."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from tiny_tokenizers import byte_bpe, sentencepiece, word_level
from varlora.tasks import answer_tokens
from varlora.tasks.prompts import choice_prompt, letters
from varlora.tasks.tokens import continuation_tokens, prompt_tokens

PROMPTS = [choice_prompt("which one barks?", ["cat", "dog"]), choice_prompt("a fine film", ["hen", "cow", "cat"])]
FAMILIES = {
    "word level": word_level(),
    "word level, BOS": word_level(bos=True),
    "byte BPE": byte_bpe(),
    "byte BPE, BOS and EOS": byte_bpe(bos=True, eos=True),
    "SentencePiece, BOS": sentencepiece(),
    "SentencePiece, EOS": sentencepiece(bos=False, eos=True),
}


@pytest.mark.parametrize("tokenizer", FAMILIES.values(), ids=FAMILIES.keys())
def test_the_answers_token_is_the_next_token_of_the_whole_text(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = answer_tokens(tokenizer, PROMPTS, [" A", " B", " C"])

    for prompt in PROMPTS:
        for token, answer in zip(tokens, (" A", " B", " C"), strict=True):
            whole = tokenizer(prompt + answer)["input_ids"]
            if whole[-1] == tokenizer.eos_token_id:
                whole.pop()
            assert [*prompt_tokens(tokenizer, prompt), token] == whole


def test_a_letter_with_and_without_a_space_are_different_tokens() -> None:
    tokenizer = byte_bpe()

    (spaced, _), (bare, _) = (answer_tokens(tokenizer, PROMPTS, a) for a in ([" A", " B"], ["A", "B"]))

    assert tokenizer.convert_ids_to_tokens([spaced, bare]) == ["ĠA", "A"]


def test_a_prompt_keeps_its_bos_and_gets_no_eos() -> None:
    tokenizer = byte_bpe(bos=True, eos=True)

    tokens = prompt_tokens(tokenizer, "Answer:")

    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in tokens
    assert prompt_tokens(tokenizer, "<s>Answer:") == tokens, "a chat template's own BOS is not doubled"


def test_colliding_answers_are_named_with_their_token() -> None:
    with pytest.raises(ValueError, match=r"' A' and ' B' both start with the token \d+ \('▁'\); .*label_names_file"):
        answer_tokens(sentencepiece(split_letters=True), PROMPTS, [" A", " B"])


def test_two_letters_answer_where_the_tokenizer_has_them_as_tokens() -> None:
    """More classes than letters: each code is a token of its own, or is refused."""
    codes = letters(30)
    prompts = [choice_prompt("a film", [f"class {n}" for n in range(30)])]
    known = word_level(words=codes)

    tokens = answer_tokens(known, prompts, [f" {code}" for code in codes])

    assert known.convert_ids_to_tokens(list(tokens)) == list(codes)
    with pytest.raises(ValueError, match=r"' AA' and ' AB' both start with the token .*model_class='encoder'"):
        answer_tokens(byte_bpe(), prompts, [f" {code}" for code in codes])


def test_an_unknown_answer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"' Q' starts with the unknown token 3 \('\[UNK\]'\)"):
        answer_tokens(word_level(), PROMPTS, [" A", " Q"])


def test_a_prompt_whose_tokens_change_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"change when 'A' follows.*move the space at the end of the prompt"):
        answer_tokens(byte_bpe(), ["Answer: "], ["A", "B"])
    with pytest.raises(ValueError, match=r"change when 'positive' follows.*start the answer with a space"):
        continuation_tokens(word_level(), "Label:", "positive")
    with pytest.raises(ValueError, match=r"change when 'A B' follows"):  # as many tokens as before and one more
        continuation_tokens(byte_bpe(), "Answer: ", "A B")


def test_an_answer_that_depends_on_the_prompt_is_refused() -> None:
    tokenizer = word_level(words=["x", "xA"])
    with pytest.raises(ValueError, match=r"change when|different tokens"):
        answer_tokens(tokenizer, ["Answer: ", "Answer: x"], ["A", "B"])


def test_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompt was given"):
        answer_tokens(word_level(), [], [" A", " B"])
