"""The report's pictures as inline SVG: reliability diagrams with confidence histograms, risk-coverage curves.

Drawn by matplotlib without its global state. The SVG takes its colours from the page's CSS variables, its font from
the page, and is the same byte for byte for the same data.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varlora.metrics import ReliabilityBin, reliability_bins
from varlora.report.rows import Row

BINS = 15
FEW = 10
"""A bin with fewer answers than this is drawn pale: its accuracy is mostly chance."""

# Colours that no other part of a figure has; each becomes var(--name) in the SVG.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
RIGHT, WRONG, GAP = "#040404", "#050505", "#060606"
SERIES = tuple(f"#1010{index:02d}" for index in range(8))
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    RIGHT: "--right",
    WRONG: "--wrong",
    GAP: "--gap",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES)},
}
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "solid",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (9, 3)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
    (0, (2, 3)),
    (0, (8, 2, 2, 2, 2, 2)),
)

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the layout is the same on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "hatch.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": False,
}


def reliability_diagrams(runs: Mapping[str, Sequence[Row]], *, prefix: str = "reliability") -> dict[str, str]:
    """One SVG per method: accuracy against confidence, and below it how often each confidence was stated.

    The seeds' answers are pooled. The lower panel stacks right answers on wrong ones, as shares of all answers, on
    the same scale for every method.

    Args:
        runs: A method's runs on one split, by its name.
        prefix: Of the ids within the SVGs; must be another for other SVGs of the same page.
    """
    bins = {name: pooled_bins(rows) for name, rows in runs.items()}
    tallest = max(bin.count / _total(all_bins) for all_bins in bins.values() for bin in all_bins)
    return {
        name: _reliability_diagram(bins[name], name=name, tallest=tallest, prefix=f"{prefix}-{index}")
        for index, name in enumerate(runs)
    }


def risk_coverage_curves(runs: Mapping[str, Sequence[Row]], *, prefix: str = "risk-coverage") -> str:
    """One SVG of all methods: the share of wrong answers if only the surest are given, the mean over seeds.

    Args:
        runs: A method's runs on one split, by its name.
        prefix: Of the ids within the SVG; must be another for other SVGs of the same page.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.6))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.165, right=0.955, top=0.97, bottom=0.135)
        ends = []
        top = 0.0
        for index, (name, rows) in enumerate(runs.items()):
            repeats, place = divmod(index, len(SERIES))
            colour, dash = SERIES[place], DASHES[(place + repeats) % len(DASHES)]
            coverage, risk = mean_risk(rows)
            shown = thinned(coverage)
            axes.plot(coverage[shown], risk[shown], color=colour, linestyle=dash, linewidth=1.7)
            ends.append(f"{name} {risk[len(risk) // 2]:.0%} at half, {risk[-1]:.0%} at all")
            top = max(top, float(risk[shown].max()))
        # Room above the curves for the legend, which stands where they are lowest.
        ceiling = max(0.02, top * (1.08 + 0.085 * len(runs)))
        axes.set(xlim=(0, 1), ylim=(0, ceiling), xlabel="share of the questions answered", ylabel="wrong answers")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        _percent_ticks(axes, x=(0, 0.25, 0.5, 0.75, 1), y=[tick for tick in _steps(ceiling) if tick <= 1])
        axes.legend(
            axes.get_lines(),
            list(runs),
            loc="upper left",
            frameon=False,
            handlelength=3.2,
            borderaxespad=0.2,
            labelspacing=0.35,
        )
        label = f"Share of wrong answers among the surest answers. {'; '.join(ends)}"
        return _inline_svg(figure, label=label, prefix=prefix)


def pooled_bins(rows: Sequence[Row]) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram of all seeds' answers together."""
    confidence, correct = (
        torch.cat([getattr(row.examples, name) for row in rows]) for name in ("confidence", "correct")
    )
    return reliability_bins(confidence, correct, bins=BINS)


