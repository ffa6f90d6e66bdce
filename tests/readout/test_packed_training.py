"""Choices that share their question in training and above cached layers: scores, gradients and states, and who may."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import lora, tiny_llama
from readout.test_choice_texts import batch_of
from readout.test_frozen_layers_decoders import CONFIGS, adapted, calls_of
from readout.test_packed_choices import FOURTEEN, MANY, QUESTION, READOUT, ROWS, by_rows, gaussian, lengths_seen
from varlora import IVON, NoiseController
from varlora.curvature.layers import linear_tensors, recorded
from varlora.methods.blob import flipout
from varlora.methods.random_factors import RandomFactors
from varlora.posterior import DropoutMasks
from varlora.posterior.batched_draws import num_tokens
from varlora.prediction.linearised import predict_linearised
from varlora.prediction.prediction import predict
from varlora.readout import packed_choices
from varlora.readout.choice_log_likelihoods import choice_log_likelihoods
from varlora.readout.frozen_layers import cached_frozen_layers
from varlora.readout.trunks import Decoder, trunk_of
from varlora.tasks import Collator

FIRST_TOKEN: list[dict[str, Any]] = [  # texts with the same first token, a choice alone, and five
    {"input_ids": [[*QUESTION, 8, 9], [*QUESTION, 8, 9, 10], [*QUESTION, 8, 11]], "choice_lengths": [2, 3, 2]},
    {"input_ids": [[12, 13, 14, 15]], "choice_lengths": [2]},
    {"input_ids": [[*QUESTION[:5], c] for c in (40, 41, 42, 43, 44)], "choice_lengths": [1] * 5},
]
PACKED, AS_ROWS = (4, 19), (10, 14)
"""Shapes of `ROWS`: the longest has 10 tokens of a question, then its last one and a text, three times."""


def in_float64(model: PeftModel) -> PeftModel:
    """With norms in float64, too, which these models compute in float32 whatever their weights are."""

    def normalise(norm: Any, x: Tensor) -> Tensor:
        scale = norm.weight + 1 if "Gemma" in type(norm).__name__ else norm.weight
        epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * scale

    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: normalise(norm, x)  # type: ignore[method-assign]
    return model


def of_fourteen(rows: list[dict[str, Any]], side: Any = "left") -> dict[str, Any]:
    encoded = [
        {**row, "choice_bytes": row["choice_lengths"], "labels": 0, "num_choices": len(row["input_ids"])}
        for row in rows
    ]
    return Collator(pad_token_id=0, num_classes=14, padding_side=side)(encoded)


def scores_and_gradients(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Scores, and the gradients of their softmax's loss by all that trains."""
    model.zero_grad()
    scores = choice_log_likelihoods(model, batch)
    nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64)).backward()
    return scores.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-9) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = other.nan_to_num(neginf=0.0).abs().max().item()
        assert largest > 1e-3
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CONFIGS)
def test_training_has_the_scores_and_gradients_of_choices_as_rows(
    name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(copy.deepcopy(CONFIGS[name])).train()
    exact = model.get_base_model().config._attn_implementation == "sdpa"  # else its softmax is in float32
    tolerance = 1e-9 if exact else 1e-4
    if exact:
        in_float64(model)
    batches = [batch_of(side, ROWS), of_fourteen(FIRST_TOKEN, side)]
    batches[0]["choice_mask"][0, 1] = False
    seen = lengths_seen(model)
    for batch in batches:
        expected = by_rows(monkeypatch, lambda batch=batch: scores_and_gradients(model, batch))
        seen.clear()
        assert_same(scores_and_gradients(model, batch), expected, tolerance)
        with cached_frozen_layers(model):
            for _ in range(2):
                assert_same(scores_and_gradients(model, batch), expected, tolerance)
        assert len(seen) == 4 if batch is batches[0] else 3, "the first batch was seen in both ways"
        assert set(seen[-3:]) == {(len(batch["input_ids"]), num_tokens(batch) // len(batch["input_ids"]))}


@pytest.mark.parametrize("cached", [False, True])
def test_parts_are_one_gradient(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_float64(adapted()).train()
    batch = of_fourteen([{"input_ids": some, "choice_lengths": [10] * len(some)} for some in (MANY[:6], MANY)])
    expected = by_rows(monkeypatch, lambda: scores_and_gradients(model, batch))
    monkeypatch.setattr(packed_choices, "LARGEST_MASK", 0)
    with cached_frozen_layers(model) if cached else nullcontext():
        scores_and_gradients(model, batch)
        seen = lengths_seen(model)
        assert_same(scores_and_gradients(model, batch), expected)
    assert seen == [(2, 25)] * 3 + [(2, 14)]
    drawn = by_rows(monkeypatch, lambda: predict(model, gaussian(model), [batch], 4, readout=FOURTEEN).log_probs)
    with cached_frozen_layers(model):
        found = predict(model, gaussian(model), [batch], 4, readout=FOURTEEN).log_probs
    torch.testing.assert_close(found, drawn, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kept", ["in memory", "in files", "in a shared folder"])
def test_evaluation_training_and_draws_share_a_rows_states(kept: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "in memory": {},
        "in files": {"memory": 10 * 16 * 8 / 2**30, "folder": tmp_path},
        "in a shared folder": {"folder": tmp_path, "shared": True},
    }[kept]
    model = in_float64(adapted())
    batches = [batch_of("left", ROWS), batch_of("right", [ROWS[2], ROWS[0]])]
    for mode in (True, False):  # which sees, in each, that packed choices have the scores of rows
        expected = scores_and_gradients(model.train(mode), batches[0])
    computed = calls_of(model)
    with cached_frozen_layers(model, **options), torch.no_grad():
        choice_log_likelihoods(model.eval(), batches[0])
        assert sum(computed) == 4
        computed.clear()
        choice_log_likelihoods(model, batches[1])
        predict(model, gaussian(model), batches, 4, readout=READOUT)
        with torch.enable_grad():
            assert_same(scores_and_gradients(model.train(), batches[0]), expected)
        assert not computed
    with cached_frozen_layers(model, **options):
        assert_same(scores_and_gradients(model.train(), batches[0]), expected)
    assert sum(computed) == (1 if kept == "in a shared folder" else 4), "a row to see that the folder's are right"


@torch.no_grad()
def test_rows_differ_by_what_their_tokens_see_and_not_by_missing_choices_or_padding() -> None:
    trunk = trunk_of(adapted())
    assert isinstance(trunk, Decoder)

    def keys(ids: list[int], branches: list[int], positions: list[int]) -> bytes:
        given = {"input_ids": ids, "branches": branches, "position_ids": positions}
        [key] = trunk.rows({name: torch.tensor([value]) for name, value in given.items()}).tokens()
        return key

    one = keys([5, 6, 7, 8], [0, 0, 1, 2], [0, 1, 2, 2])
    assert keys([5, 6, 7, 8, 0, 0], [0, 0, 1, 2, -1, -1], [0, 1, 2, 2, 0, 0]) == one
    exists, ids = torch.tensor([[False, True, True]]), torch.tensor([[[0, 0, 0], [5, 6, 7], [5, 6, 8]]])
    lengths = torch.tensor([[0, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "choice_mask": exists, "choice_lengths": lengths}
    [part] = packed_choices.packed_choices(batch) or []
    assert keys(part.ids[0].tolist(), part.branches[0].tolist(), part.positions[0].tolist()) == keys(
        [5, 6, 7, 6, 8], [0, 1, 1, 2, 2], [0, 1, 2, 1, 2]
    ), "a choice that is missing leaves no trace"
    others = [keys([5, 6, 7, 8], [0, 1, 1, 2], [0, 1, 2, 1]), keys([5, 6, 7, 8], [0, 0, 1, 1], [0, 1, 2, 3])]
    [plain] = trunk.rows({"input_ids": torch.tensor([[5, 6, 7, 8]])}).tokens()
    assert plain == b"input_ids" + torch.tensor([5, 6, 7, 8]).numpy().tobytes(), "as in folders that are there"
    assert len({one, plain, *others}) == 4


def test_who_looks_at_layers_by_row_has_a_row_for_each_choice() -> None:
    model, batch = adapted(), batch_of("left", ROWS)
    seen = lengths_seen(model)
    for mode in (False, True):
        for _ in range(2):
            scores_and_gradients(model.train(mode), batch)
    assert seen[2:] == [AS_ROWS, PACKED, PACKED] * 2, "after two rows by which the output layer is narrowed"
    seen.clear()
    predict_linearised(model, gaussian(model), [batch], samples=2, readout=READOUT)
    with cached_frozen_layers(model), recorded(model, linear_tensors(model)) as recorder:
        recorder.logits(READOUT, batch)
    assert set(seen) == {AS_ROWS}
    seen.clear()
    factors = RandomFactors(model.train(), flipout, std_shape=lambda shape: shape, initial_std_bound=0.05, seed=0)
    scores_and_gradients(model, batch)
    with torch.no_grad():
        choice_log_likelihoods(model, batch)
    scores_and_gradients(copy.deepcopy(model), batch)
    factors.detach()
    scores_and_gradients(model, batch)
    narrowed = [(2, 14)] * 2  # the copy's output layer, compared once
    assert seen == [AS_ROWS, PACKED, *narrowed, AS_ROWS, PACKED]


def test_dropout_has_a_row_for_each_choice_and_a_rate_of_0_is_none() -> None:
    batch = batch_of("left", ROWS)
    for rate, attention, packs in ((0.3, 0.0, False), (0.0, 0.1, False), (0.0, 0.0, True)):
        model = lora(tiny_llama(), task_type="CAUSAL_LM", lora_dropout=rate).train()
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = attention  # type: ignore[assignment]
        seen = lengths_seen(model)
        for _ in range(2):
            scores_and_gradients(model, batch)
        assert (PACKED in seen) == packs
    dropped = lora(tiny_llama(), task_type="CAUSAL_LM", lora_dropout=0.3).eval()
    seen = lengths_seen(dropped)
    predict(dropped, DropoutMasks(mean=gaussian(dropped).mean, rate=0.3), [batch], 2, readout=READOUT)
    assert PACKED not in seen


def test_noise_that_is_the_same_for_all_rows_is_so_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> Tensor:
        model, batch = in_float64(adapted()).train(), batch_of("left", ROWS)
        optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=1e-2, ess=500.0, hess_init=0.5)
        noise = NoiseController(model, optimizer, seed=7)
        with cached_frozen_layers(model):
            for _ in range(3):
                scores_and_gradients(model, batch)
                optimizer.step()
        noise.detach()
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    expected = by_rows(monkeypatch, trained)
    torch.testing.assert_close(trained(), expected, rtol=1e-7, atol=1e-9)


def test_noise_of_each_row_is_seen_on_the_first_batch(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = adapted().train(), batch_of("left", ROWS)
    model.get_base_model().model.embed_tokens.register_forward_hook(  # type: ignore[union-attr]
        lambda module, _, hidden: hidden + torch.randn_like(hidden) if module.training else hidden
    )
    seen = lengths_seen(model)
    with caplog.at_level(logging.WARNING, logger="varlora"):
        for _ in range(3):
            scores_and_gradients(model, batch)
    assert caplog.text.count("does not give the same scores") == 1
    assert seen[2:] == [AS_ROWS, PACKED, AS_ROWS, AS_ROWS, AS_ROWS]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_packs_and_has_rows_above_cached_layers(
    reentrant: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = in_float64(adapted()).train(), batch_of("left", ROWS)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.get_base_model().enable_input_require_grads()
    expected = by_rows(monkeypatch, lambda: scores_and_gradients(model, batch))
    seen = lengths_seen(model)
    for _ in range(2):
        assert_same(scores_and_gradients(model, batch), expected)
    assert seen.pop() == PACKED
    seen.clear()
    with cached_frozen_layers(model), caplog.at_level(logging.INFO, logger="varlora"):
        for _ in range(2):
            assert_same(scores_and_gradients(model, batch), expected)
    assert PACKED not in seen
    assert caplog.text.count("cached layers are not shared with checkpointing") == 1


def test_under_autocast_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = adapted().train(), batch_of("left", ROWS)
    seen = lengths_seen(model)
    with torch.autocast("cpu", dtype=torch.bfloat16), cached_frozen_layers(model):
        expected = by_rows(monkeypatch, lambda: scores_and_gradients(model, batch))
        for _ in range(2):
            assert_same(scores_and_gradients(model, batch), expected, tolerance=0.05)
    assert seen.pop() == PACKED


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_processes_that_train_together_have_a_row_for_each_choice(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = adapted().train(), batch_of("left", ROWS)
    seen = lengths_seen(model)
    with one_process(), caplog.at_level(logging.INFO, logger="varlora"):
        replicated = DistributedDataParallel(model)
        for _ in range(2):
            scores_and_gradients(replicated, batch)
    assert PACKED not in seen
    assert caplog.text.count("has a row for each choice in training") == 1


def test_one_choice_a_row_is_a_row() -> None:
    model = adapted().train()
    batch = batch_of("right", [{"input_ids": [[5, 6, 7]], "choice_lengths": [1]}] * 2)
    seen = lengths_seen(model)
    for _ in range(3):
        choice_log_likelihoods(model, batch)[:, 0].sum().backward()
    assert seen[2:] == [(2, 3)] * 3
