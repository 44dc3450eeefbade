"""The page in a real browser: it plays, loads nothing, fits a phone, and works by keyboard.

Needs Debian's `chromium`, or another browser of its kind on the path. Where there is none the tests
are skipped, except in CI, which sets STAGECLI_BROWSER_REQUIRED.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.run_directories import make_run, regime_run
from helpers.samples import add_prompts, add_restored
from playwright.sync_api import Browser, Page, Route, sync_playwright

from stagecli.report.html import html_page
from stagecli.report.run_report import read_run

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--mute-audio", "--autoplay-policy=no-user-gesture-required"),
)
WIDTHS = (390, 1280)
OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
PLAY_ALL = """async () => {
  const players = [...document.querySelectorAll('audio')];
  await Promise.all(players.map(player => new Promise((resolve, reject) => {
    player.addEventListener('ended', resolve);
    player.addEventListener('error', () => reject(player.error.message));
    player.play().catch(reject);
  })));
  return players.map(player => player.duration);
}"""
SIZES = "[...document.images].map(image => [image.naturalWidth, image.alt])"
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  return [...document.body.querySelectorAll('*')]
    .filter(one => !one.closest('.scroll, .strip, svg *'))
    .filter(one => one.getBoundingClientRect().right > width + 1)
    .map(one => one.outerHTML.slice(0, 80));
}"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
FOCUSED = "document.activeElement.tagName + ' ' + document.activeElement.className"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None and os.environ.get("STAGECLI_BROWSER_REQUIRED"):
        pytest.fail("no Chromium on the path: apt-get install chromium")
    if program is None:
        pytest.skip("no Chromium on the path to open the page in")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages: of one run, of a t2a and an sr run with long names, and of a run without anything."""
    folder = tmp_path_factory.mktemp("pages")
    heard = regime_run(folder / "heard")
    add_prompts(heard, range(100, 801, 100), ["a bell", "a dog " * 30], seconds=0.2)
    restored = make_run(folder / "restored", task="sr", name="restored-" * 20)
    add_restored(restored, [500, 1000], ["audio/" + "long_name_" * 20 + ".wav"], seconds=0.2)
    for run in (heard, restored):
        (run / "recipe.toml").write_text(f'[data]\npath = "{"folder/" * 40}{run.name}"\n')
    empty = make_run(folder / "empty", steps=0)
    pages = {"one": [heard], "two": [heard, restored], "empty": [empty]}
    for name, runs in pages.items():
        text = html_page([read_run(run) for run in runs])
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@dataclass
class Opened:
    """A page in the browser; problems: what it wrote to the console or asked the network for."""

    page: Page
    problems: list[str] = field(default_factory=list)


def opened(browser: Browser, file: Path, **options: Any) -> Opened:
    width = options.pop("width", 1280)
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    result = Opened(page)

    def refuse(route: Route) -> None:
        if route.request.url == file.as_uri():
            route.continue_()
        else:
            result.problems.append(f"request: {route.request.url[:80]}")
            route.abort()

    page.route("**/*", refuse)
    page.on("console", lambda message: result.problems.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: result.problems.append(f"error: {error}"))
    page.goto(file.as_uri())
    page.evaluate(OPEN_ALL)
    return result


@pytest.mark.parametrize("name", ["one", "two"])
def test_every_player_plays_to_its_end_and_every_picture_is_there(
    browser: Browser, files: dict[str, Path], name: str
) -> None:
    result = opened(browser, files[name])
    durations = result.page.evaluate(PLAY_ALL)
    assert len(durations) == {"one": 2 * 9, "two": 2 * 9 + 4}[name]
    assert all(duration == pytest.approx(0.2, abs=0.1) for duration in durations)
    pictures = result.page.evaluate(SIZES)
    assert len(pictures) == len(durations)
    assert all(width == 320 and alt.startswith("Spectrogram of ") for width, alt in pictures)
    assert result.problems == []
    result.page.close()


@pytest.mark.parametrize("name", ["one", "two", "empty"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(
    browser: Browser, files: dict[str, Path], name: str, width: int
) -> None:
    result = opened(browser, files[name], width=width)
    assert result.page.evaluate("document.documentElement.scrollWidth") <= width
    assert result.page.evaluate(TOO_WIDE) == []
    result.page.emulate_media(media="print")
    assert result.page.evaluate("document.documentElement.scrollWidth") <= width
    assert result.problems == []
    result.page.close()


def test_the_page_is_light_or_dark_as_the_reader_has_it(
    browser: Browser, files: dict[str, Path]
) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        result = opened(browser, files["one"], color_scheme=scheme)
        shades[scheme] = result.page.evaluate(BACKGROUND)
        result.page.emulate_media(media="print")
        assert result.page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
        result.page.close()
    assert shades == {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 24)"}


def test_everything_is_reached_by_keyboard_and_named(
    browser: Browser, files: dict[str, Path]
) -> None:
    result = opened(browser, files["two"])
    page = result.page
    focused = []
    for _ in range(24):
        page.keyboard.press("Tab")
        focused.append(page.evaluate(FOCUSED))
    assert {"A ", "SUMMARY ", "DIV strip", "AUDIO "} <= set(focused)
    headings = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(one => Number(one.tagName[1]))"
    )
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(headings, headings[1:], strict=False))
    unnamed = page.evaluate(
        "document.querySelectorAll('audio:not([aria-label]), svg:not([aria-label]),"
        " [role=group]:not([aria-label]), img:not([alt])').length"
    )
    assert unnamed == 0
    page.close()
