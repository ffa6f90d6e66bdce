import re
from xml.etree import ElementTree

import matplotlib
import pytest
import torch

from varlora.metrics import reliability_bins
from varlora.report import Comparison
from varlora.report.figures import VARIABLES, reliability_diagrams, risk_coverage_curves

SVG = "{http://www.w3.org/2000/svg}"


def figures(comparison: Comparison) -> dict[str, str]:
    runs = {method: comparison.runs(method, "test") for method in comparison.methods}
    return {**reliability_diagrams(runs), "curves": risk_coverage_curves(runs)}


@pytest.mark.parametrize("which", ["comparison", "hostile"])
def test_well_formed_labelled_and_coloured_by_the_page(which: str, request: pytest.FixtureRequest) -> None:
    comparison = request.getfixturevalue(which)
    for name, svg in figures(comparison).items():
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 40
        assert name == "curves" or name in root.get("aria-label", "")
        assert not re.findall(r"#[0-9a-f]{6}\b", svg), "a colour that does not follow the page's scheme"
        assert set(re.findall(r"var\((.*?)\)", svg)) <= set(VARIABLES.values())
        assert "<style" not in svg


def test_text_is_text(hostile: Comparison) -> None:
    texts = {"".join(text.itertext()) for text in ElementTree.fromstring(figures(hostile)["curves"]).iter(f"{SVG}text")}
    assert set(hostile.methods) < texts
    assert "share of the questions answered" in texts


def test_the_same_bytes_and_no_trace_in_matplotlib(comparison: Comparison) -> None:
    before = dict(matplotlib.rcParams)
    assert figures(comparison) == figures(comparison)
    assert dict(matplotlib.rcParams) == before


def test_ids_are_unique_across_figures_and_references_resolve(comparison: Comparison) -> None:
    whole = "".join(figures(comparison).values())
    ids = re.findall(r'id="([^"]*)"', whole)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', whole)) <= set(ids)


def test_the_bars_reach_up_to_the_accuracies_of_the_pooled_seeds(comparison: Comparison) -> None:
    rows = comparison.runs("AdamW", "test")
    confidences, corrects = zip(*((row.examples.confidence, row.examples.correct) for row in rows), strict=True)
    bins = [bin for bin in reliability_bins(torch.cat(confidences), torch.cat(corrects)) if bin.count]
    paths = ElementTree.fromstring(figures(comparison)["AdamW"]).iter(f"{SVG}path")
    bars = [heights(path.get("d", "")) for path in paths if "fill: var(--right)" in path.get("style", "")]
    assert len(bars) == 2 * len(bins)  # accuracies above, counts below
    lengths = torch.tensor([low - high for low, high in bars[: len(bins)]])
    accuracies = torch.tensor([bin.accuracy for bin in bins])
    scale = lengths.sum() / accuracies.sum()
    torch.testing.assert_close(lengths, scale * accuracies, rtol=1e-4, atol=1e-3)


def heights(path: str) -> tuple[float, float]:
    """Lowest and highest place of a path; y grows downwards."""
    ys = [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
    return max(ys), min(ys)
