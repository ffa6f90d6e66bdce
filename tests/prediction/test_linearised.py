"""Linearised predictions against the numbers of other programs, quadrature, and what must not matter."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laplace_problems import CASES, READOUT, batches, by_key, network, tensor, unseen_batch
from models import lora, tiny_bert_classifier, tiny_llama, token_ids
from varlora.adapters import load_into, trained_tensors
from varlora.curvature import curvature_of
from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    NotLinearisableError,
    PointMass,
    Posterior,
    PosteriorMeta,
)
from varlora.prediction.linearised import drawn_log_probs, linearised_logits, predict_linearised
from varlora.readout.readout import AnswerTokens, ClassHead

META = PosteriorMeta(method="laplace", linearised=True)
ANSWERS = AnswerTokens(token_ids=(3, 7, 9), answers=("A", "B", "C"))
STRUCTURES = {"diag": "diag", "kron": "kron_laplace"}
ORACLE = [(kind, structure, glm) for kind in CASES for structure in STRUCTURES for glm in (0, 1)]


def laplace(kind: str, structure: str, prior: Any) -> tuple[nn.Module, Posterior]:
    model = network(kind)
    found = curvature_of(model, batches(kind, (11, 49)), readout=READOUT, structure=structure)  # type: ignore[arg-type]
    return model, found.posterior(by_key(kind, prior), META)


# Against laplace-torch and direct J (H + D)^-1 J' ---------------------------------------------------------------


@pytest.mark.parametrize(("kind", "structure", "glm"), ORACLE)
def test_the_logits_mean_and_covariance_agree_with_the_oracle(kind: str, structure: str, glm: int) -> None:
    expected = CASES[kind][STRUCTURES[structure]]["glm"][glm]
    model, q = laplace(kind, structure, expected["prior"])
    mean, covariance = linearised_logits(model, [q], [unseen_batch(kind)], readout=READOUT)
    torch.testing.assert_close(mean, tensor(expected["f_mean"]), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(covariance[0], tensor(expected["f_cov"]), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("kind", "structure", "glm"), ORACLE)
def test_the_probabilities_agree_with_the_oracle(kind: str, structure: str, glm: int) -> None:
    expected = CASES[kind][STRUCTURES[structure]]["glm"][glm]
    model, q = laplace(kind, structure, expected["prior"])
    probit = predict_linearised(model, q, [unseen_batch(kind)], readout=READOUT, form="probit")
    torch.testing.assert_close(probit.probs, tensor(expected["probit"]), rtol=1e-7, atol=1e-10)
    assert probit.num_draws == 1
    assert probit.seed is None

    draws = 40_000
    drawn = predict_linearised(model, q, [unseen_batch(kind)], draws, readout=READOUT, seed=1)
    spread = drawn.log_probs.exp().std(1) / math.sqrt(draws)
    error = (drawn.probs - tensor(expected["softmax_expectation"])).abs()
    assert (error < 5 * spread + 1e-7).all()
    assert drawn.mode == probit.mode == "linearised"
    assert drawn.seed == 1


def test_two_logits_have_the_known_average() -> None:
    """E sigmoid(z), z ~ N(μ, s²), by the trapezium rule; the covariance has rank one."""
    mean, root = torch.tensor([[1.0, -0.5]], dtype=torch.float64), torch.tensor([1.2, -0.3], dtype=torch.float64)
    covariance = torch.outer(root, root)[None]
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    expected = torch.trapezoid(density * torch.sigmoid(1.5 + 1.5 * z), z)
    noise = torch.randn(1, 200_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn_log_probs(mean, covariance, noise).exp()[0, :, 0]
    assert abs(drawn.mean() - expected) < 5 * drawn.std() / math.sqrt(200_000)


def test_a_covariance_that_rounding_has_made_indefinite_is_drawn_from() -> None:
    root = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
    covariance = (root @ root.mT - 1e-13 * torch.eye(3, dtype=torch.float64))[None]
    assert torch.linalg.eigvalsh(covariance).min() < 0
    noise = torch.randn(1, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn_log_probs(torch.zeros(1, 3, dtype=torch.float64), covariance, noise)
    logits = (noise @ root) / root.norm() * root.mT  # the symmetric root of a rank-one covariance
    torch.testing.assert_close(drawn, torch.log_softmax(logits, 2), rtol=1e-5, atol=1e-5)


# Real architectures --------------------------------------------------------------------------------------------


def text_batch(rows: int = 5) -> dict[str, Tensor]:
    ids = token_ids(rows=rows)
    mask = (torch.arange(6) < 6 - torch.arange(rows)[:, None] % 3).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(rows) % 3}


@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_covariance_is_that_of_the_dense_sum_over_tensors(name: str, structure: str) -> None:
    if name == "llama":
        model, readout = lora(tiny_llama(), task_type="CAUSAL_LM"), ANSWERS
    else:
        model = lora(tiny_bert_classifier(), target_modules=("query",), task_type="SEQ_CLS")
        readout = ClassHead(classes=("a", "b", "c"))  # type: ignore[assignment]
    batch = text_batch()
    found = curvature_of(model, [batch], readout=readout, structure=structure)  # type: ignore[arg-type]
    q = found.posterior(dict.fromkeys(found.weights, 3.0), META)
    mean, covariance = linearised_logits(model, [q], [batch], readout=readout)

    logits = readout.logits(model, batch)
    torch.testing.assert_close(mean, logits.detach().double(), rtol=1e-4, atol=1e-5)
    parameters = trained_tensors(model)
    for n in range(len(logits)):
        expected = torch.zeros(3, 3)
        for key, p in parameters.items():
            j = torch.stack([torch.autograd.grad(f, p, retain_graph=True)[0].flatten() for f in logits[n]]).double()
            if isinstance(q, KroneckerGaussian):
                f = q.factors[key]
                g = f.out_vectors.double() * f.out_values @ f.out_vectors.double().mT
                k = f.in_vectors.double() * f.in_values @ f.in_vectors.double().mT
                sigma = torch.linalg.inv(torch.kron(g, k) + 3 * torch.eye(p.numel(), dtype=torch.float64))
            else:
                sigma = torch.diag(q.variance[key].flatten().double())
            expected = expected + j @ sigma @ j.mT
        torch.testing.assert_close(covariance[0, n], expected, rtol=1e-3, atol=1e-5)


def test_an_adapter_loaded_for_inference_is_predicted_with_and_left_frozen() -> None:
    model, batch = lora(tiny_llama(), task_type="CAUSAL_LM"), text_batch()
    found = curvature_of(model, [batch], readout=ANSWERS)
    q = found.posterior(dict.fromkeys(found.weights, 3.0), META)
    expected = predict_linearised(model, q, [batch], readout=ANSWERS, seed=4)
    model.requires_grad_(False)
    load_into(model, {key: torch.zeros_like(t) for key, t in q.mean.items()})
    model.train()
    again = predict_linearised(model, q, [batch], readout=ANSWERS, seed=4)
    assert torch.equal(again.log_probs, expected.log_probs)  # the posterior's point counts, not the model's weights
    assert model.training
    assert not any(p.requires_grad or (("lora" in n) and bool(p.any())) for n, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())


# What must not matter, and what must ---------------------------------------------------------------------------


def test_batches_do_not_matter_and_the_seed_does() -> None:
    model, q = laplace("lora", "kron", 1.0)
    whole = unseen_batch("lora")
    parts = [{name: t[part] for name, t in whole.items()} for part in (slice(0, 2), slice(2, 5))]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = predict_linearised(model, q, [whole], 20, readout=READOUT)
    second = predict_linearised(model, q, iter(parts), 20, readout=READOUT)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(first.log_probs, second.log_probs, rtol=1e-10, atol=1e-12)
    other = predict_linearised(model, q, [whole], 20, readout=READOUT, seed=1)
    assert not torch.allclose(first.log_probs, other.log_probs)
    assert first.log_probs.shape == (5, 20, 3)


class Biased(nn.Module):
    """Logits of a layer, moved by one number that is the same for all classes."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(2, 3, bias=False, dtype=torch.float64), shift

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(input_ids) + self.shift)


