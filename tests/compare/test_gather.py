"""What is gathered from finished cells: equal to the runs' own numbers, and every gap is said."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from compare.plans import variant_of
from small_runs import TARGETS, herds, save_model, write_rows
from varlora.compare import variants
from varlora.compare.cell import Cell
from varlora.compare.gather import _notes, choose_seeds, gather
from varlora.compare.plan import Plan
from varlora.compare.plan_file import read_plan
from varlora.compare.variant_files import load_variant, pruned_fraction
from varlora.compare.worker import execute_cell
from varlora.metrics import evaluate, mutual_information
from varlora.posterior import PosteriorMeta
from varlora.posterior.ops import snr
from varlora.report.study import Block, FrontierPoint, Study
from varlora.report.study_data import study_data
from varlora.report.tables import results_table
from varlora.runs.folder import read_run

OUTSIDE = [
    {"id": f"out-{i}", "text": text, "label": -1} for i, text in enumerate(("a cat dog", "a cow hen", "hen hen"))
]
MEAN, DRAWS, PRUNED = "IVON, mean", "IVON, 4 samples", "IVON, pruned"
ADAMW, SCALED = "AdamW", "AdamW + temperature"


def plan_of(folder: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "out"),
        "reference": ADAMW,
        "seeds": [0, 1],
        "settings": {"lora_target_modules": TARGETS, "max_steps": 10, "learning_rate": 0.02, "samples": 4},
        "models": {"tiny": {"model_name_or_path": str(folder / "model")}},
        "tasks": {
            "herds": {
                f"{split}_file": str(folder / f"{split}.jsonl")
                for split in ("train", "validation", "test", "shift", "ood")
            }
        },
        "methods": {
            "adamw": {
                "settings": {"method": "adamw"},
                "rows": {ADAMW: {"mode": "mean"}, SCALED: {"mode": "mean", "logit_temperature": "validation"}},
            },
            "ivon": {
                "settings": {"method": "ivon", "held_out": "none", "ess": 100.0},
                "rows": {MEAN: {"mode": "mean"}, DRAWS: {}, PRUNED: {"prune": "validation"}},
                "curves": [
                    {"over": "temperature", "values": [0, 1, 4]},
                    {"over": "samples", "values": [4, 6]},
                    {"over": "prune", "values": [0, 0.5]},
                    {"over": "prune", "values": [0, 0.5], "by": "random"},
                ],
            },
        },
    }
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False), encoding="utf-8")
    return read_plan(file)


def write_data(folder: Path) -> None:
    save_model(folder / "model", layers=1)
    rows = {
        "train": herds(32),
        "validation": herds(32, 32),
        "test": herds(24, 64),
        "shift": herds(16, 88),
        "ood": OUTSIDE,
    }
    for split, content in rows.items():
        noisy = [
            {**row, "label": "negative"} if i % 7 == 0 and split != "ood" else row for i, row in enumerate(content)
        ]
        write_rows(folder / f"{split}.jsonl", noisy)


def execute(cells: Sequence[Cell]) -> None:
    for cell in cells:
        cell.prepare()
        execute_cell(cell)


@pytest.fixture(scope="module", autouse=True)
def few_fractions() -> Iterator[None]:
    """What validation rows choose from: each costs its predictions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants, "FRACTIONS", (0.1, 0.5))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("study")
    write_data(made)
    execute(plan_of(made).cells())
    return made


@pytest.fixture(scope="module")
def block(folder: Path) -> Block:
    plan = plan_of(folder)
    (found,) = gather(plan, plan.cells()).blocks
    return found


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The same study in another folder, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "study"))


def cell_of(plan: Plan, method: str, seed: int) -> Cell:
    return plan.cell("tiny", "herds", method, seed)


