"""Token ids, lengths, labels and batches."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from tiny_tokenizers import byte_bpe, word_level, word_piece
from varlora.tasks import Collator, Task, context_length, encode, encode_prompts
from varlora.tasks.build import build_task
from varlora.tasks.description import Wording
from varlora.tasks.encode import PAST_PADDING
from varlora.tasks.rows import Records

CHOICES = [
    {"id": "q1", "question": "which one barks?", "choices": ["cat", "dog"], "answer": "B"},
    {"id": "q2", "question": "film", "choices": ["hen", "cow", "cat"], "answer": 0},
]


def task_of(rows: list[dict[str, Any]], **options: Any) -> Task:
    return build_task("t", {"train": Records(where="t.jsonl", rows=rows)}, **options)


def test_a_causal_row_is_the_prompt_without_its_answer() -> None:
    tokenizer = byte_bpe(bos=True, eos=True)

    row = encode(task_of(CHOICES), "train", tokenizer, None)[0]

    assert tokenizer.decode(row["input_ids"]) == "<s>which one barks?\nA. cat\nB. dog\nAnswer:"
    assert (row["id"], row["labels"], row["num_choices"]) == ("q1", 1, 2)


def test_an_encoder_row_is_the_text_between_its_special_tokens() -> None:
    tokenizer = word_piece()
    rows = [{"text": "a fine film", "label": "positive"}, {"text": "a dull film", "label": "negative"}]

    row = encode(task_of(rows), "train", tokenizer, 64, family="encoder")[0]

    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "a", "fine", "film", "[SEP]"]


def test_out_of_scope_labels_count_in_no_loss() -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, {"text": "c", "label": -1}]

    encoded = encode(task_of(rows, label_names=["x", "y"], ood_splits=["train"]), "train", byte_bpe(), 64)

    assert list(encoded["labels"]) == [0, 1, -100]


def test_a_completion_row_counts_its_completion_and_an_end_token() -> None:
    tokenizer = word_level(bos=True)
    task = task_of([{"prompt": "Label:", "completion": " positive"}])

    row = encode(task, "train", tokenizer, None)[0]

    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<s>", "Label:", "positive", "</s>"]
    assert row["labels"] == [-100, -100, *row["input_ids"][2:]]


def test_a_completion_with_its_own_end_token_gets_no_second_one() -> None:
    task = task_of([{"prompt": "Label:", "completion": " positive </s> film"}])

    tokens = encode(task, "train", word_level(), None)[0]["input_ids"]

    assert tokens.count(word_level().eos_token_id) == 1


def test_a_completion_that_changes_its_prompt_is_refused_with_its_row() -> None:
    task = task_of([{"id": "r9", "prompt": "Label: ", "completion": "positive"}])

    with pytest.raises(ValueError, match=r"task 't', train, row 'r9': .*move the space"):
        encode(task, "train", byte_bpe(), None)


def test_a_row_longer_than_the_context_is_refused_with_both_lengths() -> None:
    with pytest.raises(ValueError, match=r"row 'q1' has 9 tokens, more than the 8 allowed.*truncation='left'"):
        encode(task_of(CHOICES), "train", word_level(bos=True), 8)


@pytest.mark.parametrize("kind", ["answers", "choices as texts", "completions"])
def test_rows_that_are_read_and_tokenized_in_several_parts_are_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_bpe(bos=True, eos=True)
    task = task_of([{"id": f"r{n}", "prompt": "x" * n, "completion": " y" * n} for n in range(1, 8)])
    if kind != "completions":
        rows = [{"id": f"r{n}", "question": "x" * n, "choices": ["cat", "dog"], "answer": n % 2} for n in range(1, 8)]
        task = task_of(rows, wording=Wording(prompt_style="cloze" if kind == "choices as texts" else "varlora"))
    whole, prompts = (list(make(task, "train", tokenizer, None)) for make in (encode, encode_prompts))
    for module in ("encode", "tokens"):
        monkeypatch.setattr(importlib.import_module(f"varlora.tasks.{module}"), "AT_ONCE", 3)
    assert list(encode(task, "train", tokenizer, None)) == whole
    assert list(encode_prompts(task, "train", tokenizer, None)) == prompts
    limit = len(prompts[4]["input_ids"])
    with pytest.raises(ValueError, match=f"row 'r6' has {limit + 1} tokens"):
        encode_prompts(task, "train", tokenizer, limit)


FRAMED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "class names and cue": (
        {"text": "a dull film a fine film", "label": "positive"},
        {"label_names": ["negative", "positive"]},
        "a dull film|fine film a|Labels: negative, positive Label:",
        "",
    ),
    "choices": (
        {"question": "a dull film which one barks?", "choices": ["cat", "dog"], "answer": 0},
        {},
        "a dull film|which one barks?|A. cat B. dog Answer:",
        "",
    ),
    "instruction and choices": (
        {"question": "a dull film which one barks?", "choices": ["cat", "dog"], "answer": 0},
        {"wording": Wording(prompt_style="blob")},
        "a dull film|which one barks?|Choices: A) cat B) dog Answer:",
        "Return the label of the correct answer for the question below. Question:",
    ),
    "question": (
        {"passage": "a dull film a fine film", "question": "which one", "answer": True},
        {},
        "a dull film|a fine film|Question: which one Answer:",
        "",
    ),
    "question before its passage": (
        {"passage": "a dull film a fine film", "question": "which one", "answer": True},
        {"wording": Wording(prompt_style="laplace-lora")},
        "a dull film|a fine film|",
        "Answer the question with only True or False: which one Context:",
    ),
}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("row", "options", "expected", "before"), FRAMED.values(), ids=FRAMED.keys())
def test_truncation_cuts_the_text_and_keeps_its_frame(
    row: dict[str, Any], options: dict[str, Any], expected: str, before: str, side: Any, fast: bool
) -> None:
    left, right, after = expected.split("|")
    framing = [*before.split(), *after.split()]
    tokenizer = word_level(words=[*framing, *left.split(), *right.split()], bos=True)
    if not fast:
        tokenizer = without_offsets(tokenizer)

    cut = encode(task_of([row], **options), "train", tokenizer, 1 + len(framing) + 3, truncation=side)[0]

    kept = row.get("text") or row.get("passage") or row["question"]
    words = kept.split()[-3:] if side == "left" else kept.split()[:3]
    assert tokenizer.convert_ids_to_tokens(cut["input_ids"]) == ["<s>", *before.split(), *words, *after.split()]


def without_offsets(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """As a tokenizer written in Python: it does not know where in the text a token came from."""

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            assert not kwargs.get("return_offsets_mapping")
            return super().__call__(*args, **kwargs)

    return Slow(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]")


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_in_bytes_keeps_the_frame(side: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where tokens are not words, what is left is the text's start or end, and the frame letter by letter."""
    tokenizer = byte_bpe(bos=True)
    text = "ein schöner film über käse " * 8
    rows = [{"text": text, "label": "positive"}, {"text": "a dull film", "label": "negative"}]
    task = task_of(rows, label_names=["negative", "positive"])

    with caplog.at_level(logging.WARNING):
        cut = encode(task, "train", tokenizer, 40, truncation=side)

    assert f"t, train: 1 of 2 rows cut on the {side} to 40 tokens" in caplog.text
    assert len(cut[0]["input_ids"]) == 40
    written = (
        tokenizer.decode(cut[0]["input_ids"]).removeprefix("<s>").removesuffix("\nLabels: negative, positive\nLabel:")
    )
    whole = written.strip("�").strip()  # a letter of two bytes may be cut
    assert len(whole) > 3
    assert text.strip().endswith(whole) if side == "left" else text.startswith(whole)


