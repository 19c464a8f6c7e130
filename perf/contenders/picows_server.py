"""``python -m perf.contenders.picows_server JOB``: picows on uvloop; its only job is
``websocket_upgraded``.
"""

from __future__ import annotations

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

MESSAGES = (WSMsgType.BINARY, WSMsgType.TEXT)


class Echo(WSListener):
    """Send back every message; picows leaves closing to its user."""

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in MESSAGES:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()


def listener(request: WSUpgradeRequest) -> WSListener:
    """One for each connection."""
    return Echo()


async def serve() -> None:
    """Listen, print the port, and serve for ever."""
    server = await ws_create_server(listener, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


uvloop.run(serve())
