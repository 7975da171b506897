"""What a forked child must not do: go on with its parent's event loop, or keep its parent's connections open."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn


def end_child(error: BaseException | None) -> NoReturn:
    """Ends a process that was forked in the middle of a job, once the job's function has ended there too.

    It shares its parent's sockets, and the selector of its loop: one step further in that loop would act on them. So it
    ends as `multiprocessing` ends a child, with the status that the error stands for, and unwinds nothing.
    """
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        status = 1
    try:
        if error is not None and not (isinstance(error, SystemExit) and isinstance(error.code, int | None)):
            traceback.print_exception(error)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    finally:
        os._exit(status & 0xFF)
