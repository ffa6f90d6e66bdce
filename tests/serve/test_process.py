"""`varlora serve` in a process of its own: it starts, answers, and ends in order."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from varlora.cli import main
from varlora.cli.console import err, out


def serve(trained: Path, folder: Path) -> None:
    """The command, in a process that is forked from this one: it does not import the library anew."""
    sys.stdout, sys.stderr = ((folder / name).open("w", buffering=1) for name in ("out", "err"))
    for console in (out, err):
        console._width, console._height = 200, 50
    sys.exit(main(["serve", f"herds={trained}", "--port", "0", "--log_requests", "true"]))


@pytest.fixture
def process(trained: Path, tmp_path: Path) -> Iterator[Any]:
    made = multiprocessing.get_context("fork").Process(target=serve, args=(trained, tmp_path))
    made.start()
    yield made
    made.kill()
    made.join()


def address_of(process: Any, told: Path) -> str:
    """What the command prints when it listens."""
    while process.is_alive():
        if told.exists() and (found := re.search(r"http://127\.0\.0\.1:\d+", told.read_text())):
            return found[0]
        time.sleep(0.01)
    raise AssertionError("the server has ended")


def test_it_finishes_what_it_has_accepted_and_ends_with_0(process: Any, tmp_path: Path) -> None:
    address = address_of(process, tmp_path / "out")
    with httpx.Client(base_url=address, timeout=60) as client:
        answer = client.post("/v1/classify", json={"texts": ["a fine film"]}).json()["answers"][0]
        assert answer["label"] in ("negative", "positive")
        body = {"prompt": "a fine film", "max_tokens": 100, "stream": True}
        pieces = []
        with client.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    if not pieces:
                        os.kill(process.pid, signal.SIGTERM)
                    pieces.append(line.removeprefix("data: "))
    assert pieces[-1] == "[DONE]"
    assert json.loads(pieces[-2])["choices"][0]["finish_reason"] in ("stop", "length")
    process.join(20)
    assert process.exitcode == 0
    log = (tmp_path / "err").read_text()
    assert "POST /v1/classify 200" in log
    assert "film" not in log


def test_mistakes_are_told(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", str(tmp_path)]) == 1
    assert "neither a run" in " ".join(capsys.readouterr().err.split())
    assert main(["serve", str(tmp_path / "absent")]) == 1
    assert "is no folder" in capsys.readouterr().err
