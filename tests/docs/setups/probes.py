from __future__ import annotations

import socket
from collections.abc import Iterator

from tests.docs.setup import Setup, Stage


def under_systemd(stage: Stage) -> Iterator[None]:
    """A socket that hears what systemd would; the worker is stopped once the watchdog was patted."""
    import os
    import signal
    import threading

    heard: list[str] = []
    stage.environment.update(
        AIOLEASE_URL="sqlite:///jobs.db", NOTIFY_SOCKET=f"{stage.folder}/notify", WATCHDOG_USEC="300000"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"{stage.folder}/notify")
        systemd.settimeout(20)

        def listen() -> None:
            while heard.count("WATCHDOG=1") < 3:
                heard.append(systemd.recv(100).decode())
            os.kill(os.getpid(), signal.SIGTERM)

        listening = threading.Thread(target=listen)
        listening.start()
        yield
        listening.join()
        assert heard[0] == "READY=1"
        while (said := systemd.recv(100).decode()) != "STOPPING=1":
            assert said == "WATCHDOG=1"


SETUPS = {"systemd": Setup(around=under_systemd)}
