"""WebSocket messages, sans-I/O (RFC 6455 sections 5 to 8): what a client sends, taken apart in
place. Never sees an fd, allocates nothing.

_py/websocket.py does the same in Python, with the checks in the same order, each as soon as its
bytes are there; tests/unit/test_websocket_messages.py holds both to the same answers.

A buffer has three parts, one behind the other:
1. `ready` bytes: complete messages, unmasked, each behind a header of ours (MESSAGE_HEADER bytes:
   opcode, length).
2. The message in work, if there is one: room for that header, and `size` bytes of its payload.
3. What was not taken apart yet: an incomplete header, or an incomplete control frame.

Behind the second there may be a gap, from one control frame to the next: to move all the rest down
for each would be quadratic.

A client's frame has at least MESSAGE_HEADER bytes before its payload. So a payload is only ever
moved down, and what is left behind the second part is less than a control frame.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from hydrogen._c.framing cimport (
    WEBSOCKET_16, WEBSOCKET_CONTROL, WEBSOCKET_FIN, WEBSOCKET_LENGTH, WEBSOCKET_MASK,
    WEBSOCKET_OPCODE, WEBSOCKET_OPCODES, WEBSOCKET_RESERVED, WEBSOCKET_SHORT,
)

cdef enum:
    MESSAGE_HEADER = 6
    # of a message that is compressed: a bit of its first frame (RFC 7692 section 6), and of the
    # opcode in the header of ours
    WEBSOCKET_COMPRESSED = 0x40

# What comes of a look at the buffer; of an error, its place in websocket.FAULTS.
cdef enum:
    MESSAGES_MORE = 0      # nothing more, until more bytes come
    MESSAGES_CONTROL = 1   # a control frame, which is at the caller's
    MESSAGES_RESERVED
    MESSAGES_OPCODE
    MESSAGES_FRAGMENTED
    MESSAGES_CONTINUED
    MESSAGES_INSIDE
    MESSAGES_UNMASKED
    MESSAGES_LONG_CONTROL
    MESSAGES_LENGTH
    MESSAGES_LARGE
    MESSAGES_FRAGMENTS
    MESSAGES_TEXT
    MESSAGES_CLOSE
    MESSAGES_REASON

# Opcodes (section 5.2); the bits of a frame's first two bytes are those of framing.pxd.
cdef enum:
    OPCODE_CONTINUATION = 0x0
    OPCODE_TEXT = 0x1
    OPCODE_BINARY = 0x2
    OPCODE_CLOSE = 0x8
    OPCODE_PING = 0x9
    OPCODE_PONG = 0xA

# Where a decoder of UTF-8 is (Unicode 15, table 3-7): what the next byte may be.
cdef enum:
    UTF8_BEGIN = 0
    UTF8_LAST = 1          # 80..BF, the last one
    UTF8_TWO = 2           # 80..BF, and one more
    UTF8_E0 = 3            # A0..BF, and one more
    UTF8_ED = 4            # 80..9F, and one more: no surrogates
    UTF8_F0 = 5            # 90..BF, and two more
    UTF8_THREE = 6         # 80..BF, and two more
    UTF8_F4 = 7            # 80..8F, and two more
    UTF8_BAD = 8

# The state of a connection's input. The owner only.
ctypedef struct reader_t:
    size_t ready
    size_t size
    size_t gap            # 0, but while there may be more control frames
    uint64_t left         # payload of the frame in work that did not come yet
    uint32_t fragments    # of the message in work
    uint8_t mask[4]       # of the frame in work, beginning with that of the next byte
    uint8_t message       # opcode of the message in work; 0: none
    uint8_t utf8          # of a text: UTF8_...
    # booleans
    uint8_t in_frame      # of the message in work: its header was taken off
    uint8_t final         # and it ends the message
    uint8_t closed        # a CLOSE came: what follows is dropped
    uint8_t inflates      # messages may be compressed
    uint8_t compressed    # the message in work is

ctypedef struct control_t:
    uint8_t opcode
    uint8_t length
    uint8_t payload[WEBSOCKET_SHORT]

# The header of a frame.
ctypedef struct header_t:
    uint8_t opcode
    bint final
    bint compressed
    size_t size           # its own, with the mask
    uint64_t length       # of the payload


cdef inline int websocket_utf8_step(int state, uint8_t byte) noexcept nogil:
    """Where the decoder is after that byte."""
    cdef uint8_t low = 0x80
    cdef uint8_t high = 0xBF
    if state == UTF8_BEGIN:
        if byte < 0x80:
            return UTF8_BEGIN
        if byte < 0xC2 or byte > 0xF4:
            return UTF8_BAD
        if byte < 0xE0:
            return UTF8_LAST
        if byte < 0xF0:
            return UTF8_E0 if byte == 0xE0 else UTF8_ED if byte == 0xED else UTF8_TWO
        return UTF8_F0 if byte == 0xF0 else UTF8_F4 if byte == 0xF4 else UTF8_THREE
    if state == UTF8_E0:
        low = 0xA0
    elif state == UTF8_ED:
        high = 0x9F
    elif state == UTF8_F0:
        low = 0x90
    elif state == UTF8_F4:
        high = 0x8F
    if byte < low or byte > high:
        return UTF8_BAD
    if state == UTF8_LAST:
        return UTF8_BEGIN
    return UTF8_LAST if state <= UTF8_ED else UTF8_TWO


cdef inline int websocket_utf8(int state, const uint8_t *data, size_t n) noexcept nogil:
    """Where the decoder is after `n` bytes more. ASCII is skipped by eight bytes a step."""
    cdef uint64_t word
    cdef size_t i = 0
    while i < n:
        if state == UTF8_BEGIN:
            while n - i >= 8:
                memcpy(&word, data + i, 8)
                if word & <uint64_t>0x8080808080808080:
                    break
                i += 8
            if i == n:
                break
        state = websocket_utf8_step(state, data[i])
        if state == UTF8_BAD:
            break
        i += 1
    return state


cdef inline void websocket_unmask(
    uint8_t *to, const uint8_t *data, size_t n, uint8_t *mask,
) noexcept nogil:
    """Each byte XORed with the mask's in turn (section 5.3); `to` is not above `data`. Afterwards
    `mask` begins with that of the next byte.
    """
    cdef uint64_t key, word
    cdef uint8_t turned[4]
    cdef size_t i = 0
    memcpy(&key, mask, 4)
    memcpy(<uint8_t *>&key + 4, mask, 4)
    while n - i >= 8:
        memcpy(&word, data + i, 8)
        word ^= key
        memcpy(to + i, &word, 8)
        i += 8
    while i < n:
        to[i] = data[i] ^ mask[i & 3]
        i += 1
    for i in range(4):
        turned[i] = mask[(n + i) & 3]
    memcpy(mask, turned, 4)


cdef inline uint64_t websocket_most(size_t max_message, bint compressed) noexcept nogil:
    """deflate.payload_most; of a message that is not compressed `max_message` itself."""
    return <uint64_t>max_message + (max_message // 4 + 64 if compressed else 0)


cdef inline int websocket_header(
    const reader_t *reader, size_t max_message, uint32_t max_fragments,
    const uint8_t *data, size_t n, header_t *header, bint *complete,
) noexcept nogil:
    """The header that `data` begins with, as far as it is there: 0, or what is wrong with it."""
    cdef size_t size = 2
    cdef uint64_t length, least
    cdef size_t i
    cdef bint compressed
    complete[0] = False
    if n == 0:
        return 0
    header.opcode = data[0] & WEBSOCKET_OPCODE
    header.final = data[0] & WEBSOCKET_FIN != 0
    header.compressed = compressed = data[0] & WEBSOCKET_RESERVED == WEBSOCKET_COMPRESSED
    if data[0] & WEBSOCKET_RESERVED and not (
        compressed and reader.inflates and OPCODE_TEXT <= header.opcode <= OPCODE_BINARY
    ):
        return MESSAGES_RESERVED
    if not WEBSOCKET_OPCODES >> header.opcode & 1:
        return MESSAGES_OPCODE
    if header.opcode & WEBSOCKET_CONTROL:
        if not header.final:
            return MESSAGES_FRAGMENTED
    elif (header.opcode == OPCODE_CONTINUATION) != (reader.message != 0):
        return MESSAGES_INSIDE if reader.message else MESSAGES_CONTINUED
    if n < 2:
        return 0
    if not data[1] & WEBSOCKET_MASK:
        return MESSAGES_UNMASKED
    length = data[1] & WEBSOCKET_LENGTH
    if length > WEBSOCKET_SHORT:
        if header.opcode & WEBSOCKET_CONTROL:
            return MESSAGES_LONG_CONTROL
        size = 4 if length == WEBSOCKET_16 else 10
        least = 126 if length == WEBSOCKET_16 else 0x10000
        if n < size:
            return 0
        length = 0
        for i in range(2, size):
            length = length << 8 | data[i]
        if length < least:  # the shortest form must be used
            return MESSAGES_LENGTH
    if not header.opcode & WEBSOCKET_CONTROL:
        if reader.message:
            compressed = reader.compressed
        if length > websocket_most(max_message, compressed) - reader.size:
            return MESSAGES_LARGE
        if reader.fragments >= max_fragments:
            return MESSAGES_FRAGMENTS
    header.size = size + 4
    header.length = length
    complete[0] = n >= header.size
    return 0


cdef inline void websocket_begin(
    reader_t *reader, const uint8_t *data, const header_t *header,
) noexcept nogil:
    """Take the header of a frame of a message off."""
    if header.opcode != OPCODE_CONTINUATION:
        reader.message = header.opcode
        reader.compressed = header.compressed
        reader.utf8 = UTF8_BEGIN
    reader.fragments += 1
    reader.final = header.final
    reader.left = header.length
    reader.in_frame = True
    memcpy(reader.mask, data + header.size - 4, 4)


cdef inline void websocket_write_header(
    uint8_t *header, uint8_t opcode, uint64_t size,
) noexcept nogil:
    """The header of ours, of a message that is ready."""
    cdef size_t i
    header[0] = opcode
    for i in range(1, <size_t>MESSAGE_HEADER):
        header[i] = <uint8_t>(size >> 8 * (MESSAGE_HEADER - 1 - i))


cdef inline void websocket_finish(reader_t *reader, uint8_t *data) noexcept nogil:
    """The message in work is complete."""
    websocket_write_header(
        data + reader.ready,
        reader.message | (WEBSOCKET_COMPRESSED if reader.compressed else 0), reader.size,
    )
    reader.ready += MESSAGE_HEADER + reader.size
    reader.size = 0
    reader.fragments = 0
    reader.message = 0


cdef inline int websocket_advance(
    reader_t *reader, size_t max_message, uint32_t max_fragments,
    uint8_t *data, size_t n, size_t *length, control_t *control,
) noexcept nogil:
    """Take apart what is in a buffer of `n` bytes; `length` is how many there are afterwards.

    MESSAGES_CONTROL: `control` is set; call again, before anything is added. An error comes again
    when called again, and what is `ready` stands before it.
    """
    cdef size_t to = reader.ready
    cdef size_t at, some
    cdef int verdict = MESSAGES_MORE
    cdef bint complete
    cdef header_t header
    if reader.message:
        to += MESSAGE_HEADER + reader.size
    at = n if reader.closed else to + reader.gap
    while verdict == MESSAGES_MORE:
        if reader.in_frame:
            some = n - at
            if some > reader.left:
                some = <size_t>reader.left
            websocket_unmask(data + to, data + at, some, reader.mask)
            if (
                reader.message == OPCODE_TEXT and not reader.compressed and
                reader.utf8 != UTF8_BAD
            ):
                reader.utf8 = <uint8_t>websocket_utf8(reader.utf8, data + to, some)
            at += some
            to += some
            reader.size += some
            reader.left -= some
            if reader.utf8 == UTF8_BAD:
                verdict = MESSAGES_TEXT
                break
            if reader.left:
                break
            reader.in_frame = False
            if not reader.final:
                continue
            if reader.message == OPCODE_TEXT and reader.utf8 != UTF8_BEGIN:
                reader.utf8 = UTF8_BAD
                reader.in_frame = True  # to come here again
                verdict = MESSAGES_TEXT
                break
            websocket_finish(reader, data)
            continue
        verdict = websocket_header(
            reader, max_message, max_fragments, data + at, n - at, &header, &complete
        )
        if verdict or not complete:
            break
        if not header.opcode & WEBSOCKET_CONTROL:
            if header.opcode != OPCODE_CONTINUATION:
                to += MESSAGE_HEADER
            websocket_begin(reader, data + at, &header)
            at += header.size
            continue
        if n - at - header.size < header.length:
            break
        control.opcode = header.opcode
        control.length = <uint8_t>header.length
        memcpy(reader.mask, data + at + header.size - 4, 4)  # no frame of a message is in work
        websocket_unmask(
            control.payload, data + at + header.size, control.length, reader.mask
        )
        at += header.size + control.length
        if control.opcode == OPCODE_CLOSE:
            reader.closed = True
            at = n
        verdict = MESSAGES_CONTROL
    if verdict == MESSAGES_CONTROL and at < n:
        reader.gap = at - to
        length[0] = n
        return verdict
    reader.gap = 0
    memmove(data + to, data + at, n - at)
    length[0] = to + n - at
    return verdict


cdef inline bint websocket_is_close_code(uint32_t code) noexcept nogil:
    """websocket.is_close_code."""
    return (1000 <= code <= 1014 and not 1004 <= code <= 1006) or 3000 <= code <= 4999


cdef inline int websocket_closing(const control_t *control, uint32_t *code) noexcept nogil:
    """The code of a CLOSE, 1005 for none; its reason is behind two bytes. 0, or what is wrong with
    it (section 5.5.1).
    """
    code[0] = 1005
    if control.length == 0:
        return 0
    if control.length < 2:
        return MESSAGES_CLOSE
    code[0] = <uint32_t>control.payload[0] << 8 | control.payload[1]
    if not websocket_is_close_code(code[0]):
        return MESSAGES_CLOSE
    if websocket_utf8(UTF8_BEGIN, control.payload + 2, control.length - 2) != UTF8_BEGIN:
        return MESSAGES_REASON
    return 0
