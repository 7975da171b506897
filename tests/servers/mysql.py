"""MySQL 9 as a private server: fetched from Debian unstable, kept beside the system."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, final

import pymysql

from tests.servers.machine import SMALL, ServerFailed, cache_folder, made_once, run
from tests.servers.server import Server
from tests.servers.unstable import loaded, unpack


@final
class MySQLServer(Server):
    """MySQL 9, from Debian unstable: downloaded once, unpacked beside the system, which it leaves alone."""

    kind = "mysql"
    _root: ClassVar[Path | None] = None

    @classmethod
    def available(cls) -> str | None:
        try:
            cls._template()
        except ServerFailed as error:
            return f"MySQL 9 cannot be had here: {error}"
        return None

    @classmethod
    def _template(cls) -> Path:
        root = cache_folder() / "mysql"
        with made_once(root) as folder:
            if folder is not None:
                unpack("mysql-server-core", folder)
        cls._root = root
        target = root.with_name("mysql-data")
        with made_once(target) as folder:
            if folder is not None:
                # Made beside the folder, for the server wants an empty one.
                script = target.with_suffix(".sql")
                script.write_text(
                    "CREATE USER 'root'@'127.0.0.1';\nGRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;\n"
                )
                run(
                    *cls._program(root),
                    "--initialize-insecure",
                    "--user=root",
                    f"--init-file={script}",
                    f"--datadir={folder}",
                    *SMALL,
                )
        return target

    @staticmethod
    def _program(root: Path) -> list[str]:
        return [
            *loaded(root, root / "usr/sbin/mysqld"),
            *("--no-defaults", "--innodb-redo-log-capacity=8M"),
            *(f"--basedir={root / 'usr'}", f"--lc-messages-dir={root / 'usr/share/mysql'}"),
            *(f"--character-sets-dir={root / 'usr/share/mysql/charsets'}",),
            *(f"--plugin-dir={root / 'usr/lib/mysql/plugin'}",),
            *("--secure-file-priv=NULL", "--mysqlx=OFF", "--disable-log-bin"),
        ]

    def _command(self) -> list[str]:
        assert self._root is not None, "set by _template"
        return self._program(self._root)

    def create_user(self, name: str, password: str, grants: str) -> None:
        """Make a user who may log in over TCP without TLS, until the server is restarted.

        The first login with ``caching_sha2_password`` needs a secure channel, here the socket.
        """
        super().create_user(name, password, grants)
        pymysql.connect(unix_socket=str(self.socket), user=name, password=password).close()
