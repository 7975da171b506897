"""The store on MySQL and MariaDB."""

from aiolease.stores.mysql.store import MySQLStore

__all__ = ["MySQLStore"]
