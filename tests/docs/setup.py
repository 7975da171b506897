"""What a block needs beside its text."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a block runs.

    Attributes:
        names: The namespace of the block; empty for commands.
        folder: The folder in which it runs.
        environment: Its variables; of a Python block those of the process itself.
    """

    names: dict[str, Any]
    folder: Path
    environment: MutableMapping[str, str]


Around = Callable[[Stage], Iterator[None]] | Callable[[Stage], AsyncIterator[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How one block is run.

    Attributes:
        around: Makes the names that the block takes as given, yields, and asserts on what the block did.
        run: The block goes on for ever. It is stopped with Ctrl-C once all that is expected was printed; it fails if
            that took longer than this many seconds, or if it does not end in order.
        expect: Lines that it must print, beside those that the page shows.
        needs: A fixture that gives a server; AIOLEASE_URL then names a fresh database on it.
        picture: A drawing, which nothing prints.
        served: An application. `tests/docs/test_served.py` starts it with the commands of the block below it. Each path
            answers 200; the first is that of the status page.
    """

    around: Around | None = None
    run: float | None = None
    expect: tuple[str, ...] = ()
    needs: str | None = None
    picture: bool = False
    served: tuple[str, ...] = ()

    @property
    def in_loop(self) -> bool:
        """Whether the block runs inside an event loop."""
        return self.around is not None and inspect.isasyncgenfunction(self.around)
