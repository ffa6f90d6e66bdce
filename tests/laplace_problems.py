"""The small networks of tests/data/laplace.json (its "problem" says what is what), and how to run them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from varlora.readout.readout import ClassHead

CASES: Mapping[str, Mapping[str, Any]] = {
    case["kind"]: case
    for case in json.loads((Path(__file__).parent / "data" / "laplace.json").read_text(encoding="utf-8"))["cases"]
}
READOUT = ClassHead(classes=("a", "b", "c"))


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(weight: Any, *, trained: bool) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight = nn.Parameter(tensor(weight), requires_grad=trained)
    return layer


class Perceptron(nn.Module):
    """kind "mlp"."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        super().__init__()
        self.W1, self.W2 = (linear(weights[name], trained=True) for name in ("W1", "W2"))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.W2(torch.tanh(self.W1(input_ids))))


class Adapted(nn.Module):
    """kinds "lora" and "lora_seq"; the positions of the second are averaged, real ones alone if there is a mask."""

    def __init__(self, weights: Mapping[str, Any], scale: float) -> None:
        super().__init__()
        self.scale = scale
        for name in ("Win", "W0", "A", "B", "Wout"):
            setattr(self, name, linear(weights[name], trained=name in "AB"))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        a = torch.tanh(self.Win(input_ids))
        hidden = torch.tanh(self.W0(a) + self.scale * self.B(self.A(a)))
        if hidden.ndim == 3:
            real = torch.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
            hidden = (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.Wout(hidden))


def network(kind: str) -> nn.Module:
    case = CASES[kind]
    return Perceptron(case["weights"]) if kind == "mlp" else Adapted(case["weights"], case["scale"])


def batches(kind: str, sizes: Sequence[int] = (60,)) -> list[dict[str, Tensor]]:
    """The training examples, cut into batches of these sizes."""
    x, y = tensor(CASES[kind]["x"]), torch.tensor(CASES[kind]["y"])
    return [{"input_ids": a, "labels": b} for a, b in zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)]


def unseen_batch(kind: str) -> dict[str, Tensor]:
    x = tensor(CASES[kind]["x_test"])
    return {"input_ids": x, "labels": torch.zeros(len(x), dtype=torch.int64)}


def by_key(kind: str, values: Any) -> dict[str, float]:
    """A prior precision, one number or one per tensor in the file's order, by checkpoint key."""
    keys = [f"{name}.weight" for name in CASES[kind]["trainable"]]
    return dict(zip(keys, values if isinstance(values, list) else [values] * len(keys), strict=True))
