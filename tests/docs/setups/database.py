from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.docs.setup import Setup, Stage


class Context:
    """Alembic's: it asks the filter about each table."""

    filter: Callable[[str | None, str, dict[str, str]], bool]

    def configure(self, *, include_name: Callable[[str | None, str, dict[str, str]], bool]) -> None:
        self.filter = include_name


def a_migration(stage: Stage) -> Iterator[None]:
    context = stage.names["context"] = Context()
    yield
    assert not context.filter("aiolease_run", "table", {})
    assert context.filter("invoices", "table", {})
    assert context.filter("aiolease_index", "index", {})


SETUPS = {
    "rights": Setup(needs="mariadb"),
    "rights-2": Setup(needs="postgresql"),
    "migrations": Setup(around=a_migration),
}
