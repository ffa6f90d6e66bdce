"""40 clients at a time (a batch has 32 rows), beside others that leave or send rubbish: no answer is wrong or lost.

`python benchmarks/serve.py MODEL` is the same with a real model, measured.
"""

from __future__ import annotations

import asyncio

import httpx
import pytest

from serve import measure, texts


def test_no_answer_is_wrong_or_lost(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.NEW_TOKENS", 8)  # as many batches as tokens
    rows = [text.replace("film", "a film") for text in texts(40)]
    outcome, counts = asyncio.run(measure(address, rows, "classify", model="herds", clients=40, nuisance=True))
    assert (outcome.wrong, dict(outcome.lost), len(outcome.seconds)) == (0, {}, len(rows))
    assert counts["left"] > 0
    assert {name for name in counts if name.startswith("malformed")} == {"malformed: 400"}
    assert {name for name in counts if name.startswith("too large")} <= {"too large: 413"}
    written, _ = asyncio.run(measure(address, rows, "write", model="herds", clients=40, nuisance=True))
    assert (written.wrong, dict(written.lost), len(written.seconds)) == (0, {}, len(rows))
    with httpx.Client(base_url=address) as client:
        queue = [line for line in client.get("/metrics").text.splitlines() if line.startswith("varlora_queue_length")]
    assert queue == ["varlora_queue_length 0.0"]
