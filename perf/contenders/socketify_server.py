"""``python -m perf.contenders.socketify_server JOB``: socketify, which is uWebSockets; its only job
is ``websocket_upgraded``.

Without compression and timeouts; the load generator answers no pings.
"""

from __future__ import annotations

from socketify import App, AppListenOptions, CompressOptions, OpCode, WebSocket


def echo(connection: WebSocket, message: str | bytes, opcode: OpCode) -> None:
    """Send back every message."""
    connection.send(message, opcode)


def listening(options: AppListenOptions) -> None:
    """Print the port."""
    print(options.port, flush=True)


app = App()
app.ws("/*", {"compression": CompressOptions.DISABLED, "idle_timeout": 0, "message": echo})
app.listen(AppListenOptions(port=0, host="127.0.0.1"), listening)
app.run()