def test_the_rows_are_the_runs_own_numbers(folder: Path, block: Block) -> None:
    comparison = block.comparison
    assert comparison is not None
    assert not block.missing
    assert comparison.methods == (ADAMW, SCALED, MEAN, DRAWS, PRUNED)
    assert (comparison.reference, comparison.splits, comparison.seeds("test")) == (ADAMW, ("test", "shift"), (0, 1))
    own = {ADAMW: ("adamw", "mean"), MEAN: ("ivon", "mean"), DRAWS: ("ivon", "samples")}
    for split in comparison.splits:
        for label, (method, mode) in own.items():
            for seed, metrics in enumerate(comparison.summary(split)[label].per_seed):
                run = read_run(cell_of(plan_of(folder), method, seed).folder)
                assert metrics == pytest.approx(run.metrics[split][mode], rel=1e-12, nan_ok=True)
    for label, variant in (("AdamW + temperature", variant_of(mode="mean", logit_temperature="validation")),):
        prediction = load_variant(read_run(cell_of(plan_of(folder), "adamw", 1).folder), variant, "test")
        assert comparison.summary("test")[label].per_seed[1] == evaluate(prediction.log_probs, prediction.labels)


def test_a_plan_names_further_metrics_for_its_tables_and_page(copy: Path) -> None:
    plan, block = gathered(copy, metrics=("auroc_errors", "confident_errors"))
    assert block.comparison is not None
    prediction = load_variant(read_run(cell_of(plan, "ivon", 1).folder), variant_of(mode="mean"), "test")
    confidence, found = prediction.probs.max(1)
    wrong = (found != prediction.labels) & (confidence > 0.9)
    assert block.comparison.summary("test")[MEAN].per_seed[1]["confident_errors"] == pytest.approx(
        wrong.double().mean()
    )
    assert results_table(block.comparison).headings[-2:] == ("AUROC of errors ↑", "Confident errors % ↓")
    assert {"auroc_errors", "confident_errors"} <= study_data(gather(plan, plan.cells()))["measures"].keys()


def test_rows_out_of_scope_are_told_from_the_test_rows(folder: Path, block: Block) -> None:
    assert list(block.detection) == ["ood"]
    assert list(block.detection["ood"]) == [ADAMW, SCALED, MEAN, DRAWS, PRUNED]
    runs = [read_run(cell_of(plan_of(folder), "ivon", seed).folder) for seed in (0, 1)]
    for label, mode in ((MEAN, "mean"), (DRAWS, "samples")):
        expected = {name: [run.metrics["ood"][mode][name] for run in runs] for name in runs[0].metrics["ood"][mode]}
        assert block.detection["ood"][label] == expected
    assert set(block.detection["ood"][DRAWS]) - set(block.detection["ood"][MEAN]) == {
        "auroc_mutual_information",
        "fpr95_mutual_information",
    }


def point_of(block: Block, over: str, label: str, value: float | None, seed: int) -> FrontierPoint:
    (frontier,) = (frontier for frontier in block.frontiers if frontier.over == over)
    (found,) = (p for p in frontier.points if (p.label, p.value, p.seed) == (label, value, seed))
    return found


def test_frontiers_pass_through_the_tables_rows(folder: Path, block: Block) -> None:
    assert block.comparison is not None
    assert [frontier.over for frontier in block.frontiers] == ["temperature", "samples", "prune"]
    summary = block.comparison.summary("test")
    for seed in (0, 1):
        draws, mean = summary[DRAWS].per_seed[seed], summary[MEAN].per_seed[seed]
        assert point_of(block, "temperature", "ivon", 1.0, seed).metrics == draws
        assert point_of(block, "temperature", "ivon", 0.0, seed).metrics == mean
        assert point_of(block, "samples", "ivon", 4.0, seed).metrics == draws
        assert point_of(block, "prune", "ivon, by snr", 0.0, seed).metrics == draws
        assert point_of(block, "prune", "ivon, by random", 0.0, seed).metrics == draws
        run = read_run(cell_of(plan_of(folder), "ivon", seed).folder)
        for over, label, value, variant in (
            ("temperature", "ivon", 4.0, variant_of(temperature=4)),
            ("samples", "ivon", 6.0, variant_of(samples=6)),
            ("prune", "ivon, by random", 0.5, variant_of(prune=0.5, prune_by="random")),
        ):
            prediction = load_variant(run, variant, "test")
            assert point_of(block, over, label, value, seed).metrics == evaluate(
                prediction.log_probs, prediction.labels
            )
        for frontier in block.frontiers:
            for label in block.comparison.methods:
                assert point_of(block, frontier.over, label, None, seed).metrics == summary[label].per_seed[seed]


