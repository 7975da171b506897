"""Tracebacks that are safe to log: they say where an error came from, and not what the variables held there.

loguru prints the variables of a traceback's frames, unless it is told not to (``diagnose=False``); others send them to
a server. Behind the frame of a job lie those of drivers, and theirs hold passwords. So a failed run's error gets new
tracebacks, of frames that have no variables. They format as usual: file, line, function, and the line's text.
"""

from __future__ import annotations

from collections.abc import Generator
from types import FrameType, FunctionType, TracebackType

_OURS = "aiolease"
_CALLERS = frozenset({_OURS, "asyncio"})
"""What lies before the job's own frame: this package, and the library that calls a job for it."""


def hide_values(error: BaseException) -> None:
    """Gives an error, its causes and contexts, and the members of a group tracebacks without variables.

    They begin with the job's frame. Frames of this package are kept only behind the last frame that is another's: where
    the error arose in them.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        # Not `each.with_traceback`: a class of the user's may have its own.
        BaseException.with_traceback(each, _bare(each.__traceback__))
        left += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions


def _bare(trace: TracebackType | None) -> TracebackType | None:
    steps = []
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        steps.append((name.partition(".")[0], name, trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    packages = [package for package, *_ in steps]
    first = next((i for i, package in enumerate(packages) if package not in _CALLERS), 0)
    arose = max((i for i, package in enumerate(packages) if package != _OURS), default=-1)
    bare = None
    for i in reversed(range(first, len(steps))):
        package, name, frame, line = steps[i]
        if package != _OURS or i > arose:
            bare = TracebackType(bare, _without_variables(name, frame), -1, line)
    return bare


def _without_variables(name: str, frame: FrameType) -> FrameType:
    """A frame of the same file and function that was never run, and that nobody has called."""
    code = frame.f_code
    renamed = _never_run.__code__.replace(
        co_filename=code.co_filename, co_name=code.co_name, co_qualname=code.co_qualname
    )
    generator: Generator[None] = FunctionType(renamed, {"__name__": name})()
    empty: FrameType = generator.gi_frame  # type: ignore[attr-defined]
    return empty


def _never_run() -> Generator[None]:
    yield
