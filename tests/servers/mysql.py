"""MySQL 9 as a private server: fetched from Debian unstable, kept beside the system."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import ClassVar, final

import pymysql

from tests.servers.machine import DOWNLOAD_LIMIT, SMALL, ServerFailed, cache_folder, made_once, run
from tests.servers.server import Server


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
                _unpack_from_unstable("mysql-server-core", folder)
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
        libraries = next((root / "usr/lib").glob("*-linux-gnu*"))
        loader = next((root / "usr").glob("lib*/ld-linux-*"))
        return [
            *(str(loader), "--library-path", str(libraries), str(root / "usr/sbin/mysqld")),
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


def _unpack_from_unstable(package: str, folder: Path) -> None:
    """Download a package with all that it needs by a private apt, and unpack it into a folder.

    The mirror is the one that this machine's apt is set up with; apt checks the signatures.
    """
    state = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb {_debian_source()} sid main\n")
    options = [
        f"Dir::Etc::SourceList={state / 'sources.list'}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State={state}",
        f"Dir::State::Lists={state / 'lists'}",
        f"Dir::State::Status={state / 'status'}",
        f"Dir::Cache={state}",
        "Acquire::Languages=none",
        "Acquire::Retries=1",
        "Acquire::http::Timeout=20",
        "Acquire::https::Timeout=20",
        "APT::Update::Error-Mode=any",
        "APT::Sandbox::User=root",
        "APT::Install-Recommends=false",
    ]
    apt = ["apt-get", *(f"-o{option}" for option in options)]
    run(*apt, "update")
    run(*apt, "--yes", "--download-only", "install", package, limit=DOWNLOAD_LIMIT)
    for archive in sorted((state / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", archive, folder)
    shutil.rmtree(state)


def _debian_source() -> str:
    """The Debian mirror of this machine's apt, with the keyring option in front."""
    apt = Path("/etc/apt")
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if file.is_file():
            lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
            found = re.search(r"\b\w+:/+\S+/debian/?(?!\S)", "\n".join(lines))
            if found:
                keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
                option = f"[signed-by={keyring}] " if keyring.exists() else ""
                return option + found[0]
    raise ServerFailed("apt is not set up with a Debian mirror")