def mean_risk(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Coverage (N,) and the mean over seeds of the risk at it (N,)."""
    coverage = torch.arange(1, rows[0].examples.number + 1, dtype=torch.float64) / rows[0].examples.number
    return coverage, torch.stack([row.examples.risk for row in rows]).mean(0)


def thinned(coverage_N: torch.Tensor, *, points: int = 160, start: float = 0.05) -> list[int]:
    """Indices of at most `points` places of the curve; below `start` it is the luck of a few answers."""
    first, last = int((coverage_N < start).sum()), len(coverage_N) - 1
    return sorted({first + round((last - first) * i / (points - 1)) for i in range(points)})


def _reliability_diagram(bins: Sequence[ReliabilityBin], *, name: str, tallest: float, prefix: str) -> str:
    total = _total(bins)
    filled = [bin for bin in bins if bin.count]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.0, 3.7))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        figure.subplots_adjust(left=0.235, right=0.94, top=0.975, bottom=0.125, hspace=0.1)
        for bin in filled:
            _draw_gap(upper, bin)
            _draw_counts(lower, bin, total=total)
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
        lower.set(ylim=(0, tallest * 1.04), ylabel="answers", xlabel="confidence")
        _percent_ticks(upper, y=(0, 0.25, 0.5, 0.75, 1))
        _percent_ticks(lower, x=(0, 0.25, 0.5, 0.75, 1), y=(0, _steps(tallest)[-1]))
        upper.tick_params(labelbottom=False)
        figure.align_ylabels()
        label = f"Reliability diagram of {name}. " + "; ".join(
            f"confidence {bin.confidence:.0%}: {bin.accuracy:.0%} right, {bin.count / total:.0%} of the answers"
            for bin in filled
        )
        return _inline_svg(figure, label=label, prefix=prefix)


def _draw_gap(axes: Axes, bin: ReliabilityBin) -> None:
    """A bar up to the accuracy, and the hatched way from there to the confidence."""
    alpha = 1.0 if bin.count >= FEW else 0.3
    width = bin.upper - bin.lower
    axes.bar(bin.lower, bin.accuracy, width, align="edge", color=RIGHT, alpha=alpha, linewidth=0)
    axes.bar(
        bin.lower,
        abs(bin.confidence - bin.accuracy),
        width,
        bottom=min(bin.accuracy, bin.confidence),
        align="edge",
        facecolor="none",
        edgecolor=GAP,
        hatch="////",
        alpha=alpha,
        linewidth=0.8,
    )
    axes.plot([bin.lower, bin.upper], [bin.accuracy] * 2, color=INK, alpha=alpha, linewidth=1.4)


def _draw_counts(axes: Axes, bin: ReliabilityBin, *, total: int) -> None:
    share, width = bin.count / total, bin.upper - bin.lower
    right = share * bin.accuracy
    axes.bar(bin.lower, right, width, align="edge", color=RIGHT, linewidth=0)
    axes.bar(bin.lower, share - right, width, bottom=right, align="edge", color=WRONG, linewidth=0)


def _total(bins: Sequence[ReliabilityBin]) -> int:
    return sum(bin.count for bin in bins)


def _steps(top: float) -> tuple[float, ...]:
    """Round tick positions from 0 up to `top`: about three, but at least one above 0."""
    step = next((s for s in (0.5, 0.25, 0.2, 0.1, 0.05, 0.02, 0.01) if 2 * s <= top), top)
    return tuple(step * i for i in range(int(top / step + 1e-9) + 1))


def _percent_ticks(axes: Axes, *, x: Sequence[float] = (), y: Sequence[float] = ()) -> None:
    if x:
        axes.set_xticks(x, [f"{tick:.0%}" for tick in x])
    if y:
        axes.set_yticks(y, [f"{tick:.0%}" for tick in y])


def _inline_svg(figure: Figure, *, label: str, prefix: str) -> str:
    """The figure as an <svg> element that can stand beside others in one HTML page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"(id=\"|url\(#|href=\"#)", rf"\1{prefix}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    view_box = re.search(r"viewBox=\"[^\"]*\"", svg)
    assert view_box, "matplotlib writes a viewBox"
    root = (
        f'<svg {view_box[0]} role="img" aria-label="{html.escape(label)}" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return root + svg[svg.index(">") + 1 :]
