"""A message for all connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from hydrogen._py.connection import Connection
from hydrogen.codec import encode
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import class_name
from hydrogen.frame import FrameBuilder
from hydrogen.report import BroadcastReport
from hydrogen.websocket import WebSocket


class Broadcast:
    """One message, framed once for each framing that it meets."""

    def __init__(
        self,
        builder: FrameBuilder | WebSocket | None,
        data: bytes | str,
        complain: Callable[[str, Exception], None],
    ) -> None:
        """Args: builder: the server's framing; what it cannot carry is raised here.

        Raises:
            ValueError: see `codec.encode`.
        """
        self._data = data
        self._complain = complain
        self._compressed: dict[int, bytes] = {}  # by the window
        # By the id of the builder, which need not be hashable.
        self._frames: dict[int, bytes | None] = {id(builder): encode(builder, data)}

    def send(
        self, connections: list[Connection], exclude: Collection[HydrogenSocket]
    ) -> BroadcastReport:
        """To all that are introduced, and are not being reset. What another framing cannot carry is
        dropped there.
        """
        excluded = set(exclude)
        sent = dropped = 0
        rest = 0.0
        for connection in connections:
            gone = connection.at_once or connection.is_sealed
            if not connection.ready or gone or connection.socket in excluded:
                continue
            taken = self._send(connection, self._frame_for(connection))
            sent += taken
            dropped += not taken
            rest = max(rest, connection.rest())
        if rest:
            time.sleep(rest)
        return BroadcastReport(sent, dropped)

    def _frame_for(self, connection: Connection) -> bytes | None:
        """The message as this connection has it; None: it cannot. Framed, or compressed, once for
        all that have it alike.
        """
        websocket, builder = connection.websocket, connection.builder
        if websocket is not None and websocket.encoder is not None:
            encoder = websocket.encoder
            if encoder.is_ordered:
                return websocket.encode(self._data)
            if encoder.bits not in self._compressed:
                self._compressed[encoder.bits] = websocket.encode(self._data)
            return self._compressed[encoder.bits]
        if id(builder) not in self._frames:
            self._frames[id(builder)] = self._frame(builder)
        return self._frames[id(builder)]

    def _frame(self, builder: FrameBuilder | WebSocket | None) -> bytes | None:
        """The message as `builder` frames it; None: it cannot."""
        try:
            return encode(builder, self._data)
        except ValueError:
            return None
        except Exception as error:
            self._complain(f"{class_name(builder)}.frame", error)
            return None

    def _send(self, connection: Connection, frame: bytes | None) -> bool:
        """Send to one of many: whatever is wrong with it, the others are not to miss theirs."""
        try:
            return frame is not None and connection.send(frame, rests=False)
        except Exception as error:
            self._complain("broadcast", error)
            return False
