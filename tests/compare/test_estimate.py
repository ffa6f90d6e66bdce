"""Time before a run: measured where something like it was, worked out where nothing was, and said which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compare.plans import plan
from small_runs import films, write_rows
from varlora.compare import Cell, estimate
from varlora.compare.estimate import (
    LAYER_SECONDS,
    START_SECONDS,
    Rows,
    Timer,
    estimates_of,
    operations_per_second,
    rows_of,
    seconds_of,
    training_seconds,
    written_tokens,
)
from varlora.compare.memory import Shape
from varlora.runs import RunConfig
from varlora.tasks import TASKS

TASK = {"name": "world", "kind": "label", "answers": ["a", "b"], "rows": {"train": 8, "test": 4}}
SHAPE = Shape(parameters=10**9, matrices=10**9, adapter=0, hidden=0, layers=0, vocabulary=0, bytes_each=2, causal=True)
CONFIG = RunConfig(model_name_or_path="m", task="arc_easy", method="adamw", num_train_epochs=2, output_dir="-")


def finish(one: Cell, seconds: float) -> None:
    one.folder.mkdir(parents=True)
    for name in ("config.yaml", "metrics.json"):
        (one.folder / name).write_text("{}")
    facts = {"seconds": {"train": seconds - 1, "predict/test/mean": 1, "predict/test/samples": None}}
    (one.folder / "run.json").write_text(json.dumps({"fingerprint": "", "task": TASK, "versions": {}, **facts}))


def test_a_finished_cell_tells_of_its_like(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"seeds": [0, 1, 2], "tasks.more": {"generated": {"train": 8, "test": 4}}}).cells()
    by_name = {(cell.task, cell.method, cell.seed): cell for cell in cells}
    finish(by_name["world", "ivon", 0], 40)
    finish(by_name["world", "ivon", 1], 60)
    assert seconds_of(by_name["world", "ivon", 0]) == 40
    assert seconds_of(by_name["world", "ivon", 2]) is None
    timer = Timer(cells)
    assert timer.expected(by_name["world", "ivon", 2]) == 50
    assert timer.expected(by_name["world", "adamw", 2]) == 50  # of the same model and task
    assert timer.expected(by_name["more", "ivon", 2]) is None
    timer.add(by_name["world", "adamw", 0], 8)
    assert timer.expected(by_name["world", "adamw", 2]) == 8
    found = estimates_of([by_name["world", "ivon", 2], by_name["more", "ivon", 2]], timer)
    measured, worked = found.values()
    assert (measured.seconds, measured.measured) == (50 + START_SECONDS, True)
    assert not worked.measured
    assert worked.seconds is not None
    assert worked.seconds > 0
    shared = estimates_of([by_name["world", "ivon", 2], by_name["more", "ivon", 2]], timer, start=0)
    assert [one.seconds for one in shared.values()] == [50, pytest.approx(worked.seconds - START_SECONDS)]
    assert worked.memory is not None


def seconds(passes: int = 0, shape: Shape = SHAPE, rows: Rows | None = None, **options: object) -> float:
    rows = rows if rows is not None else Rows(train=1000, predicted=300, tokens=100)
    config = replace(CONFIG, **options)  # type: ignore[arg-type]
    return training_seconds(config, shape, rows, passes=passes, speed=1e12)


def test_the_formula() -> None:
    assert seconds() == 4 * 1e9 * 100 * 2000 / 1e12
    assert seconds(gradient_checkpointing=True) == 1.5 * seconds()
    assert seconds(passes=11) - seconds() == pytest.approx(2 * 1e9 * 100 * 300 * 11 / 1e12)
    assert seconds(max_steps=10, gradient_accumulation_steps=2) == 4 * 1e9 * 100 * 10 * 8 * 2 / 1e12
    assert seconds(method="ensemble", members=3) == 3 * seconds()
    assert seconds(method="ivon", draws=2) == 2 * seconds()
    layered = seconds(shape=replace(SHAPE, layers=10)) - seconds()
    assert layered == pytest.approx(3 * 2000 / 8 * 10 * LAYER_SECONDS)


def test_texts_are_counted_with_a_step_for_each_token() -> None:
    # 300 rows at the mean and under 3 draws: each prompt is read again, and up to 50 tokens are written
    options = {"method": "ivon", "samples": 3, "max_new_tokens": 50}
    texts = seconds(**options, final_answer="number") - seconds(**options)
    assert texts == pytest.approx(2 * 1e9 * 4 * 300 * (100 + 50) / 1e12)
    layered = replace(SHAPE, layers=10)
    steps = seconds(shape=layered, **options, final_answer="number") - seconds(shape=layered, **options) - texts
    assert steps == pytest.approx(4 * 300 / 32 * 50 * 10 * LAYER_SECONDS)
    point = {"method": "adamw", "samples": 3, "max_new_tokens": 50}  # no draws
    assert seconds(**point, final_answer="text") - seconds(**point) == pytest.approx(texts / 4)


def test_known_tasks_with_final_answers_write_texts() -> None:
    gsm8k = replace(CONFIG, task="gsm8k", max_new_tokens=70)
    assert written_tokens(gsm8k) == 70
    assert written_tokens(replace(gsm8k, final_answer="none")) == 0
    assert written_tokens(CONFIG) == 0


def test_rows_are_counted_in_files(tmp_path: Path) -> None:
    for name, rows in (("train", 7), ("validation", 3), ("test", 5), ("oos_train", 4)):
        write_rows(tmp_path / f"{name}.jsonl", films(rows))
    found = rows_of(replace(CONFIG, task_dir=str(tmp_path)))
    assert found is not None
    assert (found.train, found.predicted) == (7, 12)
    assert found.tokens == pytest.approx(sum(f.stat().st_size for f in tmp_path.iterdir()) / 19 / 4)
    given = replace(CONFIG, task=None, train_file=str(tmp_path / "test.jsonl"), test_file=str(tmp_path / "train.jsonl"))
    named = rows_of(given)
    assert named is not None
    assert (named.train, named.predicted) == (5, 7)
    limited = rows_of(replace(given, max_train_samples=2, max_test_samples=3, max_length=4))
    assert limited == Rows(train=2, predicted=6, tokens=4)


def test_rows_of_the_hub_are_known_for_known_tasks_only() -> None:
    known = rows_of(CONFIG)
    assert known is not None
    assert known.train == 2251
    assert rows_of(replace(CONFIG, task=None, dataset_name="some/set")) is None


def test_a_model_that_cannot_be_had_is_said_and_no_error(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"models.llama.model_name_or_path": "nobody/nothing"}).cells()
    for found in estimates_of(cells).values():
        assert (found.seconds, found.memory) == (None, None)
        assert found.unknown == "the model's configuration cannot be had offline"


def test_without_network_it_is_said_at_once_and_for_each_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        asked.append(address)
        raise OSError("no way")

    monkeypatch.setattr(estimate.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(estimate.socket, "create_connection", refuse)
    monkeypatch.setattr(estimate.urllib.request, "getproxies", dict)
    cells = plan(tmp_path, {"models.llama.model_name_or_path": "nobody/nothing"}).cells()
    for found in estimates_of(cells).values():
        assert found.unknown.endswith("cannot be had, since https://huggingface.co does not answer")
    assert asked == [("huggingface.co", 443)]


def test_a_damaged_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    cells = plan(tmp_path, {"models.llama.model_name_or_path": str(tmp_path / "model")}).cells()
    assert "the model's configuration cannot be had (" in next(iter(estimates_of(cells).values())).unknown


def test_what_is_tuned_costs_what_is_tried(tmp_path: Path) -> None:
    rows = {"IVON": {"mode": "mean"}, "tuned": {"tune": True}}
    adamw, ivon = plan(tmp_path, {"methods.ivon.curves": [], "methods.ivon.rows": rows}).cells()
    assert estimate._passes(ivon) == 4 * 2 + 32  # τ but 0 and 1 at the run's two draws; at most 32 draws
    assert estimate._passes(replace(adamw, variants=ivon.variants)) == 1  # T alone


def test_the_tasks_of_the_table_exist() -> None:
    assert set(estimate.KNOWN_ROWS) <= set(TASKS)


def test_what_is_not_known_of_the_rows_is_said(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"tasks": {"set": {"dataset_name": "some/set"}}}).cells()
    found = next(iter(estimates_of(cells).values()))
    assert found.seconds is None
    assert found.memory is not None
    assert "number of rows" in found.unknown


def test_a_known_gpu_goes_by_its_makers_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    operations_per_second.cache_clear()
    assert operations_per_second(False) == (989e12 * 0.35, "35% of 989 TFLOP/s, stated for NVIDIA H100 80GB HBM3")
    assert operations_per_second(True)[0] == 67e12 * 0.35
    operations_per_second.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Nobody's Chip")
    monkeypatch.setattr(estimate, "_timed_matmul", lambda device: {"cuda": 100.0, "cpu": 8.0}[device])
    assert operations_per_second(False)[0] == 35
    operations_per_second.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert operations_per_second(False)[0] == 4
    operations_per_second.cache_clear()
