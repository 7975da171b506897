"""A store in memory, for tests: the same rules as a database, without one, and without its statements.

One `MemoryServer` is the database; each `MemoryStore` on it stands for one process and its network. The rules are
written once more, in Python, on purpose: what a database does is judged by them, and they by what a database does.
"""

from aiolease.stores.memory.ledger import Ledger
from aiolease.stores.memory.server import Fence, MemoryServer
from aiolease.stores.memory.store import MemoryStore, MemoryTransaction

__all__ = ["Fence", "Ledger", "MemoryServer", "MemoryStore", "MemoryTransaction"]
