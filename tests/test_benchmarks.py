"""The benchmarks run, and what they count is what is there; no time is looked at."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from benchmarks import (
    laplace,
    linear_probe,
    memory,
    noise_map,
    optimizer,
    prediction,
    scaling,
    serve,
    startup,
    training_step,
)
from benchmarks.measuring import Quartiles, exponent, parser_of, ratios, show, take_turns

from compare.plans import written
from small_runs import films, save_model, write_rows
from varlora.cli import main
from varlora.compare import read_plan
from varlora.runs.setting import load_setting


@pytest.mark.parametrize("file", sorted(Path(scaling.__file__).parent.glob("*.py")), ids=lambda file: file.stem)
def test_what_a_benchmark_takes_from_varlora_is_there(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("varlora"):
            exec(f"from {node.module} import {', '.join(name.name for name in node.names)}", {})


def test_ratios_are_of_the_same_round_and_the_exponent_is_the_slope() -> None:
    assert ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 4.0]}, "a") == {"a": (1, 1, 1), "b": (1.5, 2, 2.5)}
    assert exponent([1, 10, 100], [3, 300, 30000]) == pytest.approx(2)
    calls: list[str] = []
    found = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert {name: len(each) for name, each in found.items()} == {"a": 2, "b": 2}


def test_tables_are_printed_as_markdown_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"way": "one", "ratio": Quartiles(1.0, 2.0, 3.0), "ms": 1234.5678}]
    parser = parser_of("A benchmark.", rounds=3)
    show({"A title": rows}, parser.parse_args([]))
    assert "| one | 2.00 (1.00–3.00) | 1.23e+03 |" in capsys.readouterr().out
    show({"A title": rows}, parser.parse_args(["--json"]))
    printed = json.loads(capsys.readouterr().out)
    assert printed["tables"]["A title"][0]["ratio"] == [1, 2, 3]
    assert printed["about"]["rounds"] == 3


def test_every_way_trains_its_own_adapter_over_the_same_weights() -> None:
    base = training_step.llama(16, 1, 200, 2).requires_grad_(False)
    weights = {name: p.clone() for name, p in base.named_parameters()}
    ways = training_step.steps(base, training_step.batch_of(base, 2, 4))
    assert {"AdamW, fused", "IVON, by default", "IVON, cong2025", "MC dropout", "BLoB"} <= ways.keys()
    for step in ways.values():
        step()
    assert all(torch.equal(p, weights[name]) for name, p in base.named_parameters())


def test_bytes_are_those_of_the_tensors_that_are_alive() -> None:
    known = torch.zeros(100)
    with memory.Alive(known) as alive:
        held = known + 1
        assert (alive.now, alive.peak) == (400, 400)
        del held
        assert (known * 2).sum() == 0
    assert alive.now == 0
    assert 400 < alive.peak < 1000
    adamw = memory.bytes_a_parameter(memory.optimizers()["AdamW, fused"])
    assert adamw["at rest"] == pytest.approx(12, rel=0.01)  # a gradient and two moments


def test_a_cycle_of_the_default_costs_the_host_no_more_for_more_tensors() -> None:
    few, many = (optimizer._varlora(number, (8, 64), "auto") for number in (8, 64))
    for cycle in (few, many):
        for _ in range(2):
            cycle.step()
    assert few.operations() == many.operations() <= 60
    assert many.bytes_per_parameter() <= 20


def test_a_row_of_laplaces_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laplace, "minilm", lambda: training_step.minilm(layers=1))
    two, six = (laplace.measure("queries and values", classes, rounds=1) for classes in (2, 6))
    assert 0.4 < two["backward"] < two["multiplied"] < six["multiplied"]
    assert two["backward"] < six["backward"] < 3.5


def test_costs_by_size_have_an_exponent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, Any] = {name: (make, (1, 2)) for name, (make, _) in scaling.TABLES.items()}
    few["rank, the step"] = (scaling.by_rank, (2, 4))
    monkeypatch.setattr(scaling, "TABLES", few)
    scaling.main(["--rounds", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)["tables"]["Cost by size"]
    assert [row["what"] for row in rows] == list(few)
    assert all(float(row["exponent"]) == float(row["exponent"]) for row in rows)


def test_draws_are_told_in_passes_at_the_mean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    monkeypatch.setattr(prediction, "SMALL", {**tiny, "num_key_value_heads": 1, "vocab_size": 4000})
    few = ["--rounds", "2", "--rows", "1", "--tokens", "4", "--new_tokens", "2", "--samples", "2", "--adapters"]
    prediction.main([*few, "all layers", "--json"])
    rows = json.loads(capsys.readouterr().out)["tables"]["Draws in passes at the mean"]
    assert [row["what"].split(",")[1] for row in rows] == [" answers"] * 2 + [" 4 choices of 5"] * 4 + [
        " 2 new tokens"
    ] * 3 + [" answers"]
    assert all(low <= median <= high for low, median, high in (row["passes at the mean"] for row in rows))
    assert "the mean" not in {row["way"] for row in rows}


def test_a_process_of_its_own_is_counted_and_a_load_is_summed_over_rounds() -> None:
    assert 0 < startup.seconds_of_children(startup.command(("-c", "pass"))) < 5
    total, one = serve.Outcome(), serve.Outcome(seconds=[1.0, 3.0], wrong=1, elapsed=2.0)
    one.lost["gone"] += 1
    for _ in range(2):
        total.add(one)
    row = total.row("a server", serve.Counter())
    assert (row["requests"], row["a second"], row["wrong"], row["lost"]) == (4, "1.0", 2, {"gone": 2})


def test_a_linear_probe_reads_the_frozen_models_last_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model", layers=2)
    files = {
        f"{split}_file": write_rows(tmp_path / f"{split}.jsonl", films(24)) for split in ("train", "validation", "test")
    }
    plan = {
        "name": "probe",
        "reference": "AdamW",
        "seeds": [0, 1],
        "settings": {"lora_layers": "top:1", "lora_target_modules": "v_proj,down_proj", "cache_frozen_layers": True},
        "models": {"small": {"model_name_or_path": model}},
        "tasks": {"films": files},
        "methods": {"adamw": {"settings": {"method": "adamw"}, "rows": {"AdamW": {"mode": "mean"}}}},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    words = [str(tmp_path / "plan.yaml"), "--output_dir", str(tmp_path / "runs")]

    setting = load_setting(read_plan(words[0], output_dir=words[2]).cell("small", "films", "adamw", 0).config)
    setting.model.eval()
    states, _ = linear_probe.last_states(setting, "test")
    own = torch.tensor([setting.encoded("test")[0]["input_ids"]])
    with torch.no_grad():
        expected = setting.model.get_base_model()(own, output_hidden_states=True).hidden_states[-1][0, -1]
    torch.testing.assert_close(torch.as_tensor(states[0]), expected, rtol=0, atol=1e-5)

    linear_probe.main(words)
    assert logging.root.manager.disable == logging.NOTSET  # a benchmark leaves the process as it was
    head, _, row = capsys.readouterr().out.strip().splitlines()
    assert head == "| model | task | split | Accuracy % ↑ | NLL ↓ | ECE % ↓ | Brier ↓ |"
    assert row.startswith("| small | films | test | 100.0 ± 0.0 | ")  # rows that it was fitted to


def test_the_map_of_noise_is_read_from_runs_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constant = {"method": "ivon", "prior": "fixed", "ess": 1600, "hess_init": 0.5, "held_out": "none"}
    changes = {
        "reference": "AdamW, rate 4e-3",
        "methods": {
            "adamw": {
                "settings": {"method": "adamw"},
                "rows": {
                    "AdamW, rate 4e-3": {"mode": "mean"},
                    "AdamW, rate 4e-3 + T": {"mode": "mean", "logit_temperature": 2},
                },
            },
            "ivon": {"settings": constant, "rows": {"rate 1e-2, sd 0.02, 10 samples": {"mode": "samples"}}},
        },
    }
    assert (
        main(["compare", str(written(tmp_path, changes)), "--output_dir", str(tmp_path / "out"), "--no_progress"]) == 0
    )
    runs = {path.name.split("-")[0]: path for path in (tmp_path / "out" / "llama" / "world").iterdir() if path.is_dir()}
    facts = {method: json.loads((path / "metrics.json").read_text(encoding="utf-8")) for method, path in runs.items()}
    capsys.readouterr()

    noise_map.main([str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    for split in ("validation", "test"):
        at, cells = lines.index(f"| world, {split} | sd 0 | sd 0.02 | seeds |"), []
        for found in (facts["adamw"][split]["mean"], facts["ivon"][split]["samples"]):
            cells.append(f"{found['nll']:.3f} / {100 * found['accuracy']:.1f}")
        assert lines[at + 2 : at + 4] == [f"| rate 4e-3 | {cells[0]} | – | 1 |", f"| rate 1e-2 | – | {cells[1]} | 1 |"]


def test_the_figure_of_the_map_is_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for figure in figures:
        noise_map.draw({("sst2", "test"): {("4e-3", "0"): noise_map.Cell(0.6, 0.7, 2)}}, figure)
    assert figures[0].read_bytes() == figures[1].read_bytes()
    assert "sst2, test" in figures[0].read_text(encoding="utf-8")
