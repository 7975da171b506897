"""A statement with its parameters by name, to be sent in the style of any driver. No I/O here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

Values = Mapping[str, object]

NO_VALUES: Final[Values] = MappingProxyType({})
ONCE: Final[Sequence[Values]] = (NO_VALUES,)

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class Statement:
    """One statement; `:name` is a parameter.

    What stands between `[` and `]`, if anything does, is repeated for each row of values, joined by commas::

        UPDATE job SET high_tick = :tick WHERE lease = :lease AND job IN ([:job])
        INSERT INTO run (lease, job) VALUES [(:lease, :job)]

    A driver that executes a statement once for each row, as SQLite's does, takes `text` as it is.

    Attributes:
        text: The statement for one row, with its parameters by name.
        repeats: Whether a part of it is repeated.
    """

    __slots__ = ("_compiled", "_parts", "repeats", "text")

    def __init__(self, text: str) -> None:
        head, repeats, rest = re.sub(" +", " ", text).partition("[")  # a hint may be empty
        row, _, tail = rest.partition("]")
        self.text = f"{head}{row}{tail}"
        self.repeats = bool(repeats)
        self._parts = (head, row, tail) if repeats else (self.text,)
        # Made when it is first sent: a process never sends most of its statements, and SQLite none in this form.
        self._compiled: tuple[tuple[str, list[str]], ...] = ()

    def positional(
        self, values: Values, rows: Sequence[Values], kept: Callable[[datetime], object]
    ) -> tuple[str, tuple[object, ...]]:
        """The text with ``%s`` for the parameters, and these in their order.

        Args:
            values: What all rows share.
            rows: What differs from row to row, if a part of the statement is repeated; at least one, all with the same
                names.
            kept: Turns a moment into its value in the tables.
        """
        if not self._compiled:
            self._compiled = tuple((_PARAMETER.sub("%s", part), _PARAMETER.findall(part)) for part in self._parts)
        if not self.repeats:
            [(text, names)] = self._compiled
            return text, tuple(_taken(values, names, kept))
        (head, head_names), (row, row_names), (tail, tail_names) = self._compiled
        found = _taken(values, head_names, kept)
        own = [(place, name) for place, name in enumerate(row_names) if name in rows[0]]
        shared = _taken({**values, **rows[0]}, row_names, kept)
        for each in rows:
            for place, name in own:
                value = each[name]
                shared[place] = kept(value) if isinstance(value, datetime) else value
            found += shared
        found += _taken(values, tail_names, kept)
        return f"{head}{', '.join([row] * len(rows))}{tail}", tuple(found)


@dataclass(frozen=True, slots=True)
class Step:
    """A statement of a transaction, with its values.

    Attributes:
        statement: The statement.
        values: What all rows share.
        rows: What is each row's own, where a part of the statement is repeated.
        changes: How many rows it must change, or the transaction is refused; ``None`` if it does not matter.
    """

    statement: Statement
    values: Values
    rows: Sequence[Values] = ONCE
    changes: int | None = None


Asked = tuple[Statement, Values]
"""A statement and its values."""


def _taken(values: Values, names: Sequence[str], kept: Callable[[datetime], object]) -> list[object]:
    return [kept(value) if isinstance(value := values[name], datetime) else value for name in names]