def test_a_frame_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 'q1' has 9 tokens, .*5 tokens, which leaves none of the 5 for the text"):
        encode(task_of(CHOICES), "train", word_level(bos=True), 6, truncation="left")


CHAT = [
    {"role": "system", "content": "a film"},
    {"role": "user", "content": "which one barks?"},
    {"role": "assistant", "content": "dog"},
    {"role": "user", "content": "a fine film a dull film"},
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} <{{ m.role }}> {{ m.content | trim }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)
QUESTION = "<s> <system> a film </s> <user>"


@pytest.mark.parametrize(
    ("most", "side", "kept"),
    [
        (22, "left", f"{QUESTION} which one barks? </s> <assistant> dog </s> <user> a fine film a dull film </s>"),
        (21, "left", f"{QUESTION} a fine film a dull film </s>"),
        (14, "right", f"{QUESTION} a fine film a dull film </s>"),
        (10, "left", f"{QUESTION} dull film </s>"),
        (10, "right", f"{QUESTION} a fine </s>"),
    ],
)
def test_a_long_conversation_keeps_bos_system_turn_and_last_header(most: int, side: Any, kept: str) -> None:
    tokenizer = word_level(words=["<system>", "<user>", "<assistant>"], bos=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    rows = [{"messages": [*CHAT, {"role": "assistant", "content": "dull"}]}]
    task = task_of(rows, tokenizer=tokenizer)

    cut = encode(task, "train", tokenizer, most + 2, truncation=side)[0]
    prompt = encode_prompts(task, "train", tokenizer, most, truncation=side)[0]

    assert tokenizer.decode(prompt["input_ids"]) == f"{kept} <assistant>"
    assert tokenizer.decode(cut["input_ids"]) == f"{kept} <assistant> dull </s>"
    assert cut["labels"] == [-100] * len(prompt["input_ids"]) + cut["input_ids"][-2:]


def test_an_encoders_truncation_keeps_both_ends() -> None:
    tokenizer = word_piece()
    rows = [{"text": "a fine film", "label": "positive"}, {"text": "dull", "label": "negative"}]

    encoded = encode(task_of(rows), "train", tokenizer, 4, family="encoder", truncation="right")

    assert tokenizer.convert_ids_to_tokens(encoded[0]["input_ids"]) == ["[CLS]", "a", "fine", "[SEP]"]


def test_an_encoders_truncation_keeps_the_choices() -> None:
    tokenizer = word_piece()
    row = {"question": "a fine film which one", "choices": ["cat", "dog"], "answer": 0}

    cut = encode(task_of([row]), "train", tokenizer, 10, family="encoder", truncation="right")[0]

    kept = ["[CLS]", "a", "fine", "A", ".", "cat", "B", ".", "dog", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(cut["input_ids"]) == kept


def test_a_completion_is_never_cut() -> None:
    task = task_of([{"prompt": "a fine film Label:", "completion": " positive"}])

    cut = encode(task, "train", word_level(), 3, truncation="left")[0]

    assert word_level().convert_ids_to_tokens(cut["input_ids"]) == ["Label:", "positive", "</s>"]
    with pytest.raises(ValueError, match="more than the 2 allowed"):
        encode(task, "train", word_level(), 2, truncation="left")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "decoder"}, "family is 'decoder'; allowed: causal, encoder"),
        ({"truncation": "middle"}, "truncation is 'middle'; allowed: error, left, right"),
        ({"max_length": 0}, "max_length is 0"),
        ({"split": "test"}, "no split 'test'; it has train"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    arguments = {"split": "train", "max_length": None, **options}
    with pytest.raises(ValueError, match=message):
        encode(task_of(CHOICES), tokenizer=word_level(), **arguments)


def test_an_encoder_cannot_complete() -> None:
    with pytest.raises(ValueError, match="needs a causal LM, not an encoder"):
        encode(task_of([{"prompt": "a", "completion": "b"}]), "train", word_piece(), None, family="encoder")


@pytest.mark.parametrize(("family", "side"), [("causal", "left"), ("encoder", "right")])
def test_batches_are_padded_on_the_familys_side(family: Any, side: str) -> None:
    tokenizer, task = word_piece(), task_of(CHOICES)
    rows = encode(task, "train", tokenizer, None, family=family)

    batch = Collator.of(task, tokenizer, family=family, ids=True)(list(rows))

    lengths = [len(row["input_ids"]) for row in rows]
    assert batch["input_ids"].shape == (2, max(lengths))
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == row["input_ids"]
        assert mask.tolist() == sorted(mask.tolist(), reverse=side == "right")
    assert batch["labels"].tolist() == [1, 0]
    assert batch["choice_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["id"] == ["q1", "q2"]


def test_completion_labels_are_padded_with_the_ignored_label() -> None:
    task = task_of([{"prompt": "Label:", "completion": c} for c in (" positive", " a dull film")])
    tokenizer = word_level()

    batch = Collator.of(task, tokenizer)(list(encode(task, "train", tokenizer, None)))

    counted = batch["labels"] != -100
    assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])
    assert counted.tolist() == [[False, False, False, True, True], [False, True, True, True, True]]
    assert "choice_mask" not in batch


