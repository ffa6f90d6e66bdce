"""docs/ledger.md: published values beside what `varlora compare` has found here.

    python benchmarks/ledger.py --runs runs --output_file docs/ledger.md

Reads recipes/published.yaml and, for every recipe, the folder runs/NAME (and runs/NAME-small) that `varlora compare`
has written. Nothing is run. A publication's mean over tasks is set against our mean over the same tasks, which is given
only if all of them were run; each task alone is in the study's own tables. Nothing is left out for disagreeing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from varlora.compare import read_plan
from varlora.compare.cells_file import read_cells
from varlora.compare.gather import gather
from varlora.io.nearest import nearest
from varlora.io.yaml_files import parse_yaml
from varlora.metrics import HEADLINE, metric_named
from varlora.report.seeds import OverSeeds, over_seeds
from varlora.report.study import Block, Study

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
OPENING = """# The reproduction ledger

Published values, ours, and what was not run, made by `python benchmarks/ledger.py --runs runs`. "Ours" is a mean over
the published tasks and the seeds ± its standard error over seeds; each task alone is in the tables that
`varlora compare` writes. A value is "not run here" where it needs a GPU or weights that were not available; the command
is the one that runs it. The prompt style, the seeds and the deviations of each experiment stand at the head of its
recipe. The small variants run the same plan with the embedded Llama of 0.7 million parameters for twenty steps: they
show that every step works, and their accuracy is chance.

"""


NOT_RUN = "not run here"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publication says of one row of its table.

    Attributes:
        what: the experiment, in words.
        source: the publication.
        recipe: the plan that repeats it.
        model: its name in the plan.
        tasks: over which the publication averages; one for a value of a single task.
        row: the label in the plan.
        against: the label that `values` are differences to; None for plain values.
        values: by metric; accuracy and calibration errors in percent.
        prompt_style: of our run.
        note: what a reader should know.

    Raises:
        ValueError: there is no task or value, or a metric has no name in the report.
    """

    what: str
    source: str
    recipe: str
    model: str
    tasks: tuple[str, ...]
    row: str
    values: Mapping[str, float]
    against: str | None = None
    prompt_style: str = "varlora"
    note: str = ""

    def __post_init__(self) -> None:
        if not self.tasks or not self.values:
            raise ValueError(f"the published row {self.what!r} needs at least one task and one value.")
        for metric in self.values:
            metric_named(metric)


def read_published(file: str | Path) -> tuple[Published, ...]:
    """The rows of a YAML file: a list of mappings with the fields of `Published`.

    Raises:
        ValueError: a field is missing, unknown or of another kind; the message names the row.
    """
    path = Path(file)
    if not path.exists():
        raise ValueError(f"there is no file of published values {path}.")
    rows = parse_yaml(path)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must hold a list of published rows, each a mapping.")
    return tuple(_published(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))


def ours(published: Published, study: Study, metric: str) -> OverSeeds | None:
    """Our value of a published one, in the report's units; None unless every task of it was run.

    Args:
        published: the row.
        study: what the row's plan has found.
        metric: one of `published.values`.
    """
    by_seed: list[Mapping[int, float]] = []
    for task in published.tasks:
        found = [block for block in study.blocks if (block.model, block.task) == (published.model, task)]
        values = _by_seed(found[0], published.row, metric) if found else {}
        if values and published.against is not None:
            reference = _by_seed(found[0], published.against, metric)
            values = {seed: value - reference[seed] for seed, value in values.items() if seed in reference}
        if not values:
            return None
        by_seed.append(values)
    seeds = sorted(set.intersection(*(set(values) for values in by_seed)))
    unit = 100 if metric_named(metric).percent else 1
    means = [unit * sum(values[seed] for values in by_seed) / len(by_seed) for seed in seeds]
    return over_seeds(means) if means else None


