"""`varlora serve` as a process: it starts, answers, and ends in order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from varlora.cli import main


@pytest.fixture
def process(trained: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "varlora", "serve", f"herds={trained}", "--port", "0", "--log_requests", "true"]
    made = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
    )
    yield made
    if made.poll() is None:
        made.kill()
    made.wait()


def test_it_finishes_what_it_has_accepted_and_ends_with_0(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert address is not None
    with httpx.Client(base_url=address[0], timeout=60) as client:
        answer = client.post("/v1/classify", json={"texts": ["a fine film"]}).json()["answers"][0]
        assert answer["label"] in ("negative", "positive")
        body = {"prompt": "a fine film", "max_tokens": 100, "stream": True}
        pieces = []
        with client.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    if not pieces:
                        process.send_signal(signal.SIGTERM)
                    pieces.append(line.removeprefix("data: "))
    assert pieces[-1] == "[DONE]"
    assert json.loads(pieces[-2])["choices"][0]["finish_reason"] in ("stop", "length")
    assert process.wait(20) == 0
    assert process.stderr is not None
    log = process.stderr.read()
    assert "POST /v1/classify 200" in log
    assert "film" not in log


def test_mistakes_are_told(trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", str(tmp_path)]) == 1
    assert "neither a run" in " ".join(capsys.readouterr().err.split())
    assert main(["serve", str(tmp_path / "absent")]) == 1
    assert "is no folder" in capsys.readouterr().err
