"""permessage-deflate (RFC 7692): what both sides agree on, and messages compressed and inflated by
`zlib`, which lets go of the GIL. Sans-I/O; both engines use it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from hydrogen.checks import check_flag, check_whole
from hydrogen.errors import FrameTooLarge, InvalidText
from hydrogen.http import TOKEN, Refusal

NAME = "permessage-deflate"

_TAIL = b"\0\0\xff\xff"
"""What ends each flush, and is left out on the wire (section 7.2.1)."""

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
        check_whole("min_size", self.min_size, 0, 1 << 40)


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
    if server_bits < _LARGEST:
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
            InvalidText: it is no compressed data, or ends the stream (1007).
        """
        inflater = self._zlib or self._new()
        try:
            made = inflater.decompress(data, max_message + 1)
            if len(made) <= max_message:
                made += inflater.decompress(
                    inflater.unconsumed_tail + _TAIL, max_message + 1 - len(made)
                )
        except zlib.error:
            raise InvalidText("a message is not compressed as it says") from None
        if len(made) > max_message:
            raise FrameTooLarge(f"a message is over max_message {max_message}")
        if inflater.eof:  # it would be deaf to all that follows
            raise InvalidText("a message ends the stream of compressed data")
        return made
