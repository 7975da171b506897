"""A proxy before a server that makes the network's faults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Self, final

from tests.servers.machine import free_port

Side = Literal["to_server", "to_client"]
Direction = Literal["both", "to_server", "to_client"]
Fate = Literal["forward", "swallow", "cut"]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a proxy does with one query and with the server's answer to it.

    ``forward`` is the ordinary case. ``swallow``: the bytes vanish, and so does all that follows in that
    direction of the connection, which stays open. ``cut``: the connection ends instead.

    Attributes:
        hold: Keep the query, and what the client sends after it, until this is set.
        query: What becomes of the query itself.
        answer: What becomes of the answer; with ``cut`` the server has carried the query out.
        answered: Set when the first bytes of the answer have come from the server.
    """

    hold: asyncio.Event | None = None
    query: Fate = "forward"
    answer: Fate = "forward"
    answered: asyncio.Event | None = None


@final
class TCPProxy:
    """A proxy before a server of MySQL, or of PostgreSQL, that makes the network's faults, on demand and at once.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        on_query: Called with the text of every query (COM_QUERY; of PostgreSQL Query and Bind); what it returns
            happens to that one. Queries within TLS or the compressed protocol are not seen.
        disguise: What is replaced in all that the server says, byte by byte, and by what; of the same length.
        connections: How many were accepted since the start.
        live: How many are open now.
        bytes_to_server: How many bytes were passed on.
        swallowed: How many bytes have vanished on their way to either side.
    """

    def __init__(self, host: str, port: int, kind: str = "mysql") -> None:
        self.port = free_port()
        self._is_postgresql = kind == "postgresql"
        self.on_query: Callable[[bytes], Action | None] | None = None
        self.disguise: dict[bytes, bytes] = {}
        self.connections = 0
        self.bytes_to_server = 0
        self.swallowed: dict[Side, int] = {"to_server": 0, "to_client": 0}
        self._target = (host, port)
        self._delays: dict[Side, float] = {"to_server": 0.0, "to_client": 0.0}
        self._swallowed: set[Side] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}

    async def __aenter__(self) -> Self:
        self.refuse(False)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = [*self._links, *([self._accepting] if self._accepting else [])]
        self.refuse(True)
        self.cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def live(self) -> int:
        return len(self._links)

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Hold every piece of data back by so much, in order; 0 ends it."""
        self._delays.update(dict.fromkeys(_sides(direction), seconds))

    def swallow(self, direction: Direction = "both") -> None:
        """Let the bytes vanish, of old connections and new, until ``heal``."""
        self._swallowed.update(_sides(direction))

    def cut(self) -> None:
        """Reset all connections of now, on both sides."""
        for link in self._links.values():
            link.reset()

    def refuse(self, refused: bool = True) -> None:
        """Refuse new connections, as a closed port does, or take them again. Call it in the event loop."""
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
        if self._listener is not None:
            # Before it is closed, and not as the task ends: the next socket may have its number by then.
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        if not refused:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
            self._listener.setblocking(False)
            self._accepting = asyncio.ensure_future(self._accept(self._listener))

    def heal(self) -> None:
        """End delays, swallowing and refusal. What was swallowed stays lost."""
        self.delay(0.0)
        self._swallowed.clear()
        for link in self._links.values():
            link.lost.clear()
        if self._listener is None:
            self.refuse(False)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self.connections += 1
            link = _Link(client)
            task = asyncio.create_task(self._serve(link))
            self._links[task] = link
            task.add_done_callback(self._links.pop)

    async def _serve(self, link: _Link) -> None:
        pumps: list[asyncio.Task[None]] = []
        try:
            client = await link.adopt(asyncio.open_connection(sock=link.client))
            server = await link.adopt(asyncio.open_connection(*self._target))
            pumps = [
                asyncio.create_task(self._pump_queries(link, client[0], server[1])),
                asyncio.create_task(self._pump_answers(link, server[0], client[1])),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the server is down: the client sees its connection end
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.close()

    async def _pump_messages(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Of PostgreSQL: first a message without a type, or several, one of which asks for TLS, in vain.

        Messages that come together are one piece of data.
        """
        started, prepared, read = False, dict[bytes, bytes](), b""
        while data := await reader.read(65536):
            read, passed = read + data, b""
            while len(read) >= (head := 4 + started) and len(read) >= (end := _length(read[started:head]) + started):
                message, read = read[:end], read[end:]
                kind, body = message[:started], message[head:]
                started = started or _length(body[:4]) >> 16 == 3
                query = body if kind == b"Q" else None
                if kind == b"P":
                    name, _, prepared[name] = body.partition(b"\0")
                elif kind == b"B":
                    query = prepared.get(body.split(b"\0")[1])
                if query is not None and not await self._may_pass(link, query):
                    return
                passed += message
            await self._pass(link, "to_server", passed, writer)

    async def _may_pass(self, link: _Link, query: bytes) -> bool:
        """Has a query wait, vanish or be the last of its connection, if somebody wants that."""
        action = (self.on_query(query) if self.on_query is not None else None) or Action()
        if action.hold is not None:
            await action.hold.wait()
        if action.query == "cut":
            link.reset()
            return False
        if action.query == "swallow":
            link.lost.add("to_server")
        link.action = action
        return True

    async def _pump_queries(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_postgresql:
            await self._pump_messages(link, reader, writer)
            return
        while True:
            header = await reader.readexactly(4)
            packet = await reader.readexactly(int.from_bytes(header[:3], "little"))
            if header[3] == 0 and packet[:1] == b"\x03" and not await self._may_pass(link, packet[1:]):
                return
            await self._pass(link, "to_server", header + packet, writer)
            if header == b"\x20\x00\x00\x01":  # the client asks for TLS: no packets from here on
                while data := await reader.read(65536):
                    await self._pass(link, "to_server", data, writer)
                return

    async def _pump_answers(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            action, link.action = link.action, Action()
            if action.answered is not None:
                action.answered.set()
            if action.answer == "cut":
                link.reset()
                return
            if action.answer == "swallow":
                link.lost.add("to_client")
            for found, shown in self.disguise.items():
                assert len(found) == len(shown), "the lengths of the server's messages stay as they are"
                data = data.replace(found, shown)
            await self._pass(link, "to_client", data, writer)

    async def _pass(self, link: _Link, side: Side, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._delays[side]:
            await asyncio.sleep(self._delays[side])
        if side in self._swallowed or side in link.lost:
            self.swallowed[side] += len(data)
            return
        if side == "to_server":
            self.bytes_to_server += len(data)
        writer.write(data)
        await writer.drain()


@final
class _Link:
    """One proxied connection: its two sockets, and what was asked for it alone."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.action = Action()
        self.lost: set[Side] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def adopt(self, opening: Awaitable[Streams]) -> Streams:
        streams = await asyncio.wait_for(opening, 5.0)
        self._writers.append(streams[1])
        return streams

    def close(self) -> None:
        """End both sides in an orderly way, after what was written. Idempotent."""
        for writer in self._writers:
            writer.close()
        if not self._writers:
            self.client.close()

    def reset(self) -> None:
        """End both sides with a TCP reset, as a crashed host's network does. Idempotent."""
        for writer in self._writers:
            peer = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it is closed already
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if not self._writers:
            self.client.close()


def _sides(direction: Direction) -> tuple[Side, ...]:
    return ("to_server", "to_client") if direction == "both" else (direction,)


def _length(head: bytes) -> int:
    return int.from_bytes(head)
