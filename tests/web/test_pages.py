"""The page: what it shows, what it costs, and that it works under any path."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from aiolease import ConfigurationError, open_store, stores
from aiolease.stores.memory import MemoryStore
from aiolease.web import status_app
from tests.campaigns import LIMIT, until
from tests.cli.worlds import DAY, HOUR, MINUTE, NOW, TICK, World
from tests.web.served import CountedStore, Links, browsing, names_in, page_of, texts_in

MARKUP = "<script>alert('x')</script>&\"quoted\""
SECRET = "s3cr3t-pa55"


def in_trouble(world: World) -> None:
    """A job that fails, one that is overdue, one that is paused, and one that is fine."""
    world.job("report")
    for days in range(3):
        world.run("failed", tick=TICK - days * DAY, error="ValueError: no such customer")
    world.job("late", "every 60s", high_tick=NOW - 30 * MINUTE)
    world.job("still", paused_at=NOW - HOUR, pause_note="see the ticket")
    world.job("fine", "every 60s", high_tick=NOW - MINUTE)
    world.run(job="fine", tick=NOW - MINUTE)
    world.term(6, NOW - 2 * DAY, NOW - DAY - HOUR, "lost", "its lease expired")
    world.term(7, NOW - DAY, None, "running")


async def test_what_is_wrong_stands_first(world: World) -> None:
    """The page says the same as `status`, in the same order, with the command and a link to the job."""
    in_trouble(world)
    async with page_of(world) as client:
        page = (await client.get("/")).text
    first, second = texts_in(page)
    assert "&#39;report&#39; has failed 3 times in a row: ValueError: no such customer" in first
    assert 'href="runs?job=report"' in first
    assert "<code>aiolease why report</code>" in first
    assert "&#39;late&#39; is overdue" in second
    assert page.index("What is wrong") < page.index("Leader") < page.index("Jobs</h2>")
    assert names_in(page) == ["report", "late", "fine", "still"]
    assert "<title>default: 2 wrong, term 7 leads</title>" in page
    assert "see the ticket" in page


async def test_the_terms_are_a_line_of_time(world: World) -> None:
    """Two terms of a day and more with an hour between them, in which nobody led."""
    in_trouble(world)
    async with page_of(world) as client:
        page = (await client.get("/")).text
    assert '<rect class="lost" x="0.0" y="0" width="479.2"' in page
    assert '<rect class="now" x="500.0" y="0" width="500.0"' in page
    assert "was lost: its lease expired" in page


async def test_the_page_of_a_job(world: World) -> None:
    """Its runs with their errors, its next ticks, why it ran or did not; of each run, too."""
    in_trouble(world)
    async with page_of(world) as client:
        page = (await client.get("/runs", params={"job": "report"})).text
        earlier = (await client.get("/runs", params={"job": "report", "at": (TICK - DAY).isoformat()})).text
        missing = await client.get("/runs", params={"job": "no-such"})
    assert "at 09:00, every day, by the clock of America/New_York" in page
    assert "2026-12-01 14:00:00 UTC (09:00 America/New_York)" in page
    assert page.count('<td role="cell" data-label="error" class="error">ValueError: no such customer</td>') == 3
    assert "the last 3 runs: 3 failed or lost" in page
    assert "It fell due at 2026-11-30 14:00:00 UTC" in page
    assert "aiolease rerun report" in page
    assert "It fell due at 2026-11-29 14:00:00 UTC" in earlier
    assert missing.status_code == 404


@pytest.mark.parametrize("job", ["report", "late"])
@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
async def test_the_page_of_a_job_at_a_moment_that_is_too_far_away(world: World, job: str, at: str) -> None:
    """Anybody may write such a link."""
    in_trouble(world)
    async with page_of(world) as client:
        assert (await client.get("/runs", params={"job": job, "at": at})).status_code == 200


async def test_the_page_of_a_job_that_cannot_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong leads to it, so it says the same."""
    in_trouble(world)
    store = CountedStore(world)
    overview = await store.overview("default", [])
    left = {name: each for name, each in overview.jobs.items() if name != "report"}

    async def read(*_: object) -> Any:
        return replace(overview, jobs=left, unreadable={"report": "its schedule is no text"})

    monkeypatch.setattr(store, "overview", read)
    async with browsing(status_app(store)) as client:
        assert 'href="runs?job=report"' in (await client.get("/")).text
        page = await client.get("/runs?job=report")
    assert page.status_code == 404
    assert "its rows cannot be read: its schedule is no text" in page.text


