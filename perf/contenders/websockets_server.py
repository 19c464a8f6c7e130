"""``python -m perf.contenders.websockets_server JOB``: websockets on uvloop; its only job is
``websocket_upgraded``.

Without compression, which makes tiny messages slower; and without keepalive, for the load generator
answers no pings.
"""

from __future__ import annotations

import contextlib

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


async def echo(connection: ServerConnection) -> None:
    """Send back every message."""
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            await connection.send(message)


async def main() -> None:
    """Listen, print the port, and serve for ever."""
    async with serve(
        echo, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096
    ) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


uvloop.run(main())
