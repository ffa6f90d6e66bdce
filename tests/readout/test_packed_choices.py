"""Choices that share their question's tokens against choices that are rows, over families, padding and windows."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from readout.test_choice_texts import batch_of
from readout.test_frozen_layers_decoders import CONFIGS, adapted
from readout.test_readout import tiny_gpt2
from varlora.adapters import trained_tensors
from varlora.posterior import DiagonalGaussian, batched_draws
from varlora.posterior.batched_draws import num_tokens
from varlora.prediction.prediction import predict
from varlora.readout import choice_log_likelihoods as scored_by
from varlora.readout import packed_choices
from varlora.readout.choice_log_likelihoods import choice_log_likelihoods
from varlora.readout.packed_choices import PackedChoices
from varlora.readout.readout import ChoiceTexts
from varlora.tasks import Collator

QUESTION = list(range(20, 31))
ROWS: list[dict[str, Any]] = [
    {"input_ids": [[*QUESTION, 8], [*QUESTION, 9, 10, 11], [*QUESTION, 9, 13]], "choice_lengths": [1, 3, 2]},
    {"input_ids": [[40, 41, 42, 43, 44], [40, 41, 42, 43, 45, 46]], "choice_lengths": [2, 3]},  # merged at the border
    {"input_ids": [[30, 31, 32], [33, 9], [30, 37]], "choice_lengths": [2, 1, 1]},  # another question for each
    {"input_ids": [[*QUESTION[:6], 7], [*QUESTION[:6], 7]], "choice_lengths": [1, 6]},  # the same text, counted twice
]
READOUT = ChoiceTexts(answers=("A", "B", "C"))
FOURTEEN = ChoiceTexts(answers=tuple("ABCDEFGHIJKLMN"))


def by_rows(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    """What a call gives where no choices are packed."""
    with monkeypatch.context() as patched:
        patched.setattr(scored_by, "takes_packed", lambda model: False)
        return call()


def lengths_seen(model: PeftModel) -> list[tuple[int, ...]]:
    """A list to which every call of the model adds its tokens' shape."""
    shapes: list[tuple[int, ...]] = []
    model.get_base_model().register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def gaussian(model: PeftModel) -> DiagonalGaussian:
    mean = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    return DiagonalGaussian(mean=mean, precision={key: torch.full_like(m, 25.0) for key, m in mean.items()})


