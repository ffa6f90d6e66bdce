"""What `varlora compare` found, as the report shows it: models and tasks in blocks, each with its comparison.

Nothing here is averaged over tasks: a block is one model on one task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from varlora.report.health import Health
from varlora.report.results import Comparison


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One setting of a curve, or a method's point beside it, at one seed.

    Attributes:
        label: the method's label.
        seed: of the training.
        value: the setting (τ, the fraction pruned, the number of draws); None for a point estimate beside the curve.
        metrics: what `varlora.metrics.evaluate` says of it.
    """

    label: str
    seed: int
    value: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Accuracy against calibration along one setting, with every method's point beside it.

    Attributes:
        over: "temperature" (τ), "prune" (fraction) or "samples".
        split: of the rows.
        points: of the curves and beside them.
    """

    over: str
    split: str
    points: Sequence[FrontierPoint]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test row as methods answered it, averaged over seeds' probabilities.

    Attributes:
        id: the row's name.
        prompt: what was asked.
        label: name of the right answer.
        probabilities: by method's label, one for each answer.
        mutual_information: by method's label, nats; only of methods with several draws.
    """

    id: str
    prompt: str
    label: str
    probabilities: Mapping[str, Sequence[float]]
    mutual_information: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModuleScale:
    """Noise and signal of one tensor of a posterior.

    Attributes:
        label: the training's name.
        seed: its seed.
        key: checkpoint key of the tensor, which tells layer and module.
        std: root mean square of the standard deviations.
        weights: root mean square of the means.
        snr: median of |m| / σ over its entries.
        entries: how many.
    """

    label: str
    seed: int
    key: str
    std: float
    weights: float
    snr: float
    entries: int


@dataclass(frozen=True, kw_only=True)
class RunHealth:
    """How the posterior of one training does.

    Attributes:
        label: the training's name.
        seed: its seed.
        run: its folder, for commands.
        health: what was found.
    """

    label: str
    seed: int
    run: str
    health: Health


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """A training's log.

    Attributes:
        label: the training's name.
        seed: its seed.
        steps: at which something was logged.
        values: by name ("loss", "eval_loss", "learning_rate", "ess", ...), as long as `steps`; None: not logged there.
    """

    label: str
    seed: int
    steps: Sequence[int]
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one training cost.

    Attributes:
        label: the training's name.
        seed: its seed.
        train_seconds: wall clock.
        predict_seconds: by row's label, of the first test split.
        peak_memory_bytes: None where not known.
        file_bytes: of what is kept (adapter and posterior).
    """

    label: str
    seed: int
    train_seconds: float | None
    predict_seconds: Mapping[str, float]
    peak_memory_bytes: int | None
    file_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One model on one task.

    Attributes:
        model: its name in the plan.
        task: its name in the plan.
        comparison: of the rows that are complete over `comparison.seeds`; None while there is none.
        missing: rows and seeds that have not been run, or failed, in words.
        notes: what was done with the data, in words.
        detection: out-of-scope splits: split → label → metric → value of each seed.
        completions: of a task without classes: split → label → metric → value of each seed.
        frontiers, examples, health, scales, curves, costs: see their classes.
        classes: names of the answers.
    """

    model: str
    task: str
    comparison: Comparison | None
    missing: Sequence[str] = ()
    notes: Sequence[str] = ()
    detection: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = field(default_factory=dict)
    completions: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]] = field(default_factory=dict)
    frontiers: Sequence[Frontier] = ()
    examples: Sequence[Example] = ()
    health: Sequence[RunHealth] = ()
    scales: Sequence[ModuleScale] = ()
    curves: Sequence[TrainingCurve] = ()
    costs: Sequence[Cost] = ()
    classes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Everything that one plan has found so far.

    Attributes:
        name: of the plan.
        reference: label of the method that the others are compared with.
        blocks: in the plan's order.
        note: what it is about, in a few sentences.
        settings: the plan's settings, plain, by group, for the page.
        versions: of the libraries.
        code_versions: of the code that made the runs; each method has its own.
        mixed_code: whether runs that are compared were made by different versions of one code, which is a warning.
        command: what makes it again.
    """

    name: str
    reference: str
    blocks: Sequence[Block]
    note: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    code_versions: Sequence[str] = ()
    mixed_code: bool = False
    command: str = ""

    def compared(self, split: str) -> list[tuple[Block, Comparison]]:
        """The blocks whose methods are compared on a split."""
        return [(b, b.comparison) for b in self.blocks if b.comparison is not None and split in b.comparison.splits]
