"""The store on a SQLite file."""

from aiolease.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
