"""docs/ledger.md: published values beside what `varlora compare` has found here.

    python benchmarks/ledger.py --runs runs --output_file docs/ledger.md

Reads recipes/published.yaml and, for every recipe, the folder runs/NAME (and runs/NAME-small) that `varlora compare`
has written. Nothing is run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from varlora.compare import read_plan
from varlora.compare.gather import gather
from varlora.compare.worker import read_cells
from varlora.report.ledger import ledger, read_published
from varlora.report.study import Study

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
