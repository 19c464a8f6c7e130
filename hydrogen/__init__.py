"""hydrogen: a framework for TCP, TLS and Unix-socket servers with ordinary, blocking callbacks.

class Echo(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)

hydrogen.begin(Echo(), hydrogen.Config(port=1337))
"""

from hydrogen import backend as _backend
from hydrogen.client import Client, connect
from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.deflate import Deflate
from hydrogen.errors import (
    ChecksumMismatch,
    ConnectionTimeout,
    EngineUnavailable,
    FrameTooLarge,
    HandlerError,
    HydrogenError,
    IncompleteFrame,
    InvalidText,
    LocalClosed,
    PeerClosed,
    ProtocolError,
    Reject,
    ServerStopped,
    SlowConsumer,
    WebSocketClosed,
)
from hydrogen.frame import ChunkFrame, Frame, FrameBuilder
from hydrogen.framings import (
    Checksum32Frame,
    Checksum32FrameBuilder,
    LengthFrame,
    LengthFrameBuilder,
    LineFrame,
    LineFrameBuilder,
    SimpleFrame,
    SimpleFrameBuilder,
    WebSocketFrame,
    WebSocketFrameBuilder,
)
from hydrogen.handler import Handler, WebSocketHandler
from hydrogen.handshake import Accept
from hydrogen.http import Headers, Request, Response
from hydrogen.listener import listen_fds
from hydrogen.plain import Plain
from hydrogen.proxy import ProxyHeader
from hydrogen.report import BroadcastReport, Stats, StopReport
from hydrogen.secure import Secure
from hydrogen.server import Server
from hydrogen.serving import begin, serve
from hydrogen.stream import Stream
from hydrogen.timers import Timer
from hydrogen.websocket import Close, WebSocket

__all__ = [
    "Accept",
    "BroadcastReport",
    "Checksum32Frame",
    "Checksum32FrameBuilder",
    "ChecksumMismatch",
    "ChunkFrame",
    "Client",
    "Close",
    "Config",
    "ConnectionTimeout",
    "Deflate",
    "EngineUnavailable",
    "Frame",
    "FrameBuilder",
    "FrameTooLarge",
    "Handler",
    "HandlerError",
    "Headers",
    "HydrogenError",
    "HydrogenSocket",
    "IncompleteFrame",
    "InvalidText",
    "LengthFrame",
    "LengthFrameBuilder",
    "LineFrame",
    "LineFrameBuilder",
    "LocalClosed",
    "PeerClosed",
    "Plain",
    "ProtocolError",
    "ProxyHeader",
    "Reject",
    "Request",
    "Response",
    "Secure",
    "Server",
    "ServerStopped",
    "SimpleFrame",
    "SimpleFrameBuilder",
    "SlowConsumer",
    "Stats",
    "StopReport",
    "Stream",
    "Timer",
    "WebSocket",
    "WebSocketClosed",
    "WebSocketFrame",
    "WebSocketFrameBuilder",
    "WebSocketHandler",
    "begin",
    "connect",
    "engine",
    "listen_fds",
    "serve",
]

__version__ = "0.1.0"

engine: str
"""Name of the default engine, `"compiled"` or `"python"`; determined on first access."""


def __getattr__(name: str) -> str:
    if name == "engine":
        return _backend.default_engine()
    raise AttributeError(f"module 'hydrogen' has no attribute {name!r}")
