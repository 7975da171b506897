"""The store on PostgreSQL."""

from aiolease.stores.postgresql.store import PostgreSQLStore

__all__ = ["PostgreSQLStore"]
