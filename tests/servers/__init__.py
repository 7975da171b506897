"""Private database servers for tests and benchmarks.

Every server is started from the machine's binaries on a free loopback port, keeps its files in a
temporary folder, and is ended by process id. None outlives this process: the kernel kills it when we
die (``setpriv --pdeathsig``). Functions here block; an async test calls the slow ones through
``asyncio.to_thread``. All durations are seconds.
"""

from tests.servers.galera import GaleraCluster
from tests.servers.machine import ServerFailed, cache_folder, free_port
from tests.servers.mariadb import MariaDBServer
from tests.servers.mysql import MySQLServer
from tests.servers.postgresql import NewPostgreSQLServer, PgBouncer, PostgreSQLServer
from tests.servers.proxy import Action, TCPProxy
from tests.servers.server import Server

__all__ = [
    "Action",
    "GaleraCluster",
    "MariaDBServer",
    "MySQLServer",
    "NewPostgreSQLServer",
    "PgBouncer",
    "PostgreSQLServer",
    "Server",
    "ServerFailed",
    "TCPProxy",
    "cache_folder",
    "free_port",
]
