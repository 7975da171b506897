"""The command line: who leads, what the jobs did and why, and how to ask a leader for something.

The database and the lease come from the environment (`LeaseSettings`), or from the arguments. The rooms:

* `parser`, `looks`, `options`: the commands and their arguments, `moments`: how people type times;
* `running`: what needs the application itself: `run` and `next`;
* `looking`, `watching`: what only looks; `serving`: the page;
* `asking`: what asks a leader for something, `tables`: what makes the tables;
* `lease`: the lease that a command is about, `printing`: text on a terminal.

What they look at, what is wrong with it, and rows as text are in `aiolease._views`, which the page shares.

Exit status: 0 done or well, 1 not done or not well, 2 asked in a wrong way. Errors are one line on the standard error;
no password is shown. What is heavy, settings and drivers, is imported by what needs a database.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence

from aiolease.cli.parser import parser
from aiolease.cli.printing import trouble
from aiolease.errors import AioleaseError, ConfigurationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    Args:
        arguments: Those of the process by default.
    """
    given = [_moment_ago(text) for text in (sys.argv[1:] if arguments is None else arguments)]
    reader = parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        _complete(reader)
    parsed = reader.parse_args(given)
    run: Callable[[argparse.Namespace], int] | None = getattr(parsed, "run", None)
    try:
        if run is None:
            reader.print_help()
            status = 0
        else:
            status = run(parsed)
        sys.stdout.flush()
        return status
    except ConfigurationError as error:
        return trouble(error, 2)
    except AioleaseError as error:
        return trouble(error, 1)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nor may the interpreter write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _complete(reader: argparse.ArgumentParser) -> None:
    """Answers a shell that asks for completions, and ends the program; nothing without the extra."""
    with contextlib.suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(reader)


def _moment_ago(text: str) -> str:
    """``-2h`` as ``2h ago``: else it would be taken for an option."""
    return f"{text[1:]} ago" if re.fullmatch(r"-(\d+(\.\d+)?[a-z]*)+", text) else text
