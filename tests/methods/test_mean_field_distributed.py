"""Two gloo ranks, each with its own data and noise, against one process that takes both ranks' draws."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import lora, tiny_llama, token_ids
from ranks import RANKS, on_ranks
from varlora.ivon.noise import Draw
from varlora.methods.blob import Blob
from varlora.methods.mean_field import MeanField
from varlora.methods.mean_field_optimizer import MeanFieldAdamW
from varlora.methods.random_factors import RandomFactors
from varlora.methods.scalabl import Scalabl

STEPS = 3
METHODS: dict[str, MeanField] = {"blob": Blob(initial_std_bound=0.5), "scalabl": Scalabl(initial_std_bound=0.5)}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file store")


def prepared(method: str) -> tuple[nn.Module, RandomFactors, MeanFieldAdamW]:
    model = lora(tiny_llama(layers=1)).double().train()
    factors = METHODS[method].random_factors(model, seed=7)
    optimizer = MeanFieldAdamW(
        [p for p in model.parameters() if p.requires_grad],
        gaussians=[(f.mean, f.sqrt_std) for f in factors.factors],
        prior_std=0.2,
        num_examples=10,
        cycle=2,
        lr=0.01,
        kl_lr=0.001,
    )
    factors.follow(optimizer)
    return model, factors, optimizer


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def loss(model: nn.Module, step: int, rank: int) -> Tensor:
    return torch.as_tensor(model(token_ids(seed=10 * step + rank)).logits.square().mean())


def train_on_rank(rank: int, method: str) -> tuple[Tensor, Tensor]:
    model, factors, optimizer = prepared(method)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(wrapped, step, rank).backward()
        optimizer.step()
    assert factors.draw is not None
    first = factors.factors[0]
    return flat(model), factors.draw.normal(first.key, first.sqrt_std)


def in_one_process(method: str) -> Tensor:
    model, factors, optimizer = prepared(method)
    for step in range(STEPS):
        optimizer.zero_grad()
        for rank in range(RANKS):
            factors.draw, factors._used = Draw(factors.source, step, 0, rank), False
            (loss(model, step, rank) / RANKS).backward()
        optimizer.step()
    return flat(model)


def run(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    return {method: train_on_rank(rank, method) for method in METHODS}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(run, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one_process_with_both_draws(results: list[dict[str, Any]], method: str) -> None:
    (first, noise), (second, other_noise) = (result[method] for result in results)
    assert torch.equal(first, second)  # bit for bit
    assert not torch.equal(noise, other_noise)
    torch.testing.assert_close(first, in_one_process(method), rtol=1e-9, atol=1e-11)
