"""`varlora train` started by torchrun: two processes train one run, and one of them writes it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from small_runs import config, save_model
from varlora.runs import RunConfig, read_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo")


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(settings: RunConfig, *words: str) -> list[str]:
    """What trains a run in two processes."""
    changed = {f.name: getattr(settings, f.name) for f in fields(RunConfig) if getattr(settings, f.name) != f.default}
    options = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*torchrun, "-m", "varlora", "train", *options, "--no_progress", *words]


@pytest.mark.parametrize("method", ["ensemble"])
def test_one_run_comes_out(method: str, tmp_path: Path) -> None:
    settings = config(tmp_path, save_model(tmp_path / "model"), method=method, max_steps=4, temperature_scaling=True)
    done = subprocess.run(command(settings), env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("The run is in") == 1
    written = read_run(settings.output_dir)
    assert written.posterior.kind == "mixture"
    assert set(written.metrics["test"]) == {"mean", "samples"}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "run", "train.jsonl", "validation.jsonl", "test.jsonl"}
