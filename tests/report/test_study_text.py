import io
import re

import pytest
from rich.console import Console

from report.made_up import made_up_study
from varlora.report import Comparison, reading
from varlora.report.study import Study
from varlora.report.study_text import print_study, study_latex, study_markdown, study_sections


def printed(study: Study, splits: list[str] | None = None) -> str:
    written = io.StringIO()
    print_study(study, Console(file=written, width=140, force_terminal=False), splits=splits)
    return written.getvalue()


def test_the_sections_are_all_tasks_then_each_then_what_is_missing(study: Study) -> None:
    sections = study_sections(study)
    titles = [section.title for section in sections]
    assert titles[0] == "All tasks on test"
    assert titles[-4:] == ["first, tiny", "second, tiny", "third, tiny", "What is missing"]
    first = study.blocks[0].comparison
    assert first is not None
    section = sections[titles.index("first, tiny")]
    for split in first.splits:
        assert reading(first, split=split) in section.texts
    missing = " ".join(sections[-1].texts)
    for words in ("BLoB, seed 42: failed", "third, tiny: IVON, seed 21", "0123abcd, 4567ef01"):
        assert words in missing


def test_every_rendering_shows_every_cell(study: Study) -> None:
    terminal, markdown = printed(study), study_markdown(study)
    for section in study_sections(study):
        assert section.title in terminal
        assert f"## {section.title}" in markdown
        for table in section.tables:
            assert table.to_markdown() in markdown
            assert table.to_latex() in study_latex(study)
            for name, cells in table.rows:
                assert name in terminal
                for text in (text for cell in cells for text in cell.texts):
                    assert text in terminal


def test_latex_never_holds_many_floats_at_a_time(study: Study) -> None:
    for section in study_latex(study).split(r"\clearpage"):
        assert section.count(r"\begin{table}") <= 18  # what the oldest LaTeX can


def test_a_split_alone(study: Study) -> None:
    def captions(split: str) -> list[str]:
        sections = study_sections(study, splits=[split])
        return [table.caption for section in sections for table in section.tables if "seeds. Rows" not in table.caption]

    assert len(captions("other words")) == 2  # results and differences
    assert all(caption.startswith("other words: 120 examples") for caption in captions("other words"))
    assert [caption.partition(":")[0] for caption in captions("foreign")] == ["foreign", "foreign"]


def test_a_split_that_is_not_there_is_refused(study: Study) -> None:
    with pytest.raises(ValueError, match="there is no split 'valid' here; there are test, other words, foreign"):
        study_sections(study, splits=["valid"])


def test_an_empty_study_says_so() -> None:
    assert study_markdown(Study(name="s", reference="AdamW", blocks=())) == "# s\n"
    with pytest.raises(ValueError, match="there are none yet"):
        study_markdown(Study(name="s", reference="AdamW", blocks=()), splits=["test"])


def test_hostile_names_stay_text(comparison: Comparison) -> None:
    study = made_up_study(comparison, hostile=True)
    assert "<script" not in study_markdown(study)
    latex = study_latex(study)
    assert r"{{ name }}".replace("{", r"\{").replace("}", r"\}") in latex
    assert not re.search(r"(?<!\\)&[^&\\]*</script", latex)