def test_the_context_of_a_model() -> None:
    assert context_length(LlamaConfig(max_position_embeddings=77)) == 77
    assert context_length(BertConfig(max_position_embeddings=66)) == 66
    assert context_length(GPT2Config(n_positions=55)) == 55
    assert context_length(object()) is None


PAST_PADDING_CLASSES = [
    *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.items(),
    *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items(),
]


def test_every_model_whose_positions_begin_behind_the_padding_is_known() -> None:
    """Read off transformers' source, so that a new one makes this fail."""
    folder = Path(transformers.__file__).parent / "models"
    found = set()
    for kind, _ in PAST_PADDING_CLASSES:
        module = model_type_to_module_name(kind)
        file = folder / module / f"modeling_{module if kind != 'data2vec-text' else 'data2vec_text'}.py"
        if file.is_file() and "Position numbers begin at padding_idx+1" in file.read_text(encoding="utf-8"):
            found.add(kind)
    assert found - {"trocr"} == set(PAST_PADDING), "TrOCR's table is longer by as much"


@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize(("make", "model"), [(RobertaConfig, RobertaModel), (MPNetConfig, MPNetModel)])
def test_the_longest_row_fits_and_one_more_does_not(make: Any, model: Any, padding: int) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = make(vocab_size=20, max_position_embeddings=16, pad_token_id=padding, **sizes)
    most = context_length(config)
    assert most is not None

    made = model(config).eval()

    made(input_ids=torch.full((1, most), 7))
    with pytest.raises((IndexError, RuntimeError)):  # as the lookup that fails first says
        made(input_ids=torch.full((1, most + 1), 7))


