"""Made-up predictions: three methods, two seeds, two splits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from varlora.report import Comparison, Row

NAMES = ("AdamW", "AdamW + temperature", "IVON, 10 samples")


def made_up_rows(names: tuple[str, str, str] = NAMES, *, num_examples: int = 120) -> list[Row]:
    """An overconfident method, the same at a better temperature, and a better one with ten samples."""
    rows = []
    for number, split in enumerate(("test", "other words")):
        generator = torch.Generator().manual_seed(number)
        labels = torch.randint(4, (num_examples,), generator=generator)
        right = torch.nn.functional.one_hot(labels, 4).double()
        for seed in (21, 42):

            def noise(*shape: int, generator: torch.Generator = generator) -> Tensor:
                return torch.randn(shape, generator=generator, dtype=torch.float64)

            logits = noise(num_examples, 4) + (1.2 + noise(num_examples, 1)) * right
            better = (logits + 0.4 * right).unsqueeze(1) + 0.7 * noise(num_examples, 10, 4)
            for name, values in zip(names, (3.0 * logits, logits, 1.3 * better), strict=True):
                rows.append(
                    Row(
                        method=name,
                        seed=seed,
                        split=split,
                        log_probs=values.log_softmax(-1),
                        labels=labels,
                        train_seconds=100.0 + seed,
                        predict_seconds=1.5,
                    )
                )
    return rows


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    return Comparison(task="wants", rows=made_up_rows(), resamples=200)


@pytest.fixture(scope="session")
def hostile() -> Comparison:
    """Names that try to be markup, mathematics and private labels."""
    names = ('<script>alert("1")</script>', "_$a_b$ & co | *x*", "]]></style></svg><b>")
    return Comparison(task="<i>task</i>", rows=made_up_rows(names), reference=names[0], resamples=40)
