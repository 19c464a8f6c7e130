"""hydrogen: a multithreaded, non-blocking socket server framework. The public names, nothing else.

class Echo(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data)

hydrogen.begin(Echo(), hydrogen.Config(port=1337))
"""

from hydrogen import backend as _backend
from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import (
    ChecksumMismatch,
    ConnectionTimeout,
    EngineUnavailable,
    FrameTooLarge,
    HandlerError,
    HydrogenError,
    IncompleteFrame,
    LocalClosed,
    PeerClosed,
    ProtocolError,
    Reject,
    ServerStopped,
    SlowConsumer,
)
from hydrogen.frame import Frame, FrameBuilder, SimpleFrame, SimpleFrameBuilder
from hydrogen.handler import Handler
from hydrogen.report import Stats, StopReport
from hydrogen.server import Server, begin, serve
from hydrogen.stream import Stream

__all__ = [
    "ChecksumMismatch",
    "Config",
    "ConnectionTimeout",
    "EngineUnavailable",
    "Frame",
    "FrameBuilder",
    "FrameTooLarge",
    "Handler",
    "HandlerError",
    "HydrogenError",
    "HydrogenSocket",
    "IncompleteFrame",
    "LocalClosed",
    "PeerClosed",
    "ProtocolError",
    "Reject",
    "Server",
    "ServerStopped",
    "SimpleFrame",
    "SimpleFrameBuilder",
    "SlowConsumer",
    "Stats",
    "StopReport",
    "Stream",
    "begin",
    "engine",
    "serve",
]

__version__ = "0.1.0"

engine: str
"""Name of the default engine, `"compiled"` or `"python"`; found out when first asked for."""


def __getattr__(name: str) -> str:
    if name == "engine":
        return _backend.default_engine()
    raise AttributeError(f"module 'hydrogen' has no attribute {name!r}")
