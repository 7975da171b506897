"""The names of leases."""

from __future__ import annotations

from aiolease.errors import ConfigurationError

MAX_NAME = 100


def check_name(name: str, field: str = "name") -> str:
    """Returns `name` if it can name a lease: 1 to 100 printable ASCII characters, no spaces.

    Raises:
        ConfigurationError: It cannot.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or not all("!" <= char <= "~" for char in name):
        shown = "…" if "://" in str(name) else name  # a URL in the wrong place may hold a password
        raise ConfigurationError(field, shown, f"use 1 to {MAX_NAME} printable ASCII characters without spaces")
    return name
