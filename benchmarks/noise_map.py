"""The map of docs/results/smollm2.md, learning rate by constant noise, from what recipes/llm/noise-map.yaml has left.

    python -m benchmarks.noise_map runs/llm                               # the tables in Markdown
    python -m benchmarks.noise_map runs/llm --figure noise-map.svg        # and the figure (pip install matplotlib)

A cell is NLL / accuracy in %, the mean over its seeds, which the table's last column counts, on the validation rows and
on the test rows. Nothing is run.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from varlora.compare import read_plan
from varlora.compare.cells_file import read_cells
from varlora.compare.variant_files import has_all, load_variant
from varlora.metrics import evaluate
from varlora.runs.folder import read_run

SPLITS = ("validation", "test")
NOISE = re.compile(r"AdamW, rate (?P<adamw>\S+)|rate (?P<rate>\S+), (sd (?P<sd>\S+)|by default), 10 samples")
DEFAULT = "IVON, by default"


class Cell(NamedTuple):
    """Of one rate and noise.

    Attributes:
        nll, accuracy: means over the seeds.
        seeds: how many there are.
    """

    nll: float
    accuracy: float
    seeds: int


Map = Mapping[tuple[str, str], Mapping[tuple[str, str], Cell]]
"""(task, split) -> (rate, noise) -> cell; a noise is a standard deviation as the plan writes it, or `DEFAULT`."""


def place(label: str) -> tuple[str, str] | None:
    """Rate and noise of a row of the plan; None of a row that the map leaves out.

    Example:
        >>> place("AdamW, rate 4e-3"), place("rate 4e-3, sd 0.02, 10 samples"), place("rate 4e-3, sd 0.02, mean")
        (('4e-3', '0'), ('4e-3', '0.02'), None)
    """
    found = NOISE.fullmatch(label)
    if found is None:
        return None
    if found["adamw"] is not None:
        return found["adamw"], "0"
    return found["rate"], found["sd"] or DEFAULT


def read_map(folder: Path) -> Map:
    """The map of a folder of `varlora compare`, from the predictions that its runs keep.

    Raises:
        ValueError: it holds no comparison, or no row of it is one of the map's.
    """
    plan = read_plan(folder / "plan.yaml", output_dir=folder)
    values: dict[tuple[str, str], dict[tuple[str, str], list[Mapping[str, float]]]] = {}
    for cell in read_cells(folder):
        run = read_run(cell.folder) if cell.trained else None
        for label, variant in plan.methods[cell.method].rows.items():
            where = place(label)
            if run is None or where is None or not has_all(run, [variant]):
                continue
            for split in SPLITS:
                found = load_variant(run, variant, split)
                of_split = values.setdefault((cell.task, split), {})
                of_split.setdefault(where, []).append(evaluate(found.log_probs, found.labels))
    if not values:
        raise ValueError(f"{folder} has no row of the map; run: varlora compare recipes/llm/noise-map.yaml --data DATA")
    return {
        block: {
            where: Cell(fmean(each["nll"] for each in seeds), fmean(each["accuracy"] for each in seeds), len(seeds))
            for where, seeds in cells.items()
        }
        for block, cells in values.items()
    }


def axes(cells: Mapping[tuple[str, str], Cell]) -> tuple[list[str], list[str]]:
    """Rates and noises that are there, smallest first, the default's last."""
    rates = sorted({rate for rate, _ in cells}, key=float)
    return rates, sorted({noise for _, noise in cells}, key=lambda noise: (noise == DEFAULT, noise))


def tables(found: Map) -> str:
    """The map in Markdown, a table for each task and split."""
    lines = []
    for (task, split), cells in found.items():
        rates, noises = axes(cells)
        heads = [noise if noise == DEFAULT else f"sd {noise}" for noise in noises]
        lines += [f"| {task}, {split} | {' | '.join(heads)} | seeds |", "| --- " * (len(heads) + 2) + "|"]
        for rate in rates:
            there = [cells.get((rate, noise)) for noise in noises]
            shown = [f"{cell.nll:.3f} / {100 * cell.accuracy:.1f}" if cell else "–" for cell in there]
            numbers = sorted({cell.seeds for cell in there if cell})
            lines.append(f"| rate {rate} | {' | '.join(shown)} | {' to '.join(map(str, numbers))} |")
        lines.append("")
    return "\n".join(lines)


def draw(found: Map, file: Path) -> None:
    """A panel for each task and split: NLL by the noise, a line for each rate, dotted where the default's is."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "noise-map", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    tasks, splits = (list(dict.fromkeys(part)) for part in zip(*found, strict=True))
    figure, panels = pyplot.subplots(
        len(splits), len(tasks), squeeze=False, figsize=(4.4 * len(tasks), 3.1 * len(splits)), layout="constrained"
    )
    for (task, split), cells in found.items():
        panel: Any = panels[splits.index(split)][tasks.index(task)]
        rates, noises = axes(cells)
        for number, rate in enumerate(rates):
            there = [(noise, cells[rate, noise].nll) for noise in noises if noise != DEFAULT and (rate, noise) in cells]
            panel.plot([float(sd) for sd, _ in there], [nll for _, nll in there], "o-", label=rate, color=f"C{number}")
            if (rate, DEFAULT) in cells:
                panel.axhline(cells[rate, DEFAULT].nll, linestyle=":", color=f"C{number}")
        panel.set(title=f"{task}, {split}", xlabel="standard deviation of the noise", ylabel="NLL")
        panel.legend(title="learning rate")
    figure.savefig(file, format="svg", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the figure where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that `varlora compare` has written")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="an SVG file to draw the map into")
    given = parser.parse_args(arguments)
    found = read_map(given.folder)
    print(tables(found))
    if given.figure is not None:
        draw(found, given.figure)


if __name__ == "__main__":
    main()
