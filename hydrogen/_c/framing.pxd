"""Framing, sans-I/O: bytes in, frames out. Never sees an fd, holds no state between calls, allocates nothing.

Lengths are unsigned and compared so that nothing can wrap: `declared > limit` before any addition. hydrogen/frame.py does the same in Python and says
what each format is; tests/corpus holds both to the same answers.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cdef enum:
    FRAMING_RAW = 0
    FRAMING_SIMPLE = 1

cdef enum:
    FRAME_INCOMPLETE = 0
    FRAME_COMPLETE = 1
    FRAME_BAD = 2
    FRAME_OVERSIZE = 3

cdef enum:
    SIMPLE_START = 0x01
    SIMPLE_END = 0x17
    SIMPLE_HEADER = 3
    SIMPLE_OVERHEAD = 4

ctypedef struct framing_t:
    int kind
    size_t max_size  # of a payload; unused for raw chunks

# Where the payload of the first frame lies, relative to the bytes given, and how many bytes the frame takes.
ctypedef struct frame_t:
    size_t offset
    size_t length
    size_t size


cdef inline int framing_next_simple(size_t max_size, const uint8_t *data, size_t n, frame_t *frame) noexcept nogil:
    cdef size_t length
    if n and data[0] != SIMPLE_START:
        return FRAME_BAD
    if n < SIMPLE_HEADER:
        return FRAME_INCOMPLETE
    length = (<size_t>data[1] << 8) | data[2]
    if length > max_size:
        return FRAME_OVERSIZE
    if n - SIMPLE_HEADER <= length:
        return FRAME_INCOMPLETE
    if data[SIMPLE_HEADER + length] != SIMPLE_END:
        return FRAME_BAD
    frame.offset = SIMPLE_HEADER
    frame.length = length
    frame.size = length + SIMPLE_OVERHEAD
    return FRAME_COMPLETE


cdef inline int framing_next(framing_t *framing, const uint8_t *data, size_t n, frame_t *frame) noexcept nogil:
    """Find the first frame of `data`: FRAME_COMPLETE and `frame` is set, FRAME_INCOMPLETE, or why it can never become one."""
    if framing.kind == FRAMING_SIMPLE:
        return framing_next_simple(framing.max_size, data, n, frame)
    frame.offset = 0
    frame.length = frame.size = n
    return FRAME_COMPLETE if n else FRAME_INCOMPLETE


cdef inline size_t framing_overhead(framing_t *framing) noexcept nogil:
    """Bytes that a frame adds to its payload."""
    return SIMPLE_OVERHEAD if framing.kind == FRAMING_SIMPLE else 0


cdef inline void framing_encode(framing_t *framing, const char *payload, size_t n, char *to) noexcept nogil:
    """Write the frame of a payload of `n` bytes, at most `max_size`, to `to`, which has room for it."""
    if framing.kind == FRAMING_SIMPLE:
        to[0] = SIMPLE_START
        to[1] = <char>(n >> 8)
        to[2] = <char>(n & 0xFF)
        to[SIMPLE_HEADER + n] = SIMPLE_END
        to += SIMPLE_HEADER
    memcpy(to, payload, n)