async def test_jobs_that_are_forgotten(world: World) -> None:
    """Also those whose runs before the newest have not been read yet, since ten jobs were before them."""
    for number in range(12):
        world.job(f"job{number:02}")
        world.run(job=f"job{number:02}")
    ledger = world.server.ledgers["default"]
    async with page_of(world) as client:
        assert len(names_in((await client.get("/")).text)) == 12
        del ledger.jobs["job11"], ledger.of("job11")["job11", TICK]
        for _ in range(3):
            await asyncio.sleep(0.1)
            assert len(names_in((await client.get("/")).text)) == 11


async def test_a_thousand_jobs_are_searched_and_filtered(world: World) -> None:
    """A page has a hundred of them, those in trouble first; a search and a state leave those that are looked for."""
    for number in range(1000):
        name = f"job-{number:03}"
        world.job(name, "every 60s", high_tick=NOW - MINUTE, paused_at=NOW - HOUR if number % 100 == 5 else None)
        world.run("failed" if number == 777 else "succeeded", job=name, tick=NOW - MINUTE)
    async with page_of(world) as client:
        page = (await client.get("/")).text
        second = (await client.get("/", params={"page": "2"})).text
        last = (await client.get("/", params={"page": "99999"})).text
        search = (await client.get("/", params={"q": "JOB-12"})).text
        paused = (await client.get("/", params={"state": "paused"})).text
        both = (await client.get("/", params={"state": "paused", "q": "9"})).text
        odd = (await client.get("/", params={"state": "no-such", "page": "-1"})).text
    assert names_in(page)[:2] == ["job-777", "job-000"]
    assert len(names_in(page)) == len(names_in(second)) == 100
    assert "1 to 100 of 1000" in page
    assert names_in(second)[0] == "job-100"  # one that fails is first, and one in a hundred is paused
    assert names_in(last)[-1] == "job-905"
    assert names_in(search) == [f"job-12{digit}" for digit in range(10)]
    assert names_in(paused) == [f"job-{hundred}05" for hundred in range(10)]
    assert 'aria-current="true">paused <b>10</b>' in paused
    assert names_in(both) == ["job-905"]
    assert names_in(odd) == names_in(page)


async def test_ten_pages_cost_the_database_no_more_than_one(world: World) -> None:
    """All open pages of a process share one reading, and nothing is read while nobody looks."""
    in_trouble(world)
    store = CountedStore(world)
    async with browsing(status_app(store, refresh=600.0)) as client:
        await asyncio.gather(*(client.get("/") for _ in range(10)))
        assert store.asked == {"read": 1, "overview": 1, "terms": 1, "history": 2}
        store.asked.clear()
        await asyncio.gather(*(client.get(path) for path in ("/", "/status.json", "/healthz") for _ in range(10)))
        assert store.asked == {}
        await asyncio.gather(*(client.get("/runs?job=report") for _ in range(10)))
        assert store.asked["history"] == 2  # one for `why`
        store.asked.clear()
        await client.get("/runs?job=report")
        assert store.asked == {}


