"""A study in sections of words and tables, as Markdown, LaTeX, and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from varlora.metrics import HEADLINE
from varlora.report.latex import escape_latex
from varlora.report.markdown import escape_markdown
from varlora.report.reading import reading
from varlora.report.study import Block, Study
from varlora.report.study_tables import (
    check_splits,
    completions_table,
    costs_table,
    detection_table,
    frontier_table,
    overview_table,
    record_table,
    study_splits,
)
from varlora.report.tables import Table, differences_table, results_table


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what belongs under it.

    Attributes:
        title: of the section.
        texts: paragraphs.
        tables: below them.
    """

    title: str
    texts: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def study_sections(study: Study, *, splits: Sequence[str] | None = None) -> tuple[Section, ...]:
    """Everything that a study says in words and tables.

    Args:
        study: What was found.
        splits: Which splits to show; all of them by default.

    Raises:
        ValueError: No block has one of the splits.
    """
    check_splits(study, splits)
    blocks = [_block_section(study, block, splits) for block in study.blocks]
    return (*_all_tasks(study, splits), *blocks, *_missing(study))


def study_markdown(study: Study, *, splits: Sequence[str] | None = None) -> str:
    """The study as a Markdown document; arguments and errors as of `study_sections`."""
    parts = [f"# {escape_markdown(study.name)}"]
    for section in study_sections(study, splits=splits):
        texts = [escape_markdown(text) for text in section.texts]
        parts += [f"## {escape_markdown(section.title)}", *texts, *(table.to_markdown() for table in section.tables)]
    return "\n\n".join(parts) + "\n"


def study_latex(study: Study, *, splits: Sequence[str] | None = None) -> str:
    r"""The study as LaTeX, to be read by `\input`: headings, paragraphs and floating tables.

    The document needs `\usepackage{booktabs}`. Arguments and errors as of `study_sections`.
    """
    parts = [r"% needs \usepackage{booktabs}"]
    for section in study_sections(study, splits=splits):
        texts = [escape_latex(text) for text in section.texts]
        parts += [
            rf"\subsection*{{{escape_latex(section.title)}}}",
            *texts,
            *(table.to_latex() for table in section.tables),
            r"\clearpage",  # LaTeX holds only so many floats at a time
        ]
    return "\n\n".join(parts) + "\n"


def print_study(study: Study, console: Console, *, splits: Sequence[str] | None = None) -> None:
    """The study on a terminal; arguments and errors as of `study_sections`."""
    for section in study_sections(study, splits=splits):
        console.print(Text(section.title, style="bold"))
        for text in section.texts:
            console.print(Text(text))
        for table in section.tables:
            console.print(table.to_rich())
        console.print()


def _all_tasks(study: Study, splits: Sequence[str] | None) -> list[Section]:
    """Each headline metric over the tasks that share a split."""
    sections = []
    for split in study_splits(study):
        comparisons = [comparison for _, comparison in study.compared(split)]
        if len(comparisons) > 1 and split in (splits or [split]):
            metrics = [m for m in HEADLINE if all(m in comparison.metrics for comparison in comparisons)]
            tables = tuple(overview_table(study, split=split, metric=metric) for metric in metrics)
            if any(len(comparison.methods) > 1 for comparison in comparisons):
                tables = (*tables, record_table(study, split=split, metrics=metrics))
            sections.append(Section(title=f"All tasks on {split}", tables=tables))
    return sections


def _block_section(study: Study, block: Block, splits: Sequence[str] | None) -> Section:
    texts = list(block.notes)
    tables = []
    comparison = block.comparison
    for split in comparison.splits if comparison is not None else ():
        if comparison is not None and split in (splits or [split]):
            texts.append(reading(comparison, split=split))
            tables.append(results_table(comparison, split=split, metrics=comparison.metrics))
            if comparison.has_differences:
                tables.append(differences_table(comparison, split=split, metrics=comparison.metrics))
    tables += [completions_table(block, split) for split in block.completions if split in (splits or [split])]
    tables += [detection_table(block, split) for split in block.detection if split in (splits or [split])]
    tables += [
        frontier_table(frontier) for frontier in block.frontiers if frontier.split in (splits or [frontier.split])
    ]
    if block.costs:
        tables.append(costs_table(block.costs))
    if comparison is None and not block.completions:
        texts.append("There is nothing to compare yet.")
    return Section(title=f"{block.task}, {block.model}", texts=tuple(texts), tables=tuple(tables))


def _missing(study: Study) -> list[Section]:
    texts = [f"{block.task}, {block.model}: {words}" for block in study.blocks for words in block.missing]
    if study.mixed_code:
        texts.append(
            "The runs were made by more than one version of the code, so they may differ for that reason: "
            f"{', '.join(study.code_versions)}."
        )
    return [Section(title="What is missing", texts=tuple(texts))] if texts else []
