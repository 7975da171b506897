from __future__ import annotations

from collections.abc import Iterator

from tests.docs.setup import Setup, Stage
from tests.docs.workers import program_of, worker_of


def the_program(stage: Stage) -> Iterator[None]:
    program_of(stage, "README.md", "an-example")
    yield


def a_worker(stage: Stage) -> Iterator[None]:
    stage.environment["AIOLEASE_URL"] = "sqlite:///jobs.db"
    with worker_of(stage, "README.md", "an-example", until="ran 'close_stale_sessions'", registry="jobs"):
        yield


SETUPS = {
    "to-run": Setup(around=the_program),
    "to-look": Setup(around=a_worker),
    "to-ask": Setup(around=a_worker),
    "to-mend": Setup(around=a_worker),
}
