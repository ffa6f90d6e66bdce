"""Posteriors: what they accept, how they sample, and how they are read out of a trained model."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models import lora, tiny_llama, token_ids
from varlora.adapters import trained_tensors
from varlora.ivon import IVON
from varlora.ivon.diagnostics import hessian_moved
from varlora.ivon.noise import NoiseController
from varlora.posterior import (
    DiagonalGaussian,
    PointMass,
    Posterior,
    PosteriorMeta,
    point_mass_of,
    posterior_of,
)


def gaussian(*, n: int = 3) -> DiagonalGaussian:
    return DiagonalGaussian(
        mean={"b": torch.arange(n).float(), "a": -torch.ones(2, n)},
        precision={"a": torch.full((2, n), 4.0), "b": torch.full((n,), 100.0)},
    )


# What a posterior is ---------------------------------------------------------------------------------------


def test_keys_are_sorted_and_variance_is_the_reciprocal_of_precision() -> None:
    q = gaussian()
    assert list(q.mean) == list(q.precision) == list(q.variance) == ["a", "b"]
    assert torch.equal(q.variance["a"], torch.full((2, 3), 0.25))
    assert isinstance(q, Posterior)
    assert isinstance(PointMass(mean=q.mean), Posterior)


@pytest.mark.parametrize(
    ("mean", "precision", "message"),
    [
        ({}, {}, "at least one tensor"),
        ({"w": [1]}, {"w": [1.0]}, "mean of w has dtype torch.int64"),
        ({"w": [1.0, math.nan]}, {"w": [1.0, 1.0]}, r"mean of w has 1 NaN or infinite value\(s\) of 2"),
        ({"w": [1.0]}, {"w": [1]}, "precision of w has dtype torch.int64"),
        ({"w": [1.0]}, {"u": [1.0]}, r"same keys; only one of them has \['u', 'w'\]"),
        ({"w": [1.0]}, {"w": [1.0, 1.0]}, r"precision of w has shape \(2,\), its mean \(1,\)"),
        ({"w": [1.0]}, {"w": [0.0]}, "precision of w has 1 .* not > 0"),
        ({"w": [1.0]}, {"w": [-1.0]}, "precision of w has 1 .* not > 0"),
        ({"w": [1.0]}, {"w": [math.nan]}, "precision of w has 1 .* NaN"),
        ({"w": [1.0, 0.0]}, {"w": [math.inf, 1.0]}, "infinite value.s. where the mean is not 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(mean: dict, precision: dict, message: str) -> None:
    tensors = [{key: torch.tensor(value) for key, value in given.items()} for given in (mean, precision)]
    with pytest.raises(ValueError, match=message):
        DiagonalGaussian(mean=tensors[0], precision=tensors[1])


def test_infinite_precision_marks_pruned_entries_and_whole_tensors_that_did_not_train() -> None:
    q = DiagonalGaussian(
        mean={"fixed": torch.tensor([1.0, 2.0]), "pruned": torch.tensor([0.0, 2.0])},
        precision={"fixed": torch.tensor([math.inf, math.inf]), "pruned": torch.tensor([math.inf, 1.0])},
    )
    assert torch.equal(q.variance["pruned"], torch.tensor([0.0, 1.0]))
    draw = q.sample(torch.Generator().manual_seed(0))
    assert torch.equal(draw["fixed"], torch.tensor([1.0, 2.0]))
    assert draw["pruned"][0] == 0
    assert draw["pruned"][1] != 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("diagnostics", {"x": math.inf}, r"meta.diagnostics\['x'\] is inf"),
        ("readout", {"ids": [torch.tensor(1)]}, r"meta.readout\['ids'\]\[0\] is tensor\(1\) \(Tensor\)"),
        ("readout", {1: "a"}, "has the key 1"),
        ("num_examples", 0, "meta.num_examples must be positive, not 0"),
        ("ess", -1.0, "meta.ess must be positive, not -1.0"),
    ],
)
def test_meta_is_plain_json(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PosteriorMeta(**{field: value})


def test_history_grows_without_touching_the_old_meta() -> None:
    meta = PosteriorMeta(method="ivon")
    later = meta.after({"op": "prune"}).after({"op": "temper"})
    assert meta.history == ()
    assert [step["op"] for step in later.history] == ["prune", "temper"]
    assert dataclasses.replace(later, history=()) == meta


# Sampling --------------------------------------------------------------------------------------------------


def test_a_draw_is_mean_plus_sd_times_the_generators_noise_in_key_order() -> None:
    q = gaussian()
    draw = q.sample(torch.Generator().manual_seed(7))
    noise = torch.Generator().manual_seed(7)
    assert list(draw) == ["a", "b"]
    for key, sd in (("a", 0.5), ("b", 0.1)):
        expected = q.mean[key] + sd * torch.randn(q.mean[key].shape, generator=noise)
        torch.testing.assert_close(draw[key], expected, rtol=1e-6, atol=1e-7)


def test_draws_have_the_posteriors_moments() -> None:
    q = DiagonalGaussian(mean={"w": torch.tensor([3.0, -1.0])}, precision={"w": torch.tensor([4.0, 0.25])})
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([q.sample(generator)["w"] for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), q.mean["w"], atol=4 * 2 / 4000**0.5, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.tensor([0.5, 2.0]), rtol=0.05, atol=0)


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    gaussian().sample(torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("mean", "drawn"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_draws_are_float32_or_float64(mean: torch.dtype, drawn: torch.dtype) -> None:
    q = DiagonalGaussian(mean={"w": torch.zeros(2, dtype=mean)}, precision={"w": torch.ones(2)})
    assert q.sample(torch.Generator())["w"].dtype == drawn


def test_a_point_mass_draws_its_mean_and_uses_no_noise() -> None:
    q, generator = PointMass(mean={"w": torch.ones(2)}), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(q.sample(generator)["w"], torch.ones(2))
    assert torch.equal(generator.get_state(), before)


# Reading it out of a trained model -------------------------------------------------------------------------


def train(model: nn.Module, optimizer: IVON, steps: int = 3) -> None:
    noise = NoiseController(model, optimizer, seed=0)
    model.train()
    for step in range(steps):
        ids = token_ids(seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    noise.detach()
    model.eval()


def ivon(model: nn.Module, **options: object) -> IVON:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return IVON(parameters, **{"lr": 0.1, "ess": 1e4, "hess_init": 0.1, "betas": (0.9, 0.9), **options})


def test_posterior_of_holds_ivons_mean_and_precision(llama_lora: nn.Module) -> None:
    optimizer = ivon(llama_lora, weight_decay=0.01)
    train(llama_lora, optimizer)
    q = posterior_of(llama_lora, optimizer, num_examples=100, readout={"kind": "x"}, base_model="tiny")

    trained = trained_tensors(llama_lora)
    assert list(q.mean) == list(trained)
    for key, p in trained.items():
        assert torch.equal(q.mean[key], p)
        h = optimizer.state[p]["hessian"]
        torch.testing.assert_close(q.precision[key], 1e4 * (h + 0.01), rtol=1e-6, atol=0)
    assert (q.meta.method, q.meta.num_examples, q.meta.ess, q.meta.base_model) == ("ivon", 100, 1e4, "tiny")
    assert q.meta.prior_precision == pytest.approx(dict.fromkeys(trained, 100.0))
    assert q.meta.adapter_config is not None
    assert q.meta.adapter_config["target_modules"] == ["q_proj", "v_proj"]
    assert q.meta.diagnostics is not None
    assert (q.meta.diagnostics["steps"], q.meta.diagnostics["skipped_steps"]) == (3, 0)


def test_posterior_of_is_a_copy(llama_lora: nn.Module) -> None:
    optimizer = ivon(llama_lora)
    q = posterior_of(llama_lora, optimizer)
    before = {key: m.clone() for key, m in q.mean.items()}
    train(llama_lora, optimizer)
    assert all(torch.equal(q.mean[key], before[key]) for key in before)
    assert all(torch.equal(p, torch.full_like(p, 1e3)) for p in q.precision.values())


def test_half_precision_weights_give_the_float32_master() -> None:
    model = nn.Linear(2, 1, bias=False).bfloat16()
    optimizer = ivon(model)
    optimizer.mean(model.weight).add_(1e-5)  # below bfloat16's resolution
    q = posterior_of(model, optimizer)
    assert q.mean["weight"].dtype == torch.float32
    assert torch.equal(q.mean["weight"], optimizer.state[model.weight]["mean"])
    assert not torch.equal(q.mean["weight"], model.weight.float())


def test_an_adaptive_prior_is_recorded_by_tensor() -> None:
    model = nn.Linear(2, 1)
    optimizer = ivon(model, prior="adaptive", weight_decay=0.5)
    optimizer.precision(model.weight)
    optimizer.state[model.weight]["prior_precision"].fill_(2500.0)
    q = posterior_of(model, optimizer)
    assert q.meta.prior_precision == pytest.approx({"bias": 5000.0, "weight": 2500.0})
    torch.testing.assert_close(q.precision["weight"], torch.full((1, 2), 3500.0))


def test_groups_with_different_ess_are_said() -> None:
    model = nn.Linear(2, 1)
    groups = [{"params": [model.weight], "ess": 10.0}, {"params": [model.bias]}]
    q = posterior_of(model, IVON(groups, lr=0.1, ess=20.0, hess_init=1.0))
    assert q.meta.ess is None
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["ess_of_groups"] == [10.0, 20.0]
    assert (q.precision["weight"][0, 0], q.precision["bias"][0]) == (10.0, 20.0)


def test_frozen_parts_of_an_adapter_are_known_exactly() -> None:
    model = lora(tiny_llama())
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    q = posterior_of(model, ivon(model))
    assert len(q.mean) == 8
    assert {key for key, p in q.precision.items() if torch.isinf(p).all()} == {k for k in q.mean if "lora_A" in k}


def test_accelerates_wrapper_is_looked_through() -> None:
    model = nn.Linear(2, 1)
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=ivon(model)))
    assert posterior_of(model, wrapped).meta.ess == 1e4


def test_an_optimizer_without_a_posterior_is_refused() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="AdamW holds no posterior"):
        posterior_of(model, torch.optim.AdamW(model.parameters()))


def test_a_trained_parameter_that_the_optimizer_does_not_hold_is_an_error() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"does not hold 1 trained parameter\(s\), such as bias"):
        posterior_of(model, IVON([model.weight], lr=0.1, ess=1.0, hess_init=1.0))


def test_a_model_that_trains_nothing_has_no_posterior() -> None:
    model = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model trains"):
        posterior_of(model, IVON(model.parameters(), lr=0.1, ess=1.0, hess_init=1.0))


def test_point_mass_of_copies_the_weights_in_float32(bert_lora: nn.Module) -> None:
    bert_lora.base_model.model.classifier.to(torch.bfloat16)
    q = point_mass_of(bert_lora, method="adamw", num_examples=10)
    assert {m.dtype for m in q.mean.values()} == {torch.float32}
    key = "base_model.model.classifier.weight"
    live = trained_tensors(bert_lora)[key]
    assert torch.equal(q.mean[key], live.float())
    live.data.zero_()
    assert q.mean[key].any()
    assert (q.meta.method, q.meta.num_examples) == ("adamw", 10)


def test_hessian_moved_is_the_median_relative_distance_from_the_start() -> None:
    moved = hessian_moved({"a": (torch.tensor([2.0, 2.2, 2.4]), 2.0), "b": (torch.tensor([0.5]), 1.0)})
    assert moved["by_tensor"] == pytest.approx({"a": 0.1, "b": 0.5})
    assert moved["overall"] == pytest.approx(0.1)  # the lower of the two middle values
    nothing = {"a": (torch.tensor([2.2]), 2.0), "empty": (torch.zeros(0, 4), 2.0)}
    assert hessian_moved(nothing)["by_tensor"] == pytest.approx({"a": 0.1}), "no entry has a median"


@pytest.mark.parametrize(
    "given", [{"num_examples": "3"}, {"num_examples": 2.5}, {"num_examples": True}, {"ess": "1e5"}]
)
def test_meta_numbers_are_numbers(given):
    with pytest.raises(ValueError, match="must be positive"):
        PosteriorMeta(**given)
