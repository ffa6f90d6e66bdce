"""A run's metrics as tables of the terminal."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from varlora.cli.tables import metrics_tables, temperatures_of
from varlora.posterior import DiagonalGaussian, PosteriorMeta

CLASSES = {"accuracy": 0.7, "nll": 0.8, "ece_15": 0.1, "brier": 0.4}
METRICS = {"test": {"mean": CLASSES, "samples": CLASSES}}


def shown(**meta: object) -> str:
    q = DiagonalGaussian(
        mean={"w": torch.zeros(1)},
        precision={"w": torch.ones(1)},
        meta=PosteriorMeta(**meta),  # type: ignore[arg-type]
    )
    console = Console(file=io.StringIO(), width=120)
    for table in metrics_tables(METRICS, temperatures=temperatures_of(q)):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_temperature_stands_beside_the_mode_whose_logits_it_divides() -> None:
    assert "T =" not in shown()
    one = shown(logit_temperatures={"samples": 1.314})
    assert "samples (T = 1.31)" in one
    assert "mean (T" not in one
    both = shown(logit_temperatures={"mean": 0.5, "samples": 1.314})
    assert "mean (T = 0.50)" in both


def test_likelihoods_of_completions_have_no_temperature() -> None:
    completions = {"test": {"samples": {"nll_per_token": 0.7, "nll_per_row": 2.0, "perplexity": 2.0}}}
    console = Console(file=io.StringIO(), width=120)
    for table in metrics_tables(completions, temperatures={"samples": 1.314}):
        console.print(table)
    assert "T =" not in console.file.getvalue()  # type: ignore[attr-defined]
