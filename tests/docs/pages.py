"""The pages of the project, with their blocks and set-ups."""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.docs.page import Block, parse
from tests.docs.setup import Setup
from tests.project import ROOT


def pages() -> list[Path]:
    """README.md and the pages of ``docs/``, not what was built from them."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def setups_of(page: Path) -> dict[str, Setup]:
    """The set-ups of a page: the table ``SETUPS`` of its module, if it has one."""
    name = page.stem.lower().replace("-", "_")
    if not (Path(__file__).parent / "setups" / f"{name}.py").is_file():
        return {}
    setups: dict[str, Setup] = importlib.import_module(f"tests.docs.setups.{name}").SETUPS
    return setups


def blocks_of(page: Path) -> list[Block]:
    return parse(page.read_text("utf-8"), page.relative_to(ROOT).as_posix(), setups_of(page))
