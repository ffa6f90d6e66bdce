"""`varlora train` started by torchrun: two processes train one run, and one of them writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from small_runs import config, save_model
from varlora.checkpoint_files import last_whole_checkpoint
from varlora.runs import RunConfig, read_run, run
from varlora.runs.checkpoints import checkpoints_of

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


@pytest.mark.slow
def test_sigterm_stops_both_after_the_same_step_and_two_go_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = config(tmp_path, save_model(tmp_path / "model"), max_steps=151, save_steps=40)
    subprocess.run(command(whole), env=ENVIRONMENT, check=True, capture_output=True, timeout=240)
    broken = replace(whole, output_dir=str(tmp_path / "broken"))
    checkpoints = checkpoints_of(broken)
    process = subprocess.Popen(command(broken), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while last_whole_checkpoint(checkpoints) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=100)[1].decode()
    stopped = last_whole_checkpoint(checkpoints)
    assert stopped is not None
    assert f"at step {stopped.name.removeprefix('checkpoint-')} of 151" in told
    with pytest.raises(ValueError, match="was trained by 2 processes, and this one is by 1"):
        run(broken, resume=True, progress=False)
    subprocess.run(command(broken, "--resume"), env=ENVIRONMENT, check=True, capture_output=True, timeout=240)
    for name in ("adapter_model.safetensors", "posterior.safetensors", "metrics.json"):
        assert (Path(broken.output_dir) / name).read_bytes() == (Path(whole.output_dir) / name).read_bytes(), name
