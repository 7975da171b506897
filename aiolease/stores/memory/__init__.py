"""A store in memory, for tests: the same rules as a database, written in Python instead of SQL.

One `MemoryServer` is the database; each `MemoryStore` on it stands for one process and its network. The rules are
written a second time on purpose: `tests/stores` runs the same tests on both, so each checks the other.
"""

from aiolease.stores.memory.ledger import Ledger
from aiolease.stores.memory.server import VIRTUAL_START, Fence, MemoryServer
from aiolease.stores.memory.store import MemoryStore, MemoryTransaction

__all__ = ["VIRTUAL_START", "Fence", "Ledger", "MemoryServer", "MemoryStore", "MemoryTransaction"]
