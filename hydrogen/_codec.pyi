from typing import final

from hydrogen.errors import ProtocolError
from hydrogen.frame import FrameBuilder

@final
class Framing:
    def __new__(cls, builder: FrameBuilder | None) -> Framing: ...

def encode(builder: FrameBuilder | None, payload: bytes) -> bytes: ...
def decode(builder: FrameBuilder | None, data: bytes) -> tuple[list[bytes], type[ProtocolError] | None, int]: ...
