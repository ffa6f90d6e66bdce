"""Curvature against the numbers of other programs, against Jacobians by autograd, and under what must not matter."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from laplace_problems import CASES, READOUT, batches, network, tensor
from models import lora, tiny_bert_classifier, tiny_llama, token_ids
from varlora.adapters import trained_tensors
from varlora.curvature import Curvature, curvature_bytes, curvature_of, ggn
from varlora.curvature.layers import jacobian_bytes, linear_tensors, recorded
from varlora.posterior import PosteriorMeta
from varlora.posterior.kronecker import KroneckerFactors
from varlora.readout.readout import AnswerTokens, ClassHead, Readout

ANSWERS = AnswerTokens(token_ids=(3, 7, 9), answers=("A", "B", "C"))
CLASSES = ClassHead(classes=("a", "b", "c"))


def dense(curvature: Curvature, key: str) -> Tensor:
    """G ⊗ K of one tensor."""
    f = curvature.factors[key]
    out = f.out_vectors * f.out_values @ f.out_vectors.mT
    return torch.kron(out, f.in_vectors * f.in_values @ f.in_vectors.mT)


def text_batch(rows: int = 5, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Random tokens; row n lacks its last n % 3 tokens."""
    ids = token_ids(rows=rows, length=length, seed=seed)
    mask = torch.arange(length) < length - torch.arange(rows)[:, None] % 3
    labels = torch.randint(0, 3, (rows,), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": labels}


def rows_of(batch: Mapping[str, Tensor], *parts: slice) -> list[dict[str, Tensor]]:
    return [{name: t[part] for name, t in batch.items()} for part in parts]


def by_autograd(model: nn.Module, readout: Readout, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Jacobians (B, C, *shape), one example and class at a time."""
    trained = trained_tensors(model)
    found: dict[str, list[Tensor]] = {key: [] for key in trained}
    for n in range(len(batch["labels"])):
        (row,) = rows_of(batch, slice(n, n + 1))
        logits = readout.logits(model, row)[0]
        classes = [
            torch.autograd.grad(logits[c], list(trained.values()), retain_graph=True) for c in range(len(logits))
        ]
        for i, key in enumerate(trained):
            found[key].append(torch.stack([gradients[i] for gradients in classes]))
    return {key: torch.stack(rows) for key, rows in found.items()}


def logit_hessians(logits: Tensor) -> Tensor:
    p = torch.softmax(logits, 1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


def close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    return bool((first - second).norm() <= tolerance * second.norm())


# Against laplace-torch and direct J'HJ -------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(60,), (7, 23, 1, 29)])
@pytest.mark.parametrize("kind", list(CASES))
def test_the_diagonal_agrees_with_the_oracle(kind: str, sizes: tuple[int, ...]) -> None:
    found = curvature_of(network(kind), batches(kind, sizes), readout=READOUT, structure="diag")
    expected = tensor(CASES[kind]["ggn_diag"])
    mine = torch.cat([found.diagonal[f"{name}.weight"].flatten() for name in CASES[kind]["trainable"]])
    torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-10)
    assert found.log_likelihood == pytest.approx(CASES[kind]["log_likelihood"], rel=1e-10)
    assert found.num_examples == 60


@pytest.mark.parametrize("sizes", [(60,), (7, 23, 1, 29)])
@pytest.mark.parametrize("kind", list(CASES))
def test_the_kronecker_products_agree_with_the_oracle(kind: str, sizes: tuple[int, ...]) -> None:
    found = curvature_of(network(kind), batches(kind, sizes), readout=READOUT)
    for block in CASES[kind]["kron"]:
        expected = torch.kron(tensor(block["out"]), tensor(block["in"]))
        torch.testing.assert_close(dense(found, f"{block['tensor']}.weight"), expected, rtol=1e-8, atol=1e-8)


def test_one_backward_pass_less_than_classes_gives_the_whole_hessian() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[1, 0] = logits[2, 4] = logits[3, 1] = logits[3, 4] = -torch.inf  # choices that do not exist
    logits[4, 2], logits[5, 4] = 1e3, 40.0  # one is certain, one almost
    columns = list(ggn._columns(logits.softmax(1), "ggn", 1, torch.Generator()))
    assert len(columns) == 4
    torch.testing.assert_close(
        sum(c[:, :, None] * c[:, None, :] for c in columns), logit_hessians(logits), rtol=1e-12, atol=1e-16
    )
    assert len(list(ggn._columns(logits[:, :2].softmax(1), "ggn", 1, torch.Generator()))) == 1
    assert len(list(ggn._columns(logits[4:5].softmax(1), "ggn", 1, torch.Generator()))) == 1  # it counts the inputs


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_monte_carlo_fisher_converges_to_the_ggn(structure: str) -> None:
    """100 copies of the rows with 40 labels each: as many as 4000 labels of every row, in a hundredth of the passes."""
    many = [{name: t.repeat(100, *[1] * (t.ndim - 1)) for name, t in b.items()} for b in batches("lora", (20, 40))]
    exact = curvature_of(network("lora"), many, readout=READOUT, structure=structure)  # type: ignore[arg-type]

    def error(draws: int) -> float:
        found = curvature_of(
            network("lora"),
            many,
            readout=READOUT,
            structure=structure,  # type: ignore[arg-type]
            fisher="mc",
            fisher_draws=draws,
            seed=3,
        )
        return max(
            float((a - b).norm() / b.norm())
            for a, b in zip(found.eigenvalues.values(), exact.eigenvalues.values(), strict=True)
        )

    assert error(40) < 0.03  # 1 / sqrt(6000 · 40) = 0.002, times the spread of one draw
    assert error(1) > error(40)


def test_the_fisher_labels_are_the_seeds_and_do_not_depend_on_batches_or_the_global_generator() -> None:
    model = network("lora")

    def fisher(seed: int, sizes: tuple[int, ...]) -> Tensor:
        return curvature_of(
            model, batches("lora", sizes), readout=READOUT, structure="diag", fisher="mc", seed=seed
        ).diagonal["A.weight"]

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fisher(0, (60,))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    torch.testing.assert_close(fisher(0, (13, 47)), first, rtol=1e-10, atol=1e-12)
    assert not close(fisher(1, (60,)), first, 1e-3)


# Against Jacobians by autograd ---------------------------------------------------------------------------------


def classifier() -> PeftModel:
    """BERT with LoRA; its head trains with its bias."""
    return lora(tiny_bert_classifier(), target_modules=("query", "value"), task_type="SEQ_CLS")


def causal(**config: Any) -> PeftModel:
    return lora(tiny_llama(), task_type="CAUSAL_LM", **config)


def plain_with_trained_output() -> nn.Module:
    """No adapter; the readout would narrow the output layer to the answers' rows."""
    model = tiny_llama()
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    return model


MODELS = {
    "plain llama, trained output layer": (plain_with_trained_output, ANSWERS),
    "llama": (causal, ANSWERS),
    "llama, adapted output layer": (lambda: causal(target_modules=("q_proj", "lm_head")), ANSWERS),
    "llama, trained output layer": (lambda: causal(modules_to_save=["lm_head"]), ANSWERS),
    "llama, LoRA with bias": (lambda: causal(lora_bias=True), ANSWERS),
    "bert with its head": (classifier, CLASSES),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_jacobians_and_diagonal_are_those_of_single_examples(name: str) -> None:
    make, readout = MODELS[name]
    model, batch = make(), text_batch()
    expected = by_autograd(model, readout, batch)
    tensors = linear_tensors(model)
    with recorded(model, tensors) as recorder:
        logits = recorder.logits(readout, batch)
        for limit in (2**30, 1):  # all tensors together, and each by itself
            jacobians = dict(recorder.jacobians(logits, limit=limit))
            assert jacobians.keys() == expected.keys()
            assert all(close(jacobians[key], expected[key], 1e-4) for key in expected)
    hessians = logit_hessians(logits.detach())
    found = curvature_of(model, rows_of(batch, slice(0, 2), slice(2, 5)), readout=readout, structure="diag")
    for key, j in expected.items():
        flat = j.flatten(2)
        assert close(found.diagonal[key].flatten(), torch.einsum("ncp,ncd,ndp->p", flat, hessians, flat), 1e-4), key
    if "head" in name:
        assert {"base_model.model.classifier.bias", "base_model.model.classifier.weight"} <= found.diagonal.keys()


def test_kronecker_factors_of_a_head_are_exact_for_its_bias_and_for_one_example() -> None:
    """One example at one position has no average to hide in: G ⊗ K is the whole GGN block."""
    model, batch = classifier(), rows_of(text_batch(), slice(0, 1))
    jacobians = by_autograd(model, CLASSES, batch[0])
    hessian = logit_hessians(CLASSES.logits(model, batch[0]).detach())[0]
    found = curvature_of(model, batch, readout=CLASSES)
    for last in ("weight", "bias"):
        key = f"base_model.model.classifier.{last}"
        j = jacobians[key][0].flatten(1)
        assert close(dense(found, key).float(), j.mT @ hessian @ j, 1e-4)


class TwoCalls(nn.Module):
    """A layer that is called twice, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        x = self.twice(torch.tanh(self.twice(input_ids)))
        x = x.mul_(0.5)  # in place: the layer's output is no more what the layer gave
        return SimpleNamespace(logits=self.second(torch.tanh(self.tied(torch.tanh(self.first(input=x))))))


def test_repeated_calls_and_tied_weights_add_up_within_an_example() -> None:
    model = TwoCalls()
    batch = {
        "input_ids": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        "labels": torch.zeros(5).long(),
    }
    expected = by_autograd(model, CLASSES, batch)
    with recorded(model, linear_tensors(model)) as recorder:
        jacobians = dict(recorder.jacobians(recorder.logits(CLASSES, batch)))
    assert "tied.weight" not in jacobians
    assert all(close(jacobians[key], expected[key], 1e-5) for key in expected)
    found = curvature_of(model, [batch], readout=CLASSES, structure="diag").diagonal
    hessians = logit_hessians(model(batch["input_ids"]).logits.detach())
    for key, j in expected.items():
        assert close(
            found[key].flatten().float(), torch.einsum("ncp,ncd,ndp->p", j.flatten(2), hessians, j.flatten(2)), 1e-4
        )


def test_a_choice_that_does_not_exist_adds_nothing() -> None:
    """Masking a class leaves the curvature of the two-class problem."""
    model, batch = causal(), text_batch()
    masked = {**batch, "choice_mask": torch.tensor([True, True, False]).expand(5, 3), "labels": batch["labels"] % 2}
    two = AnswerTokens(token_ids=ANSWERS.token_ids[:2], answers=("A", "B"))
    for structure in ("diag", "kron"):
        found = curvature_of(model, [masked], readout=ANSWERS, structure=structure)  # type: ignore[arg-type]
        expected = curvature_of(
            model,
            [{**batch, "labels": masked["labels"]}],
            readout=two,
            structure=structure,  # type: ignore[arg-type]
        )
        for key, values in expected.eigenvalues.items():
            torch.testing.assert_close(found.eigenvalues[key], values, rtol=1e-4, atol=1e-9)
        assert found.log_likelihood == pytest.approx(expected.log_likelihood)


# What must not matter ------------------------------------------------------------------------------------------


def padded(batch: Mapping[str, Tensor], *, left: bool, more: int) -> dict[str, Tensor]:
    """The same rows padded on one side to a greater length."""
    lengths = batch["attention_mask"].sum(1)
    length = batch["input_ids"].shape[1] + more
    ids, mask = torch.full((len(lengths), length), 5), torch.zeros(len(lengths), length, dtype=torch.int64)
    for n, count in enumerate(lengths.tolist()):
        place = slice(length - count, length) if left else slice(0, count)
        ids[n, place], mask[n, place] = batch["input_ids"][n, :count], 1
    return {"input_ids": ids, "attention_mask": mask, "labels": batch["labels"]}


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_padding_does_not_matter(structure: str) -> None:
    model, batch = causal(target_modules=("q_proj", "v_proj", "down_proj")), text_batch()
    expected = curvature_of(model, [batch], readout=ANSWERS, structure=structure)  # type: ignore[arg-type]
    for left in (False, True):
        for more in (0, 7):
            longer = padded(batch, left=left, more=more)
            found = curvature_of(model, [longer], readout=ANSWERS, structure=structure)  # type: ignore[arg-type]
            for key, values in expected.eigenvalues.items():
                assert close(found.eigenvalues[key], values, 1e-4), (key, left, more)


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_batches_do_not_matter(structure: str) -> None:
    model, batch = causal(), text_batch()
    expected = curvature_of(model, [batch], readout=ANSWERS, structure=structure)  # type: ignore[arg-type]
    cut = rows_of(batch, slice(0, 1), slice(1, 4), slice(4, 5))
    found = curvature_of(model, iter(cut), readout=ANSWERS, structure=structure)  # type: ignore[arg-type]
    for key, values in expected.eigenvalues.items():
        assert close(found.eigenvalues[key], values, 1e-4)


def test_dropout_gradient_checkpointing_and_a_bfloat16_base() -> None:
    expected = curvature_of(causal(), [text_batch()], readout=ANSWERS, structure="diag").diagonal
    model = causal(lora_dropout=0.5).train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    found = curvature_of(model, [text_batch()], readout=ANSWERS, structure="diag").diagonal
    assert all(close(found[key], expected[key], 1e-5) for key in expected)
    assert model.training

    half = lora(tiny_llama().to(torch.bfloat16), task_type="CAUSAL_LM")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16, torch.float32}
    rough = curvature_of(half, [text_batch()], readout=ANSWERS, structure="diag").diagonal
    assert all(close(rough[key], expected[key], 0.2) for key in expected)


def test_layers_within_a_checkpointed_forward_are_counted_once() -> None:
    class Checkpointed(TwoCalls):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            inner = super().forward
            return SimpleNamespace(logits=checkpoint(lambda x: inner(x).logits, input_ids, use_reentrant=False))

    batch = {
        "input_ids": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        "labels": torch.zeros(5).long(),
    }
    for structure in ("diag", "kron"):
        expected = curvature_of(TwoCalls(), [batch], readout=CLASSES, structure=structure).eigenvalues  # type: ignore[arg-type]
        found = curvature_of(Checkpointed(), [batch], readout=CLASSES, structure=structure).eigenvalues  # type: ignore[arg-type]
        assert all(close(found[key], expected[key], 1e-6) for key in expected)
    model = Checkpointed()
    with recorded(model, linear_tensors(model)) as recorder:
        logits = recorder.logits(CLASSES, batch)
        calls = sum(map(len, recorder._calls.values()))
        recorder.output_gradients(logits, torch.ones_like(logits))
        assert sum(map(len, recorder._calls.values())) == calls == 5


def test_the_model_is_left_as_it_was() -> None:
    class Interrupted(Exception):
        pass

    def ending() -> Iterator[dict[str, Tensor]]:
        yield text_batch()
        raise Interrupted

    model = causal(lora_dropout=0.5).train()
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    for source in ([text_batch()], ending()):
        if isinstance(source, list):
            curvature_of(model, source, readout=ANSWERS)
        else:
            with pytest.raises(Interrupted):
                curvature_of(model, source, readout=ANSWERS)
        for n, p in model.named_parameters():
            assert torch.equal(p, before[n][0])
            assert p.requires_grad == before[n][1]
            assert (p.grad is None) == (not p.requires_grad)
            assert p.grad is None or torch.equal(p.grad, torch.ones_like(p))
        assert all(m.training and not m._forward_hooks and "forward" not in m.__dict__ for m in model.modules())


# Low rank ------------------------------------------------------------------------------------------------------


def test_a_low_rank_factor_is_exact_where_the_rank_is_low() -> None:
    """K of A is a mean over 60 inputs of 7 numbers; from 4 examples it has rank 4."""
    for rows, rank in ((4, 4), (60, 7)):
        x, y = tensor(CASES["lora"]["x"])[:rows], torch.tensor(CASES["lora"]["y"])[:rows]
        few = [{"input_ids": a, "labels": b} for a, b in zip(x.split(2), y.split(2), strict=True)]
        exact = curvature_of(network("lora"), few, readout=READOUT)
        found = curvature_of(network("lora"), few, readout=READOUT, low_rank=rank, low_rank_above=6)
        assert found.factors["A.weight"].in_vectors.shape == (7, rank)
        assert found.factors["B.weight"].in_vectors.shape == (2, 2)
        for key in found.factors:
            torch.testing.assert_close(dense(found, key), dense(exact, key), rtol=1e-8, atol=1e-9)


def test_a_low_rank_factor_keeps_the_leading_eigenpairs_of_a_long_side() -> None:
    torch.manual_seed(0)
    spread = torch.randn(300, 300, dtype=torch.float64) * 0.7 ** torch.arange(300)
    x = torch.randn(200, 300, dtype=torch.float64) @ torch.linalg.qr(spread).Q * 0.7 ** torch.arange(300)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(300, 3, bias=False, dtype=torch.float64)

        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.layer(input_ids))

    many = [{"input_ids": part, "labels": torch.zeros(len(part)).long()} for part in x.split((150, 50))]
    found = curvature_of(Wide(), many, readout=CLASSES, low_rank_above=100).factors["layer.weight"]
    values, vectors = torch.linalg.eigh(x.mT @ x / 200)
    assert found.in_vectors.shape == (300, 10)
    torch.testing.assert_close(found.in_values, values.flip(0)[:10], rtol=1e-6, atol=0)
    overlaps = (found.in_vectors * vectors.flip(1)[:, :10]).sum(0).abs()
    torch.testing.assert_close(overlaps, torch.ones(10).double(), rtol=1e-6, atol=0)


# Under many priors ---------------------------------------------------------------------------------------------

PRIORS = (1e-2, 1.0, 30.0, 1e7)


@pytest.mark.parametrize("at_a_time", [2**22, 100])
@pytest.mark.parametrize(("structure", "above"), [("kron", 1024), ("kron", 4), ("diag", 1024)])
def test_quadratic_forms_are_those_of_each_priors_posterior(
    structure: str, above: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier has a weight and a bias of its own beside LoRA's weights; above 4 dimensions all have low rank."""
    monkeypatch.setattr(ggn, "_ENTRIES_AT_A_TIME", at_a_time)
    model = classifier().double()
    found = curvature_of(
        model,
        [text_batch()],
        readout=CLASSES,
        structure=structure,  # type: ignore[arg-type]
        low_rank=2,
        low_rank_above=above,
    )
    low = {key for key, f in found.factors.items() if not f.complete}
    assert {w.ndim for w in found.weights.values()} == {1, 2}
    assert bool(low) == (structure == "kron" and above == 4)
    posteriors = [found.posterior(dict.fromkeys(found.weights, delta), PosteriorMeta()) for delta in PRIORS]
    generator = torch.Generator().manual_seed(0)
    for key, weight in found.weights.items():
        vectors = torch.randn(5, 3, *weight.shape, generator=generator, dtype=torch.float64)
        forms = found.quadratic_forms(key, vectors, PRIORS)
        assert torch.equal(forms, forms.mT)
        for form, q in zip(forms, posteriors, strict=True):
            torch.testing.assert_close(form, q.quadratic_form(key, vectors), rtol=1e-9, atol=1e-14)
        known = found.quadratic_forms(key, vectors, [math.inf])
        assert torch.equal(known, torch.zeros(1, 5, 3, 3).double())


def test_a_small_prior_does_not_enlarge_the_rounding_of_what_is_within_the_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 3, generator=generator, dtype=torch.float64)).Q for n in (50, 40))
    factors = KroneckerFactors(out_vectors=u, out_values=torch.ones(3).double(), in_vectors=v, in_values=torch.ones(3))
    found = Curvature(weights={"w": torch.ones(50, 40)}, log_likelihood=0.0, num_examples=1, factors={"w": factors})
    inside = torch.randn(2, 3, 3, 3, generator=generator, dtype=torch.float64)
    (form,) = found.quadratic_forms("w", (u @ inside @ v.mT).float(), [1e-8])
    flat = inside.flatten(2)
    torch.testing.assert_close(form, (flat @ flat.mT).float(), rtol=1e-4, atol=1e-4)


