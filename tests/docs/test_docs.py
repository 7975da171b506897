"""README.md and the pages of ``docs/``: every block does what it says, every link leads somewhere, no page is long."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.page import Block, headings
from tests.docs.pages import blocks_of, pages, setups_of
from tests.docs.treatment import treat
from tests.project import ROOT
from tests.servers import Server

README = ROOT / "README.md"
LONGEST = 200
"""Lines of a page: one idea, which is read in one go."""

ALL_BLOCKS = [block for page in pages() for block in blocks_of(page) if not block.setup.served]


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The variables of what the block of this test needs: the URL of a fresh database."""
    block = request.node.callspec.params["block"]
    if block.setup.needs is None:
        yield {}
        return
    server = request.getfixturevalue(block.setup.needs)
    assert isinstance(server, Server)
    name = f"docs_{re.sub('[^a-z]', '_', block.page.lower())}_{block.line}"
    server.create_database(name)
    yield {"AIOLEASE_URL": server.url(name)}
    server.drop_database(name)


@pytest.mark.parametrize(
    "block", ALL_BLOCKS, ids=lambda block: f"{Path(block.page).stem}-{block.name}-{block.language}"
)
def test_every_block_does_what_it_says(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    """Every fenced block runs, or is compared with what it speaks of."""
    treat(block, tmp_path, environment)


def test_the_readme_has_programs() -> None:
    """The README is there, and begins with a complete program and the command that runs it, with what that prints."""
    program, command, *_ = blocks_of(README)
    assert (program.language, command.language) == ("python", "console")
    assert command.text.startswith("$ .venv/bin/aiolease run worker:jobs")
    assert "acquired leadership" in command.text


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_no_setup_is_left_without_its_block(page: Path) -> None:
    """A block that was renamed or removed takes its set-up with it."""
    names = {block.name for block in blocks_of(page)}
    assert setups_of(page).keys() <= names


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_no_page_is_longer_than_one_idea(page: Path) -> None:
    """README.md and each page have at most 200 lines."""
    assert len(page.read_text("utf-8").splitlines()) <= LONGEST


def links_of(text: str) -> list[str]:
    """The relative links of a page, without those within its blocks."""
    prose = re.sub(r"^\s*(`{3,}|~{3,})[\s\S]*?^\s*\1\s*$", "", text, flags=re.MULTILINE)
    prose = re.sub(r"`[^`\n]+`(?!\])", "", prose)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+:", link)]


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not (target.is_relative_to(ROOT) and target.exists()):
        return False
    return not anchor or anchor in headings(target.read_text("utf-8"))


@pytest.mark.parametrize("page", [*pages(), ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Relative links name files of the project, and headings of pages."""
    broken = [link for link in links_of(page.read_text("utf-8")) if not leads_somewhere(page, link)]
    assert broken == []


def test_every_page_is_in_the_contents() -> None:
    """``docs/index.md`` links to each page, and lists it for the site."""
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    others = [page for page in pages() if page not in (README, ROOT / "docs" / "index.md")]
    assert [page.name for page in others if f"({page.name})" not in index] == []
    listed = index.split()
    assert [page.stem for page in others if page.stem not in listed] == []


def test_the_architecture_names_files_that_are_there() -> None:
    """The table at the end of the page follows the files when they move."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`((?:aiolease|tests)/[\w./]+)`", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
