"""The tables of docs/auto.md from what `varlora compare recipes/auto/*.yaml` has written.

    python benchmarks/auto.py runs/auto-minilm runs/auto-llama > tables.md

± is half a 95 % t-interval over seeds. Differences are paired by seed to the plan's reference, or to --reference. What
several folders say of one task is put into one table: methods that were run with fewer seeds have a folder of their
own. Nothing is run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from varlora.metrics import METRICS, Metric
from varlora.report.seeds import OverSeeds, over_seeds

MEASURES = {name: METRICS[name] for name in ("accuracy", "nll", "ece_15")}
OUTSIDE = {name: METRICS[name] for name in ("auroc_entropy", "auroc_mutual_information")}
Values = Mapping[int, float]


def shown(found: OverSeeds, form: str) -> str:
    """Mean ± half a 95 % t-interval; the mean alone of one seed, and ± 0 where all are equal.

    Example:
        >>> shown(over_seeds([1.0, 2.0, 3.0]), ".3f"), shown(over_seeds([0.5]), "+.3f")
        ('2.000 ± 2.484', '+0.500')
    """
    if found.seeds == 1:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} ± {0.0 if found.high is None else found.high - found.mean:.3f}"


def row(label: str, measures: Mapping[str, Metric], found: Mapping[str, Values], reference: Any) -> str:
    """One line of a table.

    Args:
        label: the row's name.
        measures: how each is shown, by its name.
        found: measure -> value by seed.
        reference: the same of the reference row; None for the reference itself.
    """
    seeds = max((len(values) for values in found.values()), default=0)
    cells = [label, str(seeds)]
    cells += [shown(over_seeds(list(found[name].values())), ".3f") if found.get(name) else "–" for name in measures]
    for name, how in measures.items():
        shared = [seed for seed in found.get(name, ()) if reference is not None and seed in reference.get(name, ())]
        if not shared:
            cells.append("–")
            continue
        difference = over_seeds([found[name][seed] - reference[name][seed] for seed in shared])
        cells.append(f"{shown(difference, '+.3f')} {difference.verdict(how)}")
    return f"| {' | '.join(cells)} |"


def of_seeds(method: Mapping[str, Any], names: Iterable[str]) -> dict[str, dict[int, float]]:
    """Metric -> value by seed, of one row of study.json."""
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
                    _add(rows.setdefault((block["task"], split), {}), label, of_seeds(method, MEASURES))
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
        measures = OUTSIDE if split.endswith("out of scope") else MEASURES
        titles = [how.title for how in measures.values()]
        headings = ["", "seeds", *titles, *(f"{title} − ref." for title in titles)]
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
