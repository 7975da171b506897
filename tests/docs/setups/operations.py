from __future__ import annotations

from collections.abc import Iterator

from tests.docs.setup import Setup, Stage
from tests.docs.workers import worker_of


def a_worker(stage: Stage) -> Iterator[None]:
    with worker_of(stage, "README.md", "an-example", until="ran 'close_stale_sessions'"):
        yield


SETUPS = {
    "the-commands": Setup(around=a_worker),
    "what-to-alert-on": Setup(needs="mariadb"),
    "what-to-alert-on-2": Setup(needs="mariadb"),
    "a-job-that-is-gone-for-good": Setup(needs="mariadb"),
}
