"""The tables of docs/auto.md from what `varlora compare recipes/auto/*.yaml` has written.

    python benchmarks/auto.py runs/auto-minilm runs/auto-llama > tables.md

± is half a 95 % t-interval over seeds. Differences are paired by seed to the plan's reference, or to --reference. What
several folders say of one task is put into one table: methods that were run with fewer seeds have a folder of their
own. Nothing is run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from varlora.report.statistics import over_seeds

MEASURES = {"accuracy": ("accuracy", +1), "NLL": ("nll", -1), "ECE": ("ece_15", -1)}
DETECTION = {"AUROC, entropy": ("auroc_entropy", +1), "AUROC, mutual information": ("auroc_mutual_information", +1)}
Values = Mapping[int, float]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % t-interval, NaN for fewer than two values.

    Example:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> mean, round(half, 2)
        (2.0, 2.48)
    """
    found = over_seeds(values)
    if found.seeds == 1:
        return found.mean, math.nan
    return found.mean, 0.0 if found.high is None else found.high - found.mean


def shown(mean: float, half: float, form: str) -> str:
    """Mean ± half an interval; the mean alone where there is no interval.

    Example:
        >>> shown(0.5, 0.25, ".3f"), shown(0.5, math.nan, "+.3f")
        ('0.500 ± 0.250', '+0.500')
    """
    return f"{mean:{form}}" if math.isnan(half) else f"{mean:{form}} ± {half:.3f}"


def verdict(mean: float, half: float, sign: int) -> str:
    """What an interval of differences says.

    Example:
        >>> verdict(-0.1, 0.05, sign=-1), verdict(0.1, 0.05, sign=-1), verdict(0.1, 0.2, sign=+1)
        ('better', 'worse', 'tie')
    """
    if math.isnan(half):
        return ""
    if abs(mean) <= half:
        return "tie"
    return "better" if mean * sign > 0 else "worse"


def row(label: str, measures: Mapping[str, tuple[str, int]], found: Mapping[str, Values], reference: Any) -> str:
    """One line of a table.

    Args:
        label: the row's name.
        measures: heading -> name of the measure, and +1 where higher is better.
        found: measure -> value by seed.
        reference: the same of the reference row; None for the reference itself.
    """
    seeds = max((len(values) for values in found.values()), default=0)
    cells = [label, str(seeds)]
    for name, _ in measures.values():
        mean, half = interval(list(found[name].values())) if found.get(name) else (math.nan, math.nan)
        cells.append("–" if math.isnan(mean) else shown(mean, half, ".3f"))
    for name, sign in measures.values():
        shared = [seed for seed in found.get(name, ()) if reference is not None and seed in reference.get(name, ())]
        if not shared:
            cells.append("–")
            continue
        mean, half = interval([found[name][seed] - reference[name][seed] for seed in shared])
        cells.append(f"{shown(mean, half, '+.3f')} {verdict(mean, half, sign)}".rstrip())
    return f"| {' | '.join(cells)} |"


def of_seeds(method: Mapping[str, Any], names: Iterable[str]) -> dict[str, dict[int, float]]:
    """Measure -> value by seed, of one row of study.json."""
    return {
        name: {
            seed: values[name]
            for seed, values in zip(method["seeds"], method["per_seed"], strict=True)
            if values.get(name) is not None
        }
        for name in names
    }


def tables(folders: Sequence[Path], reference: str | None = None) -> str:
    """Every table of the folders' studies, as Markdown.

    Args:
        folders: of `varlora compare`, each with a study.json.
        reference: the row that the others are compared with; None is the plans' own.

    Raises:
        FileNotFoundError: a folder has no study.json.
        ValueError: the folders' plans have different references and none is given, or no folder has the one given.
    """
    studies = [json.loads((folder / "study.json").read_text(encoding="utf-8")) for folder in folders]
    references = {study["reference"] for study in studies} if reference is None else {reference}
    if len(references) != 1:
        raise ValueError(
            f"the folders have different references: {', '.join(sorted(references))}; say which with --reference."
        )
    given, [reference] = reference, references
    rows: dict[tuple[str, str], dict[str, dict[str, dict[int, float]]]] = {}
    for study in studies:
        for block in study["blocks"]:
            for split, found in (block["comparison"] or {"splits": {}})["splits"].items():
                for label, method in found["methods"].items():
                    names = [name for name, _ in MEASURES.values()]
                    _add(rows.setdefault((block["task"], split), {}), label, of_seeds(method, names))
            for split, of_labels in block["detection"].items():
                for label, of_measures in of_labels.items():
                    seeds = next(iter(block["comparison"]["splits"].values()))["methods"][label]["seeds"]
                    values = {name: dict(zip(seeds, found, strict=True)) for name, found in of_measures.items()}
                    _add(rows.setdefault((block["task"], f"{split}, out of scope"), {}), label, values)
    there = {label for by_label in rows.values() for label in by_label}
    if given is not None and given not in there:
        raise ValueError(f"no row is {reference!r}; there are {', '.join(map(repr, sorted(there)))}.")
    lines = []
    for (task, split), by_label in rows.items():
        measures = DETECTION if split.endswith("out of scope") else MEASURES
        headings = ["", "seeds", *measures, *(f"{heading} − ref." for heading in measures)]
        lines += [f"**{task}, {split}**", "", f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
        for label, found in by_label.items():
            lines.append(row(label, measures, found, None if label == reference else by_label.get(reference)))
        lines.append("")
    return "\n".join(lines)


def _add(rows: dict[str, Any], label: str, found: Mapping[str, dict[int, float]]) -> None:
    there = rows.setdefault(label, {})
    for name, values in found.items():
        there[name] = {**there.get(name, {}), **values}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders that `varlora compare` has written")
    parser.add_argument("--reference", help="the row that the others are compared with, in place of the plans' own")
    args = parser.parse_args()
    print(tables(args.folders, args.reference))


if __name__ == "__main__":
    main()
