"""Tells an exception that user code raised from one that a signal's handler raised in the middle of it.

Ctrl-C, and a SIGTERM handler that calls ``sys.exit``, raise in whatever frame the main thread runs: they mean the
program. A ``sys.exit`` or a ``KeyboardInterrupt`` of a job's own means the job, which ends alone (DESIGN rule 38).
"""

from __future__ import annotations

import functools
import opcode
import signal
from types import CodeType, TracebackType

_RAISE = opcode.opmap["RAISE_VARARGS"]


def is_for_the_program(error: BaseException) -> bool:
    """Whether a signal's handler raised an error, or one of a group: it must leave every frame between."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_for_the_program, error.exceptions))
    if not isinstance(error, KeyboardInterrupt | SystemExit) or error.__traceback__ is None:
        return False
    steps = [error.__traceback__]
    while (following := steps[-1].tb_next) is not None:
        steps.append(following)
    # 1. A handler in Python has a frame of its own. `asyncio.Runner` has one for a second Ctrl-C.
    handlers = _handlers()
    if any(step.tb_frame.f_code in handlers for step in steps):
        return True
    # 2. The default handler of SIGINT has none: it raises between two instructions, and neither is a `raise`.
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return default and isinstance(error, KeyboardInterrupt) and not _at_a_raise(steps[-1])


def _handlers() -> set[CodeType]:
    """The code of each handler in Python that is installed."""
    found = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        code = getattr(handler, "__code__", None) or getattr(getattr(handler, "__call__", None), "__code__", None)  # noqa: B004
        if isinstance(code, CodeType):
            found.add(code)
    return found


def _at_a_raise(step: TracebackType) -> bool:
    code = step.tb_frame.f_code.co_code
    return 0 <= step.tb_lasti < len(code) and code[step.tb_lasti] == _RAISE
