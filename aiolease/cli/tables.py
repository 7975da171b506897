"""The commands about the tables: `schema` and `migrate`."""

from __future__ import annotations

import argparse
import sys


def schema(arguments: argparse.Namespace) -> int:
    """Prints the statements that make the tables."""
    from aiolease.stores.mysql.schema import schema as text

    sys.stdout.write(text())
    return 0