@pytest.mark.parametrize("attention", ["default", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_choices_as_rows(
    name: str, side: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(CONFIGS[name])
    if attention == "eager":
        config._attn_implementation = "eager"
    model, batch = adapted(config), batch_of(side, ROWS)
    exact = model.get_base_model().config._attn_implementation == "sdpa"
    if exact:  # eager attention has its softmax in float32, where float64's masks are infinite
        model.double()
    batch["choice_mask"][0, 1] = False  # one that is missing between two that are there
    seen = lengths_seen(model)
    with torch.no_grad():
        expected = by_rows(monkeypatch, lambda: choice_log_likelihoods(model, batch))
        choice_log_likelihoods(model, batch)  # sees that they are the same
        seen.clear()
        found = choice_log_likelihoods(model, batch)
    assert seen == [(4, 15)], "the longest row: 10 tokens of a question, then its last one and a text, twice"
    assert num_tokens(batch) == 4 * 15
    torch.testing.assert_close(found, expected, rtol=1e-6 if exact else 1e-5, atol=1e-9 if exact else 1e-5)
    assert torch.isneginf(found).tolist() == [
        [False, True, False],
        [False, False, True],
        [False] * 3,
        [False, False, True],
    ]


@pytest.mark.parametrize("tokens", [10_000, 1])
def test_draws_share_the_question_and_the_layers_below(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batched_draws.TOKENS, "cpu", tokens)  # all draws as rows, or one after another
    model, held = adapted().double(), [batch_of("left", ROWS[:2]), batch_of("right", ROWS[2:])]
    q = gaussian(model)
    for samples in (0, 1, 5):
        expected = by_rows(monkeypatch, lambda n=samples: predict(model, q, held, n, readout=READOUT, seed=3).log_probs)
        found = predict(model, q, held, samples, readout=READOUT, seed=3).log_probs
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    below: list[int] = []
    model.get_base_model().model.layers[0].self_attn.register_forward_hook(lambda *a: below.append(len(a[2][0])))
    seen = lengths_seen(model)
    predict(model, q, held, 5, readout=READOUT)
    assert below == [2, 2]
    assert seen[-1][0] == (10 if tokens > 1 else 2)


def test_other_families_have_a_row_for_each_choice_which_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = tiny_gpt2(), batch_of("left", ROWS)
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="varlora"):
        found = [choice_log_likelihoods(model, batch) for _ in range(2)]
    assert caplog.text.count("GPT2LMHeadModel computes a question once for each of its choices") == 1
    for one in found:
        torch.testing.assert_close(one, choice_log_likelihoods(model, batch).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_gives_other_scores_is_seen_and_said_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = list(range(10, 50))  # so long that in half precision its score may be off by more than another's whole
    rows = [*ROWS, {"input_ids": [[*QUESTION, *text], [*QUESTION, 7]], "choice_lengths": [len(text), 1]}]
    model, batch = adapted().to(dtype), batch_of("left", rows)
    monkeypatch.setattr(
        PackedChoices, "sees", lambda self, window: torch.ones(5, 1, *self.ids.shape[1:] * 2).tril().bool()
    )
    with torch.no_grad():
        expected = by_rows(monkeypatch, lambda: choice_log_likelihoods(model, batch))
        with caplog.at_level(logging.WARNING, logger="varlora"):
            found = [choice_log_likelihoods(model, batch) for _ in range(3)]
    assert caplog.text.count("does not give the same scores") == 1
    for one in found:
        torch.testing.assert_close(one, expected)


def test_tokens_that_see_what_comes_after_them_are_not_packed() -> None:
    config = copy.deepcopy(CONFIGS["gemma3"])
    config.use_bidirectional_attention = True
    model, batch = adapted(config), batch_of("left", ROWS)
    seen = lengths_seen(model)
    with torch.no_grad():
        choice_log_likelihoods(model, batch)
    assert seen[-1] == (int(batch["choice_mask"].sum()), batch["input_ids"].shape[2])


def test_choices_without_a_shared_question_are_not_packed() -> None:
    rows: Sequence[dict[str, Any]] = [{"input_ids": [[5, 6, 7], [8, 9, 10]], "choice_lengths": [1, 1]}]
    batch: dict[str, Tensor] = batch_of("left", rows)
    assert num_tokens(batch) == batch["input_ids"].numel()


@pytest.mark.parametrize(("shared", "own", "packs"), [(4, 40, False), (24, 40, True), (60, 200, False), (60, 5, True)])
def test_choices_are_packed_where_that_saves_more_than_attention_to_all_of_them_takes(
    shared: int, own: int, packs: bool
) -> None:
    """As measured of SmolLM2's layers: times .98, 1.16, .77 and 2 as fast in a training step or an evaluation."""
    texts = [[*range(2, 2 + shared), 300 + c, *range(2, 1 + own)] for c in range(4)]
    batch = batch_of("left", [{"input_ids": texts[:3], "choice_lengths": [4] * 3}] * 4)
    every = {name: torch.cat([value, value[:, :1]], 1) for name, value in batch.items() if value.ndim > 1}
    every["input_ids"][:, 3] = torch.tensor(texts[3])
    assert (packed_choices.packed_choices(every) is not None) == packs


MANY = [[50, 51, 52, 53, *range(2 + 7 * c % 13, 12 + 7 * c % 13)] for c in range(7)]
"""Seven texts of ten tokens behind four: packed, 80 tokens, whose square is more than those of seven rows of 14."""


@pytest.mark.parametrize("attention", ["default", "eager"])
def test_many_choices_are_packed_in_parts_whose_masks_are_no_larger_than_those_of_rows(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(CONFIGS["llama"])
    if attention == "eager":
        config._attn_implementation = "eager"
    model = adapted(config)
    rows: list[dict[str, Any]] = [{"input_ids": some, "choice_lengths": [10] * len(some)} for some in (MANY[:6], MANY)]
    encoded = [
        {**row, "choice_bytes": row["choice_lengths"], "labels": 1, "num_choices": len(row["input_ids"])}
        for row in rows
    ]
    batch = Collator(pad_token_id=0, num_classes=14)(encoded)  # of which no row has the last seven
    if attention == "default":
        model.double()
    with torch.no_grad():
        expected = by_rows(monkeypatch, lambda: choice_log_likelihoods(model, batch))
        whole = [choice_log_likelihoods(model, batch) for _ in range(2)][1]
        monkeypatch.setattr(packed_choices, "LARGEST_MASK", 0)
        seen = lengths_seen(model)
        found = choice_log_likelihoods(model, batch)
    assert seen == [(2, 25)] * 3 + [(2, 14)], "two choices behind the question, and one"
    assert num_tokens(batch) == 2 * 25
    for scores in (whole, found):
        torch.testing.assert_close(scores, expected, rtol=1e-6 if attention == "default" else 1e-5, atol=1e-9)
    q = gaussian(model)
    drawn = by_rows(monkeypatch, lambda: predict(model, q, [batch], 4, readout=FOURTEEN).log_probs)
    torch.testing.assert_close(predict(model, q, [batch], 4, readout=FOURTEEN).log_probs, drawn, rtol=1e-5, atol=1e-6)
