"""The page in a browser: at two widths, in light and dark, without JavaScript, by keyboard, live."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from aiolease.stores.memory import MemoryStore
from tests.campaigns import LIMIT
from tests.cli.worlds import NOW, TICK, World
from tests.web.browser import AXE, ERROR, SLOW, chromium, fleet, serving, workers

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture
def address(world: World) -> Iterator[str]:
    """The page of a fleet."""
    fleet(world)
    with serving(MemoryStore(world.server), allow=lambda *_: "alice", refresh=1.0) as address:
        yield address


class Opened:
    """A page that is open, and all that it asked for and complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request))  # noqa: PLW0108 - playwright marks it
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.set_default_timeout(SLOW)

    def go(self, address: str) -> Page:
        self.page.goto(address)
        return self.page


@pytest.fixture
def opened(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """A window of a browser; a parameter says of what kind."""
    options: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}} | getattr(request, "param", {})
    context = browser.new_context(**options)
    yield Opened(context.new_page())
    context.close()


def window(width: int, scheme: str) -> dict[str, Any]:
    return {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}


WINDOWS = [window(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
PATHS = [["", "runs?job=no-such"], ["runs?job=nightly_report"], ["runs?job=nightly_report"], [""]]
"""Each page at each width, and in light and dark: axe takes its time."""


@pytest.mark.parametrize(("opened", "paths"), [*zip(WINDOWS, PATHS, strict=True)], indirect=["opened"])
def test_it_is_accessible_and_fits(opened: Opened, address: str, paths: list[str]) -> None:
    """axe-core finds nothing serious, and nothing is wider than the window."""
    for path in paths:
        page = opened.go(f"{address}{path}")
        page.evaluate(AXE)
        result = page.evaluate("axe.run()")
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in result["violations"]
            if each["impact"] in {"serious", "critical"}
        ]
        assert serious == [], path
        assert len(result["passes"]) > 8
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in {"rgb(246, 247, 246)", "rgb(16, 21, 19)"}


def test_it_is_live(opened: Opened, address: str, world: World) -> None:
    """A takeover is on an open page without a reload; nothing is asked of another host, and nothing is refused."""
    page = opened.go(address)
    page.get_by_text("web1-4711").first.wait_for()
    page.evaluate("window.sameDocument = true")
    page.locator("#job-nightly_report").focus()
    row = world.server.leases["default"]
    world.term(8, NOW, None, "running")
    world.server.leases["default"] = replace(row, holder="web2-815", token=8, elected_at=NOW)
    page.get_by_text("web2-815").first.wait_for()
    assert page.evaluate("window.sameDocument")
    assert page.title().endswith(", term 8 leads")
    assert page.locator("#told").text_content() == page.title()  # read out
    assert page.evaluate("document.activeElement.id") == "job-nightly_report"  # the keyboard stays where it was
    hosts = {urlsplit(request.url).netloc for request in opened.requests}
    assert hosts == {urlsplit(address).netloc}
    assert opened.complaints == []


def test_a_leader_is_killed(opened: Opened, tmp_path: Path) -> None:
    """Of a real fleet: the page of another process shows the next leader and that the last term was lost."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    with workers(tmp_path, url, 2), serving(url) as address:
        page = opened.go(address)
        shows(page, ", term 1 leads")
        holder = page.locator("dd.holder").inner_text()
        os.kill(int(holder.split("-")[-2]), signal.SIGKILL)
        shows(page, ", term 2 leads")
        assert holder != page.locator("dd.holder").inner_text()
        page.locator("rect.lost").wait_for(state="attached")


def shows(page: Page, title: str) -> None:
    """Waits until a page, which nobody reloads, has a title that ends so."""
    deadline = time.monotonic() + LIMIT
    while not page.title().endswith(title):
        assert time.monotonic() < deadline, page.title()
        page.wait_for_timeout(20)


def test_what_is_selected_stays(opened: Opened, address: str, world: World) -> None:
    """Nothing is drawn anew while somebody selects a text, and the page says so."""
    page = opened.go(address)
    page.evaluate("""
        window.looks = window.swaps = 0;
        document.addEventListener("htmx:beforeRequest", () => window.looks++);
        document.addEventListener("htmx:afterSwap", () => window.swaps++);
    """)
    page.locator("dd.holder").select_text()
    world.server.leases["default"] = replace(world.server.leases["default"], holder="web2-815")
    before, looks = page.evaluate("[swaps, looks]")
    while page.evaluate("looks") < looks + 3:  # pytest's own limit ends it
        page.wait_for_timeout(20)
    assert page.evaluate("swaps") <= before + 1  # one may have been under way
    page.get_by_text("This page waits").wait_for()
    page.locator("h1").click()
    page.get_by_text("web2-815").first.wait_for()
    assert page.get_by_text("This page waits").is_hidden()


def test_a_search_is_live(opened: Opened, address: str, world: World) -> None:
    """What is typed filters at once, stays filtered while the page is live, and is in the address."""
    page = opened.go(address)
    page.get_by_role("searchbox").press_sequentially("night")
    page.locator("#job-debt_aging").wait_for(state="detached")
    assert page.url.endswith("?q=night")
    world.run("failed", job="nightly_report", tick=NOW, error="E: another")
    page.get_by_text("E: another").first.wait_for()
    assert page.locator("table.cards tbody tr").count() == 1
    assert page.evaluate("document.activeElement.id") == "q"
    assert [text for text in opened.complaints if not text.startswith("htmx:")] == []  # the look that it overtook


def test_by_keyboard(opened: Opened, address: str, world: World) -> None:
    """From the first line to the page of a job, to one of its runs, and to an action."""
    page = opened.go(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs?job=nightly_report")
    page.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**#why")
    assert page.get_by_text(ERROR).count() > 0
    page.get_by_role("button", name="Run it once now").focus()
    page.keyboard.press("Enter")
    page.get_by_text("it runs at the next heartbeat").wait_for()
    assert world.server.ledgers["default"].jobs["nightly_report"].requested_at is not None
    page.get_by_label("because").fill("see the ticket")
    page.keyboard.press("Enter")
    page.get_by_text("see the ticket").first.wait_for()


@pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript(opened: Opened, address: str, world: World) -> None:
    """It reloads itself, the search is a form, and actions work."""
    page = opened.go(address)
    assert page.locator("noscript meta[http-equiv=refresh]").count() == 1
    page.get_by_role("searchbox").fill("debt")
    page.get_by_role("button", name="Search").click()
    page.locator("#job-debt_aging").click()
    page.get_by_role("button", name="Run again").first.click()
    page.get_by_text("Asked for: it runs again").wait_for()
    assert page.get_by_text("queued").count() > 0
    assert TICK.strftime("%Y-%m-%d") in page.content()


def test_a_server_that_is_gone_is_told(browser: Browser, world: World) -> None:
    """What was seen last stays, and the page says that it is old; it goes on once the server is back."""
    fleet(world)
    context = browser.new_context()
    opened = Opened(context.new_page())
    with serving(MemoryStore(world.server), refresh=0.4) as address:
        page = opened.go(address)
        page.route("**/*", lambda route: route.abort())
        page.get_by_text("does not answer").wait_for()
        assert page.locator("#job-nightly_report").count() == 1
        page.unroute_all(behavior="ignoreErrors")
        page.get_by_text("does not answer").wait_for(state="hidden")
    context.close()
