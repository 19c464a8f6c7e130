"""The jobs as asyncio protocols; asyncio and uvloop run the same ones."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, cast

from perf.contenders import (
    BLOCKING_EVERY,
    BLOCKING_SECONDS,
    BROADCAST,
    QUERY_SECONDS,
    THREADS,
    tls_context,
)

START, END = b"\x01", b"\x17"
pack_head, unpack_head = struct.Struct(">BH").pack, struct.Struct(">BH").unpack_from

_messages = itertools.count(1)
_pool = ThreadPoolExecutor(THREADS)


class Raw(asyncio.Protocol):
    """Echo."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one by duck typing only

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Simple(Raw):
    """SimpleFrame echo with the parser one writes first: a bytearray, and a frame cut off its front
    at a time.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def frames(self, data: bytes) -> list[bytes]:
        """The payloads that ``data`` completes."""
        buffer = self._buffer
        buffer += data
        payloads = []
        while len(buffer) >= 4:
            if buffer[0] != START[0]:
                raise ValueError("no frame begins here")
            length = int.from_bytes(buffer[1:3], "big")
            if len(buffer) < length + 4:
                break
            if buffer[length + 3] != END[0]:
                raise ValueError("the frame does not end here")
            payloads.append(bytes(buffer[3 : length + 3]))
            del buffer[: length + 4]
        return payloads

    def encode(self, payload: bytes) -> bytes:
        """``payload`` as a frame."""
        return START + len(payload).to_bytes(2, "big") + payload + END

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"".join([self.encode(payload) for payload in self.frames(data)]))


class SimpleTuned(Raw):
    """SimpleFrame echo by somebody who has measured: one pass over the bytes as they came, no
    calls, one join.
    """

    def __init__(self) -> None:
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        replies: list[bytes] = []
        while size - at >= 4:
            start, length = unpack_head(data, at)
            end = at + 3 + length
            if end >= size:
                break
            if start != 0x01 or data[end] != 0x17:
                raise ValueError("not a frame")
            payload = data[at + 3 : end]
            replies += (pack_head(0x01, len(payload)), payload, END)
            at = end + 1
        self._rest = data[at:]
        self.transport.write(b"".join(replies))


class Sleeping(Raw):
    """Echo whose handler now and then blocks, and the event loop with it."""

    def data_received(self, data: bytes) -> None:
        if next(_messages) % BLOCKING_EVERY == 0:
            time.sleep(BLOCKING_SECONDS)
        self.transport.write(data)


class Executor(Raw):
    """The same by an author who knows which handlers will block, and sends exactly those to a
    pool.
    """

    every = BLOCKING_EVERY
    seconds = BLOCKING_SECONDS

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        if next(_messages) % self.every == 0:
            _pool.submit(self._block, data)
        else:
            self.transport.write(data)

    def _block(self, data: bytes) -> None:
        time.sleep(self.seconds)
        self._loop.call_soon_threadsafe(self.transport.write, data)


class ExecutorQuerying(Executor):
    """Each handler blocks for a moment, in the pool."""

    every = 1
    seconds = QUERY_SECONDS


class Broadcasting(Raw):
    """Echo that sends some messages to everybody, and counts for how long that occupies the event
    loop.

    uvloop writes what was queued at the end of the loop's turn; so it is occupied until the next
    one.
    """

    everyone: ClassVar[dict[asyncio.BaseTransport, asyncio.Transport]] = {}
    broadcasts = 0
    seconds = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.everyone[transport] = self.transport

    def connection_lost(self, error: Exception | None) -> None:
        del self.everyone[self.transport]

    def data_received(self, data: bytes) -> None:
        if not data.startswith(BROADCAST):
            self.transport.write(data)
            return
        asyncio.get_running_loop().call_soon(self._count, time.perf_counter())
        for transport in self.everyone.values():
            transport.write(data)

    @classmethod
    def _count(cls, began: float) -> None:
        cls.seconds += time.perf_counter() - began
        cls.broadcasts += 1

    @classmethod
    def tell(cls) -> None:
        """Answer a line on standard input."""
        if sys.stdin.readline():
            print(
                json.dumps({"broadcasts": cls.broadcasts, "broadcast_seconds": cls.seconds}),
                flush=True,
            )


class Buffered(asyncio.BufferedProtocol):
    """Echo by somebody who has measured: over TLS uvloop allocates 256 KiB for each read of a
    `Protocol`, which malloc maps and unmaps.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self._view[:nbytes]))


JOBS: dict[str, type[asyncio.BaseProtocol]] = {
    "raw": Raw,
    "simple": Simple,
    "simple_tuned": SimpleTuned,
    "sleeping": Sleeping,
    "executor": Executor,
    "executor_querying": ExecutorQuerying,
    "broadcast": Broadcasting,
    "tls": Buffered,
}


async def serve(job: str, certificate: str | None = None) -> None:
    """Listen, print the port, and serve for ever."""
    context = None if certificate is None else tls_context(certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(JOBS[job], "127.0.0.1", 0, backlog=4096, ssl=context)
    if JOBS[job] is Broadcasting:
        loop.add_reader(sys.stdin, Broadcasting.tell)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
