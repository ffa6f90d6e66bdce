"""The demo from start to end, shortened: it compares on the same rows and writes what it promises."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from varlora import load_posterior
from varlora.demo import compare
from varlora.demo.data import write_task
from varlora.folders import FolderExistsError
from varlora.report.health_text import sentence
from varlora.runs import read_run


def test_the_demo_writes_runs_posteriors_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compare.COMMON, "max_steps", 2)
    monkeypatch.setitem(compare.COMMON, "samples", 2)
    monkeypatch.setattr(compare, "SAMPLES", 2)
    monkeypatch.setattr(compare, "write_task", partial(write_task, train=16, validation=24, test=40))
    folder = tmp_path / "demo"
    comparison = compare.run_demo(output_dir=folder, seeds=(0, 1), progress=False)
    assert len(comparison.methods) == 5
    stored = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(compare.finite(comparison.to_dict())))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "AdamW + temperature" in page
    assert "Health of the posterior" in page
    assert sentence(read_run(folder / "runs" / "ivon-seed-1").health()) in page
    for seed in (0, 1):
        assert load_posterior(folder / "runs" / f"ivon-seed-{seed}").kind == "diagonal_gaussian"
        assert load_posterior(folder / "pruned" / f"ivon-seed-{seed}").kind == "diagonal_gaussian"
    with pytest.raises(FolderExistsError, match="overwrite"):
        compare.run_demo(output_dir=folder, seeds=(0,), progress=False)