def test_examples_are_the_test_rows_with_probabilities_averaged_over_seeds(folder: Path, block: Block) -> None:
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert [example.id for example in block.examples] == [row["id"] for row in rows]
    runs = [read_run(cell_of(plan_of(folder), "ivon", seed).folder) for seed in (0, 1)]
    stored = [run.prediction("test", "samples") for run in runs]
    probabilities = torch.stack([prediction.probs for prediction in stored]).mean(0)
    information = torch.stack([mutual_information(prediction.log_probs) for prediction in stored]).mean(0)
    assert block.classes == ["negative", "positive"]
    for i, (row, example) in enumerate(zip(rows, block.examples, strict=True)):
        assert example.label == row["label"]
        assert row["text"] in example.prompt
        assert list(example.probabilities) == [ADAMW, SCALED, MEAN, DRAWS, PRUNED]
        assert list(example.probabilities[DRAWS]) == pytest.approx(probabilities[i].tolist(), rel=1e-12)
        assert example.mutual_information[DRAWS] == pytest.approx(float(information[i]), abs=1e-15)
        assert set(example.mutual_information) == {DRAWS, PRUNED}


def test_scales_logs_and_costs_are_the_runs(folder: Path, block: Block) -> None:
    run = read_run(cell_of(plan_of(folder), "ivon", 1).folder)
    q = run.posterior
    ratios = snr(q)
    scales = {scale.key: scale for scale in block.scales if scale.seed == 1}
    assert {scale.label for scale in block.scales} == {"ivon"}
    assert set(scales) == set(q.mean)
    for key, scale in scales.items():
        assert scale.std == pytest.approx(float(q.variance[key].double().mean().sqrt()), rel=1e-6)
        assert scale.weights == pytest.approx(float(q.mean[key].double().square().mean().sqrt()), rel=1e-6)
        assert (scale.snr, scale.entries) == (float(ratios[key].median()), q.mean[key].numel())

    entries = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    (curve,) = (curve for curve in block.curves if (curve.label, curve.seed) == ("ivon", 1))
    assert curve.steps == sorted({entry["step"] for entry in entries})
    losses = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    assert losses
    assert {s: v for s, v in zip(curve.steps, curve.values["loss"], strict=True) if v is not None} == losses
    assert not any("runtime" in name or "second" in name for name in curve.values)

    (cost,) = (cost for cost in block.costs if (cost.label, cost.seed) == ("ivon", 1))
    assert cost.train_seconds == run.facts["seconds"]["train"]
    assert cost.predict_seconds[DRAWS] == run.facts["seconds"]["predict/test/samples"]
    assert set(cost.predict_seconds) == {MEAN, DRAWS, PRUNED}
    assert cost.peak_memory_bytes == run.facts["peak_memory_bytes"]
    kept = ["adapter_config.json", "adapter_model.safetensors", "posterior.json", "posterior.safetensors"]
    assert cost.file_bytes == sum((run.path / name).stat().st_size for name in kept)


def test_what_validation_rows_chose_is_noted(folder: Path, block: Block) -> None:
    runs = [read_run(cell_of(plan_of(folder), "ivon", seed).folder) for seed in (0, 1)]
    fractions = ", ".join(f"{100 * pruned_fraction(run, variant_of(prune='validation')):g} %" for run in runs)
    assert f"{PRUNED}: {fractions} pruned by snr, chosen on validation rows" in block.notes
    assert any(note.startswith(f"{SCALED}: logits divided by ") for note in block.notes)


