"""For how long nobody has led, by the clock of this process alone. No I/O here.

The database's clock may be stepped, and is not asked. A row that is held and does not change is that of a leader that
is dead or frozen: it is free once the duration of its lease has passed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aiolease.stores.records import Lease

_State = tuple[int, int, str | None]


@dataclass(slots=True)
class Vacancy:
    """What the readings of a lease's row say of it, as this process made them.

    Attributes:
        gap: Seconds between two readings after which no more is taken from those before: while the database was away,
            nobody could lead.
        longest: The longest duration of a lease that was seen, in seconds: others may have longer ones than this
            process.
    """

    gap: float = 30.0
    _state: _State | None = field(default=None, init=False)
    _free_from: float = field(default=0.0, init=False)
    _heard_from: float = field(default=0.0, init=False)
    _heard_at: float | None = field(default=None, init=False)
    longest: float = field(default=0.0, init=False)

    def saw(self, lease: Lease | None, received: float) -> None:
        """Notes a reading of the row, whose answer had come by that moment of the local clock."""
        if lease is not None and lease.holder is not None:
            self.longest = max(self.longest, lease.duration)
        state = None if lease is None else (lease.token, lease.beat, lease.holder)
        if self._heard_at is None or state != self._state:
            self._free_from = received + (lease.duration if lease is not None and lease.holder is not None else 0.0)
        if self._heard_at is None or received - self._heard_at > self.gap:
            self._heard_from = received
        self._state, self._heard_at = state, received

    @property
    def heard_at(self) -> float:
        """The local clock at the latest reading; minus infinity if there was none."""
        return float("-inf") if self._heard_at is None else self._heard_at

    @property
    def lasts(self) -> float:
        """Seconds from when the lease was free or had run out to the latest reading; 0 while somebody may lead."""
        if self._heard_at is None:
            return 0.0
        return max(self._heard_at - max(self._free_from, self._heard_from), 0.0)