def test_draws_are_invariant_to_a_shift_of_the_logits_and_the_probit_form_is_not() -> None:
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = torch.tensor([[0.5, 3.0], [1.0, 1.0], [4.0, 0.1]], dtype=torch.float64)
    q = DiagonalGaussian(mean={"layer.weight": weight}, precision={"layer.weight": 1 / variance})
    batch = {"input_ids": torch.tensor([[1.0, 2.0]], dtype=torch.float64), "labels": torch.tensor([0])}
    readout = ClassHead(classes=("a", "b", "c"))
    drawn = [predict_linearised(Biased(s), q, [batch], readout=readout).probs for s in (0.0, 20.0)]
    torch.testing.assert_close(drawn[0], drawn[1])
    probit = [predict_linearised(Biased(s), q, [batch], readout=readout, form="probit").probs for s in (0.0, 20.0)]
    assert (probit[0] - probit[1]).abs().max() > 0.1


def test_the_temperature_divides_the_logits() -> None:
    model, q = laplace("lora", "kron", 1.0)
    mean, covariance = linearised_logits(model, [q], [unseen_batch("lora")], readout=READOUT)
    noise = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = torch.linalg.eigh(covariance[0])
    draws = (
        mean[:, None]
        + noise @ (root.eigenvectors * root.eigenvalues.clamp(min=0).sqrt()[:, None]) @ root.eigenvectors.mT
    )
    found = predict_linearised(model, q, [unseen_batch("lora")], 7, readout=READOUT, logit_temperature=2.5)
    torch.testing.assert_close(found.log_probs, torch.log_softmax(draws / 2.5, 2), rtol=1e-6, atol=1e-8)
    assert found.logit_temperature == 2.5
    tempered = DiagonalGaussian(
        mean=q.mean,
        precision={key: 1 / v for key, v in q.variance.items()},
        meta=PosteriorMeta(logit_temperatures={"mean": 3.0, "linearised": 1.5}),
    )
    assert predict_linearised(model, tempered, [unseen_batch("lora")], 1, readout=READOUT).logit_temperature == 1.5


