"""What Laplace's curvature costs, in forward and backward passes over the same rows.

    python -m benchmarks.laplace

A classifier of MiniLM's shapes, random weights and tokens, batches of 8 rows of 32 tokens. "Multiplied" counts matrix
multiplications alone, and "backward" those of the passes without the sums of outer products: what no program for the
exact Gauss-Newton matrix that runs the model backwards can do without. Time is the processor's, of what each further
batch adds; eigenvectors, once for all rows, are beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from benchmarks.measuring import parser_of, quartiles, show
from benchmarks.training_step import adapted, minilm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from varlora.curvature import curvature_of, ggn
from varlora.curvature.gram import Gram, SketchedGram
from varlora.readout.readout import ClassHead

ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "all linear layers": {},
    "queries and values": {"target_modules": r".*encoder.*(query|value)"},
    "upper half, all linear": {"target_modules": r".*encoder\.layer\.[345].*(query|key|value|dense)"},
    "upper third, queries and values": {"target_modules": r".*encoder\.layer\.[45].*(query|value)"},
}


def batches(number: int, classes: int, *, rows: int = 8, tokens: int = 32) -> list[dict[str, Tensor]]:
    """Random tokens and labels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(number):
        ids = torch.randint(5, 200, (rows, tokens), generator=generator)
        labels = torch.randint(0, classes, (rows,), generator=generator)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def classifier(classes: int, where: str) -> nn.Module:
    """MiniLM's shapes with an adapter and a trained head."""
    torch.manual_seed(0)
    base = minilm()
    base.classifier = nn.Linear(384, classes)
    base.num_labels = base.config.num_labels = classes
    return adapted(base, **ADAPTERS[where]).eval()


def train(model: nn.Module, readout: ClassHead, rows: Sequence[Mapping[str, Tensor]]) -> None:
    """A forward and backward pass over the rows."""
    for batch in rows:
        torch.nn.functional.cross_entropy(readout.logits(model, batch), batch["labels"]).backward()
        model.zero_grad()


def measure(where: str, classes: int, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    model, readout = classifier(classes, where), ClassHead(classes=tuple(f"class {c}" for c in range(classes)))
    one, three = batches(1, classes), batches(3, classes)
    ends: list[float] = []
    factors = ggn._Kronecker.factors

    def timed(sums: Any) -> Any:
        start = time.process_time()
        found = factors(sums)
        ends[-1] += time.process_time() - start
        return found

    def fit(rows: list[dict[str, Tensor]]) -> float:
        ends.append(0.0)
        start = time.process_time()
        with mock.patch.object(ggn._Kronecker, "factors", timed):
            curvature_of(model, rows, readout=readout)
        return time.process_time() - start - ends[-1]

    def multiplied(rows: list[dict[str, Tensor]]) -> int:
        with FlopCounterMode(display=False) as counter, mock.patch.object(ggn._Kronecker, "factors", return_value=None):
            curvature_of(model, rows, readout=readout)
        return counter.get_total_flops()

    train(model, readout, one)
    with FlopCounterMode(display=False) as counter:
        train(model, readout, one)
    pass_flops = counter.get_total_flops()
    flops = multiplied(three[:2]) - multiplied(one)
    with mock.patch.object(Gram, "add"), mock.patch.object(SketchedGram, "add"):
        backward = multiplied(three[:2]) - multiplied(one)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        train(model, readout, three[1:])
        bare = time.process_time() - start
        seconds.append((fit(three) - fit(one)) / bare)
    return {
        "adapter": where,
        "classes": classes,
        "time": quartiles(seconds),
        "multiplied": flops / pass_flops,
        "backward": backward / pass_flops,
        "once, s": quartiles(ends).median,
    }


def epochs(rows: int, classes: int, rounds: int) -> dict[str, Any]:
    """A row of the table: the whole fit to an epoch of training, rows of 6 to 32 tokens."""
    model = classifier(classes, "all linear layers")
    readout = ClassHead(classes=tuple(f"class {c}" for c in range(classes)))
    lengths = torch.randint(6, 33, (rows,), generator=torch.Generator().manual_seed(0))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def padded(size: int) -> list[dict[str, Tensor]]:
        found = []
        ordered = lengths.sort().values if size > 16 else lengths
        for part in ordered.split(size):
            (batch,) = batches(1, classes, rows=len(part), tokens=int(part.max()))
            batch["attention_mask"] = (torch.arange(int(part.max())) < part[:, None]).long()
            found.append(batch)
        return found

    def epoch() -> None:
        for batch in padded(16):
            torch.nn.functional.cross_entropy(readout.logits(model, batch), batch["labels"]).backward()
            optimizer.step()
            optimizer.zero_grad()

    def fit() -> None:
        curvature_of(model, padded(32), readout=readout)

    seconds: dict[str, list[float]] = {"epoch": [], "fit": []}
    for _ in range(rounds):
        for name, way in (("epoch", epoch), ("fit", fit)):
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    found = [fit / epoch for fit, epoch in zip(seconds["fit"], seconds["epoch"], strict=True)]
    return {"rows": rows, "classes": classes, "an epoch, s": min(seconds["epoch"]), "the fit, epochs": quartiles(found)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--adapters", nargs="+", choices=list(ADAPTERS), default=list(ADAPTERS))
    parser.add_argument("--rows", type=int, nargs="*", default=[64], help="of whole fits, to epochs of training")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows = [measure(where, classes, given.rounds) for where in given.adapters for classes in given.classes]
    tables = {"Curvature, to a forward and backward pass over its rows": rows}
    if given.rows:
        tables["The whole fit, to an epoch of training, all linear layers"] = [
            epochs(number, 6, given.rounds) for number in given.rows
        ]
    show(tables, given)


if __name__ == "__main__":
    main()
