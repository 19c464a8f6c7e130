from collections.abc import Iterable
from typing import Any, final

from hydrogen.errors import ProtocolError
from hydrogen.frame import FrameBuilder
from hydrogen.websocket import WebSocket

__pyx_capi__: dict[str, Any]

@final
class Framing:
    def __new__(cls, builder: FrameBuilder | WebSocket | None) -> Framing: ...

def encode(builder: FrameBuilder | None, payload: bytes) -> bytes: ...
def decode(
    builder: FrameBuilder | None, data: bytes
) -> tuple[list[bytes], ProtocolError | None, int]: ...
def messages(
    parts: Iterable[bytes], max_message: int, max_fragments: int, inflates: bool = False
) -> tuple[list[tuple[int, str | bytes, int]], int]: ...
def head(parts: Iterable[bytes], max_header: int) -> tuple[bytes | None, int]: ...
