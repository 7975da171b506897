"""What private servers need of the machine: programs, ports, and files that are made once and kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

START_LIMIT = 60.0
STOP_LIMIT = 30.0
DOWNLOAD_LIMIT = 300.0

# Full durability as in production (each commit is flushed, which is the default), on small files.
SMALL = (
    "--innodb-buffer-pool-size=16M",
    "--innodb-data-file-path=ibdata1:5M:autoextend",
    "--innodb-autoextend-increment=1",
)


handed_out: set[int] = set()
# The folders of daemons are not on every user's path.
ENVIRONMENT = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin"}


class ServerFailed(Exception):
    """A server did not start, did not stop, or cannot be had here."""


def cache_folder() -> Path:
    """Where templates of data folders and downloaded servers are kept between test runs."""
    default = Path.home() / ".cache" / "aiolease-tests"
    return Path(os.environ.get("AIOLEASE_TEST_CACHE", default))


def free_port() -> int:
    """A loopback port that nobody listens on, below the range of outgoing connections.

    A port from that range could be taken by a client while the server is down for a restart.
    """
    for _ in range(200):
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in handed_out:
                handed_out.add(port)
                return port
    raise ServerFailed("no free loopback port between 15000 and 32000")


@contextlib.contextmanager
def made_once(target: Path) -> Iterator[Path | None]:
    """Give a scratch folder to fill, which then becomes ``target``; ``None`` if that exists.

    A lock file keeps a second test run waiting while the first one makes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        deadline = time.monotonic() + DOWNLOAD_LIMIT
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"another process has been making {target} for too long") from None
                time.sleep(0.1)
        if target.exists():
            yield None
            return
        scratch = target.with_name(target.name + ".part")
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        scratch.mkdir()
        try:
            yield scratch
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def run(*command: str | Path, limit: float = 120.0) -> str:
    """Run a program to its end and return what it said.

    Raises:
        ServerFailed: It is not there, failed, or took too long.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False, env=ENVIRONMENT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerFailed(f"{command[0]}: {error}") from error
    text = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode:
        told = [line for line in text.splitlines() if line.startswith("E: ")] or [text[-2000:]]
        raise ServerFailed(f"{command[0]} exited with {done.returncode}: {told[-1]}")
    return text
