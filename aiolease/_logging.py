"""The observers that turn events into log lines, and `emit`, which hands an event to them and to the user's own.

Lines that a job writes itself carry its run's facts: with loguru at once, with the standard library by `RunFilter`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from datetime import datetime
from typing import TypedDict, Unpack

from loguru import logger

from aiolease.events import Event, LoopBlocked, Notice, Observer, RunFinished, describe, level_of


class _RunFacts(TypedDict):
    """What the lines of one run carry."""

    lease: str
    job: str
    tick: datetime
    attempt: int


_run: ContextVar[_RunFacts | None] = ContextVar("_run", default=None)


@contextmanager
def in_run(**facts: Unpack[_RunFacts]) -> Iterator[None]:
    """While the block runs, lines of this task, and of tasks and threads that it starts, carry these facts."""
    token = _run.set(facts)
    try:
        with logger.contextualize(**facts):
            yield
    finally:
        _run.reset(token)


class RunFilter(logging.Filter):
    """Adds ``lease``, ``job``, ``tick`` and ``attempt`` to the records that a job writes with the standard library.

    Add it to a handler; a format may then name them: ``%(job)s``. Outside a run they are ``None``. Facts that a record
    has already stay. With loguru nothing is to be added: its ``extra`` has them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        facts = _run.get()
        for name in _RunFacts.__annotations__:
            if not hasattr(record, name):
                setattr(record, name, None if facts is None else facts[name])  # type: ignore[literal-required]
        return True


def _facts(event: Event) -> dict[str, object]:
    """Every field of an event. An exception as text: sinks pickle and serialize these, and have it in the record."""
    facts = {field.name: getattr(event, field.name) for field in fields(event)}
    return {name: describe(fact) if isinstance(fact, BaseException) else fact for name, fact in facts.items()}


def _raised(event: Event) -> BaseException | None:
    return event.error if isinstance(event, RunFinished) and event.status == "failed" else None


def log_to_loguru(event: Event) -> None:
    """Writes an event with loguru, bound with every fact of it."""
    # Passed as an argument, not as the message: a brace in an error's text must not be taken for a field.
    logger.bind(**_facts(event)).opt(depth=2, exception=_raised(event)).log(level_of(event), "{}", event.phrase)


_stdlib = logging.getLogger("aiolease")


def log_to_stdlib(event: Event) -> None:
    """Writes an event to ``logging.getLogger("aiolease")``, every fact of it in ``extra``; TRACE is level 5."""
    level = level_of(event)
    number = 5 if level == "TRACE" else logging.getLevelNamesMapping()[level]
    if _stdlib.isEnabledFor(number):
        _stdlib.log(number, "%s", event.phrase, extra=_facts(event), exc_info=_raised(event), stacklevel=3)


_log: Observer = log_to_loguru


def use_stdlib_logging() -> None:
    """From now on the log lines of this process go to ``logging.getLogger("aiolease")`` instead of loguru."""
    global _log  # noqa: PLW0603 - one process, one log
    logging.addLevelName(5, "TRACE")
    _log = log_to_stdlib


def emit(event: Event, observer: Observer | None = None) -> None:
    """Hands an event to the log and to `observer`: a broken one must not cost a lease, and what it raises is logged.

    Raises:
        KeyboardInterrupt: Raised by one of them, and meant for the program; `SystemExit` likewise. From the thread of
            a `LoopBlocked` neither would reach the program, so there they are logged too.
    """
    for observe in (_log, observer):
        if observe is None:
            continue
        try:
            observe(event)
        except BaseException as error:  # whatever an observer raises, the lease goes on
            if isinstance(error, KeyboardInterrupt | SystemExit) and not isinstance(event, LoopBlocked):
                raise
            trouble = Notice(
                lease=event.lease,
                holder=event.holder,
                token=event.token,
                severity="ERROR",
                text=f"an observer of {type(event).__name__} raised {describe(error)}",
            )
            if observe is not _log:
                with contextlib.suppress(Exception):  # the log itself is broken: there is nobody left to tell
                    _log(trouble)
