"""The interactive page: as bytes, and opened in a real Chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsers import chromium
from report.made_up import CLASSES, HOSTILE, made_up_study
from varlora.report import Comparison
from varlora.report.health_text import remarks, sentence, statements
from varlora.report.study import Study
from varlora.report.study_data import study_data
from varlora.report.study_page import render_study, write_study

__all__ = ["chromium"]


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return render_study(study, version="0.1.0")


def embedded(html: str) -> Any:
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_json_is_the_studys_own(study: Study, html: str) -> None:
    assert embedded(html) == study_data(study)


def test_the_same_bytes(study: Study, html: str) -> None:
    assert html == render_study(study, version="0.1.0")


def test_the_policy_lets_only_its_own_script_run(html: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1] == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_nothing_comes_from_elsewhere(html: str) -> None:
    assert not re.search(r"<(link|img|iframe|object|embed|base|form)\b", html)
    assert not re.search(r"\b(src|href|action)\s*=", html)
    assert not re.search(r"@import|@font-face|url\((?!#)|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", html)
    assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write", html)
    addresses = set(re.findall(r"https?://[^\"'\s)<]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_every_colour_is_defined_for_light_and_dark(html: str) -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in html.split("prefers-color-scheme: dark")[:2])
    assert used <= light
    colours = re.search(r"const COLOURS = (\d+);", html)
    assert colours is not None
    assert {f"--series-{i}" for i in range(int(colours[1]))} <= light
    assert light <= dark


def test_hostile_words_cannot_leave_their_place(comparison: Comparison) -> None:
    html = render_study(made_up_study(comparison, hostile=True))
    assert html.count("<script") == html.count("</script") == 2
    data = embedded(html)
    assert data["name"] == HOSTILE
    assert HOSTILE in data["blocks"][0]["examples"][0]["prompt"]


def test_the_page_stays_small(html: str) -> None:
    assert len(html.encode()) < 300_000


def test_a_file_is_replaced_only_if_it_may_be(study: Study, html: str, tmp_path: Path) -> None:
    path = write_study(study, tmp_path / "new" / "page.html", version="0.1.0")
    assert path.read_text(encoding="utf-8") == html
    with pytest.raises(ValueError, match="exists"):
        write_study(study, path, overwrite=False)
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


class Opened:
    """A page of a browser, and what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.context = browser.new_context()
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.address = file.as_uri()
        self.load()

    def load(self, *, width: int = 1280, scheme: str = "light") -> None:
        """As if newly opened; a new context would cost a second."""
        self.page.goto("about:blank")
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(media="screen", color_scheme=scheme)
        self.requests.clear()
        self.complaints.clear()
        self.page.goto(self.address)

    def close(self) -> None:
        self.context.close()

    def tabs(self) -> list[str]:
        return self.page.locator("[role=tab]").all_inner_texts()  # type: ignore[no-any-return]

    def open(self, tab: str) -> Any:
        self.page.get_by_role("tab", name=tab, exact=True).click()
        return self.page.locator("[role=tabpanel]:not([hidden])")

    def numbers(self, panel: Any, table: int = 0) -> dict[str, list[list[float]]]:
        """The exact numbers of a table: by row, and in it by cell."""
        rows = panel.locator("table").nth(table).locator("tbody tr")
        found: dict[str, list[list[float]]] = rows.evaluate_all(
            "rows => Object.fromEntries(rows.map(row => [row.cells[0].textContent, [...row.cells].slice(1).map("
            "cell => [...cell.querySelectorAll('data')].map(d => d.hasAttribute('value') ? Number(d.value) : null))]))"
        )
        return found