async def test_the_database_is_asked_for_one_job_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pages are open: they share their connection with the election."""
    in_trouble(world)
    store, under_way, most = CountedStore(world), 0, 0
    exchange = store.exchange

    async def slow(method: str, statement: Any) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return await exchange(method, statement)

    async with browsing(status_app(store, refresh=600.0)) as client:
        await client.get("/")
        monkeypatch.setattr(store, "exchange", slow)
        moments = [{"job": "report", "at": (TICK - days * DAY).isoformat()} for days in range(10)]
        pages = await asyncio.gather(*(client.get("/runs", params=moment) for moment in moments))
    assert {page.status_code for page in pages} == {200}
    assert most == 1


async def test_what_changes_is_sent_alone(world: World) -> None:
    """An open page asks for what changes in it, by the same address, and learns when to ask again."""
    in_trouble(world)
    async with page_of(world, refresh=2.0) as client:
        page = await client.get("/?q=re")
        live = await client.get("/?q=re", headers={"HX-Request": "true"})
    assert "<html" in page.text
    assert "<html" not in live.text
    assert live.text.lstrip().startswith("<title>default: 2 wrong, term 7 leads</title>")
    assert 'hx-get="?q=re"' in live.text
    assert 'hx-trigger="every 1' in live.text  # a second and a half, or less
    assert names_in(live.text) == names_in(page.text) == ["report"]
    assert live.headers["vary"] == "HX-Request"


async def test_a_database_that_does_not_answer(world: World) -> None:
    """What was read before stays, and the page says that it is old; at first it says that there is nothing yet."""
    in_trouble(world)
    store = CountedStore(world)
    store.gone = True
    async with browsing(status_app(store, refresh=0.1)) as client:
        assert (await client.get("/")).status_code == 503
        assert (await client.get("/status.json")).status_code == 503
        health = await client.get("/healthz")
        assert (health.status_code, "the connection was refused" in health.text) == (503, True)
        store.gone = False
        await asyncio.sleep(0.1)
        assert "What is wrong" in (await client.get("/")).text
        assert (await client.get("/healthz")).status_code == 200
        store.gone = True
        await asyncio.sleep(0.1)
        page = await client.get("/")
    assert page.status_code == 200
    assert "The database does not answer" in page.text
    assert "What is below is from" in page.text
    assert names_in(page.text)[0] == "report"


async def test_a_database_that_is_slow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that has something older to show does not wait for long, and says so."""
    monkeypatch.setattr("aiolease.web.readings._PATIENCE", 0.05)
    in_trouble(world)
    store, answers = CountedStore(world), asyncio.Event()
    async with browsing(status_app(store, refresh=0.1)) as client:
        await client.get("/")
        await asyncio.sleep(0.1)

        async def slow(*_: object, **__: object) -> None:
            await answers.wait()

        monkeypatch.setattr(store, "status", slow)
        page = await client.get("/")
        assert "it is slow" in page.text
        assert names_in(page.text)[0] == "report"
        answers.set()
        await until(lambda: len(asyncio.all_tasks()) == 1, "the reading has ended")


@pytest.mark.parametrize("path", ["/", "/runs?job=report"])
async def test_a_strict_policy_is_enough(world: World, path: str) -> None:
    """No script and no style is in a page itself, and the policy forbids them."""
    in_trouble(world)
    async with page_of(world, allow=lambda *_: True) as client:
        page = await client.get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert Links(page.text).forbidden == []
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "how", ["alone", "mounted", "mounted twice", "behind a proxy", "with a root path", "with slashes"]
)
async def test_it_works_under_any_path(world: World, how: str) -> None:
    """Every link of a page leads to the page itself, wherever it stands and whoever takes a prefix away."""
    in_trouble(world)
    page = status_app(MemoryStore(world.server), allow=lambda *_: True)
    seen = {"mounted": "/ops/", "mounted twice": "/ops/jobs/", "with slashes": "/ops/jobs/"}.get(how, "/")
    public = {"behind a proxy": "/shop/ops/", "with a root path": "/shop/ops/"}.get(how, seen)
    fast = FastAPI()
    fast.mount("/ops", page)

    async def slashes(scope: Any, receive: Any, send: Any) -> None:
        """As Litestar hands a path on."""
        inner = scope["path"].removeprefix("/ops/jobs").rstrip("/")
        await page({**scope, "path": f"{inner}/"}, receive, send)

    twice = Starlette(routes=[Mount("/ops", Starlette(routes=[Mount("/jobs", page)]))])
    app: Any = {"mounted": fast, "mounted twice": twice, "with slashes": slashes}.get(how, page)
    options = {"root_path": "/shop/ops"} if how == "with a root path" else {}
    async with browsing(app, **options) as client:
        if len(seen) > 1:
            redirected = await client.get(seen.rstrip("/"))
            assert (redirected.status_code, urljoin(str(redirected.url), redirected.headers["location"])) == (
                307,
                f"http://page.test{seen}",
            )
        for path in ("", "runs?job=report"):
            found = Links((await client.get(f"{seen}{path}")).text).found
            assert len(found) > 8
            for link in found:
                whole = urljoin(f"http://page.test{public}{path}", link)
                assert whole.startswith(f"http://page.test{public}"), link
                if "/do/" not in whole:
                    answer = await client.get(seen + whole.removeprefix(f"http://page.test{public}"))
                    assert answer.status_code == 200, link


