"""Made-up predictions: three methods, two seeds, two splits; and a study of two tasks around them."""

from __future__ import annotations

import torch
from torch import Tensor

from varlora.metrics import evaluate
from varlora.report import Comparison, Health, Row
from varlora.report.sampling import Agreement, Paired
from varlora.report.scales import ScaleGroup, TensorScale
from varlora.report.study import (
    Block,
    Cost,
    Example,
    Frontier,
    FrontierPoint,
    ModuleScale,
    RunHealth,
    Study,
    TrainingCurve,
)

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


LONG = "models/" + "a-name-that-does-not-break/" * 4
CLASSES = ("A", "B", "C", "D")
HOSTILE = "</script><script>fail()</script> <!-- \u2028 & {{ name }} 'x' \"y\""


def made_up_study(comparison: Comparison, *, hostile: bool = False) -> Study:
    """Everything that a study can hold: a task, another with fewer rows, and one where nothing is finished."""
    other = Comparison(
        task="other", rows=_one_split(comparison.methods, 40), reference=comparison.reference, resamples=100
    )
    words = HOSTILE if hostile else "What will somebody want?"
    return Study(
        name=HOSTILE if hostile else "made up",
        reference=str(comparison.reference),
        blocks=(_block("first", comparison, words), _block("second", other, words), _unfinished(words)),
        settings={"all": {"lora_r": 8, words: [words]}, "ivon": {"ess": 1e7, "model_name_or_path": LONG}},
        versions={"torch": "2.13.0"},
        code_versions=("0123abcd", "4567ef01"),
        mixed_code=True,
        command="varlora compare plan.yaml",
        note=f"Two tasks. {words}",
    )


def _one_split(names: tuple[str, ...], num_examples: int) -> list[Row]:
    one, two, three = names
    return [row for row in made_up_rows((one, two, three), num_examples=num_examples) if row.split == "test"]


def _unfinished(words: str) -> Block:
    return Block(model="tiny", task="third", comparison=None, missing=(f"IVON, seed 21: not run {words}",))


def _block(task: str, comparison: Comparison, words: str) -> Block:
    sampled = comparison.methods[-1]
    trainings = ("adamw", "ivon")
    return Block(
        model="tiny",
        task=task,
        comparison=comparison,
        missing=("BLoB, seed 42: failed",) if task == "first" else (),
        notes=(f"120 rows. {words}",),
        detection={"foreign": {sampled: {"auroc_entropy": (0.75, 0.85), "fpr95_entropy": (0.5, 0.25)}}},
        frontiers=(_frontier(comparison, "temperature", (0.0, 0.5, 1.0)), _frontier(comparison, "prune", (0.0, 0.5))),
        examples=tuple(_example(comparison, index, words) for index in range(comparison.num_examples("test"))),
        scales=tuple(
            ModuleScale(
                label="ivon",
                seed=21,
                key=f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight",
                std=0.01 * (layer + 1),
                weights=0.07 if side == "A" else 0.0,
                snr=3.0 / (layer + 1) ** 2,
                entries=512,
            )
            for layer in range(12)
            for module in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
            for side in "AB"
        ),
        health=(
            RunHealth(label="ivon", seed=21, run="runs/ivon-21", health=_health(0.01)),
            RunHealth(label="ivon", seed=42, run=words, health=_health(-0.1)),
        ),
        curves=tuple(
            TrainingCurve(
                label=label,
                seed=seed,
                steps=tuple(range(10, 210, 10)),
                values={
                    "loss": tuple(
                        (1.4 if label == "ivon" else 1.2) / (1 + step / (40 + seed)) for step in range(10, 210, 10)
                    ),
                    "eval_loss": tuple(0.9 if step % 50 == 0 else None for step in range(10, 210, 10)),
                    **({"ess": tuple(1e4 * 1.03**step for step in range(10, 210, 10))} if label == "ivon" else {}),
                },
            )
            for label in trainings
            for seed in (21, 42)
        ),
        costs=tuple(
            Cost(
                label=label,
                seed=seed,
                train_seconds=100.0 + seed,
                predict_seconds=dict.fromkeys(names, 1.5),
                peak_memory_bytes=None if label == "adamw" else 2_500_000_000,
                file_bytes=4_000_000,
            )
            for label, names in zip(trainings, (comparison.methods[:2], comparison.methods[2:]), strict=True)
            for seed in (21, 42)
        ),
        classes=CLASSES,
    )


def _health(difference: float) -> Health:
    tensor = TensorScale(key="base_model.model.model.layers.0.q.lora_A", noise=0.0183, weights=0.0712, entries=8)
    return Health(
        kind="diagonal_gaussian",
        method="ivon",
        draws=10,
        sampling=Paired(difference=difference, standard_error=0.02),
        one_draw=Paired(difference=0.07, standard_error=0.01),
        sampling_rows=150,
        validation_rows=150,
        agreement=Agreement(rows=150, single=0.97, all_draws=0.9, mutual_information=0.02),
        num_examples=300,
        ess=1e6,
        groups=(ScaleGroup(name="LoRA A", tensors=(tensor,)),),
    )


def _losses(start: float, seed: int) -> tuple[float, ...]:
    return tuple(start / (1 + step / (40 + seed)) for step in range(10, 210, 10))


def _frontier(comparison: Comparison, over: str, values: tuple[float, ...]) -> Frontier:
    """The last method's predictions, flattened by every value; every method as it is beside them."""
    *_, sampled = comparison.methods
    curve = [
        FrontierPoint(
            label=sampled,
            seed=row.seed,
            value=value,
            metrics=evaluate((row.log_probs * (1.2 - 0.4 * value)).log_softmax(-1), row.labels),
        )
        for value in values
        for row in comparison.runs(sampled, "test")
    ]
    beside = [
        FrontierPoint(label=method, seed=row.seed, value=None, metrics=evaluate(row.log_probs, row.labels))
        for method in comparison.methods
        for row in comparison.runs(method, "test")
    ]
    return Frontier(over=over, split="test", points=(*curve, *beside))


def _example(comparison: Comparison, index: int, words: str) -> Example:
    runs = {method: comparison.runs(method, "test") for method in comparison.methods}
    *_, sampled = comparison.methods
    first = comparison.runs(sampled, "test")[0].log_probs[index]
    entropies = -(first.exp() * first).sum(-1)
    mean = first.exp().mean(0)
    return Example(
        id=f"row-{index}",
        prompt=f"Question {index}. {words}\nA. a cake\nB. a hat\nC. a map\nD. a song\nAnswer:",
        label=CLASSES[int(runs[sampled][0].labels[index])],
        probabilities={
            method: tuple(torch.stack([row.examples.log_probs[index].exp() for row in rows]).mean(0).tolist())
            for method, rows in runs.items()
        },
        mutual_information={sampled: float(-(mean * mean.log()).sum() - entropies.mean())},
    )
