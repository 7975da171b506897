"""The commands about the tables: `schema` and `migrate`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from aiolease.cli.lease import url_of
from aiolease.cli.printing import print_json, print_line
from aiolease.errors import SchemaMissing
from aiolease.stores import migrate as bring_up_to_date
from aiolease.stores import schema as statements_of

DIALECTS = ("mysql", "mariadb", "postgresql", "sqlite")


def schema(arguments: argparse.Namespace) -> int:
    """Prints the statements that make the tables."""
    dialect = "mysql" if arguments.dialect == "mariadb" else arguments.dialect
    sys.stdout.write(statements_of(dialect))
    return 0


def migrate(arguments: argparse.Namespace) -> int:
    """Brings the tables to this version, or says what is missing."""
    try:
        statements = asyncio.run(bring_up_to_date(url_of(arguments), check=arguments.check))
    except SchemaMissing as error:
        if error.statements and not arguments.json:
            _print(error.statements)
        raise
    if arguments.json:
        print_json({"missing" if arguments.check else "done": statements})
    elif not statements:
        print_line("the tables are of this version")
    elif arguments.check:
        _print(statements)
    else:
        count = "1 statement" if len(statements) == 1 else f"{len(statements)} statements"
        print_line(f"brought the tables to this version: {count}; workers of the version before may go on")
    return 1 if statements and arguments.check else 0


def _print(statements: Sequence[str]) -> None:
    """Prints statements so that they can be piped to a client."""
    for statement in statements:
        print_line(f"{statement.strip().removesuffix(';')};")
