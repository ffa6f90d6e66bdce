"""Files that another hand has written or broken: every reader reads them, or says in a ValueError or OSError where."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from readers import Reader, broken, build, readers

QUICK, LONG = 15, 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("readers")
    build(made)
    return made


@pytest.fixture(scope="module")
def known(folder: Path) -> dict[str, Reader]:
    return dict(readers(folder))


def fuzz(folder: Path, reader: Reader, examples: int) -> Counter[str]:
    """Breaks the file again and again; what came of it, counted."""
    file, counts = folder / reader.file, Counter[str]()
    beside = {path: path.read_bytes() for path in file.parent.iterdir() if path.is_file()}
    reader.read(folder)

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        for path, content in beside.items():
            path.write_bytes(content)
        file.write_bytes(data.draw(content_of))
        reader.sign(folder)
        refusal = None
        try:
            reader.read(folder)
        except (ValueError, OSError) as error:
            refusal = str(error)
        counts["read" if refusal is None else "refused"] += 1
        assert refusal is None or str(folder) in refusal

    content_of = broken(file)
    try:
        one()
    finally:
        for path, content in beside.items():
            path.write_bytes(content)
    return counts


NAMES = [
    *("config.yaml", "run.json", "metrics.json", "log.jsonl", "prediction", "scores", "generations", "plan.yaml"),
    *("published.yaml", "cells.json", "variant.json", "validation.json", "export.json", "decision.json by group"),
    *("decision.json by cost", "train.jsonl", "labels.json", "optimizer.pt"),
    *("checkpoint's adapter_config.json", "checkpoint's weights", "posterior.json", "adapter_config.json"),
    *("diagonal's adapter_model", "diagonal's posterior", "point's adapter_model", "kronecker's adapter_model"),
    *("kronecker's posterior", "low_rank's adapter_model", "low_rank's posterior", "mixture's adapter_model"),
    *("mixture's posterior", "dropout's adapter_model", "dropout's posterior"),
]


def test_every_reader_is_tried(known: dict[str, Reader]) -> None:
    assert list(known) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_file_is_refused_by_name_or_read(folder: Path, known: dict[str, Reader], name: str) -> None:
    assert fuzz(folder, known[name], QUICK)["refused"] > 0


@pytest.mark.slow
def test_many_broken_files(folder: Path, known: dict[str, Reader], capsys: pytest.CaptureFixture[str]) -> None:
    total = Counter[str]()
    for name, reader in known.items():
        counts = fuzz(folder, reader, LONG)
        total += counts
        with capsys.disabled():
            sys.stdout.write(f"\n{name}: {counts['refused']} refused, {counts['read']} read")
            sys.stdout.flush()
    with capsys.disabled():
        sys.stdout.write(f"\nall: {total['refused']} refused, {total['read']} read, 0 ended otherwise\n")