async def test_names_and_errors_are_text(world: World) -> None:
    """Markup in the name of a job, in its error or in a note is shown as it is; 10 MB of it are cut."""
    name = MARKUP.replace(" ", "")
    world.job(name, paused_at=NOW - HOUR, pause_note=MARKUP)
    world.run("failed", job=name, error=MARKUP * 300_000)
    world.term(7, NOW - DAY, None, "running", error=MARKUP)
    async with page_of(world, allow=lambda *_: True) as client:
        page = (await client.get("/")).text
        link = next(link for link in Links(page).found if link.startswith("runs?"))
        of_job = await client.get(f"/{link}")
        status = await client.get("/status.json")
    for text in (page, of_job.text):
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert" in text
        assert len(text) < 40_000
    assert of_job.status_code == 200
    assert len(status.content) < 20_000
    assert status.json()["jobs"][0]["job"] == name


async def test_no_password_is_shown() -> None:
    """The password of a URL is on no page and in no error."""
    app = status_app(f"mysql://app:{SECRET}@127.0.0.1:1/shop")
    async with browsing(app) as client:
        for path in ("/", "/runs?job=x", "/status.json", "/healthz"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "mysql://" in answer.text
            assert SECRET not in answer.text + str(answer.headers)
    with pytest.raises(ConfigurationError) as raised:
        status_app(f"mysq://app:{SECRET}@127.0.0.1/shop")
    assert SECRET not in str(raised.value)
    async with app.router.lifespan_context(app):
        pass  # gives its connection back


async def test_the_status_for_programs(world: World) -> None:
    """The same as `aiolease status --json`, and how old it is."""
    in_trouble(world)
    async with page_of(world) as client:
        status = (await client.get("/status.json")).json()
    assert status["holder"] == "web1-4711"
    assert [each["job"] for each in status["wrong"]] == ["report", "late"]
    assert status["problem"] is status["campaign"] is None
    assert json.dumps(status).count("no such customer") == 2
    assert status["age"] < timedelta(minutes=1).total_seconds()


@pytest.mark.parametrize("setting", [{"refresh": 0}, {"refresh": float("nan")}, {"name": "no such name"}])
def test_settings_are_checked_when_the_page_is_made(world: World, setting: dict[str, object]) -> None:
    """As everywhere: the message names the setting."""
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        status_app(MemoryStore(world.server), **setting)  # type: ignore[arg-type]


async def test_a_connection_that_nobody_needs_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A while after the last look, since nobody tells a mounted application that its host has ended."""
    monkeypatch.setattr("aiolease.web.readings._IDLE", 0.05)
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with open_store(url) as store:
        await store.status("default")
    async with browsing(status_app(url)) as client:
        for _ in range(2):  # and the next look opens another
            assert "never had a leader" in (await client.get("/")).text
            await until(lambda: not stores._open and len(asyncio.all_tasks()) == 1, "the store is closed")


async def test_the_connection_is_given_back_at_the_end(tmp_path: Path) -> None:
    """A server that serves the page alone tells it of the end."""
    page, to_page, from_page = status_app(f"sqlite:///{tmp_path}/jobs.db"), asyncio.Queue[Any](), asyncio.Queue[Any]()
    lifespan = asyncio.create_task(page({"type": "lifespan"}, to_page.get, from_page.put))
    for told in ("startup", "shutdown"):
        to_page.put_nowait({"type": f"lifespan.{told}"})
        async with asyncio.timeout(LIMIT):
            assert await from_page.get() == {"type": f"lifespan.{told}.complete"}
        assert not stores._open
        if told == "startup":
            async with browsing(page) as client:
                await client.get("/")
            assert stores._open
    await lifespan