def test_a_choice_that_does_not_exist_has_no_probability() -> None:
    model, batch = lora(tiny_llama(), task_type="CAUSAL_LM"), text_batch()
    batch["choice_mask"] = torch.tensor([[True, True, False]] * 4 + [[True] * 3])
    batch["labels"] = torch.zeros(5).long()
    found = curvature_of(model, [batch], readout=ANSWERS)
    q = found.posterior(dict.fromkeys(found.weights, 1.0), META)
    for form in ("mc", "probit"):
        probs = predict_linearised(model, q, [batch], readout=ANSWERS, form=form).probs  # type: ignore[arg-type]
        assert torch.equal(probs[:4, 2], torch.zeros(4).double())
        assert probs[4, 2] > 0
        torch.testing.assert_close(probs.sum(1), torch.ones(5).double())


def test_a_posterior_without_a_variance_left_gives_the_point() -> None:
    model = network("lora")
    weights = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    q = DiagonalGaussian(mean=weights, precision={key: torch.full_like(w, math.inf) for key, w in weights.items()})
    found = predict_linearised(model, q, [unseen_batch("lora")], 3, readout=READOUT)
    expected = torch.log_softmax(model(unseen_batch("lora")["input_ids"]).logits, 1)
    torch.testing.assert_close(found.log_probs, expected.detach()[:, None].expand(-1, 3, -1))


def test_the_memory_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model, q = laplace("lora", "kron", 1.0)
    with caplog.at_level(logging.INFO, "varlora.prediction.linearised"):
        predict_linearised(model, q, [unseen_batch("lora")], 1, readout=READOUT)
    assert "holds up to 0.0 MB of a batch's Jacobian" in caplog.text


# What is refused -----------------------------------------------------------------------------------------------


def of_kind(kind: str, point: dict[str, Tensor]) -> Posterior:
    """A posterior that cannot be linearised."""
    if kind == "low_rank_gaussian":
        zeros = {key: torch.zeros_like(p) for key, p in point.items()}
        return LowRankGaussian(
            mean=point, diagonal=zeros, deviations={k: z[None] for k, z in zeros.items()}, shared=True
        )
    made = {
        "point_mass": PointMass(mean=point),
        "mixture": Mixture(components=(PointMass(mean=point), PointMass(mean=point))),
        "dropout_masks": DropoutMasks(mean=point, rate=0.1),
    }
    return made[kind]


@pytest.mark.parametrize("kind", ["point_mass", "mixture", "dropout_masks", "low_rank_gaussian"])
def test_a_posterior_of_another_kind_is_refused(kind: str) -> None:
    model = network("lora")
    q = of_kind(kind, {key: p.detach() for key, p in trained_tensors(model).items()})
    assert isinstance(q, Posterior)
    with pytest.raises(NotLinearisableError, match=f"kind '{kind}' cannot be linearised"):
        predict_linearised(model, q, [unseen_batch("lora")], readout=READOUT)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"form": "taylor"}, {}, "form 'taylor'"),
        ({"samples": 0}, {}, "samples is 0"),
        ({"logit_temperature": 0.0}, {}, "temperature must be positive"),
        ({}, {"labels": None}, "batch 0 needs 'labels'"),
        ({}, {"labels": torch.full((5,), 3)}, "label 3 for a readout of 3 classes"),
        ({}, {"input_ids": torch.full((5, 4), math.nan, dtype=torch.float64)}, "first for example 0"),
    ],
)
def test_options_and_batches_that_do_not_fit(options: dict[str, Any], change: dict[str, Any], message: str) -> None:
    model, q = laplace("lora", "diag", 1.0)
    batch = {name: t for name, t in {**unseen_batch("lora"), **change}.items() if t is not None}
    with pytest.raises(ValueError, match=message):
        predict_linearised(model, q, [batch], **options, readout=READOUT)
