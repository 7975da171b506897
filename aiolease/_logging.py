"""The observers that turn events into log lines, and `emit`, which hands an event to them and to the user's own.

A run makes its two events only if somebody hears them: an observer, or the log at their level (`is_heard`).
Lines that a job writes itself carry its run's facts: with loguru at once, with the standard library by `RunFilter`.
"""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import fields
from datetime import datetime
from functools import partial
from typing import TypedDict, Unpack, final

from loguru import logger

from aiolease.events import Event, Level, LoopBlocked, Notice, Observer, RunFinished, describe, level_of


class _RunFacts(TypedDict):
    """What the lines of one run carry."""

    lease: str
    job: str
    tick: datetime
    attempt: int


_run: ContextVar[_RunFacts | None] = ContextVar("_run", default=None)


@final
class _InRun:
    """What `in_run` gives: a class, since a generator takes twice as long, and each run has one."""

    __slots__ = ("_context", "_facts", "_token")

    def __init__(self, facts: _RunFacts) -> None:
        self._facts = facts
        self._context = logger.contextualize(**facts)

    def __enter__(self) -> None:
        self._token = _run.set(self._facts)
        self._context.__enter__()

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)
        _run.reset(self._token)


def in_run(**facts: Unpack[_RunFacts]) -> AbstractContextManager[None]:
    """While the block runs, lines of this task, and of tasks and threads that it starts, carry these facts."""
    return _InRun(facts)


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


_names: dict[type[Event], tuple[str, ...]] = {}


def _names_of(event: Event) -> tuple[str, ...]:
    """The names of the fields of an event."""
    kind = type(event)
    if kind not in _names:
        _names[kind] = tuple(field.name for field in fields(event))
    return _names[kind]


def _fact(event: Event, name: str) -> object:
    """A field of an event. An exception as text: sinks pickle and serialize these, and have it in the record."""
    fact = getattr(event, name)
    return describe(fact) if isinstance(fact, BaseException) else fact


def _phrase(event: Event) -> str:
    return event.phrase


def _raised(event: Event) -> BaseException | None:
    return event.error if isinstance(event, RunFinished) and event.status == "failed" else None


_lazy = logger.opt(depth=2, lazy=True)


def log_to_loguru(event: Event) -> None:
    """Writes an event with loguru, every fact of it in ``extra``.

    Facts and phrase are handed over as functions, which loguru calls only if a sink takes the line. Most events of runs
    are below the level of every sink.
    """
    error = _raised(event)
    log = _lazy if error is None else logger.opt(depth=2, lazy=True, exception=error)
    facts = {name: partial(_fact, event, name) for name in _names_of(event)}
    # The phrase is an argument, not the message: a brace in an error's text must not be taken for a field.
    log.log(level_of(event), "{}", partial(_phrase, event), **facts)


_stdlib = logging.getLogger("aiolease")


def _number_of(level: Level) -> int:
    return 5 if level == "TRACE" else logging.getLevelNamesMapping()[level]


def log_to_stdlib(event: Event) -> None:
    """Writes an event to ``logging.getLogger("aiolease")``, every fact of it in ``extra``; TRACE is level 5."""
    number = _number_of(level_of(event))
    if _stdlib.isEnabledFor(number):
        facts = {name: _fact(event, name) for name in _names_of(event)}
        _stdlib.log(number, "%s", event.phrase, extra=facts, exc_info=_raised(event), stacklevel=3)


_log: Observer = log_to_loguru


def use_stdlib_logging() -> None:
    """From now on the log lines of this process go to ``logging.getLogger("aiolease")`` instead of loguru."""
    global _log  # noqa: PLW0603 - one process, one log
    logging.addLevelName(5, "TRACE")
    _log = log_to_stdlib


def is_heard(level: Level) -> bool:
    """False if no sink takes a line of this level: an event that only the log would hear is not made then.

    A sink that takes it may have a filter that refuses it.
    """
    if _log is log_to_loguru:
        # Private, but a line that asks loguru takes as long as one that it writes. Where it is no number, all is heard.
        least = getattr(getattr(logger, "_core", None), "min_level", None)
        return not isinstance(least, int | float) or logger.level(level).no >= least
    return _log is not log_to_stdlib or _stdlib.isEnabledFor(_number_of(level))


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
