"""permessage-deflate (RFC 7692): what both sides agree on, and messages compressed and inflated by
`zlib`, which lets go of the GIL. Sans-I/O; both engines use it.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydrogen.checks import check_flag, check_whole
from hydrogen.errors import FrameTooLarge, InvalidText
from hydrogen.framings import WebSocketFrame
from hydrogen.http import TOKEN, Refusal

if TYPE_CHECKING:
    from hydrogen.tls import TlsSession

NAME = "permessage-deflate"

COMPRESSED = 0x40
"""The bit of the first frame of a message that is compressed (section 6)."""

_TAIL = b"\0\0\xff\xff"
"""What ends each flush, and is left out on the wire (section 7.2.1)."""

_LAST = b"\x03\0"
"""A block that is empty, and the last (RFC 1951 section 3.2.6)."""

_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({TOKEN})(?:[ \t]*=[ \t]*(?:({TOKEN})|"({TOKEN})"))?')
_OFFER = re.compile(rf"[ \t]*({TOKEN})((?:{_PARAMETER.pattern})*)[ \t]*")
_BITS = re.compile(r"[89]|1[0-5]")
_LARGEST = 15


@dataclass(frozen=True)
class Deflate:
    """How messages are compressed, where the client can. Immutable.

    Attributes:
        server_no_context_takeover: compress each message by itself: worse, but there is no memory
            between two, and a broadcast is compressed once.
        client_no_context_takeover: the same of the client's messages.
        window_bits: of both sides, 9 to 15: a window of 2 to that power bytes.
        mem_level: memory of the compressor while it works, 1 to 9, see `zlib.compressobj`.
        min_size: shorter messages are sent as they are.

    Raises:
        TypeError, ValueError: on construction.
    """

    server_no_context_takeover: bool = True
    client_no_context_takeover: bool = True
    window_bits: int = 12
    mem_level: int = 5
    min_size: int = 1024

    def __post_init__(self) -> None:
        check_flag("server_no_context_takeover", self.server_no_context_takeover)
        check_flag("client_no_context_takeover", self.client_no_context_takeover)
        check_whole("window_bits", self.window_bits, 9, _LARGEST)
        check_whole("mem_level", self.mem_level, 1, 9)
        check_whole("min_size", self.min_size, 0, 1 << 39)


@dataclass(frozen=True)
class Agreement:
    """What both sides agreed on.

    Attributes:
        server_takeover, client_takeover: whether a side refers to its earlier messages.
        server_bits, client_bits: the windows.
    """

    server_takeover: bool
    client_takeover: bool
    server_bits: int
    client_bits: int


Offer = tuple[str, list[tuple[str, str | None]]]
"""The name of an extension, and its parameters."""


def offers_of(fields: Sequence[str]) -> list[Offer]:
    """The extensions that Sec-WebSocket-Extensions fields offer (RFC 6455 section 9.1).

    Raises:
        Refusal: 400: they are malformed.
    """
    offers: list[Offer] = []
    for field in fields:
        at = 0
        while True:
            found = _OFFER.match(field, at)
            if found is None or field[found.end() : found.end() + 1] not in ("", ","):
                raise Refusal(400, "Sec-WebSocket-Extensions is malformed")
            parameters = [
                (part[1].lower(), part[2] or part[3]) for part in _PARAMETER.finditer(found[2])
            ]
            offers.append((found[1].lower(), parameters))
            at = found.end() + 1
            if at > len(field):
                break
    return offers


def negotiate(offers: Sequence[Offer], settings: Deflate) -> tuple[str, Agreement] | None:
    """The answer to the first offer that can be accepted, and what it means; None: to none, and
    nothing is compressed (RFC 7692 section 7.1).
    """
    for name, parameters in offers:
        if name == NAME and (agreed := _agree(parameters, settings)) is not None:
            return agreed
    return None


def _agree(
    parameters: Sequence[tuple[str, str | None]], settings: Deflate
) -> tuple[str, Agreement] | None:
    """None: the offer is declined: a parameter is unknown, comes twice, or has a value that it
    cannot have; or a window of 2 to the power of 8 is asked of us, which zlib cannot do.
    """
    offered = dict(parameters)
    if len(offered) < len(parameters):
        return None
    server_bits, client_bits = settings.window_bits, _LARGEST
    server_takeover = not settings.server_no_context_takeover
    client_takeover = not settings.client_no_context_takeover
    for name, value in parameters:
        if name == "server_no_context_takeover" and value is None:
            server_takeover = False
        elif name == "client_no_context_takeover" and value is None:
            client_takeover = False
        elif name == "server_max_window_bits" and value and _BITS.fullmatch(value):
            server_bits = min(server_bits, int(value))
        elif name == "client_max_window_bits" and (value is None or _BITS.fullmatch(value)):
            client_bits = min(settings.window_bits, int(value or _LARGEST))
        else:
            return None
    if server_bits == 8:
        return None
    answer = [NAME]
    if not server_takeover:
        answer.append("server_no_context_takeover")
    if not client_takeover:
        answer.append("client_no_context_takeover")
    if server_bits < _LARGEST or "server_max_window_bits" in offered:
        answer.append(f"server_max_window_bits={server_bits}")
    if "client_max_window_bits" in offered:
        answer.append(f"client_max_window_bits={client_bits}")
    return "; ".join(answer), Agreement(server_takeover, client_takeover, server_bits, client_bits)


class Compressor:
    """Compresses the messages of one side. One thread at a time."""

    __slots__ = ("_bits", "_mem_level", "_takeover", "_zlib")

    def __init__(self, bits: int, mem_level: int, takeover: bool) -> None:
        self._bits = bits
        self._mem_level = mem_level
        self._takeover = takeover
        self._zlib = self._new() if takeover else None

    def _new(self) -> zlib._Compress:
        return zlib.compressobj(wbits=-self._bits, memLevel=self._mem_level)

    def compress(self, data: bytes) -> bytes:
        """The payload of a message, for frames with RSV1 (section 7.2.1)."""
        compressor = self._zlib or self._new()
        made = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return made.removesuffix(_TAIL)


def payload_most(max_message: int) -> int:
    """Bytes to which a message of `max_message` bytes is compressed, at most: zlib says so of any
    data, deflateBound in <zlib.h>.
    """
    return max_message + max_message // 4 + 64


class Inflater:
    """Inflates the messages of one side. One thread at a time."""

    __slots__ = ("_bits", "_takeover", "_zlib")

    def __init__(self, bits: int, takeover: bool) -> None:
        self._bits = bits
        self._takeover = takeover
        self._zlib = self._new() if takeover else None

    def _new(self) -> zlib._Decompress:
        return zlib.decompressobj(wbits=-self._bits)

    def inflate(self, data: bytes, max_message: int) -> bytes:
        """The message of which `data` is the payload (section 7.2.2). No more than `max_message`
        and one bytes are ever made of it.

        Raises:
            FrameTooLarge: it is longer than `max_message`.
            InvalidText: it is no compressed data, ends the stream, or is cut off (1007).
        """
        inflater = self._zlib or self._new()
        try:
            made = inflater.decompress(data, max_message + 1)
            if len(made) > max_message:
                raise FrameTooLarge(f"a message is over max_message {max_message}")
            # One that ended the stream would be deaf to all that follows.
            is_whole = not inflater.eof and _is_between_blocks(inflater)
            if is_whole and self._zlib is not None:
                inflater.decompress(_TAIL)
        except zlib.error:
            is_whole = False
        if not is_whole:
            raise InvalidText("a message is not compressed as it says")
        return made


def _is_between_blocks(inflater: zlib._Decompress) -> bool:
    """Whether all that it was given is whole, but for the tail: nothing comes of that, and a block
    behind it is the last.
    """
    probe = inflater.copy()
    return not probe.decompress(_TAIL + _LAST, 1) and probe.eof and not probe.unused_data


class Encoder:
    """Frames of the messages that we send, compressed as was agreed on.

    Attributes:
        is_ordered: with context takeover: messages must be encoded in the order of sending, by one
            thread at a time. Else any thread may encode any.
        bits: of the window.
    """

    __slots__ = ("_compressor", "_min_size", "bits", "is_ordered")

    def __init__(self, agreement: Agreement, settings: Deflate) -> None:
        self.is_ordered = agreement.server_takeover
        self.bits = agreement.server_bits
        self._min_size = settings.min_size
        self._compressor = Compressor(self.bits, settings.mem_level, self.is_ordered)

    def encode(self, opcode: int, payload: bytes) -> bytes:
        """The frame of a message, compressed unless it is short."""
        if len(payload) < self._min_size:
            return WebSocketFrame(payload, opcode).to_bytes()
        wire = WebSocketFrame(self._compressor.compress(payload), opcode).to_bytes()
        return bytes([wire[0] | COMPRESSED]) + wire[1:]


class OrderedOutput:
    """The messages of a connection that are compressed in the order of sending, on the compiled
    engine. To `_engine/sessions.pxd` it is a session such as `TlsSession` is, where its attributes
    are explained.

    Attributes:
        below: the TLS session that encrypts what is compressed; None: none.
        last: our CLOSE, behind all messages.
    """

    __slots__ = ("_encoder", "below", "is_closing", "is_sealed", "last", "lock", "user", "waiting")

    received: Sequence[bytes] = ()
    is_ready = is_writable = True
    is_cut = False
    failure = None

    def __init__(self, encoder: Encoder, below: TlsSession | None) -> None:
        self._encoder = encoder
        self.below = below
        self.lock = threading.Lock()
        self.waiting: deque[Any] = deque()
        self.is_closing = False
        self.is_sealed = False
        self.last = b""
        self.user: int | None = None

    def encrypt(self, *messages: bytes) -> bytes:
        """The frames of messages, each of them its opcode and its payload."""
        return b"".join(self._encoder.encode(message[0], message[1:]) for message in messages)

    def close(self) -> bytes:
        """What comes behind all messages."""
        return self.last
