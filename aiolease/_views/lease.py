"""The lease that is looked at, and the store that has it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiolease._waiting import time_limited
from aiolease.stores import Store

T = TypeVar("T")

_LIMIT = 10.0
"""Seconds that the database may take for one answer."""

_LONG = 600.0
"""Seconds that a request of many steps may take."""


class OpenLease:
    """The lease that is looked at, and the store that has it.

    Args:
        store: The store.
        name: The lease.
        limit: Seconds that the database may take for one answer.

    Attributes:
        name: The lease.
        database: Which database, for people.
    """

    def __init__(self, store: Store, name: str, limit: float = _LIMIT) -> None:
        self.name = name
        self.database = store.description
        self._store = store
        self._limit = limit

    async def ask(self, question: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Has one exchange with the store, within a time limit."""
        return await time_limited(self._limit, self.database, question(self._store))

    async def ask_long(self, question: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Has an exchange of many steps with the store."""
        return await time_limited(_LONG, self.database, question(self._store))
