"""Framing, sans-I/O: bytes in, frames out. Never sees an fd, holds no state between calls,
allocates nothing.

hydrogen/framings.py does the same in Python and says what each format is; the checks come in the
same order in both, each as soon as its bytes are there, and tests/corpus and the fuzzers
(tests/fuzz) hold both to the same answers.

Lengths are unsigned and compared so that nothing can wrap: a declared length with `max_size` first,
then with what is there, by subtraction. Sums are made only of what is known to be there. A
`frame_t` is set when the answer is FRAME_COMPLETE and not before.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memchr, memcmp

from hydrogen._c.head cimport HEAD_COMPLETE, HEAD_END, HEAD_LARGE, HEAD_MORE, head_find

cdef enum:
    FRAMING_RAW = 0
    FRAMING_SIMPLE = 1
    FRAMING_CHECKSUM32 = 2
    FRAMING_LENGTH = 3
    FRAMING_LINE = 4
    FRAMING_WEBSOCKET = 5
    # a builder of the user's: what comes in goes to it in chunks, and what it makes goes out as it
    # is
    FRAMING_PYTHON = 6
    # messages of a WebSocket: what comes in is websocket.pxd's
    FRAMING_MESSAGES = 7
    # the head of a request, which comes in before those
    FRAMING_HEAD = 8

cdef enum:
    FRAME_INCOMPLETE = 0
    FRAME_COMPLETE = 1
    FRAME_BAD = 2
    FRAME_OVERSIZE = 3
    FRAME_CHECKSUM = 4

cdef enum:
    SIMPLE_START = 0x01
    SIMPLE_END = 0x17
    SIMPLE_HEADER = 3
    SIMPLE_OVERHEAD = 4
    CHECKSUM32_HEADER = 4
    CHECKSUM32_TRAILER = 4
    DELIMITER_MOST = 64

# RFC 6455 section 5.2, the first two bytes of a frame.
cdef enum:
    WEBSOCKET_FIN = 0x80
    WEBSOCKET_RESERVED = 0x70
    WEBSOCKET_OPCODE = 0x0F
    WEBSOCKET_OPCODES = 0x0707  # a bit for each opcode that is not reserved: 0, 1, 2, 8, 9, 10
    WEBSOCKET_CONTROL = 0x08
    WEBSOCKET_BINARY = 0x02
    WEBSOCKET_MASK = 0x80
    WEBSOCKET_LENGTH = 0x7F
    # the longest length that is its own code, and the longest of a control frame
    WEBSOCKET_SHORT = 125
    WEBSOCKET_16 = 126
    WEBSOCKET_64 = 127

# A builder's fields, copied once when the server starts or the connection is adopted.
ctypedef struct framing_t:
    int kind
    size_t max_size  # of a payload, at most 2^63-1; unused for raw chunks
    uint8_t width  # bytes of a length: 1, 2, 4, 8
    bint little  # their order
    bint strip_cr  # a carriage return before the delimiter is no part of the line
    uint8_t delimiter_size  # 1 to DELIMITER_MOST
    uint8_t delimiter[DELIMITER_MOST]
    uint8_t opcode  # of frames of a WebSocket that are made

# Where the payload of the first frame lies, relative to the bytes given, and how many bytes the
# frame takes.
ctypedef struct frame_t:
    size_t offset
    size_t length
    size_t size
    bint masked
    uint8_t mask[4]


# --- what the formats share -----------------------------------------------------------------------

cdef inline uint64_t framing_get(const uint8_t *data, size_t width, bint little) noexcept nogil:
    """The unsigned number in `width` bytes."""
    cdef uint64_t value = 0
    cdef size_t i
    for i in range(width):
        value = value << 8 | data[width - 1 - i if little else i]
    return value


cdef inline void framing_put(uint8_t *to, size_t width, bint little, uint64_t value) noexcept nogil:
    """Write `value` in `width` bytes."""
    cdef size_t i
    for i in range(width):
        to[i if little else width - 1 - i] = <uint8_t>(value >> 8 * i)


cdef inline uint32_t framing_sum(const uint8_t *data, size_t n) noexcept nogil:
    """The sum of bytes modulo 2^32. A plain loop: compilers make vector code of it."""
    cdef uint32_t total = 0
    cdef size_t i
    for i in range(n):
        total += data[i]
    return total


cdef inline size_t framing_search(
    const framing_t *framing, const uint8_t *data, size_t begin, size_t end,
) noexcept nogil:
    """Where the first delimiter begins that lies within `begin` and `end`; `end` when there is
    none.

    memchr for its first byte, then a comparison: at worst delimiter_size steps a byte. memmem would
    be GNU's alone.
    """
    cdef size_t d = framing.delimiter_size
    cdef const uint8_t *found
    while begin + d <= end:
        found = <const uint8_t *>memchr(data + begin, framing.delimiter[0], end - begin - d + 1)
        if found == NULL:
            break
        if memcmp(found, framing.delimiter, d) == 0:
            return found - data
        begin = found - data + 1
    return end


# --- where the first frame is ---------------------------------------------------------------------

cdef inline int framing_found(
    frame_t *frame, size_t offset, size_t length, size_t size,
) noexcept nogil:
    frame.offset = offset
    frame.length = length
    frame.size = size
    frame.masked = False
    return FRAME_COMPLETE


cdef inline int framing_find_simple(
    size_t max_size, const uint8_t *data, size_t n, frame_t *frame,
) noexcept nogil:
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
    return framing_found(frame, SIMPLE_HEADER, length, length + SIMPLE_OVERHEAD)


cdef inline int framing_find_length(
    size_t max_size, size_t width, bint little, size_t trailer, const uint8_t *data, size_t n,
    frame_t *frame,
) noexcept nogil:
    """A length, so many bytes of payload, a trailer."""
    cdef uint64_t length
    if n < width:
        return FRAME_INCOMPLETE
    length = framing_get(data, width, little)
    if length > max_size:
        return FRAME_OVERSIZE
    if n - width < length or n - width - length < trailer:
        return FRAME_INCOMPLETE
    return framing_found(frame, width, length, width + length + trailer)


cdef inline int framing_find_line(
    const framing_t *framing, const uint8_t *data, size_t n, size_t *scanned, frame_t *frame,
) noexcept nogil:
    """A delimiter that ends beyond `most`, where that of the longest line ends, is not looked
    for.
    """
    cdef size_t d = framing.delimiter_size
    cdef uint64_t most = <uint64_t>framing.max_size + framing.strip_cr + d
    cdef size_t end = n if n < most else most
    cdef size_t at = framing_search(framing, data, scanned[0], end)
    cdef size_t length = at
    scanned[0] = 0
    if at == end:  # no delimiter: one has at least a byte, so it never begins at the end
        if n >= most:
            return FRAME_OVERSIZE
        if n >= d:
            scanned[0] = n - d + 1  # a part of one may be there: its last byte is not
        return FRAME_INCOMPLETE
    if framing.strip_cr and at and data[at - 1] == c"\r":
        length = at - 1
    if length > framing.max_size:
        return FRAME_OVERSIZE
    return framing_found(frame, 0, length, at + d)


cdef inline int framing_find_websocket(
    size_t max_size, const uint8_t *data, size_t n, frame_t *frame,
) noexcept nogil:
    """RFC 6455 section 5.2."""
    cdef size_t at = 2, mask_size
    cdef uint64_t length
    cdef bint control
    if n == 0:
        return FRAME_INCOMPLETE
    control = data[0] & WEBSOCKET_CONTROL
    if (
        data[0] & WEBSOCKET_RESERVED or
        not WEBSOCKET_OPCODES >> (data[0] & WEBSOCKET_OPCODE) & 1 or
        (control and not data[0] & WEBSOCKET_FIN)
    ):
        return FRAME_BAD
    if n < at:
        return FRAME_INCOMPLETE
    length = data[1] & WEBSOCKET_LENGTH
    if length > WEBSOCKET_SHORT:
        if control:
            return FRAME_BAD
        at = 4 if length == WEBSOCKET_16 else 10
        if n < at:
            return FRAME_INCOMPLETE
        length = framing_get(data + 2, at - 2, False)
        if length <= (WEBSOCKET_SHORT if at == 4 else 0xFFFF):  # the shortest form must be used
            return FRAME_BAD
    if length > max_size:
        return FRAME_OVERSIZE
    mask_size = 4 if data[1] & WEBSOCKET_MASK else 0
    if n - at < mask_size or n - at - mask_size < length:
        return FRAME_INCOMPLETE
    framing_found(frame, at + mask_size, length, at + mask_size + length)
    if mask_size:
        frame.masked = True
        memcpy(frame.mask, data + at, 4)
    return FRAME_COMPLETE


cdef inline int framing_find_head(
    size_t max_size, const uint8_t *data, size_t n, size_t *scanned, frame_t *frame,
) noexcept nogil:
    """The head of a request of HTTP, without the empty line that ends it."""
    cdef size_t size = 0
    cdef int verdict = head_find(data, n, max_size, scanned, &size)
    if verdict == HEAD_MORE:
        return FRAME_INCOMPLETE
    if verdict != HEAD_COMPLETE:
        return FRAME_OVERSIZE if verdict == HEAD_LARGE else FRAME_BAD
    scanned[0] = 0
    return framing_found(frame, 0, size - HEAD_END, size)


cdef inline int framing_find_other(
    const framing_t *framing, const uint8_t *data, size_t n, size_t *scanned, frame_t *frame,
) noexcept nogil:
    if framing.kind == FRAMING_LINE:
        return framing_find_line(framing, data, n, scanned, frame)
    if framing.kind == FRAMING_LENGTH:
        return framing_find_length(
            framing.max_size, framing.width, framing.little, 0, data, n, frame
        )
    if framing.kind == FRAMING_CHECKSUM32:
        return framing_find_length(
            framing.max_size, CHECKSUM32_HEADER, False, CHECKSUM32_TRAILER, data, n, frame
        )
    if framing.kind == FRAMING_WEBSOCKET:
        return framing_find_websocket(framing.max_size, data, n, frame)
    if framing.kind == FRAMING_HEAD:
        return framing_find_head(framing.max_size, data, n, scanned, frame)
    if framing.kind == FRAMING_MESSAGES:
        return FRAME_INCOMPLETE  # messages.pxd says when one is complete
    framing_found(frame, 0, n, n)
    return FRAME_COMPLETE if n else FRAME_INCOMPLETE


cdef inline int framing_find(
    const framing_t *framing, const uint8_t *data, size_t n, size_t *scanned, frame_t *frame,
) noexcept nogil:
    """Find the first frame of `data`: FRAME_COMPLETE and `frame` is set, FRAME_INCOMPLETE, or why
    it can never become one. Its checksum is not looked at.

    `scanned`, in and out, is a hint that the caller keeps with the bytes: no delimiter begins in so
    many of them, so that a line that comes in drops is searched once and not with every drop. 0 at
    first; always 0 for other formats, and after FRAME_COMPLETE. Between calls bytes may be added,
    not changed.
    """
    # By itself, so that this function stays small enough to be inlined where frames are short and
    # many.
    if framing.kind == FRAMING_SIMPLE:
        return framing_find_simple(framing.max_size, data, n, frame)
    return framing_find_other(framing, data, n, scanned, frame)


cdef inline int framing_next(
    const framing_t *framing, const uint8_t *data, size_t n, size_t *scanned, frame_t *frame,
) noexcept nogil:
    """`framing_find`, and the checksum of what was found: FRAME_CHECKSUM when it is not that of the
    payload.
    """
    cdef int verdict = framing_find(framing, data, n, scanned, frame)
    if framing.kind == FRAMING_CHECKSUM32 and verdict == FRAME_COMPLETE:
        data += frame.offset
        if framing_sum(data, frame.length) != framing_get(
            data + frame.length, CHECKSUM32_TRAILER, False
        ):
            return FRAME_CHECKSUM
    return verdict


cdef inline void framing_copy(const frame_t *frame, const uint8_t *data, char *to) noexcept nogil:
    """Copy the payload of the frame found in `data` to `to`, which has room for its length;
    unmasked (RFC 6455 section 5.3).
    """
    cdef uint64_t mask, word
    cdef size_t i = 0
    data += frame.offset
    if not frame.masked:
        memcpy(to, data, frame.length)
        return
    memcpy(&mask, frame.mask, 4)
    memcpy(<char *>&mask + 4, frame.mask, 4)
    while frame.length - i >= 8:
        memcpy(&word, data + i, 8)
        word ^= mask
        memcpy(to + i, &word, 8)
        i += 8
    while i < frame.length:
        to[i] = <char>(data[i] ^ frame.mask[i & 3])
        i += 1


# --- the way out ----------------------------------------------------------------------------------

cdef inline size_t framing_overhead(const framing_t *framing, size_t n) noexcept nogil:
    """Bytes that a frame adds to a payload of `n` bytes."""
    if framing.kind == FRAMING_SIMPLE:
        return SIMPLE_OVERHEAD
    if framing.kind == FRAMING_LINE:
        return framing.delimiter_size
    if framing.kind == FRAMING_LENGTH:
        return framing.width
    if framing.kind == FRAMING_CHECKSUM32:
        return CHECKSUM32_HEADER + CHECKSUM32_TRAILER
    if framing.kind == FRAMING_WEBSOCKET or framing.kind == FRAMING_MESSAGES:
        return 2 if n <= WEBSOCKET_SHORT else 4 if n <= 0xFFFF else 10
    return 0


cdef inline int framing_encode(
    const framing_t *framing, const char *payload, size_t n, char *to,
) noexcept nogil:
    """Write the frame of a payload of `n` bytes, at most `max_size`, to `to`, which has room for it
    and its overhead.

    FRAME_COMPLETE; FRAME_BAD when the format cannot carry the payload: a line whose delimiter would
    be found before its end.
    """
    cdef uint8_t *out = <uint8_t *>to
    cdef size_t header = 0
    if framing.kind == FRAMING_SIMPLE:
        out[0] = SIMPLE_START
        framing_put(out + 1, 2, False, n)
        out[SIMPLE_HEADER + n] = SIMPLE_END
        header = SIMPLE_HEADER
    elif framing.kind == FRAMING_LENGTH:
        header = framing.width
        framing_put(out, header, framing.little, n)
    elif framing.kind == FRAMING_CHECKSUM32:
        header = CHECKSUM32_HEADER
        framing_put(out, header, False, n)
        framing_put(
            out + header + n, CHECKSUM32_TRAILER, False, framing_sum(<const uint8_t *>payload, n)
        )
    elif framing.kind == FRAMING_WEBSOCKET or framing.kind == FRAMING_MESSAGES:
        header = framing_overhead(framing, n)
        out[0] = WEBSOCKET_FIN | framing.opcode
        if header == 2:
            out[1] = <uint8_t>n
        else:
            out[1] = WEBSOCKET_16 if header == 4 else WEBSOCKET_64
            framing_put(out + 2, header - 2, False, n)
    memcpy(out + header, payload, n)
    if framing.kind == FRAMING_LINE:
        memcpy(out + n, framing.delimiter, framing.delimiter_size)
        if framing_search(framing, out, 0, n + framing.delimiter_size) != n:
            return FRAME_BAD
    return FRAME_COMPLETE
