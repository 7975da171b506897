"""The observers that turn events into log lines, and `emit`, which hands an event to them and to the user's own."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import fields

from loguru import logger

from aiolease.events import Event, LoopBlocked, Notice, Observer, RunFinished, describe, level_of


def _facts(event: Event) -> dict[str, object]:
    return {"lease": event.lease, "holder": event.holder, "token": event.token}


def log_to_loguru(event: Event) -> None:
    """Writes an event with loguru, bound with ``lease``, ``holder`` and ``token``."""
    traceback = event.error if isinstance(event, RunFinished) and event.status == "failed" else None
    # Passed as an argument, not as the message: a brace in an error's text must not be taken for a field.
    logger.bind(**_facts(event)).opt(depth=2, exception=traceback).log(level_of(event), "{}", event.phrase)


_stdlib = logging.getLogger("aiolease")


def log_to_stdlib(event: Event) -> None:
    """Writes an event to ``logging.getLogger("aiolease")``, every fact of it in ``extra``; TRACE is level 5."""
    level = level_of(event)
    number = 5 if level == "TRACE" else logging.getLevelNamesMapping()[level]
    if not _stdlib.isEnabledFor(number):
        return
    extra = {field.name: getattr(event, field.name) for field in fields(event)}
    traceback = event.error if isinstance(event, RunFinished) and event.status == "failed" else None
    _stdlib.log(number, "%s", event.phrase, extra=extra, exc_info=traceback)


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
