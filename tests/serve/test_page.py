"""The page of a server, in a real Chromium."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from browsers import chromium
from serving import served
from varlora.predictor.predictor import Predictor
from varlora.serve import ServeSettings, create_app
from varlora.serve.load import LoadOptions, load_models

__all__ = ["chromium"]

PAGE = Path(__file__).resolve().parents[2] / "src" / "varlora" / "serve" / "page"
TEXT = "a fine cat film"


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    html, script, style = ((PAGE / name).read_text() for name in ("index.html", "page.js", "page.css"))
    assert set(re.findall(r"\b(?:src|href)=\"([^\"]*)\"", html)) == {"data:,", "/page.css", "/page.js"}
    assert not re.search(r"<style|\son\w+=|\sstyle=", html)
    assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|\beval\(|new Function", script)
    assert set(re.findall(r"https?://[^\"]+", html + script + style)) == {"http://www.w3.org/2000/svg"}
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in style.split("prefers-color-scheme: dark")[:2])
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= light
    assert light == dark


@pytest.fixture(scope="module")
def keyed(trained: Path) -> Iterator[str]:
    """A server that wants a token."""
    models = load_models({"herds": str(trained)}, LoadOptions(samples=6))
    with served(create_app(models, settings=ServeSettings(api_key="open sesame"))) as url:
        yield url


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page, which fails the test where it complains or asks anybody else."""
    context = chromium.new_context()
    made = context.new_page()
    complaints: list[str] = []
    made.on("console", lambda message: complaints.append(message.text) if "status of 4" not in message.text else None)
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on(
        "request",
        lambda one: complaints.append(one.url) if not one.url.startswith(("http://127.0.0.1:", "data:")) else None,
    )
    made.set_default_timeout(60_000)
    yield made
    context.close()
    assert not complaints


def shot(page: Any, name: str) -> None:
    """A screenshot, where somebody wants to look at them."""
    if folder := os.environ.get("VARLORA_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_person_asks_and_sees_how_sure_it_is(
    page: Any, address: str, predictor: Predictor, width: int, scheme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    page.locator("#answer").wait_for()
    expected: Any = predictor(TEXT)
    assert page.locator("#verdict").inner_text() == f"{expected.label} with probability {expected.probability:.3f}"
    bars = page.locator(".bar")
    assert bars.count() == 2
    assert bars.first.locator(".name").inner_text() == expected.label
    assert bars.first.locator("line").count() == 6
    assert f"{expected.entropy:.3f} nats" in page.locator("#numbers").inner_text()
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("#abstain-row").inner_text() == "This one: not answered."
    for _ in range(100 - int(100 * expected.probability)):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#abstain-row").inner_text() == "This one: answered."
    card = httpx.get(f"{address}/v1/models/herds").json()["varlora"]["abstention"]
    share = 100 * card["answered"][int(100 * expected.probability)]
    assert page.locator("#abstain-run").inner_text().startswith(f"Of 48 validation rows {share:.1f} % are answered")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shot(page, f"classify-{width}-{scheme}")
    page.get_by_role("radio", name="Write").check()
    page.get_by_label("Draws that vote").fill("6")
    page.get_by_label("Most new tokens").fill("3")
    page.get_by_role("button", name="Ask").click()
    page.locator("#written").wait_for()
    assert "6 draws of the weights wrote" in page.locator("#spread-note").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    shot(page, f"write-{width}-{scheme}")


@pytest.mark.browser
def test_a_question_typed_before_the_models_are_known_waits_for_them(page: Any, address: str) -> None:
    held: list[Any] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.goto(address)
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    page.get_by_text("Asking…").wait_for()
    assert not page.get_by_role("alert").is_visible()
    held.pop().continue_()
    page.locator("#answer").wait_for()
    assert page.locator(".bar").count() == 2


@pytest.mark.browser
@pytest.mark.parametrize("refused", [False, True], ids=["answered", "refused"])
def test_what_comes_of_another_task_than_the_chosen_one_is_not_shown(page: Any, address: str, refused: bool) -> None:
    held: list[Any] = []
    page.route("**/v1/classify", lambda route: held.append(route))
    page.goto(address)
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("Asking…").wait_for()
    page.get_by_role("radio", name="Write").check()
    if refused:
        held.pop().fulfill(status=422, json={"error": {"message": "out of order"}})
    else:
        held.pop().continue_()
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    assert not page.locator("#answer").is_visible()
    assert not page.get_by_role("alert").is_visible()


@pytest.mark.browser
def test_a_mistake_and_hostile_words_stay_words(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_label("Text", exact=True).fill("   ")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").wait_for()
    assert "not empty" in page.get_by_role("alert").inner_text()
    page.get_by_label("Text", exact=True).fill("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Ask").click()
    page.locator("#answer").wait_for()
    assert not page.get_by_role("alert").is_visible()
    page.locator(".bar").first.wait_for()


@pytest.mark.browser
def test_everything_has_a_name_and_the_keyboard_reaches_it(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("button", name="Ask").wait_for()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea')].filter((o) => !o.labels.length).map((o) => o.id)"
    )
    assert unnamed == []
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
    assert [one for one in ("model", "classify", "text", "send") if one not in reached] == []


@pytest.mark.browser
def test_a_server_with_a_token_is_asked_with_it(page: Any, keyed: str) -> None:
    page.goto(keyed)
    page.get_by_label("API key").wait_for()
    assert page.get_by_role("button", name="Ask").is_disabled()
    page.get_by_label("API key").fill("open sesame")
    page.keyboard.press("Enter")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_role("button", name="Ask").click()
    page.locator("#answer").wait_for()
    assert page.locator(".bar").count() == 2
