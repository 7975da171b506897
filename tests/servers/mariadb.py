"""MariaDB as a private server."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.servers.machine import ENVIRONMENT, SMALL, cache_folder, made_once, run
from tests.servers.server import Server


class MariaDBServer(Server):
    """MariaDB, from the Debian package ``mariadb-server``."""

    kind = "mariadb"

    @classmethod
    def available(cls) -> str | None:
        for program in ("mariadbd", "mariadb-install-db", "setpriv"):
            if shutil.which(program, path=ENVIRONMENT["PATH"]) is None:
                return f"{program} is not installed (Debian package mariadb-server)"
        return None

    @classmethod
    def _template(cls) -> Path:
        version = run("mariadbd", "--version").split()[2]
        target = cache_folder() / f"mariadb-{version}"
        with made_once(target) as folder:
            if folder is not None:
                run(
                    "mariadb-install-db",
                    "--no-defaults",
                    f"--datadir={folder}",
                    "--user=root",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    "--skip-name-resolve",
                    "--innodb-log-file-size=4M",
                    *SMALL,
                )
        return target

    def _command(self) -> list[str]:
        return [
            "mariadbd",
            "--no-defaults",
            "--innodb-log-file-size=4M",
            "--innodb-temp-data-file-path=ibtmp1:2M:autoextend",
        ]