def numbers(study: Study) -> list[Any]:
    blocks = []
    for block in study.blocks:
        assert block.comparison is not None
        content = block.comparison.to_dict()
        for split in content["splits"].values():
            for summary in split["methods"].values():
                del summary["train_seconds"], summary["predict_seconds"]
        others = (block.detection, block.frontiers, block.examples, block.scales, block.curves, block.notes)
        blocks.append((json.dumps(content), repr(others)))
    return [*blocks, study.settings, study.versions, study.code_versions]


def test_gathered_again_all_is_the_same_also_where_variants_are_made_again(folder: Path, copy: Path) -> None:
    plan = plan_of(folder)
    before = numbers(gather(plan, plan.cells()))
    again = replace(plan, output_dir=copy / "out")
    for method in ("adamw", "ivon"):  # of one seed: each costs its predictions
        shutil.rmtree(cell_of(again, method, 1).folder / "variants")
    execute(again.cells())
    assert numbers(gather(again, again.cells())) == before


def test_the_study_says_what_made_it(folder: Path) -> None:
    plan = plan_of(folder)
    study = gather(plan, plan.cells())
    assert (study.name, study.reference) == ("tiny", ADAMW)
    assert study.settings["method ivon"]["ess"] == 100.0
    assert study.settings["all runs"]["max_steps"] == 10
    assert study.versions["torch"] == importlib.metadata.version("torch")
    assert list(study.code_versions) == sorted({cell.code_version for cell in plan.cells()})
    assert not study.mixed_code  # each method has its own
    assert study.command == f"varlora compare {plan.output_dir}/plan.yaml"


# What is not there -------------------------------------------------------------------------------------------------


def gathered(copy: Path, **changes: Any) -> tuple[Plan, Block]:
    plan = replace(plan_of(copy), **changes)
    (block,) = gather(plan, plan.cells()).blocks
    return plan, block


def test_missing_and_failed_runs_are_listed_and_the_rest_is_compared(copy: Path) -> None:
    plan = plan_of(copy)
    gone, failed = cell_of(plan, "ivon", 1), cell_of(plan, "adamw", 1)
    shutil.rmtree(gone.folder)
    shutil.rmtree(failed.folder)
    failed.error_file.write_text("Traceback", encoding="utf-8")
    _, block = gathered(copy)
    assert block.comparison is not None
    assert block.comparison.seeds("test") == (0,)
    assert block.comparison.methods == (ADAMW, SCALED, MEAN, DRAWS, PRUNED)
    assert f"{ADAMW}: seed 1 (failed: see {failed.error_file.name})" in block.missing
    assert f"{DRAWS}: seed 1 (not run yet)" in block.missing
    assert len(block.missing) == 5
    assert {cost.seed for cost in block.costs} == {0}


def test_a_row_without_its_variant_is_left_out_and_the_others_keep_their_seeds(copy: Path) -> None:
    plan = plan_of(copy)
    for seed in (0, 1):
        run = read_run(cell_of(plan, "ivon", seed).folder)
        for facts in run.path.glob("variants/*/variant.json"):
            if json.loads(facts.read_text())["variant"]["prune"] == "validation":
                shutil.rmtree(facts.parent)
    cell_of(plan, "ivon", 1).error_file.write_text("Traceback", encoding="utf-8")
    _, block = gathered(copy)
    assert block.comparison is not None
    assert block.comparison.methods == (ADAMW, SCALED, MEAN, DRAWS)
    assert block.comparison.seeds("test") == (0, 1)
    assert f"{PRUNED}: seed 0 (trained, not predicted with yet)" in block.missing
    assert f"{PRUNED}: seed 1 (failed: see {cell_of(plan, 'ivon', 1).error_file.name})" in block.missing