@pytest.mark.parametrize(
    ("side", "kept"), [("left", ["<s>", "film", "Label:"]), ("right", ["<s>", "a", "fine"]), ("error", None)]
)
def test_prompts_alone_leave_room_behind_them(
    side: Any, kept: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = word_level(bos=True, eos=True)
    task = task_of([{"id": "q1", "prompt": "a fine film Label:", "completion": " positive"}])

    whole = encode_prompts(task, "train", tokenizer, 5)
    assert tokenizer.convert_ids_to_tokens(whole[0]["input_ids"]) == ["<s>", "a", "fine", "film", "Label:"]
    batch = Collator.of(task, tokenizer, ids=True)([whole[0], {"id": 2, "input_ids": [7]}])
    assert sorted(batch) == ["attention_mask", "id", "input_ids"]
    assert batch["attention_mask"].tolist() == [[1] * 5, [0, 0, 0, 0, 1]]
    if kept is None:
        with pytest.raises(ValueError, match=r"prompt of row 'q1' has 5 tokens, more than the 3 that leave room"):
            encode_prompts(task, "train", tokenizer, 3)
        return
    with caplog.at_level(logging.WARNING):
        cut = encode_prompts(task, "train", tokenizer, 3, truncation=side)
    assert tokenizer.convert_ids_to_tokens(cut[0]["input_ids"]) == kept
    assert f"t, train: 1 of 1 prompts cut on the {side} to 3 tokens" in caplog.text
