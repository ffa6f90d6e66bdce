"""How costs grow: the optimizer with tensors, a step with rank and length, prediction with draws, Laplace with rows.

    python -m benchmarks.scaling

Medians of processor milliseconds; the exponent is the slope of log cost over log size, 1 where cost is proportional.
A small random Llama, and a step of IVON by default unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from benchmarks.measuring import exponent, parser_of, quartiles, show, take_turns
from benchmarks.prediction import gaussian
from benchmarks.training_step import ESS, LR, adapted, batch_of, llama
from torch import nn

from varlora import IVON, IVONConfig, NoiseController
from varlora.curvature import curvature_of
from varlora.prediction.prediction import predict
from varlora.readout.readout import AnswerTokens

READOUT = AnswerTokens(token_ids=(7, 8, 9), answers=("A", "B", "C"))


class Matrices(nn.Module):
    """Matrices of 8 × 256, each read once."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(256, 8, bias=False) for _ in range(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(x).sum() for layer in self.layers]).sum()


def training(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A step of IVON."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = IVON(trained, **IVONConfig(lr=LR, ess=ESS).optimizer_kwargs())
    noise = NoiseController(model, optimizer, seed=0)

    def step() -> None:
        value = loss()
        noise.observe_loss(value)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def by_tensors(number: int) -> Callable[[], None]:
    """A step over so many tensors."""
    model, x = Matrices(number), torch.ones(1, 256)
    return training(model, lambda: model(x))


def small(rank: int = 8) -> nn.Module:
    """A Llama of width 128 with an adapter."""
    torch.manual_seed(0)
    return adapted(llama(128, 3, 200, 4), r=rank)


def by_rank(rank: int) -> Callable[[], None]:
    """A step of an adapter of that rank."""
    model, batch = small(rank), batch_of(nn.Module(), 8, 32)
    return training(model, lambda: model(**batch).loss)


def by_length(tokens: int) -> Callable[[], None]:
    """A step on rows of so many tokens."""
    model, batch = small(), batch_of(nn.Module(), 8, tokens)
    return training(model, lambda: model(**batch).loss)


def by_draws(samples: int) -> Callable[[], None]:
    """A prediction of 8 rows."""
    model, batch = small().eval(), _labelled(8, 32)
    q = gaussian(model)  # type: ignore[arg-type]
    return lambda: predict(model, q, [batch], samples, readout=READOUT) and None


def laplace(rows: int, tokens: int = 32) -> Callable[[], None]:
    """The curvature over so many rows, 16 at a time."""
    model = small()
    batches = [_labelled(min(16, rows - start), tokens) for start in range(0, rows, 16)]
    return lambda: curvature_of(model, batches, readout=READOUT) and None


def _labelled(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    return {**batch_of(nn.Module(), rows, tokens), "labels": torch.zeros(rows, dtype=torch.int64)}


TABLES: Mapping[str, tuple[Callable[[int], Callable[[], None]], Sequence[int]]] = {
    "tensors of 8 × 256, the step": (by_tensors, (32, 128, 512)),
    "rank, the step": (by_rank, (4, 16, 64)),
    "tokens of a row, the step": (by_length, (16, 64, 256)),
    "draws, prediction": (by_draws, (2, 8, 32)),
    "rows, Laplace's curvature": (laplace, (32, 128, 512)),
    "tokens of a row, Laplace's curvature": (lambda tokens: laplace(32, tokens), (16, 64, 256)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--tables", nargs="+", choices=list(TABLES), default=list(TABLES))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = []
    for name in given.tables:
        make, sizes = TABLES[name]
        seconds = take_turns({str(size): make(size) for size in sizes}, given.rounds)
        costs = [quartiles(each).median for each in seconds.values()]
        rows.append(
            {
                "what": name,
                "sizes": ", ".join(map(str, sizes)),
                "ms": ", ".join(f"{1e3 * cost:.3g}" for cost in costs),
                "exponent": f"{exponent(sizes, costs):.2f}",
                "of the last step": f"{exponent(sizes[-2:], costs[-2:]):.2f}",
            }
        )
    show({"Cost by size": rows}, given)


if __name__ == "__main__":
    main()
