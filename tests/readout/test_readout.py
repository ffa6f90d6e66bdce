"""Class logits against a slow loop over the full forward, one row at a time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from models import lora, tiny_bert_classifier, tiny_llama, tiny_qwen3
from varlora import IVON, NoiseController
from varlora.readout.answer_logits import last_positions
from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead, Readout, readout_from_dict

TOKENS = (7, 11, 40)
READOUT = AnswerTokens(token_ids=TOKENS, answers=("A", "B", "C"))
ROWS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15]]


def tiny_gemma2(**config: Any) -> Gemma2ForCausalLM:
    """A model that caps its logits after the output layer."""
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "final_logit_softcapping": 0.5, "pad_token_id": 0}
    return Gemma2ForCausalLM(Gemma2Config(**shape, **heads, **config)).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    """A model with learned absolute positions."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()


CAUSAL: dict[str, Callable[[], nn.Module]] = {
    "Llama": tiny_llama,
    "Llama with LoRA": lambda: lora(tiny_llama(), task_type="CAUSAL_LM").eval(),
    "Qwen3, tied": tiny_qwen3,
    "Qwen3 with LoRA": lambda: lora(tiny_qwen3(), task_type="CAUSAL_LM").eval(),
    "LoRA on the output layer": lambda: lora(tiny_llama(), target_modules=["q_proj", "lm_head"]).eval(),
    "trained output layer": lambda: lora(tiny_llama(), modules_to_save=["lm_head"]).eval(),
    "Gemma 2, soft-capped": tiny_gemma2,
    "GPT-2, absolute positions": tiny_gpt2,
}


def batch_of(rows: Sequence[Sequence[int]], side: str = "left", extra: int = 0) -> dict[str, Tensor]:
    width = max(map(len, rows)) + extra
    ids, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def slow_logits(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    """One unpadded row at a time, the whole vocabulary, then the answer tokens."""
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([row])).logits[0, -1, list(TOKENS)] for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL.keys())
def test_answer_logits_are_those_of_the_full_forward(make: Callable[[], nn.Module], side: str) -> None:
    model = make()
    expected = slow_logits(model, ROWS)

    logits = READOUT.logits(model, batch_of(ROWS, side, extra=2))

    torch.testing.assert_close(logits.detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", CAUSAL.values(), ids=CAUSAL.keys())
def test_only_the_answers_rows_are_computed_unless_the_layer_is_adapted(make: Callable[[], nn.Module]) -> None:
    model = make()
    READOUT.logits(model, batch_of(ROWS))  # the comparison with the full forward is behind us
    shapes = []
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = base.get_output_embeddings().register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape)))

    READOUT.logits(model, batch_of(ROWS))

    handle.remove()
    adapted = any("lm_head" in name and p.requires_grad for name, p in model.named_parameters()) and hasattr(
        model, "peft_config"
    )
    assert shapes == [(3, 1, 64 if adapted else 3)]


def test_the_model_is_left_as_it_was_also_after_an_exception() -> None:
    model = tiny_llama()
    before = (dict(model.lm_head.__dict__["_forward_pre_hooks"]), set(model.lm_head.__dict__))

    READOUT.logits(model, batch_of(ROWS))
    with pytest.raises(IndexError):
        READOUT.logits(model, batch_of([[999]]))

    assert (dict(model.lm_head.__dict__["_forward_pre_hooks"]), set(model.lm_head.__dict__)) == before
    assert model(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 64)


