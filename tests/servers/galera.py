"""A cluster of MariaDB servers that replicate to each other."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self, final

from tests.servers.machine import START_LIMIT, ServerFailed, free_port
from tests.servers.mariadb import MariaDBServer


@final
class GaleraCluster:
    """Several MariaDB servers that replicate to each other synchronously, all on loopback.

    Attributes:
        nodes: The servers; each has the whole API, and ``restart`` lets it join the others again.
    """

    def __init__(self, count: int, options: Sequence[str]) -> None:
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
        self.nodes: list[MariaDBServer] = []
        for address in addresses:
            provider = [f"gmcast.listen_addr=tcp://{address}", f"ist.recv_addr=127.0.0.1:{free_port()}"]
            provider += ["gcache.size=16M", "socket.checksum=1"]
            node_options = [
                "--wsrep-on=ON",
                f"--wsrep-provider={_galera_library()}",
                f"--wsrep-provider-options={';'.join(provider)}",
                f"--wsrep-cluster-address=gcomm://{','.join(addresses)}",
                "--wsrep-node-address=127.0.0.1",
                "--wsrep-sst-method=rsync",
                f"--wsrep-sst-receive-address=127.0.0.1:{free_port()}",
                "--binlog-format=ROW",
                "--innodb-autoinc-lock-mode=2",
            ]
            node = MariaDBServer(None, [*node_options, *options], faketime=False)
            if os.geteuid() == 0:
                node.account = "nobody"  # as whom rsync receives the state if root starts it
            self.nodes.append(node)

    @classmethod
    def available(cls) -> str | None:
        """``None`` if a cluster can be had here, else the reason why not."""
        if _galera_library() is None:
            return "libgalera_smm.so is not installed (Debian package galera-4)"
        if shutil.which("rsync") is None:
            return "rsync is not installed"
        return MariaDBServer.available()

    @classmethod
    def start(cls, nodes: int = 3, *, options: Sequence[str] = ()) -> Self:
        """Start a cluster on fresh data; returns when all nodes are synced.

        Raises:
            ServerFailed: With the end of the error log of the node that did not start.
        """
        cluster = cls(nodes, options)
        try:
            for number, node in enumerate(cluster.nodes):
                node.prepare()
                node.launch(*([] if number else ["--wsrep-new-cluster"]))
            cluster.wait_until_synced()
        except BaseException:
            cluster.close()
            raise
        return cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End all nodes and remove their files. Idempotent."""
        for node in self.nodes:
            node.close()

    def wait_until_synced(self, limit: float = START_LIMIT) -> None:
        """Wait until every node sees all others and takes statements.

        Raises:
            ServerFailed: The time is over.
        """
        deadline = time.monotonic() + limit
        for node in self.nodes:
            while (seen := self.status(node)) != ("Primary", len(self.nodes), "Synced"):
                if time.monotonic() > deadline:
                    raise ServerFailed(f"the Galera node on port {node.port} is not synced: {seen}")
                time.sleep(0.05)

    @staticmethod
    def status(node: MariaDBServer) -> tuple[str, int, str]:
        """How a node sees its cluster: its component, the nodes in it, and its own state."""
        status = dict(node.sql("SHOW STATUS LIKE 'wsrep%'"))
        size = int(status["wsrep_cluster_size"])
        return status["wsrep_cluster_status"], size, status["wsrep_local_state_comment"]

    def recover(self) -> None:
        """Make all nodes serve again, whatever a test did to them, unless it ended them all."""
        for node in self.nodes:
            if node.running:
                node.thaw()
        for node in self.nodes:
            if not node.running:
                node.restart()
        self.wait_until_synced()


def _galera_library() -> Path | None:
    return next(iter(sorted(Path("/usr").glob("lib*/galera*/libgalera_smm.so"))), None)
