"""Memory that training takes beside the model's weights: by optimizer, of Laplace's fit, and over many steps.

    python -m benchmarks.memory

Counted from the tensors that are alive: every storage that an operation returns, until it is freed. What a kernel holds
only while it runs is not seen. "At rest" is after a step, gradients included.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.laplace import batches, classifier, train
from benchmarks.measuring import has_ivon_opt, parser_of, show
from benchmarks.training_step import ESS, HESS_INIT, LR, batch_of, llama, steps
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from varlora import IVON, IVONConfig, NoiseController
from varlora.curvature import curvature_bytes, curvature_of
from varlora.curvature.layers import linear_tensors
from varlora.readout.readout import ClassHead


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations within the block have made: now, and at most.

    Attributes:
        now: bytes.
        peak: bytes.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self._see, func(*args, **(kwargs or {})))

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)
        return tensor

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class Weights(nn.Module):
    """Matrices, and a loss whose backward pass holds next to nothing else."""

    def __init__(self, number: int = 64, shape: tuple[int, int] = (8, 1024)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(shape[1], shape[0], bias=False) for _ in range(number))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x).sum() for layer in self.layers]).sum()


def optimizers() -> dict[str, Callable[[Weights], tuple[torch.optim.Optimizer, Any]]]:
    """What makes each, and its noise."""

    def adamw(model: Weights) -> tuple[torch.optim.Optimizer, Any]:
        return torch.optim.AdamW(model.parameters(), lr=LR, fused=True), None

    def ivon(recipe: Any) -> Callable[[Weights], tuple[torch.optim.Optimizer, Any]]:
        def make(model: Weights) -> tuple[torch.optim.Optimizer, Any]:
            options = {} if recipe == "auto" else {"hess_init": HESS_INIT}
            config = IVONConfig(recipe=recipe, lr=LR, ess=ESS, **options)
            optimizer = IVON(model.parameters(), **config.optimizer_kwargs())
            return optimizer, NoiseController(model, optimizer, seed=0)

        return make

    def ivon_opt(model: Weights) -> tuple[torch.optim.Optimizer, Any]:
        import ivon

        return ivon.IVON(model.parameters(), lr=LR, ess=ESS, hess_init=HESS_INIT), None

    found = {"AdamW, fused": adamw, "IVON, by default": ivon("auto"), "IVON, cong2025": ivon("cong2025")}
    return {**found, **({"ivon-opt": ivon_opt} if has_ivon_opt() else {})}


def bytes_a_parameter(make: Callable[[Weights], tuple[torch.optim.Optimizer, Any]], steps: int = 3) -> dict[str, float]:
    """Of some training steps: at rest and at most."""
    model, x = Weights(), torch.ones(1, 1024)
    count = sum(p.numel() for p in model.parameters())
    with Alive(x, *model.parameters()) as alive:
        optimizer, noise = make(model)
        for _ in range(steps):
            optimizer.zero_grad()
            if hasattr(optimizer, "sampled_params"):
                with optimizer.sampled_params(train=True):
                    model(x).backward()
            else:
                loss = model(x)
                if noise is not None:
                    noise.observe_loss(loss)
                loss.backward()
                del loss
            optimizer.step()
        return {"at rest": alive.now / count, "at most": alive.peak / count}


def of_laplace(where: str, classes: int, rows: int) -> dict[str, Any]:
    """A row of the table: a training step's peak and the fit's, on batches of as many rows."""
    model, readout = classifier(classes, where), ClassHead(classes=tuple(f"class {c}" for c in range(classes)))
    batch = batches(1, classes, rows=rows)
    with Alive(*model.parameters(), *model.buffers()) as alive:
        train(model, readout, batch)
    training = alive.peak
    with Alive(*model.parameters(), *model.buffers()) as alive:
        curvature_of(model, batch, readout=readout)
    return {
        "adapter": where,
        "classes": classes,
        "rows of a batch": rows,
        "forward and backward, MB": training / 1e6,
        "fit, MB": alive.peak / 1e6,
        "said to be held, MB": curvature_bytes(linear_tensors(model), structure="kron") / 1e6,
    }


def over_steps(number: int) -> list[dict[str, Any]]:
    """What the process holds after some steps of IVON and after many, MB."""
    base = llama(32, 2, 200, 2).requires_grad_(False)
    rows = []
    for way, step in steps(base, batch_of(base, 2, 8)).items():
        if not way.startswith("IVON"):
            continue
        row: dict[str, Any] = {"way": way}
        for until in (number // 10, number):
            for _ in range(until - int(row.get("steps", 0))):
                step()
            row["steps"] = until
            row[f"after {until} steps, MB"] = f"{_resident() / 1e6:.1f}"
        del row["steps"]
        rows.append(row)
    return rows


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = parser_of(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=2000, help="for the memory over many steps; 0 leaves it out")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    tables = {
        "Bytes a trained parameter above the weights": [
            {"optimizer": name, **bytes_a_parameter(make)} for name, make in optimizers().items()
        ],
        "Laplace's fit, MiniLM's shapes, rows of 32 tokens": [
            of_laplace("all linear layers", classes, rows) for classes, rows in ((2, 4), (6, 4), (6, 8))
        ],
    }
    if given.steps:
        tables["The process over steps, a tiny Llama"] = over_steps(given.steps)
    show(tables, given)


if __name__ == "__main__":
    main()
