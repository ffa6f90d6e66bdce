import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from varlora.report import Comparison, Health, PosteriorFacts, RunNotes, reading, render_page, write_page
from varlora.report.health import Agreement, Paired
from varlora.report.scales import ScaleGroup, TensorScale
from varlora.report.seeds import over_seeds

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """What the tests need of a page: text, elements in order, and the numbers of the tables, cell by cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.tables: list[dict[str, dict[str, list[float]]]] = []
        self.open: list[str] = []
        self._row = self._metric = ""
        self._naming = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = dict(attrs)
        self.tags.append((tag, at))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append({})
        if tag == "th" and at.get("scope") == "row":
            self._row, self._naming = "", True
        if tag == "td":
            self._metric = at.get("data-metric") or ""
        if tag == "data" and self._metric:
            numbers = self.tables[-1].setdefault(self._row, {}).setdefault(self._metric, [])
            numbers.append(float(at["value"] or "nan"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "th":
            self._naming = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._naming:
            self._row += data


NOTES = RunNotes(
    task="What is wanted?",
    data=("300 rows",),
    hyperparameters={"IVON": {"effective sample size": 1e7, "target modules": ["q_proj", "v_proj"]}},
    chosen_on_validation={"temperature": "2.6"},
    versions={"torch": "2.13.0"},
    command="varlora demo --seed 21",
)
POSTERIOR = PosteriorFacts(
    num_weights=98304,
    hessian_moved=0.031,
    ess=1e6,
    num_examples=300,
    pruned_fraction=0.1,
)
HEALTH = Health(
    kind="diagonal_gaussian",
    method="ivon",
    draws=10,
    sampling=Paired(difference=0.01, standard_error=0.02),
    one_draw=Paired(difference=0.07, standard_error=0.01),
    sampling_rows=150,
    validation_rows=150,
    agreement=Agreement(rows=150, single=0.97, all_draws=0.9, mutual_information=0.02),
    num_examples=300,
    ess=1e6,
    groups=(
        ScaleGroup(
            name="LoRA A",
            tensors=(
                TensorScale(key="base_model.model.model.layers.0.q.lora_A", noise=0.0183, weights=0.0712, entries=8),
            ),
        ),
    ),
)


@pytest.fixture(scope="module")
def html(comparison: Comparison) -> str:
    return render_page(comparison, title="A report", notes=NOTES, posterior=POSTERIOR, health=HEALTH, version="0.1.0")


def test_numbers_parse_back_to_those_of_to_dict(comparison: Comparison, html: str) -> None:
    tables = [table for table in Page(html).tables if table]  # with exact numbers of a metric
    splits = comparison.to_dict()["splits"]
    assert len(tables) == 2 * len(splits)
    for number, split in enumerate(splits.values()):
        results, differences = tables[2 * number : 2 * number + 2]
        for name, method in split["methods"].items():
            for metric, estimate in method["metrics"].items():
                assert results[name][metric] == [estimate[key] for key in ("mean", "se", "low", "high")]
            for metric, difference in method["differences"].items():
                spread = over_seeds(difference["per_seed"])
                numbers = [difference["value"], spread.se, difference["low"], difference["high"]]
                of_seeds = [] if spread.low is None else [spread.low, spread.high]
                assert differences[name][metric] in ([*numbers, *of_seeds], numbers[:2])
        assert "AdamW" not in differences


def test_self_contained_without_script_or_network(html: str) -> None:
    page = Page(html)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "form"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not any("//" in (attributes.get(name) or "") for name in ("src", "href", "xlink:href", "style"))
    assert not re.search(r"@import|@font-face|url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_says_what_was_found_and_how(comparison: Comparison, html: str) -> None:
    text = " ".join(Page(html).text.split())
    for split in comparison.splits:
        assert reading(comparison, split=split) in text
    assert "N is 300, so λ/N = 3,330: no distance from Bayes' rule" in text  # h moved by 3.1 %
    assert "3.1 %" in text
    assert "not learned" in text
    for words in ("10,000,000", "q_proj, v_proj", "varlora demo --seed 21", "torch 2.13.0", "2.6", "98,304", "0.26"):
        assert words in text


def test_says_how_the_posterior_does(html: str) -> None:
    text = " ".join(Page(html).text.split())
    section = text.partition("Health of the posterior")[2].partition("How it was run")[0]
    for words in (
        "Sampling gives no gain here (validation NLL +0.01 ± 0.02, both at T = 1): use the mean (samples=0), it is ten "
        "times cheaper.",
        "varlora tune RUN chooses how to predict with it on the 150 validation rows.",
        "+0.07 ± 0.01",
        "97.0 %",
        "λ/N",
        "3,330",
        "LoRA A (1)",
        "0.26",
    ):
        assert words in section, words
    assert "<code>varlora tune RUN</code>" in html


def test_every_colour_is_defined_for_light_and_dark(html: str) -> None:
    used = set(re.findall(r"var\((--[\w-]+)\)", html))
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in html.split("prefers-color-scheme: dark")[:2])
    assert used <= light
    assert light <= dark


def test_hostile_names_stay_text(hostile: Comparison) -> None:
    notes = RunNotes(command="</code><script>", hyperparameters={"<b>": {"<u>": "<s>"}})
    page = Page(render_page(hostile, title="<h6>&amp;", notes=notes))
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"script", "b", "h6", "u", "s", "i"}
    for name in (*hostile.methods, "<h6>&amp;", "</code><script>", "<i>task</i>"):
        assert name in page.text


def test_the_same_bytes(comparison: Comparison, html: str) -> None:
    assert html == render_page(
        comparison, title="A report", notes=NOTES, posterior=POSTERIOR, health=HEALTH, version="0.1.0"
    )


def test_without_notes_posterior_or_reference(comparison: Comparison) -> None:
    rows = [row for row in comparison.rows if row.method == "AdamW"]
    alone = Comparison(task="t", rows=rows, reference=None, resamples=40)
    page = Page(render_page(alone, title="Alone"))
    assert len([table for table in page.tables if table]) == 2
    assert "The posterior" not in page.text
    assert "Health" not in page.text


def test_a_failed_write_leaves_the_old_page(comparison: Comparison, tmp_path: Path, monkeypatch: Any) -> None:
    path = write_page(comparison, tmp_path / "new" / "report.html", title="First")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_page(comparison, path, title="Second")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_in_chromium(comparison: Comparison, tmp_path: Path, width: int) -> None:
    """Headless Chromium has no window narrower than 500 pixels, so the page stands in a frame of its own width."""
    write_page(comparison, tmp_path / "report.html", title="A report", notes=NOTES, posterior=POSTERIOR, health=HEALTH)
    (tmp_path / "frame.html").write_text(
        f'<iframe src="report.html" style="width:{width}px;height:3000px"></iframe><p id="out"></p><script>onload=()=>'
        '{const d=document.querySelector("iframe").contentDocument;'
        'const wide=[...d.querySelectorAll(".scroll, body, svg")].filter(e=>e.scrollWidth>e.clientWidth+1).length;'
        'document.querySelector("#out").textContent=`overflowing: ${wide}`}</script>'
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--disable-sync"]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-quic"]
    dumped = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,3000", "--dump-dom",
         (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "overflowing: 0" in dumped.stdout