def test_gradients_are_those_of_the_full_forward() -> None:
    fast = lora(tiny_llama(), task_type="CAUSAL_LM").train()
    slow = copy.deepcopy(fast)
    labels = torch.tensor([0, 2, 1])

    torch.nn.functional.cross_entropy(READOUT.logits(fast, batch_of(ROWS)), labels).backward()
    logits = [slow(input_ids=torch.tensor([row])).logits[0, -1, list(TOKENS)] for row in ROWS]
    torch.nn.functional.cross_entropy(torch.stack(logits), labels).backward()

    for p, expected in zip(fast.parameters(), slow.parameters(), strict=True):
        assert (p.grad is None) == (expected.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_training_noise_reaches_the_readout(modules_to_save: list[str] | None) -> None:
    model = lora(tiny_llama(), task_type="CAUSAL_LM", modules_to_save=modules_to_save).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = IVON(trained, lr=0.1, ess=100.0, hess_init=1.0)
    noise = NoiseController(model, optimizer, seed=1)

    noisy = READOUT.logits(model, batch_of(ROWS))
    expected = model(**batch_of(ROWS)).logits[:, -1, list(TOKENS)]  # the same draw: no backward in between
    noisy.sum().backward()
    products = noise.collect()

    torch.testing.assert_close(noisy, expected, atol=1e-5, rtol=1e-5)
    assert (READOUT.logits(model.eval(), batch_of(ROWS)) - noisy).abs().max() > 1e-3
    assert len(products) == len(trained)


def test_the_first_batch_costs_no_random_number_and_no_mode() -> None:
    model = lora(tiny_llama(), task_type="CAUSAL_LM", lora_dropout=0.5).train()
    model.base_model.model.lm_head.eval()
    modes = [m.training for m in model.modules()]
    torch.manual_seed(7)

    first = READOUT.logits(model, batch_of(ROWS))  # with the comparison
    torch.manual_seed(7)
    second = READOUT.logits(model, batch_of(ROWS))  # without

    assert torch.equal(first, second)
    assert [m.training for m in model.modules()] == modes


def test_a_model_with_another_kind_of_head_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Normalised(type(tiny_llama())):  # type: ignore[misc]
        """Gives log-probabilities over the vocabulary: more than a function of the answers' rows."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.log_softmax(-1)
            return output

    torch.manual_seed(0)
    model = Normalised(tiny_llama().config).eval()
    with caplog.at_level(logging.WARNING):
        logits = READOUT.logits(model, batch_of(ROWS, "right"))
        READOUT.logits(model, batch_of(ROWS))

    torch.testing.assert_close(logits.detach(), slow_logits(model, ROWS), atol=1e-5, rtol=1e-5)
    assert [r.message for r in caplog.records] == [
        "Normalised does not give the same logits by the wanted positions and rows of its output layer alone; "
        "computing all of them"
    ]


def test_wrapped_models_are_read_through_their_wrapper() -> None:
    model = tiny_llama()

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(**kwargs)

    wrapper = Wrapper(model)
    READOUT.logits(wrapper, batch_of(ROWS))
    before = wrapper.calls
    logits = READOUT.logits(wrapper, batch_of(ROWS))

    assert wrapper.calls == before + 1
    torch.testing.assert_close(logits.detach(), slow_logits(model, ROWS), atol=1e-5, rtol=1e-5)


def test_a_model_under_ddp_trains_through_the_readout() -> None:
    plain = lora(tiny_llama(), task_type="CAUSAL_LM").train()
    inner = copy.deepcopy(plain)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def train(model: nn.Module) -> None:
        for _ in range(2):
            READOUT.logits(model, batch_of(ROWS)).square().sum().backward()

    try:
        train(plain)
        # One that outlives its group ends the group itself, and may wait for ever for a thread that waits for Python.
        train(nn.parallel.DistributedDataParallel(inner))
    finally:
        dist.destroy_process_group()

    for p, expected in zip(inner.parameters(), plain.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(p.grad, expected.grad)


def test_a_compiled_model_is_read_whole() -> None:
    model = tiny_llama(layers=1)
    compiled = torch.compile(model, backend="eager")

    logits = READOUT.logits(compiled, batch_of(ROWS))

    torch.testing.assert_close(logits.detach(), slow_logits(model, ROWS), atol=1e-5, rtol=1e-5)


def test_a_bfloat16_model_gives_unrounded_float32_logits() -> None:
    model = tiny_llama().bfloat16()

    logits = READOUT.logits(model, batch_of(ROWS)).detach()

    hidden = model.model(**batch_of(ROWS)).last_hidden_state[:, -1].float()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, hidden @ model.lm_head.weight[list(TOKENS)].float().T, atol=2e-2, rtol=2e-2)
    assert not torch.equal(logits, logits.bfloat16().float())


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, checkpointed = (lora(tiny_llama(), task_type="CAUSAL_LM").train() for _ in range(2))
    checkpointed.enable_input_require_grads()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})

    for model in (plain, checkpointed):
        READOUT.logits(model, batch_of(ROWS)).square().sum().backward()

    for p, expected in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(p.grad, expected.grad)


def test_missing_choices_have_logit_minus_infinity() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])

    logits = READOUT.logits(tiny_llama(), {**batch_of(ROWS), "choice_mask": mask})

    assert torch.equal(logits == -torch.inf, ~mask)
    with pytest.raises(ValueError, match=r"mask of choices has the shape \(3, 2\), the logits \(3, 3\)"):
        READOUT.logits(tiny_llama(), {**batch_of(ROWS), "choice_mask": mask[:, :2]})


def test_class_head_reads_an_encoder() -> None:
    model = tiny_bert_classifier()
    readout = ClassHead(classes=("a", "b", "c"))

    logits = readout.logits(model, batch_of(ROWS, "right", extra=2))

    expected = torch.cat([model(input_ids=torch.tensor([row])).logits for row in ROWS])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(3, 3\) for 3 rows and 2 classes; load it with num_labels=2"):
        ClassHead(classes=("a", "b")).logits(model, batch_of(ROWS, "right"))


def test_last_positions_needs_a_token_in_every_row() -> None:
    assert last_positions(torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1]])).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match="has no token"):
        last_positions(torch.tensor([[0, 0], [0, 1]]))


@pytest.mark.parametrize(
    "readout",
    [READOUT, ClassHead(classes=("no", "yes")), ChoiceTexts(answers=("A", "B"), length_normalization="bytes")],
)
def test_a_readout_survives_its_dict(readout: Readout) -> None:
    assert readout_from_dict(readout.to_dict()) == readout


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnswerTokens(token_ids=(1, 1), answers=("A", "B")), "two answers share a token"),
        (lambda: AnswerTokens(token_ids=(1, 2), answers=("A",)), "one token per answer"),
        (lambda: ClassHead(classes=("a",)), "two or more classes"),
        (lambda: ChoiceTexts(answers=("A",)), "two or more answers"),
        (lambda: ChoiceTexts(answers=("A", "B"), length_normalization="words"), "'words'; allowed: none, bytes"),  # type: ignore[arg-type]
        (
            lambda: readout_from_dict({"kind": "regression"}),
            "kind 'regression'; allowed: answer_tokens, choice_texts, class_head",
        ),
        (lambda: readout_from_dict({"kind": "class_head"}), "lacks 'classes'"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