def test_a_prior_precision_that_is_not_positive_is_refused() -> None:
    found = curvature_of(network("lora"), batches("lora"), readout=READOUT)
    with pytest.raises(ValueError, match=r"prior precision of A.weight is 0.0; it must be positive"):
        found.quadratic_forms("A.weight", torch.zeros(1, 3, 2, 7).double(), [1.0, 0.0])


def test_the_memory_is_said_before_the_pass(caplog: pytest.LogCaptureFixture) -> None:
    tensors = linear_tensors(network("lora"))  # A (2, 7), B (6, 2)
    assert curvature_bytes(tensors, structure="diag") == 8 * (14 + 12)
    assert curvature_bytes(tensors, structure="kron") == 8 * (4 + 49 + 36 + 4)
    assert jacobian_bytes(tensors, 5, 3) == 5 * 3 * (14 + 12) * 8
    assert jacobian_bytes(tensors, 5, 3, limit=1) == 5 * 3 * 14 * 8

    def nothing() -> Iterator[dict[str, Tensor]]:
        assert "the kron curvature of 2 tensors holds 0.0 MB" in caplog.text
        yield from batches("lora")

    with caplog.at_level(logging.INFO, "varlora.curvature.ggn"):
        curvature_of(network("lora"), nothing(), readout=READOUT)


