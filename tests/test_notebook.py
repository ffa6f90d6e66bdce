"""The notebook: it runs from top to bottom in a kernel of its own, and what is stored of it is what a person wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

nbformat: Any = pytest.importorskip("nbformat")
FILE = Path(__file__).resolve().parent.parent / "examples" / "decision.ipynb"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def test_no_output_is_stored(notebook: Any) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_it_runs_from_training_to_a_decision(notebook: Any, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    found = eval(last.outputs[-1]["data"]["text/plain"])

    assert 0.6 < found["answered"] < 0.95
    assert found["right of those answered"] > found["right of all"] > 0.3
    assert found["sets that hold the right choice"] > 0.8
    assert (tmp_path / "run" / "decision.json").is_file()
