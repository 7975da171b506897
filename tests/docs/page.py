"""Reading a page: its headings, its links, and its fenced blocks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.docs.setup import Setup


class BrokenPage(AssertionError):
    """A block of a page does not do what it says; the message starts with its line."""

    def __init__(self, page: str, line: int, why: str) -> None:
        super().__init__(f"{page}:{line}: {why}")


@dataclass(slots=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page's path in the project.
        name: The heading above it, with a number from the second block on.
        line: That of its opening fence.
        output: The lines that the page says it prints.
    """

    page: str
    name: str
    line: int
    language: str
    text: str
    setup: Setup
    output: list[str] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether it prints something of its own."""
        return self.language == "python" or self.setup.run is not None

    @property
    def expected(self) -> list[str]:
        return [*self.setup.expect, *self.output]

    def broken(self, why: str) -> BrokenPage:
        return BrokenPage(self.page, self.line, why)


def slug(heading: str) -> str:
    """A heading as a link spells it."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def headings(text: str) -> list[str]:
    """What a link may name behind the ``#``."""
    found: list[str] = []
    fence = None
    for line in text.splitlines():
        if fence is not None:
            fence = None if line.strip() == fence else fence
        elif opening := re.match(r"\s*(`{3,}|~{3,})", line):
            fence = opening[1]
        elif heading := re.match(r"#{1,6}\s+(.*)", line):
            found.append(slug(heading[1]))
    return found


def parse(text: str, page: str, setups: Mapping[str, Setup]) -> list[Block]:
    """The blocks of a page, each text of what is printed already joined to the block that prints it."""
    blocks: list[Block] = []
    section, count = "", 0
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if heading := re.match(r"#{1,6}\s+(.*)", line):
            section, count = slug(heading[1]), 0
        elif fence := re.match(r"(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[^\s`]*)", line):
            inner: list[str] = []
            for _, below in lines:
                if below.strip() == fence["ticks"]:
                    break
                inner.append(below.removeprefix(fence["indent"]))
            else:
                raise BrokenPage(page, number, "a fence that nothing closes")
            count += 1
            name = section if count == 1 else f"{section}-{count}"
            block = Block(
                page=page,
                name=name,
                line=number,
                language=fence["language"],
                text="\n".join(inner) + "\n",
                setup=setups.get(name, Setup()),
            )
            if block.language == "text" and not block.setup.picture:
                join_output(blocks, block)
            else:
                blocks.append(block)
        elif "<!--" in line:
            raise BrokenPage(page, number, "a hidden comment: a set-up lies in tests/docs/setups")
    return blocks


def join_output(blocks: list[Block], output: Block) -> None:
    """Hands the lines of a text to the block that prints them: the last one, if that one runs."""
    printed = [line for line in output.text.splitlines() if line.strip()]
    if not (blocks and blocks[-1].runs):
        raise output.broken(
            "a block of text that nothing says how to test: it is no picture, and does not follow a block that runs"
        )
    if not printed:
        raise output.broken("a block of text without output")
    blocks[-1].output += printed
