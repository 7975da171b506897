"""A process frozen at any moment of a fenced transaction holds up no takeover, and commits nothing behind it."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time

import pytest

from aiolease import open_store
from tests.campaigns import LIMIT, until
from tests.project import ROOT
from tests.stores.databases import claim, row
from tests.stores.transactions.lending import Work

_WRITER = """
import asyncio, sys
from aiolease import leadership, LeadershipLost, StoreUnavailable, CommitUnknown

async def main(url):
    number = 0
    async with leadership(url, lease_duration=3.0) as lead:
        while True:
            async with lead.transaction() as connection:
                await connection.execute(f"INSERT INTO work (who) VALUES ('{lead.token} {number}')")
            number += 1

try:
    asyncio.run(main(sys.argv[1]))
except (LeadershipLost, StoreUnavailable, CommitUnknown) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_process_frozen_at_any_moment_holds_up_no_takeover(
    postgresql_url: str, work: Work, driver: str
) -> None:
    """The claim succeeds at once, whatever was under way; thawed, the old process finds that it has lost."""
    dice = random.Random(11)
    url = postgresql_url.replace("postgresql:", f"postgresql+{driver}:")
    async with open_store(postgresql_url) as store:
        for _ in range(8):
            command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _WRITER, url]
            writer = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
            try:
                before = len(work.rows())
                await until(lambda: len(work.rows()) > before + 3, "it writes")  # noqa: B023 - awaited here
                await asyncio.sleep(dice.random() / 50)
                writer.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                old = await row(store, "default")
                newer = await claim(store, "default", 0.1, force=True)
                assert newer.token == old.token + 1
                assert time.monotonic() - began < 1.0, "a frozen process held up the claim"
                rows = work.rows()
                await asyncio.sleep(0.2)
                writer.send_signal(signal.SIGCONT)
                told, _ = await asyncio.wait_for(writer.communicate(), LIMIT)
                assert told.decode().strip() == "LeadershipLost"
                assert work.rows() == rows
            finally:
                if writer.returncode is None:
                    writer.kill()
                    await writer.communicate()
