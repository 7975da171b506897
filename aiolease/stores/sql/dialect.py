"""What each database writes differently inside the statements that all databases share. No I/O here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Literal

Table = Literal["lease", "fence", "job", "run"]

Purpose = Literal["key", "unfinished", "unfinished_of_job", "queued", "later", "skipped", "ended"]
"""What a statement looks for in the table of runs, or of jobs: rows by their key, the few unfinished runs of a lease,
the unfinished, queued or skipped runs of a job, the queued runs of a lease with a moment before which they do not
start, the runs of a job that have one status."""


class Dialect(ABC):
    """The words of one database, for one prefix of the tables.

    Attributes:
        now: The database's clock as an expression. It must go on while a transaction waits.
        count: The name of the column `count`, which is a function's, too.
        greatest: The function that takes the greatest of several values.
        before_all: A moment before all others.
        finished: What a condition on the runs of a job that have one status ends with, where an index that has
            `RunRecord.not_before` in it finds them; of finished runs that is NULL, as the store sees to.
    """

    now: ClassVar[str]
    count: ClassVar[str]
    greatest: ClassVar[str]
    before_all: ClassVar[str]
    finished: ClassVar[str]

    @abstractmethod
    def table(self, name: Table) -> str:
        """The name of a table, as it stands in a statement."""

    @abstractmethod
    def index(self, purpose: Purpose) -> str:
        """The hint that makes the database use the right index; empty where it finds it by itself."""

    @abstractmethod
    def later(self, microseconds: str) -> str:
        """The moment `microseconds` from now; `microseconds` is a parameter or a number."""

    @abstractmethod
    def same(self, one: str, other: str) -> str:
        """Whether two values are the same; NULL is the same as NULL."""

    @abstractmethod
    def unless_there(self, key: str, column: str) -> str:
        """Ends an INSERT that does nothing if there is a row of this key.

        Args:
            key: The column of the key.
            column: Another column, for a database that has to update something.
        """

    @abstractmethod
    def sane(self, column: str, *, ahead: bool = False) -> str:
        """A moment, or NULL if another hand wrote one there that cannot be read; it may be `ahead` of the clock."""

    @abstractmethod
    def appended(self, column: str, line: str, most: int) -> str:
        """What a text of lines is with another, which may be NULL; the last characters of it, so many at most."""

    @abstractmethod
    def newest(self, statuses: Sequence[str], offset: int = 0) -> str:
        """The tick of the newest run of the job `j` that has one of some statuses, or of one that is older by `offset`.

        The lease is a parameter.

        NULL, or a moment before all others, if there is none.
        """

    def as_read(self, moment: str) -> str:
        """A column of a moment, as a statement selects it."""
        return moment

    @abstractmethod
    def kept(self, moment: datetime) -> object:
        """What the tables keep of a moment."""

    @abstractmethod
    def moment(self, value: object) -> datetime:
        """The aware moment of what the tables keep.

        Raises:
            TypeError: Somebody wrote a value that is no moment; or `ValueError`, `OverflowError`, `AttributeError`.
        """


def microseconds(seconds: float) -> int:
    """A duration as the statements take it."""
    return round(seconds * 1_000_000)
