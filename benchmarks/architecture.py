"""Lines of each folder of the source, and which folder imports which.

    python benchmarks/architecture.py                    this tree
    python benchmarks/architecture.py --tree ../before   another version's

A loose module counts as a folder of its own. An arrow counts once, however many imports run along it; "back and forth"
counts the pairs of folders that import each other. With --mermaid the drawing is printed too, without the arrows that
another path already implies.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import grimp

PACKAGE = "varlora"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="root of the version's tree")
    parser.add_argument("--mermaid", action="store_true", help="print the drawing, too")
    options = parser.parse_args(arguments)
    source = options.tree.resolve() / "src"
    sys.path.insert(0, str(source))
    lines, arrows = lines_of(source / PACKAGE), arrows_of()
    print("| folder | lines | imports |")
    print("|---|---|---|")
    for folder, count in sorted(lines.items()):
        print(f"| {folder} | {count:,} | {', '.join(sorted(to for frm, to in arrows if frm == folder))} |")
    mutual = sum((to, frm) in arrows for frm, to in arrows) // 2
    loose = sum(folder.endswith(".py") for folder in lines)
    print(
        f"\n{sum(lines.values()):,} lines, {len(lines) - loose} folders, {loose} loose modules, {len(arrows)} arrows, ",
        end="",
    )
    print(f"{mutual} back and forth, {modules_behind(f'{PACKAGE}.runs.run')} modules behind {PACKAGE}.runs.run")
    if options.mermaid:
        print("\n```mermaid\ngraph TD")
        for frm, to in sorted(without_implied(arrows)):
            print(f"  {frm} --> {to}")
        print("```")


def lines_of(package: Path) -> Mapping[str, int]:
    """Lines of Python by folder; loose modules by their file's name."""
    lines: Counter[str] = Counter()
    for file in package.rglob("*.py"):
        lines[file.relative_to(package).parts[0]] += len(file.read_text(encoding="utf-8").splitlines())
    return lines


def arrows_of() -> set[tuple[str, str]]:
    """(importing folder, imported folder) of all imports within the package."""
    graph = grimp.build_graph(PACKAGE)
    pairs = (
        (folder_of(module), folder_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    )
    return {(frm, to) for frm, to in pairs if frm != to and "__init__.py" not in (frm, to)}


def folder_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__.py"
    is_package = len(parts) > 2 or (Path(str(sys.path[0])) / PACKAGE / parts[1]).is_dir()
    return parts[1] if is_package else f"{parts[1]}.py"


def modules_behind(module: str) -> int:
    """How many modules of the package an import of this one imports, directly or not."""
    return len(grimp.build_graph(PACKAGE).find_upstream_modules(module))


def without_implied(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows without which something would no longer be reached."""

    def reaches(start: str, end: str, left: set[tuple[str, str]]) -> bool:
        seen, ahead = set(), [start]
        while ahead:
            here = ahead.pop()
            if here == end:
                return True
            if here not in seen:
                seen.add(here)
                ahead += [to for frm, to in left if frm == here]
        return False

    kept = set(arrows)
    for arrow in sorted(arrows):
        if reaches(*arrow, kept - {arrow}):
            kept.discard(arrow)
    return kept


if __name__ == "__main__":
    main()
