"""Curvature and linearised predictions of rows that are several sequences, against one choice at a time by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from curvature.test_ggn import by_autograd, close, dense, logit_hessians, rows_of
from models import lora, tiny_llama
from readout.test_choice_texts import READOUT, ROWS, batch_of
from varlora.curvature import curvature_of
from varlora.curvature.layers import linear_tensors, recorded


@pytest.fixture(scope="module")
def model() -> Any:
    return lora(tiny_llama(), task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"]).eval().double()


@pytest.fixture(scope="module")
def jacobians(model: Any) -> dict[str, Tensor]:
    found = by_autograd(model, READOUT, batch_of())
    return {key: torch.nan_to_num(jacobian) for key, jacobian in found.items()}


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_jacobians_are_autograds(model: Any, jacobians: dict[str, Tensor], side: str) -> None:
    with recorded(model, linear_tensors(model)) as recorder:
        found = dict(recorder.jacobians(recorder.logits(READOUT, batch_of(side))))
    assert found.keys() == jacobians.keys()
    for key, expected in jacobians.items():
        torch.testing.assert_close(found[key].double(), expected, atol=1e-6, rtol=1e-6)
        assert not found[key][1, 2].any()  # the choice that the second row lacks


@pytest.mark.parametrize("cuts", [[slice(0, 3)], [slice(0, 1), slice(1, 3)]])
def test_the_diagonal_is_the_brute_force_one(model: Any, jacobians: dict[str, Tensor], cuts: list[slice]) -> None:
    hessians = logit_hessians(READOUT.logits(model, batch_of()).detach())
    found = curvature_of(model, rows_of(batch_of(), *cuts), readout=READOUT, structure="diag")
    for key, jacobian in jacobians.items():
        flat = jacobian.flatten(2)
        expected = torch.einsum("ncp,ncd,ndp->p", flat, hessians, flat)
        assert close(found.diagonal[key].flatten(), expected, 1e-6), key


def test_the_kronecker_factors_are_sums_over_the_choices_own_tokens(model: Any) -> None:
    """By one plain forward of each sequence without padding, whose layers' inputs and gradients are kept."""
    found = curvature_of(model, [batch_of()], readout=READOUT, structure="kron", low_rank_above=64)
    scores = READOUT.logits(model, batch_of()).detach()
    probs = scores.softmax(1)
    for key in ("layers.0.self_attn.q_proj.lora_A", "layers.1.mlp.down_proj.lora_B"):
        (name,) = [name for name in found.factors if key in name]
        module = model.get_submodule(name.removesuffix(".weight") + ".default")
        out, inside, positions = 0.0, 0.0, 0
        for n, row in enumerate(ROWS):
            for c, (ids, length) in enumerate(zip(row["input_ids"], row["choice_lengths"], strict=True)):
                kept: list[Tensor] = []
                hook = module.register_forward_hook(lambda _m, args, output, kept=kept: kept.extend([args[0], output]))
                log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
                hook.remove()
                score = sum(log_probs[t - 1, ids[t]] for t in range(len(ids) - length, len(ids)))
                (gradient,) = torch.autograd.grad(score, kept[1])
                columns = probs[n].sqrt() * (torch.eye(3)[c] - probs[n][c])  # L[c, k] of row n
                out = out + (columns.double() ** 2).sum() * gradient[0].mT @ gradient[0]
                inside = inside + kept[0][0].detach().mT @ kept[0][0].detach()
                positions += len(ids)
        assert close(dense(found, name), torch.kron(out, inside / positions), 1e-5), name  # type: ignore[arg-type]
