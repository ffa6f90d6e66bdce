"""What stands beside the tables, of every kind of posterior: made-up run folders, no training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.plans import variant_of
from varlora.compare.details import costs_of, curves_of, health_of_runs, label_of, scales_of_runs
from varlora.compare.plan import Curve
from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    Mixture,
    PointMass,
    Posterior,
    PosteriorMeta,
    PredictionConfig,
)
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder

POINT = PointMass(mean={"w": torch.ones(2)})


def run_of(posterior: Posterior = POINT, path: Path = Path("nowhere"), **facts: Any) -> RunFolder:
    config = RunConfig(model_name_or_path="m", train_file="t", output_dir="o")
    return RunFolder(path=path, config=config, posterior=posterior, metrics={}, facts={"seconds": {}, **facts})


def gaussian(mean: Sequence[float], std: Sequence[float], key: str = "w") -> DiagonalGaussian:
    precision = torch.tensor(std, dtype=torch.float64) ** -2
    return DiagonalGaussian(mean={key: torch.tensor(mean, dtype=torch.float64)}, precision={key: precision})


def write_log(folder: Path, entries: Sequence[Mapping[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return folder


def test_a_point_mass_has_a_health_only_if_there_is_something_to_say() -> None:
    q = gaussian([3.0, -4.0, 1.0], [1.0, 2.0, 2.0])
    skipped = PointMass(mean=POINT.mean, meta=PosteriorMeta(diagnostics={"steps": 5, "skipped_steps": 2}))
    posteriors = {"adamw": POINT, "ivon": q, "broken": skipped}
    runs = {(name, 3): run_of(posterior, Path(name), task={"kind": "choice"}) for name, posterior in posteriors.items()}
    told = health_of_runs(runs)
    assert [(one.label, one.seed, one.run) for one in told] == [("ivon", 3, "ivon"), ("broken", 3, "broken")]
    assert told[0].health == runs["ivon", 3].health()


def test_scales_by_hand() -> None:
    (scale,) = scales_of_runs({("ivon", 3): run_of(gaussian([3.0, -4.0, 1.0], [1.0, 2.0, 2.0]))})
    assert (scale.label, scale.seed, scale.key, scale.entries) == ("ivon", 3, "w", 3)
    assert scale.std == pytest.approx((9 / 3) ** 0.5)
    assert scale.weights == pytest.approx((26 / 3) ** 0.5)
    assert scale.snr == pytest.approx(2.0)  # 3, 2 and 0.5


def test_what_was_tuned_changes_no_scale() -> None:
    q = gaussian([1.0], [0.5])
    tuned = PredictionConfig(samples=4, temperature=4, logit_temperature=1.0)
    changed = DiagonalGaussian(mean=q.mean, precision=q.precision, meta=PosteriorMeta(tuned=tuned))
    assert scales_of_runs({("a", 0): run_of(changed)}) == scales_of_runs({("a", 0): run_of(q)})


def test_only_what_has_noise_has_scales() -> None:
    points = Mixture(components=[POINT, PointMass(mean={"w": torch.zeros(2)})])
    for q in (POINT, points, DropoutMasks(mean=POINT.mean, rate=0.1)):
        assert scales_of_runs({("m", 0): run_of(q)}) == []
    mixture = Mixture(components=[gaussian([2.0], [1.0]), gaussian([8.0], [3.0])])
    (scale,) = scales_of_runs({("m", 0): run_of(mixture)})
    assert scale.std == pytest.approx(5**0.5)  # within the components, averaged: (1 + 9) / 2
    assert scale.snr == pytest.approx(2.0)  # the first component's


def test_a_log_by_steps_without_times(tmp_path: Path) -> None:
    entries = [
        {"loss": 1.0, "learning_rate": 0.1, "epoch": 0.5, "step": 10},
        {"eval_loss": 0.9, "eval_runtime": 3.0, "eval_samples_per_second": 7.0, "epoch": 0.5, "step": 10},
        {"loss": 0.5, "learning_rate": 0.05, "epoch": 1.0, "step": 20},
        {"train_runtime": 9.0, "train_steps_per_second": 2.0, "total_flos": 1e9, "train_loss": 0.7, "step": 20},
    ]
    (curve,) = curves_of({("ivon", 1): run_of(path=write_log(tmp_path / "run", entries))})
    assert (curve.label, curve.seed, curve.steps) == ("ivon", 1, [10, 20])
    assert curve.values == {
        "loss": [1.0, 0.5],
        "learning_rate": [0.1, 0.05],
        "eval_loss": [0.9, None],
        "train_loss": [None, 0.7],
    }


def test_an_ensembles_members_have_a_curve_each(tmp_path: Path) -> None:
    entries = [{"member": m, "loss": 1.0 + m, "step": 10} for m in (0, 1)]
    curves = curves_of({("ensemble", 0): run_of(path=write_log(tmp_path / "run", entries))})
    assert [(c.label, c.steps, c.values) for c in curves] == [
        ("ensemble, member 0", [10], {"loss": [1.0]}),
        ("ensemble, member 1", [10], {"loss": [2.0]}),
    ]


def test_no_log_no_curve(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert curves_of({("a", 0): run_of(path=tmp_path / "run")}) == []


def test_costs_of_what_is_kept(tmp_path: Path) -> None:
    for name, size in (("adapter_model.safetensors", 100), ("posterior.json", 20), ("log.jsonl", 1000)):
        (tmp_path / name).write_bytes(b"x" * size)
    run = run_of(path=tmp_path, seconds={"train": 7.5}, peak_memory_bytes=2**20)
    (cost,) = costs_of({("ivon", 2): run}, {("ivon", 2): {"IVON": 0.5}})
    assert (cost.label, cost.seed, cost.train_seconds, cost.file_bytes) == ("ivon", 2, 7.5, 120)
    assert (cost.peak_memory_bytes, cost.predict_seconds) == (2**20, {"IVON": 0.5})


@pytest.mark.parametrize(
    ("curve", "label"),
    [
        (Curve(over="temperature", values=(1,)), "ivon"),
        (Curve(over="samples", values=(1,), variant=variant_of(temperature=0.5)), "ivon, τ = 0.5"),
        (Curve(over="prune", values=(0.1,)), "ivon, by snr"),
        (
            Curve(over="prune", values=(0.1,), variant=variant_of(mode="mean", prune_by="magnitude")),
            "ivon, mean, by magnitude",
        ),
        (Curve(over="prune", values=(0.1,), variant=variant_of(prune_scope="tensor")), "ivon, by snr within tensors"),
        (Curve(over="temperature", values=(1,), variant=variant_of(prune=0.2)), "ivon, by snr, 20 % pruned"),
        (
            Curve(over="temperature", values=(1,), variant=variant_of(samples=4, logit_temperature="validation")),
            "ivon, 4 samples, logit temperature",
        ),
    ],
)
def test_a_curves_name_says_what_is_not_the_default(curve: Curve, label: str) -> None:
    assert label_of("ivon", curve) == label