def test_a_seed_of_some_rows_only_is_named(copy: Path) -> None:
    shutil.rmtree(cell_of(plan_of(copy), "ivon", 1).folder)
    _, block = gathered(copy)
    assert block.comparison is not None
    # 5 rows over one seed are more than 2 rows over two.
    assert (block.comparison.seeds("test"), len(block.comparison.methods)) == ((0,), 5)
    assert f"{ADAMW}: seed 1 (there, but not of every row)" in block.missing


def test_without_the_reference_nothing_is_compared_with_it(copy: Path) -> None:
    for seed in (0, 1):
        shutil.rmtree(cell_of(plan_of(copy), "adamw", seed).folder)
    _, block = gathered(copy)
    assert block.comparison is not None
    assert block.comparison.reference is None
    assert any("the reference is not among the rows" in line for line in block.missing)


def test_a_damaged_run_is_listed(copy: Path) -> None:
    (cell_of(plan_of(copy), "ivon", 0).folder / "posterior.safetensors").write_bytes(b"x")
    _, block = gathered(copy)
    assert any(line.startswith(f"{MEAN}: seed 0 (cannot be read: ") for line in block.missing)


def test_incomplete_curves_are_listed_and_left_out(copy: Path) -> None:
    run = read_run(cell_of(plan_of(copy), "ivon", 1).folder)
    for facts in run.path.glob("variants/*/variant.json"):
        if json.loads(facts.read_text())["variant"]["temperature"] == 4:
            shutil.rmtree(facts.parent)
    _, block = gathered(copy)
    assert list(block.missing) == ["the curve of ivon over temperature: seed 1 not there"]
    (frontier,) = (frontier for frontier in block.frontiers if frontier.over == "temperature")
    assert {point.seed for point in frontier.points if point.value is not None} == {0}


def test_before_the_first_run_everything_is_missing(tmp_path: Path) -> None:
    write_data(tmp_path)
    plan = plan_of(tmp_path)
    (block,) = gather(plan, plan.cells()).blocks
    assert block.comparison is None
    assert list(block.missing) == ["every row: seeds 0, 1 (not run yet)"]
    assert not any((block.examples, block.frontiers, block.costs, block.curves, block.scales, block.detection))


def test_examples_are_left_out_where_the_rows_are_not_there_any_more(copy: Path) -> None:
    plan = plan_of(copy)
    cells = plan.cells()
    (copy / "test.jsonl").unlink()
    (block,) = gather(plan, cells).blocks
    assert block.comparison is not None
    assert not block.examples
    assert any(note.startswith("examples are left out: the rows could not be loaded") for note in block.notes)


def test_some_of_the_cells_are_a_study_too(folder: Path) -> None:
    plan = plan_of(folder)
    (block,) = gather(plan, [cell for cell in plan.cells() if cell.method == "adamw" and cell.seed == 1]).blocks
    assert block.comparison is not None
    assert (block.comparison.methods, block.comparison.seeds("test")) == ((ADAMW, SCALED), (1,))
    assert not block.missing


# Rows of each seed's own, and completions -----------------------------------------------------------------------------


def test_each_seed_may_draw_its_own_rows(tmp_path: Path) -> None:
    write_data(tmp_path)
    settings = {"lora_target_modules": TARGETS, "max_steps": 2, "data_seed": "seed", "max_test_samples": 12}
    methods = {
        "adamw": {
            "settings": {"method": "adamw"},
            "rows": {ADAMW: {"mode": "mean"}, SCALED: {"mode": "mean", "logit_temperature": "validation"}},
        }
    }
    plan = plan_of(tmp_path, settings=settings, methods=methods)
    execute(plan.cells())
    (block,) = gather(plan, plan.cells()).blocks
    assert block.comparison is not None
    assert not block.missing
    rows = block.comparison.runs(ADAMW, "test")
    assert rows[0].ids != rows[1].ids
    assert block.comparison.own_examples("test")
    assert block.comparison.summary("test")[SCALED].differences["nll"].per_seed
    assert [example.id for example in block.examples] == list(rows[0].ids)
    assert "examples: the rows of seed 0; each seed has its own" in block.notes