@pytest.fixture(scope="module")
def file(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def window(chromium: Any, file: Path) -> Iterator[Opened]:
    made = Opened(chromium, file)
    yield made
    made.close()


@pytest.fixture
def opened(window: Opened) -> Iterator[Opened]:
    window.load()
    yield window
    assert window.complaints == []
    assert {url.partition("#")[0] for url in window.requests} == {window.address}


@pytest.mark.browser
def test_tabs_switch_and_their_numbers_are_the_studys(opened: Opened, study: Study) -> None:
    assert opened.tabs() == [
        "All tasks",
        "Results",
        "Calibration",
        "Risk–coverage",
        "Frontier",
        "Examples",
        "Posterior",
        "Training, cost",
        "About",
    ]
    for block, split in ((0, "test"), (0, "other words"), (1, "test")):
        opened.page.select_option("#block", str(block))
        if block == 0:
            opened.page.select_option("#split", split)
        shown = opened.numbers(opened.open("Results"))
        comparison = study.blocks[block].comparison
        assert comparison is not None
        for method, summary in comparison.summary(split).items():
            for metric, numbers in zip(comparison.metrics, shown[method], strict=True):
                estimate = summary.metrics[metric]
                expected = [estimate.mean, estimate.se, estimate.low, estimate.high]
                if method != comparison.reference:
                    difference = summary.differences[metric]
                    seeds = difference.over_seeds
                    told = [difference.value, seeds.se, difference.low, difference.high, seeds.low, seeds.high]
                    expected += told[: len(numbers) - 4]
                assert numbers == expected


@pytest.mark.browser
def test_a_verdict_has_a_mark_beside_its_colour(opened: Opened, study: Study) -> None:
    panel = opened.open("Results")
    marks = {"better": "▲", "worse": "▼", "equal": "=", "unclear": "○"}
    for verdict, mark in marks.items():
        for text in panel.locator(f".verdict.{verdict}").all_inner_texts():
            assert text.startswith(mark)
    assert panel.locator(".verdict.better").count() > 0


@pytest.mark.browser
def test_columns_sort_best_first_then_worst_first_then_as_they_were(opened: Opened) -> None:
    panel = opened.open("Results")
    heading = panel.locator("table").first.get_by_role("button", name="NLL ↓")
    seen = []
    for _ in range(3):
        heading.click()
        cells = panel.locator("table").first.locator("tbody tr td:nth-child(3)")  # the second of the metrics
        seen.append([float(cell.locator("data").first.get_attribute("value")) for cell in cells.all()])
    assert seen[0] == sorted(seen[0])
    assert seen[1] == seen[0][::-1]
    assert seen[2] == [seen[0][2], seen[0][1], seen[0][0]]  # AdamW is the worst, and the first row


@pytest.mark.browser
def test_keyboard_alone_is_enough(opened: Opened, study: Study) -> None:
    page = opened.page
    page.get_by_role("tab", name="All tasks").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "Risk–coverage"
    assert "tab=selective" in page.url
    page.locator("#panel-selective svg.chart").focus()
    page.keyboard.press("ArrowLeft")  # the last point of the last method: its error rate
    comparison = study.blocks[0].comparison
    assert comparison is not None
    *_, last = comparison.methods
    error = 100 * (1 - comparison.summary("test")[last].metrics["accuracy"].mean)
    assert page.locator("#panel-selective .readout").inner_text() == (
        f"{last}: {error:.1f}\u00a0% wrong when the surest 100.0\u00a0% are answered."
    )


@pytest.mark.browser
def test_a_method_switched_off_is_gone_from_the_figures(opened: Opened) -> None:
    panel = opened.open("Calibration")
    assert panel.locator("figure").count() == 3
    panel.get_by_role("button", name="AdamW", exact=True).click()
    assert panel.locator("figcaption").all_inner_texts() == ["AdamW + temperature", "IVON, 10 samples"]
    assert opened.open("Risk–coverage").locator("svg.chart path").count() == 2


@pytest.mark.browser
def test_the_pointer_reads_a_bar(opened: Opened, study: Study) -> None:
    figure = opened.open("Calibration").locator("figure").nth(1)
    chart = figure.locator("svg.chart")
    box = chart.bounding_box()
    chart.hover(position={"x": 54 + (box["width"] - 76) * 0.7, "y": 100})  # bin (10/15, 11/15]
    bin = study_data(study)["blocks"][0]["splits"]["test"]["bins"]["AdamW + temperature"][10]
    assert f"{bin['right']} right and {bin['wrong']} wrong of 240 answers" in figure.locator(".readout").inner_text()


@pytest.mark.browser
def test_examples_are_ranked_and_filtered(opened: Opened, study: Study) -> None:
    panel = opened.open("Examples")
    opened.page.select_option("#method", "IVON, 10 samples")
    answers = {e.id: e.probabilities["IVON, 10 samples"] for e in study.blocks[0].examples}
    right = {e.id: CLASSES.index(e.label) for e in study.blocks[0].examples}
    wrong = [(max(p), name) for name, p in answers.items() if p.index(max(p)) != right[name]]
    ids = panel.locator("tbody tr th .detail")
    assert ids.all_inner_texts() == [name for _, name in sorted(wrong, reverse=True)[:20]]
    opened.page.select_option("#kind", "doubt")
    doubt = sorted(study.blocks[0].examples, key=lambda e: -e.mutual_information["IVON, 10 samples"])
    assert ids.all_inner_texts() == [example.id for example in doubt[:20]]
    opened.page.fill("#filter", doubt[3].id)
    assert doubt[3].id in ids.all_inner_texts()
    assert "of 20 shown" in panel.locator(".note").first.inner_text()
    assert ids.count() < 20


@pytest.mark.browser
def test_every_tensor_of_a_posterior_has_a_field(opened: Opened, study: Study) -> None:
    panel = opened.open("Posterior")
    assert panel.locator("rect.heat").count() == len(study.blocks[0].scales)
    opened.page.select_option("#quantity", "std")
    panel.locator("svg.chart").focus()
    opened.page.keyboard.press("ArrowRight")
    assert panel.locator(".readout").inner_text() == "q_proj A, layer 0: σ (root mean square) 0.01; 512 entries."


@pytest.mark.browser
def test_the_health_of_each_training_is_told(opened: Opened, study: Study) -> None:
    panel = opened.open("Posterior")
    assert opened.page.locator("#training option").all_inner_texts() == ["ivon, seed 21", "ivon, seed 42"]
    first, second = study.blocks[0].health
    text = " ".join(panel.inner_text().split())
    told = [sentence(first.health), remarks(first.health, first.run)[0].replace("`", "")]
    for words in (*told, *(f"{term} {value} {meaning}." for term, value, meaning in statements(first.health))):
        assert words in text
    assert panel.locator("code").all_inner_texts() == ["varlora tune runs/ivon-21"]
    opened.page.select_option("#training", "ivon, seed 42")
    assert sentence(second.health) in panel.inner_text()
    assert panel.locator("rect.heat").count() == 0  # the study has no tensors of it


@pytest.mark.browser
def test_how_sure_each_is_stands_below_the_results(opened: Opened, study: Study) -> None:
    comparison = study.blocks[0].comparison
    assert comparison is not None
    shown = opened.open("Results").locator("svg.chart text:not([class])").all_text_contents()
    for method, words in zip(comparison.methods, shown, strict=True):
        confidences = [row.examples.confidence for row in comparison.runs(method, "test")]
        sure = sum(float(confidence.mean()) for confidence in confidences) / len(confidences)
        right = comparison.summary("test")[method].metrics["accuracy"].mean
        assert words == f"{method}: right {100 * right:.1f}\u00a0%, sure {100 * sure:.1f}\u00a0%"


@pytest.mark.browser
@pytest.mark.parametrize(("ticks", "shown"), [([0.75, 0.775, 0.8], "75.0 77.5 80.0"), ([0.7, 0.75, 0.8], "70 75 80")])
def test_the_ticks_of_an_axis_have_the_digits_that_tell_them_apart(
    opened: Opened, html: str, ticks: list[float], shown: str
) -> None:
    functions = "\n".join(re.findall(r"^const percent.*$", html, re.MULTILINE))
    words = opened.page.evaluate(f"ticks => {{ {functions}\nreturn ticks.map(percentOf(ticks)) }}", ticks)
    assert words == [f"{number}\u00a0%" for number in shown.split()]


@pytest.mark.browser
def test_a_block_without_results_says_so(opened: Opened) -> None:
    opened.page.select_option("#block", "2")
    assert "There is nothing to compare yet." in opened.open("Results").inner_text()
    assert "IVON, seed 21: not run" in opened.open("Results").inner_text()


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_nothing_is_wider_than_the_window(window: Opened, width: int, scheme: str) -> None:
    window.load(width=width, scheme=scheme)
    for tab in window.tabs():
        window.open(tab)
        assert window.page.evaluate("document.documentElement.scrollWidth") <= width, tab
    paper = window.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(253, 253, 252)") == (scheme == "light")
    assert window.complaints == []


@pytest.mark.browser
def test_on_paper_every_part_is_there(opened: Opened) -> None:
    opened.page.emulate_media(media="print")
    visible = opened.page.locator("[role=tabpanel]:visible")
    assert visible.count() == len(opened.page.locator("[role=tab]").all())
    assert not opened.page.locator("#tabs").is_visible()
    assert "Calibration: first, tiny, test" in opened.page.locator("h2.printed:visible").all_inner_texts()
    assert opened.page.locator("#panel-selective .legend button:visible").count() == 3


@pytest.mark.browser
def test_hostile_words_are_shown_and_not_run(chromium: Any, hostile: Comparison, tmp_path: Path) -> None:
    file = write_study(made_up_study(hostile, hostile=True), tmp_path / "page.html")
    made = Opened(chromium, file)
    try:
        assert made.page.locator("h1").text_content() == HOSTILE
        for tab in made.tabs():
            made.open(tab)
        assert made.page.locator("script").count() == 2
        assert made.page.locator("main :is(b, i, s, u, script)").count() == 0
        for method in hostile.methods:
            assert method in made.page.locator("#panel-results table").first.text_content()
        assert made.complaints == []
    finally:
        made.close()


@pytest.mark.browser
def test_the_policy_is_in_force(window: Opened) -> None:
    window.load()
    refused = window.page.evaluate(
        "new Promise(done => {"
        " document.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));"
        " fetch('https://example.org/').catch(() => 0); setTimeout(() => done('nothing'), 3000); })"
    )
    assert refused == "connect-src"
