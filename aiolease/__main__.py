"""``python -m aiolease``: the same as the command ``aiolease``."""

from __future__ import annotations

import sys

from aiolease.cli import main

if __name__ == "__main__":
    sys.exit(main())