def ledger(published: Sequence[Published], studies: Mapping[str, Study], small: Mapping[str, Study]) -> str:
    """The ledger as Markdown.

    Args:
        published: its rows.
        studies: what plans have found, by the name of their recipe's file.
        small: the same of their small variants.
    """
    heads = ("experiment", "metric", "published", "ours", "seeds", "prompt style", "command", "source")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in published:
        study = studies.get(row.recipe)
        for metric, value in row.values.items():
            how = metric_named(metric)
            found = ours(row, study, metric) if study is not None else None
            name = f"{metric} %" if how.percent else metric
            what = row.what + (f" (difference to {row.against})" if row.against is not None else "")
            cells = [
                what,
                name,
                _shown(value, max(how.decimals, _decimals(value)), signed=row.against is not None),
                *_cells(found, how.decimals, row),
                row.prompt_style,
                f"`varlora compare {row.recipe}`",
                row.source,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {row.what}: {row.note}" for row in published if row.note]
    lines += ["", *notes] if notes else []
    for recipe, study in small.items():
        lines += ["", *_small(recipe, study)]
    return "\n".join(lines) + "\n"


def _published(values: Any, where: str) -> Published:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: {values!r} must be a mapping.")
    known = {f.name: f for f in fields(Published)}
    for name in values:
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}; {nearest(str(name), known)}")
    needed = ("what", "source", "recipe", "model", "tasks", "row", "values")
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    if not isinstance(values["tasks"], list) or not isinstance(values["values"], Mapping):
        raise ValueError(f"{where}: tasks must be a list, values a mapping of metrics to numbers.")
    try:
        return Published(**{**values, "tasks": tuple(values["tasks"])})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _by_seed(block: Block, label: str, metric: str) -> Mapping[int, float]:
    comparison = block.comparison
    if comparison is None or label not in comparison.methods:
        return {}
    summary = comparison.summary(comparison.splits[0])[label]
    return {seed: values[metric] for seed, values in zip(summary.seeds, summary.per_seed, strict=True)}


def _shown(value: float, digits: int, *, signed: bool) -> str:
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _decimals(value: float) -> int:
    """Of a number as it was published."""
    return len(str(value).partition(".")[2])


def _cells(found: OverSeeds | None, digits: int, row: Published) -> list[str]:
    if found is None:
        return [NOT_RUN, "–"]
    error = "" if found.se is None else f" ± {found.se:.{digits}f}"
    return [_shown(found.mean, digits, signed=row.against is not None) + error, str(found.seeds)]


def _small(recipe: str, study: Study) -> list[str]:
    """What a small variant gave: that everything runs, with a model of which nothing can be expected."""
    lines = [f"**`varlora compare {recipe} --small`**", ""]
    heads = [f"{metric_named(metric).label}{' %' * metric_named(metric).percent}" for metric in HEADLINE]
    lines += [f"| model | task | row | {' | '.join(heads)} | seeds |", "| --- " * 7 + "|"]
    for block in study.blocks:
        if block.comparison is None:
            lines.append(f"| {block.model} | {block.task} | {'; '.join(block.missing) or NOT_RUN} | – | – | – | – |")
            continue
        split = block.comparison.splits[0]
        for label, summary in block.comparison.summary(split).items():
            cells = [metric_named(metric).show(summary.metrics[metric].mean) for metric in HEADLINE]
            lines.append(f"| {block.model} | {block.task} | {label} | {' | '.join(cells)} | {len(summary.seeds)} |")
        lines += [f"| {block.model} | {block.task} | missing: {what} | – | – | – | – |" for what in block.missing]
    return lines


def study_of(recipe: Path, runs: Path, *, small: bool) -> Study | None:
    """What the recipe's plan has found; None where it has not been run."""
    written = runs / read_plan(recipe, small=small).output_dir.name
    if not (written / "plan.yaml").is_file():
        return None
    return gather(read_plan(written / "plan.yaml", output_dir=written), read_cells(written))


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the plans' folders")
    parser.add_argument("--output_file", type=Path, default=ROOT / "docs" / "ledger.md")
    arguments = parser.parse_args()
    recipes = sorted([*RECIPES.glob("*.yaml"), *(RECIPES / "ablations").glob("*.yaml")])
    full: dict[str, Study] = {}
    small: dict[str, Study] = {}
    for recipe in recipes:
        if recipe.name == "published.yaml":
            continue
        name = recipe.relative_to(ROOT).as_posix()
        for found, is_small in ((full, False), (small, True)):
            study = study_of(recipe, arguments.runs, small=is_small)
            if study is not None:
                found[name] = study
    text = OPENING + ledger(read_published(RECIPES / "published.yaml"), full, small)
    arguments.output_file.write_text(text, encoding="utf-8")
    print(arguments.output_file)


if __name__ == "__main__":
    main()
