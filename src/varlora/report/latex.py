"""Text as LaTeX shows it: special characters escaped, the report's symbols as commands of standard LaTeX."""

from __future__ import annotations

from varlora.io.visible import visible

SYMBOLS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",  # as \textquotedbl, but in every font encoding
    "[": "{[}",  # a bracket at the start of a row would be read as the option of the \\ before it
    "]": "{]}",
    "*": "{*}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "√": r"$\surd$",
    "²": r"$^2$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "δ": r"$\delta$",
    "λ": r"$\lambda$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "ξ": r"$\xi$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "‘": "`",
    "’": "'",
    "\N{NO-BREAK SPACE}": "~",
}
"""What needs no package: every command is LaTeX's own."""


def escape_latex(text: str) -> str:
    """`text` so that LaTeX shows it as it is, on one line.

    Letters beyond ASCII stay: LaTeX reads UTF-8, and shows those that its font has.

    Args:
        text: of any kind.

    Example:
        >>> print(escape_latex("50 % of a_b & c ± 1"))
        50 \\% of a\\_b \\& c $\\pm$ 1
    """
    return "".join(SYMBOLS.get(symbol, symbol) for symbol in visible(text).replace("\n", " "))
