"""Servers with TLS and without."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.servers import MariaDBServer
from tests.stores.mysql.certificates import Authority
from tests.stores.mysql.secured import Secured, demand


@pytest.fixture(scope="module")
def _secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if reason := MariaDBServer.available():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority.make(folder), Authority.make(folder, "stranger")
    cert, key = authority.sign("localhost")
    with MariaDBServer.start(options=[f"--ssl-cert={cert}", f"--ssl-key={key}", f"--ssl-ca={authority.ca}"]) as server:
        yield Secured(server, authority, stranger)


@pytest.fixture
def secured(_secured: Secured) -> Iterator[Secured]:
    """A server whose certificate is for ``localhost``, with a fresh database."""
    _secured.database = f"test_{uuid4().hex[:12]}"
    _secured.server.create_database(_secured.database)
    _secured.present("localhost")
    yield _secured
    demand(_secured.server, False)
    _secured.server.drop_database(_secured.database)


@pytest.fixture(scope="module")
def unsecured() -> Iterator[MariaDBServer]:
    """A server that offers no TLS."""
    if reason := MariaDBServer.available():
        pytest.skip(reason)
    with MariaDBServer.start(options=["--skip-ssl"]) as server:
        server.create_database("plain")
        yield server