def test_completions_have_metrics_and_no_comparison(tmp_path: Path) -> None:
    write_data(tmp_path)
    rows = [{"prompt": f"a {row['text']}", "completion": f" {row['label']}"} for row in herds(24)]
    files = {
        f"{split}_file": write_rows(tmp_path / f"{split}.jsonl", rows) for split in ("train", "validation", "test")
    }
    methods = {
        "adamw": {"settings": {"method": "adamw"}, "rows": {ADAMW: {"mode": "mean"}}},
        "ivon": {"settings": {"method": "ivon", "held_out": "none"}, "rows": {MEAN: {"mode": "mean"}, DRAWS: {}}},
    }
    settings = {"lora_target_modules": TARGETS, "max_steps": 2, "samples": 4}
    plan = plan_of(tmp_path, tasks={"sentences": files}, settings=settings, methods=methods, seeds=[0])
    execute(plan.cells())
    (block,) = gather(plan, plan.cells()).blocks
    assert block.comparison is None
    assert not block.missing
    run = read_run(plan.cell("tiny", "sentences", "ivon", 0).folder)
    assert block.completions["test"][DRAWS]["nll_per_token"] == [run.metrics["test"]["samples"]["nll_per_token"]]
    assert list(block.completions) == ["test"]
    assert list(block.completions["test"]) == [ADAMW, MEAN, DRAWS]
    assert block.costs


@pytest.mark.parametrize(
    ("available", "seeds"),
    [
        ({}, ()),
        ({"a": [2]}, (2,)),
        ({"a": [0, 1], "b": [1, 2]}, (1,)),
        ({"a": [0, 1, 2], "b": [3]}, (0, 1, 2)),
        ({"a": [0], "b": [1]}, (0,)),
        ({"a": [0, 1, 3], "b": [0, 1, 2], "c": [0, 1]}, (0, 1)),
        ({"a": [0, 1, 2], "b": [0, 1, 3], "c": [0, 2, 3], "d": [0]}, (0,)),
    ],
)
def test_the_seeds_over_which_most_can_be_compared(available: dict[str, list[int]], seeds: tuple[int, ...]) -> None:
    assert choose_seeds(available) == seeds


def test_the_reference_is_kept_if_it_is_there_at_all() -> None:
    available = {"AdamW": [2], "IVON": [0, 1, 2], "Laplace": [0, 1]}
    assert choose_seeds(available) == (0, 1)
    assert choose_seeds(available, "AdamW") == (2,)
    assert choose_seeds(available, "SWAG") == (0, 1)


def test_no_other_set_of_seeds_is_worth_more() -> None:
    order = random.Random(0)
    for _ in range(200):
        available = {str(i): order.sample(range(4), order.randint(1, 4)) for i in range(order.randint(1, 6))}

        def worth(seeds: Sequence[int], available: dict[str, list[int]] = available) -> tuple[int, int]:
            rows = sum(set(seeds) <= set(there) for there in available.values())
            return len(seeds) * rows, rows

        best = max(worth(seeds) for size in (1, 2, 3, 4) for seeds in itertools.combinations(range(4), size))
        assert worth(choose_seeds(available)) == best


def test_skipped_steps_are_among_the_notes() -> None:
    def run(seed: int, skipped: int) -> Any:
        meta = PosteriorMeta(diagnostics={"steps": 6 - skipped, "skipped_steps": skipped})
        return SimpleNamespace(
            facts={"task": {"notes": []}},
            posterior=SimpleNamespace(meta=meta),
            config=SimpleNamespace(method="ivon", seed=seed),
        )

    told = "ivon, seed 3: 4 of 6 steps skipped for a number that was not finite"
    assert _notes([run(0, 0), run(3, 4)], []) == [told]
