import re

import pytest

from varlora.report import Comparison, differences_table, results_table
from varlora.report.latex import escape_latex
from varlora.report.tables import Cell, Number, Table

SPECIAL = r"[\\{}$&#%_^~]"


def read_back(latex: str) -> str:
    """What LaTeX would print: the few commands that `escape_latex` uses, undone by hand."""
    names = {
        "textbackslash": "\\",
        "textasciicircum": "^",
        "textasciitilde": "~",
        "textless": "<",
        "textgreater": ">",
        "textbar": "|",
        "pm": "±",
        "uparrow": "↑",
        "downarrow": "↓",
        "lambda": "λ",
        "tau": "τ",
        "infty": "∞",
    }
    shown = re.sub(r"\$-\$", "−", latex)
    shown = re.sub(r"\$\\(\w+)\$", lambda found: names[found[1]], shown)
    shown = re.sub(r"\\(text\w+)\{\}", lambda found: f"\0{names[found[1]]}", shown)
    shown = re.sub(r"\{([][*])\}", r"\1", shown.replace(r"{\char34}", '"'))
    shown = re.sub(r"(?<!\0)\\([{}$&#%_])", r"\1", shown)
    return shown.replace("\0", "").replace("``", "“").replace("''", "”").replace("--", "–")


@pytest.mark.parametrize(
    "text",
    [
        "50 % of a_b & c ± 1",
        r"\input{secret} $x^2$ ~ #1",
        "a [b] *c* | d < e > f",
        "Accuracy % ↑, NLL ↓, λ/N, τ 0.5",
        '−0.5 to ∞ – “best” "straight"',
        "<script>alert(1)</script>",
        "plain words stay as they are",
    ],
)
def test_what_is_escaped_reads_as_it_was_written(text: str) -> None:
    assert read_back(escape_latex(text)) == text


def test_nothing_special_is_left_bare() -> None:
    escaped = escape_latex("".join(map(chr, range(32, 127))))
    bare = re.sub(r"\\[{}$&#%_]|\\text\w+\{\}|\{[][*]\}|\{\\char34\}", "", escaped)
    assert not re.search(SPECIAL, bare)


def assert_compiles(latex: str, table: Table) -> None:
    """The structure that LaTeX needs: balanced braces and environments, and as many cells as columns in each row."""
    assert re.findall(r"\\(begin|end)\{(\w+)\}", latex) == [
        ("begin", "table"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("end", "table"),
    ]
    unescaped = re.sub(r"\\[{}]", "", latex)
    depth = 0
    for symbol in unescaped:
        depth += {"{": 1, "}": -1}.get(symbol, 0)
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"(?<!\\)\$", latex)) % 2 == 0
    columns = re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", latex)
    assert columns is not None
    assert columns[1] == "l" + "r" * (len(table.headings) - 1)
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) >= 1 + len(table.rows)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1
        assert not re.search(r"(?<!\\)[%#]", row)
    assert [line for line in latex.splitlines() if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]


def test_tables_have_the_structure_that_latex_needs(comparison: Comparison, hostile: Comparison) -> None:
    for one in (comparison, hostile):
        for table in (results_table(one), differences_table(one)):
            assert_compiles(table.to_latex(), table)


def test_the_numbers_of_a_row_are_those_of_the_table(comparison: Comparison) -> None:
    table = results_table(comparison)
    latex = table.to_latex().splitlines()
    for name, cells in table.rows:
        at = next(i for i, line in enumerate(latex) if line.startswith(f"{escape_latex(name)} &"))
        first, second = (latex[at + k].removesuffix(r" \\").split(" & ")[1:] for k in (0, 1))
        for cell, main, detail in zip(cells, first, second, strict=True):
            assert read_back(main.removeprefix(r"\textbf{").removesuffix("}" * cell.strong)) == cell.texts[0]
            assert main.startswith(r"\textbf{") == cell.strong
            assert read_back(detail.removeprefix(r"{\scriptsize ").removesuffix("}")) == cell.texts[1]


def test_a_verdict_stands_out_on_its_own_line() -> None:
    cell = Cell(lines=((Number("1", 1.0),), (Number("+1", 1.0), " better")), verdict="better", verdict_line=1)
    table = Table(caption="", headings=("", "a"), rows=(("x", (cell,)), ("y", (Cell(),))))
    rows = table.to_latex().splitlines()[7:10]
    assert rows == [r"x & 1 \\", r" & {\scriptsize \textbf{+1 better}} \\", r"y & -- \\"]
    assert table.to_markdown().splitlines()[2] == "| x | 1<br>**+1 better** |"
