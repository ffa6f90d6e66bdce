"""`varlora train` started by torchrun: two processes train one run, and one of them writes it."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ranks import RANKS, START, forget_processes
from small_runs import config, herds, save_model, write_rows
from varlora.cli import main
from varlora.runs.config import RunConfig
from varlora.runs.folder import read_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo")


def words_of(settings: RunConfig) -> list[str]:
    """The command that trains a run."""
    options = [word for name, value in settings.given().items() for word in (f"--{name}", str(value))]
    return ["train", *options, "--no_progress"]


def command(words: list[str]) -> tuple[int, str]:
    """Runs in each process; its exit code and what it printed."""
    forget_processes()
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = main(words)
    return code, told.getvalue()


@pytest.fixture
def signals_restored() -> Iterator[None]:
    """torchrun puts handlers of its own there."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_restored")
@pytest.mark.parametrize("method", ["ensemble"])
def test_one_run_comes_out(method: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "validation-herds.jsonl", herds(16))
    options = {"method": method, "max_steps": 4, "temperature_scaling": True, "validation_file": rows}
    settings = config(tmp_path, save_model(tmp_path / "model"), **options)
    torchrun = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=RANKS,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method=START,
    )
    done = elastic_launch(torchrun, command)(words_of(settings))
    assert [code for code, _ in done.values()] == [0, 0]
    assert "".join(told for _, told in done.values()).count("The run is in") == 1
    written = read_run(settings.output_dir)
    assert written.posterior.kind == "mixture"
    assert set(written.metrics["test"]) == {"mean", "samples"}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "run", "train.jsonl", "validation.jsonl", "validation-herds.jsonl", "test.jsonl"}
