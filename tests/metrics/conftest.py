"""Numbers that other libraries agree on; `problem` in the file says what each of them is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())


@pytest.fixture(scope="session")
def oracle() -> dict[str, Any]:
    return ORACLE


@pytest.fixture(scope="session")
def samples_of_oracle(oracle: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Log-probabilities (48, 8, 4), labels (48,), expected numbers."""
    case = oracle["samples"]
    log_probs = torch.tensor(case["probs_samples"], dtype=torch.float64).log()
    return log_probs, torch.tensor(case["labels"]), case["expected"]


@pytest.fixture(params=ORACLE["classification"], ids=lambda case: f"C={case['C']}")
def classified(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Probabilities (400, C), labels (400,), expected numbers."""
    case = request.param
    return torch.tensor(case["probs"], dtype=torch.float64), torch.tensor(case["labels"]), case["expected"]


@pytest.fixture(params=ORACLE["bin_edges"], ids=lambda case: f"N={case['N']}")
def on_bin_edges(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Probabilities (N, C) whose confidences are edges of bins, labels (N,), expected numbers."""
    case = request.param
    return torch.tensor(case["probs"], dtype=torch.float64), torch.tensor(case["labels"]), case["expected"]


@pytest.fixture(params=ORACLE["scores"], ids=lambda case: "ties" if case["ties"] else "no ties")
def scored(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Scores (N,), which are positive (N,), expected numbers."""
    case = request.param
    return torch.tensor(case["score"], dtype=torch.float64), torch.tensor(case["positive"]), case["expected"]


@pytest.fixture(params=ORACLE["temperature"], ids=lambda case: f"C={case['C']}")
def tempered(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Logits (200, C) with -inf where a choice is missing, labels (200,), expected numbers."""
    case = request.param
    logits = [[float("-inf") if x is None else x for x in row] for row in case["logits"]]
    return torch.tensor(logits, dtype=torch.float64), torch.tensor(case["labels"]), case["expected"]