def test_sums_and_eigenvectors_of_all_tensors_are_not_held_together(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[ggn._Kronecker] = weakref.WeakSet()
    held = []

    class Watched(ggn._Kronecker):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            alive.add(self)

        def factors(self) -> KroneckerFactors:
            held.append(len(alive))
            return super().factors()

    monkeypatch.setattr(ggn, "_Kronecker", Watched)
    assert len(curvature_of(network("lora"), batches("lora"), readout=READOUT).factors) == 2
    assert held == [2, 1]


# What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: causal(use_dora=True), "lora_magnitude_vector"),
        (lambda: causal(target_modules=("q_proj", "embed_tokens")), "embed_tokens.lora_embedding_A"),
        (lambda: causal(modules_to_save=["norm"]), "norm.weight .LlamaRMSNorm"),
        (lambda: nn.Sequential(nn.Conv1d(1, 1, 1)), "0.bias .Conv1d"),
    ],
)
def test_trained_tensors_outside_linear_layers_are_named(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"linear layers alone.*{named}"):
        curvature_of(make(), [text_batch()], readout=ANSWERS)


class ReadElsewhere(nn.Module):
    """Its layer's weight is used without the layer's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=input_ids @ self.layer.weight.mT)


class Shuffled(nn.Module):
    """Its layer sees the batch's rows in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(input_ids.flip(0)).flip(0))


