# cython: freethreading_compatible=True, auto_pickle=False
"""The compiled frame codec as Python sees it: which framing a builder means, and, without any
connection, frames of bytes and bytes of frames.

The engine looks for frames in its own blocks by the functions of _c/framing.pxd; here is what it
shares with whoever has only bytes.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from hydrogen import errors
from hydrogen import framings
from hydrogen.websocket import WebSocket

cimport cython

from hydrogen._c.framing cimport *
from hydrogen._c.head cimport HEAD_COMPLETE, HEAD_MORE, head_find
from hydrogen._c.websocket cimport (
    MESSAGES_CONTROL, MESSAGES_MORE, MESSAGE_HEADER, OPCODE_CLOSE, OPCODE_TEXT, control_t,
    reader_t, websocket_advance, websocket_closing,
)

cdef dict _KINDS = {
    framings.BUILT_IN["simple"]: FRAMING_SIMPLE,
    framings.BUILT_IN["checksum32"]: FRAMING_CHECKSUM32,
    framings.BUILT_IN["length"]: FRAMING_LENGTH,
    framings.BUILT_IN["line"]: FRAMING_LINE,
    framings.BUILT_IN["websocket"]: FRAMING_WEBSOCKET,
}


@cython.final
cdef class Framing:
    """A frame builder as C knows it, or `WebSocket`; None: raw chunks. Of a user's builder, and any
    subclass is one, no more than that it is one.

    Raises:
        AttributeError, TypeError, ValueError: a built-in builder whose fields are none.
    """

    def __cinit__(self, builder):
        if builder is None:
            return
        if isinstance(builder, WebSocket):
            self.value.kind = FRAMING_MESSAGES
            self.value.max_size = <size_t>-1 >> 1
            self.value.opcode = WEBSOCKET_BINARY
            return
        self.value.kind = _KINDS.get(type(builder), FRAMING_PYTHON)
        if self.value.kind == FRAMING_PYTHON:
            return
        builder = framings.copy_of(builder)
        self.value.max_size = builder.max_size
        self.value.opcode = WEBSOCKET_BINARY
        if self.value.kind == FRAMING_LENGTH:
            self.value.width = builder.width
            self.value.little = builder.byteorder == "little"
        elif self.value.kind == FRAMING_LINE:
            self.value.strip_cr = builder.delimiter == b"\n"
            self.value.delimiter_size = len(builder.delimiter)
            memcpy(
                self.value.delimiter, PyBytes_AS_STRING(builder.delimiter), len(builder.delimiter)
            )

    cdef bytes key(self):
        """Equal for equal framings."""
        return (<char *>&self.value)[:sizeof(framing_t)]


cdef bytes framed(const framing_t *framing, bytes payload):
    """The frame of a payload, as on the wire."""
    cdef size_t n = len(payload)
    if framing.kind == FRAMING_RAW:
        return payload
    if n > framing.max_size:
        raise too_large(framing, n)
    wire = PyBytes_FromStringAndSize(NULL, n + framing_overhead(framing, n))
    if framing_encode(
        framing, PyBytes_AS_STRING(payload), n, PyBytes_AS_STRING(wire)
    ) != FRAME_COMPLETE:
        raise unfit()
    return wire


cdef object too_large(const framing_t *framing, size_t n):
    return errors.FrameTooLarge(f"a payload of {n} bytes is over max_size {framing.max_size}")


cdef object unfit():
    return ValueError(framings.UNFIT)


cdef object refusal(const framing_t *framing, const uint8_t *data, size_t n):
    """The exception for bytes that framing_next refused: what the builder in framings.py raises, so
    that there is one sentence for each reason.
    """
    builders = {kind: builder for builder, kind in _KINDS.items()}
    if framing.kind == FRAMING_LENGTH:
        builder = builders[FRAMING_LENGTH](
            framing.width, "little" if framing.little else "big", framing.max_size
        )
    elif framing.kind == FRAMING_LINE:
        builder = builders[FRAMING_LINE](
            framing.delimiter[:framing.delimiter_size], framing.max_size
        )
    else:
        builder = builders[framing.kind](framing.max_size)
    error = errors.ProtocolError("bytes that can never become a frame")
    try:
        builder.from_bytes(bytearray(data[:n]))
    except ValueError as raised:
        error = raised.with_traceback(None)
    return error


cdef Framing _built_in(builder):
    cdef Framing framing = Framing(builder)
    if framing.value.kind == FRAMING_PYTHON:
        raise TypeError(f"builder: a built-in frame builder is expected, not {builder!r}")
    return framing


def encode(builder, bytes payload):
    """The frame of `payload`, as `builder.frame(payload).to_bytes()`, and with the same errors."""
    return framed(&_built_in(builder).value, payload)


def decode(builder, bytes data):
    """All that is in `data`: the payloads of its frames, the error that ends them or None, and how
    many bytes are left without one.
    """
    cdef Framing framing = _built_in(builder)
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t left = len(data)
    cdef size_t scanned = 0
    cdef frame_t frame
    cdef int verdict
    payloads = []
    while True:
        verdict = framing_next(&framing.value, at, left, &scanned, &frame)
        if verdict != FRAME_COMPLETE:
            break
        payloads.append(payload_of(&frame, at))
        at += frame.size
        left -= frame.size
    if verdict == FRAME_INCOMPLETE:
        return payloads, None, left
    return payloads, refusal(&framing.value, at, left), 0


def messages(parts, size_t max_message, uint32_t max_fragments, bint inflates=False):
    """What a WebSocket client's bytes are, which come in `parts`: (opcode, data, code) of each
    message and control frame, as `_py.websocket.MessageReader` gives them, but that messages come
    behind the control frames of their part, and those that are compressed as they came, the bit
    that says so in the opcode; and the code of the error that ends them, or 0.
    """
    cdef reader_t reader
    cdef control_t control
    cdef uint32_t code
    cdef size_t length = 0
    cdef int verdict = MESSAGES_MORE
    cdef bytearray buffer = bytearray()
    memset(&reader, 0, sizeof(reader))
    reader.inflates = inflates
    events = []
    for part in parts:
        buffer += part
        while True:
            verdict = websocket_advance(
                &reader, max_message, max_fragments, <uint8_t *>PyByteArray_AS_STRING(buffer),
                len(buffer), &length, &control)
            del buffer[length:]
            if verdict != MESSAGES_CONTROL:
                break
            code = 0
            data = control.payload[:control.length]
            if control.opcode == OPCODE_CLOSE:
                verdict = websocket_closing(&control, &code)
                if verdict:
                    break
                data = data[2:].decode()
            events.append((control.opcode, data, code))
        while reader.ready:
            length = int.from_bytes(buffer[1:MESSAGE_HEADER], "big")
            data = bytes(buffer[MESSAGE_HEADER:MESSAGE_HEADER + length])
            events.append((buffer[0], data.decode() if buffer[0] == OPCODE_TEXT else data, 0))
            del buffer[:MESSAGE_HEADER + length]
            reader.ready -= MESSAGE_HEADER + length
        if verdict:
            break
    return events, verdict


def head(parts, size_t max_header):
    """The head of the HTTP request that comes in `parts`, without the empty line that ends it, or
    None; and the status that it is refused with, or 0.
    """
    cdef bytes data = b""
    cdef size_t seen = 0
    cdef size_t size = 0
    cdef int verdict = HEAD_MORE
    for part in parts:
        data += part
        verdict = head_find(
            <const uint8_t *>PyBytes_AS_STRING(data), len(data), max_header, &seen, &size
        )
        if verdict != HEAD_MORE:
            break
    if verdict == HEAD_COMPLETE:
        return data[:size - 4], 0
    return None, verdict
