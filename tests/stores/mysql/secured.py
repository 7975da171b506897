"""A server with TLS, and its certificates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import pymysql

from tests.servers import MariaDBServer, Server
from tests.stores.mysql.certificates import Authority


@final
@dataclass
class Secured:
    """A server with TLS, and the authority of its certificate."""

    server: MariaDBServer
    authority: Authority
    stranger: Authority
    database: str = ""

    def present(self, host: str, *, expired: bool = False) -> None:
        """Give the server another certificate."""
        self.authority.sign(host, expired=expired)
        self.server.sql("FLUSH SSL")

    def url(self, query: str, host: str = "localhost") -> str:
        return f"mysql://root@{host}:{self.server.port}/{self.database}?{query.format(**self.files)}"

    @property
    def files(self) -> dict[str, Path]:
        return {"ca": self.authority.ca, "other": self.stranger.ca}


def demand(server: Server, demanded: bool) -> None:
    """Have a server refuse connections over the network without TLS, or take them."""
    with pymysql.connect(unix_socket=str(server.socket), user="root") as admin, admin.cursor() as cursor:
        cursor.execute(f"SET GLOBAL require_secure_transport = {int(demanded)}")