class Experts(nn.Module):
    """Its layer sees some of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.cat([self.layer(input_ids[:2]), input_ids[2:, :3]]))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ReadElsewhere(), "layer.weight is not the one that its linear layer's own calls give"),
        (Shuffled(), "the layer's rows are not the batch's"),
        (Experts(), "which example its rows belong to"),
    ],
)
def test_layers_used_in_another_way_are_refused(model: nn.Module, message: str) -> None:
    batch = {
        "input_ids": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        "labels": torch.zeros(5).long(),
    }
    with pytest.raises(ValueError, match=message):
        curvature_of(model, [batch], readout=CLASSES)


def test_a_layer_that_takes_no_part_has_no_curvature() -> None:
    class Idle(TwoCalls):
        def forward(self, input_ids: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.second(input_ids))

    batch = {"input_ids": torch.ones(2, 4), "labels": torch.zeros(2).long()}
    for structure in ("diag", "kron"):
        found = curvature_of(Idle(), [batch], readout=CLASSES, structure=structure).eigenvalues  # type: ignore[arg-type]
        assert not found["twice.weight"].any()
        assert found["second.weight"].any()


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"structure": "full"}, {}, "structure 'full'"),
        ({"fisher": "empirical"}, {}, "fisher 'empirical'"),
        ({"low_rank": 0}, {}, "low_rank=0"),
        ({}, {"labels": torch.full((5,), -100)}, "labels must be in 0..2"),
        ({}, {"labels": torch.zeros(5, 6).long()}, "need labels"),
    ],
)
def test_options_and_batches_that_do_not_fit(options: dict[str, Any], change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curvature_of(causal(), [{**text_batch(), **change}], readout=ANSWERS, **options)


def test_no_batch_and_nan_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch"):
        curvature_of(causal(), [], readout=ANSWERS)
    model = network("lora")
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        curvature_of(model, batches("lora"), readout=READOUT)
