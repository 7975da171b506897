"""Servers that are newer than this machine's packages: from Debian unstable, unpacked beside the system."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.servers.machine import DOWNLOAD_LIMIT, ServerFailed, run


def unpack(package: str, folder: Path) -> None:
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


def loaded(root: Path, program: Path) -> list[str]:
    """A command that runs an unpacked program with the libraries and the loader that were unpacked with it."""
    libraries = next((root / "usr/lib").glob("*-linux-gnu*"))
    loader = next((root / "usr").glob("lib*/ld-linux-*"))
    return [str(loader), "--library-path", str(libraries), "--argv0", str(program), str(program)]


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
