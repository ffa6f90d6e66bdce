"""Time before a run: of finished cells like it, or not known."""

from __future__ import annotations

import json
from pathlib import Path

from compare.plans import plan
from varlora.compare import Cell
from varlora.compare.timer import Timer, seconds_of

TASK = {"name": "world", "kind": "label", "answers": ["a", "b"], "rows": {"train": 8, "test": 4}}


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
