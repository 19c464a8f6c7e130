# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled decoder of WebSocket messages under a fuzzer: any bytes, any limits, split anywhere.
Built and run by tools/fuzz.py; never imported.

libFuzzer calls `LLVMFuzzerTestOneInput`; a property that does not hold aborts. Nothing in here
calls Python, so no interpreter is needed. An input is

    max_message, 8 bytes little-endian (taken modulo what settings allow)
    max_fragments, 4 bytes little-endian (likewise)
    flags, 1 byte: whether messages may be compressed (bit 0)
    split, 1 byte: how the wire is cut into parts
    the wire

The wire is read whole and in parts, in a buffer that always has exactly the size of its content.
Both must come to the same, and `follow` finds all of it in the wire again, with simple code of its
own. That nothing is refused that should not be is for the Python side to compare.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport printf
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from common cimport WIRE_MOST, block, check, hex, part_size, replay_files
from hydrogen._c.websocket cimport *

cdef enum:
    HEADER = 14
    CONTROLS_MOST = WIRE_MOST // 6 + 1
    CONTROL_MOST = 125
    MASK_SIZE = 4
    WHOLE = -1

ctypedef struct limits_t:
    size_t max_message
    uint32_t max_fragments
    bint inflates

# A control frame, and how many bytes of messages were complete before it.
ctypedef struct event_t:
    size_t due
    control_t control

# What the wire was read as.
ctypedef struct reading_t:
    int verdict
    reader_t state
    size_t rest  # bytes that were not taken apart
    size_t size
    size_t count
    uint8_t messages[WIRE_MOST]  # one behind the other, each behind its header
    event_t events[CONTROLS_MOST]

cdef reading_t whole, parted
cdef uint8_t payload[WIRE_MOST]


cdef size_t choose(
    limits_t *limits, uint8_t *split, const uint8_t *data, size_t size,
) noexcept nogil:
    """Set the limits; where the wire begins, 0 when the input is too short or too long."""
    cdef uint64_t max_message
    if size < HEADER or size - HEADER > WIRE_MOST:
        return 0
    memcpy(&max_message, data, 8)
    memcpy(&limits.max_fragments, data + 8, 4)
    limits.max_message = max_message % ((<uint64_t>1 << 40) + 1)
    limits.max_fragments = limits.max_fragments % (<uint32_t>1 << 31) + 1
    limits.inflates = data[12] & 1
    split[0] = data[13]
    return HEADER


# --- what must hold of a call ---------------------------------------------------------------------

cdef bint is_text(const uint8_t *data, size_t n) noexcept nogil:
    """Whether it is UTF-8: decoded into code points, unlike websocket_utf8."""
    cdef size_t i = 0, k, more
    cdef uint32_t value, least
    while i < n:
        value = data[i]
        if value < 0x80:
            more, least = 0, 0
        elif value >> 5 == 0x06:
            more, least, value = 1, 0x80, value & 0x1F
        elif value >> 4 == 0x0E:
            more, least, value = 2, 0x800, value & 0x0F
        elif value >> 3 == 0x1E:
            more, least, value = 3, 0x10000, value & 0x07
        else:
            return False
        if n - i <= more:
            return False
        for k in range(1, more + 1):
            if data[i + k] >> 6 != 2:
                return False
            value = value << 6 | data[i + k] & 0x3F
        if value < least or value > 0x10FFFF or 0xD800 <= value <= 0xDFFF:
            return False
        i += 1 + more
    return True


cdef uint64_t largest(const limits_t *limits, bint compressed) noexcept nogil:
    """Bytes of a message."""
    return limits.max_message + (limits.max_message // 4 + 64 if compressed else 0)


cdef int closing(const control_t *control) noexcept nogil:
    """websocket_closing, and what must hold of its answer."""
    cdef uint32_t code = 1005, given
    cdef int expected = MESSAGES_MORE
    cdef int verdict = websocket_closing(control, &given)
    if control.length >= 2:
        code = control.payload[0] * 256 + control.payload[1]
    if control.length == 1 or (control.length and not (
        code == 1000 or code == 1001 or code == 1002 or code == 1003 or
        (code > 1006 and code < 1015) or (code > 2999 and code < 5000)
    )):
        expected = MESSAGES_CLOSE
    elif control.length and not is_text(control.payload + 2, control.length - 2):
        expected = MESSAGES_REASON
    check(verdict == expected, "a CLOSE is refused if it must be, and for the right reason")
    check(verdict != MESSAGES_MORE or given == code, "the code is the CLOSE's")
    return verdict


cdef void check_state(
    const limits_t *limits, const reader_t *state, size_t n, int verdict,
) noexcept nogil:
    """What must hold of the state, with so many bytes in the buffer."""
    cdef size_t begin = state.ready
    if state.message:
        begin += MESSAGE_HEADER + state.size
        check(state.message == OPCODE_TEXT or state.message == OPCODE_BINARY, "messages have types")
        check(state.fragments >= 1, "a message in work has a frame")
        check(state.fragments <= limits.max_fragments, "max_fragments holds")
        check(
            state.size + (state.left if state.in_frame else 0) <=
            largest(limits, state.compressed), "max_message holds, with what is to come"
        )
        check(not state.compressed or limits.inflates, "nothing is compressed that must not be")
    else:
        check(
            state.size == 0 and state.fragments == 0 and not state.in_frame,
            "without a message in work there is nothing of it"
        )
    check(begin <= n, "messages and the one in work are in the buffer")
    check(not state.closed or begin == n, "nothing is kept after a CLOSE")
    if verdict == MESSAGES_MORE:
        check(n - begin < MESSAGE_HEADER + CONTROL_MOST, "what waits is less than a control frame")
        if state.in_frame and not state.closed:
            check(state.left > 0 and n == begin, "a frame in work lacks payload, and takes all")


cdef uint8_t *advance(
    const limits_t *limits, reader_t *state, uint8_t *window, size_t *n, control_t *control,
    int *verdict,
) noexcept nogil:
    """websocket_advance, and what must hold of its answer. The window is replaced by one of the new
    size.
    """
    cdef reader_t before, again
    cdef uint8_t *ready = block(window, state.ready)
    cdef uint8_t *smaller
    cdef size_t length = 0, same = 0
    memcpy(&before, state, sizeof(before))
    verdict[0] = websocket_advance(
        state, limits.max_message, limits.max_fragments, window, n[0], &length, control
    )
    check(length <= n[0], "a buffer never grows")
    check(state.ready >= before.ready, "what is ready stays")
    check(memcmp(window, ready, before.ready) == 0, "what is ready does not change")
    if before.closed:
        check(
            verdict[0] == MESSAGES_MORE and state.ready == before.ready,
            "nothing is taken after a CLOSE"
        )
    check_state(limits, state, length, verdict[0])
    smaller = block(window, length)
    if verdict[0] == MESSAGES_CONTROL:
        check(control.opcode >= OPCODE_CLOSE and control.opcode <= OPCODE_PONG, "it is a control")
        check(control.length <= CONTROL_MOST, "a control frame is short")
        check(state.closed == (control.opcode == OPCODE_CLOSE), "a CLOSE closes")
    else:
        memcpy(&again, state, sizeof(again))
        check(
            websocket_advance(
                &again, limits.max_message, limits.max_fragments, smaller, length, &same, control
            ) == verdict[0], "the answer comes again when called again"
        )
        check(
            same == length and memcmp(window, smaller, length) == 0 and
            memcmp(state, &again, sizeof(again)) == 0, "and nothing changes"
        )
    free(ready)
    free(window)
    n[0] = length
    return smaller


# --- reading --------------------------------------------------------------------------------------

cdef uint8_t *deliver(
    reading_t *reading, reader_t *state, uint8_t *window, size_t *n, bint several,
) noexcept nogil:
    """Take the first of the messages that are ready, or all."""
    cdef size_t some = state.ready, i
    cdef uint8_t *rest
    if not some:
        return window
    if not several:
        some = 0
        for i in range(1, <size_t>MESSAGE_HEADER):
            some = some << 8 | window[i]
        some += MESSAGE_HEADER
        check(some <= state.ready, "a message ready is complete")
    check(some <= WIRE_MOST - reading.size, "messages are no longer than their frames")
    memcpy(reading.messages + reading.size, window, some)
    reading.size += some
    state.ready -= some
    n[0] -= some
    rest = block(window + some, n[0])
    free(window)
    return rest


cdef void read(
    const limits_t *limits, reading_t *reading, const uint8_t *wire, size_t size, int split,
) noexcept nogil:
    """As a connection does it: bytes come behind what is there, control frames are taken at once,
    and messages sooner or later.
    """
    cdef uint32_t dice = <uint32_t>split * <uint32_t>2654435761 + 1
    cdef uint32_t parts = 0
    cdef size_t end = 0, n = 0, some
    cdef uint8_t *window = block(NULL, 0)
    cdef uint8_t *larger
    cdef control_t control
    cdef reader_t *state = &reading.state
    cdef int fault
    memset(state, 0, sizeof(reader_t))
    state.inflates = limits.inflates
    reading.size = reading.count = 0
    while True:
        some = size - end
        if split != WHOLE:
            some = min(some, part_size(<uint8_t>split, &dice, parts))
        parts += 1
        larger = block(NULL, n + some)
        memcpy(larger, window, n)
        memcpy(larger + n, wire + end, some)
        free(window)
        window = larger
        n += some
        end += some
        reading.verdict = MESSAGES_CONTROL
        while reading.verdict == MESSAGES_CONTROL:
            window = advance(limits, state, window, &n, &control, &reading.verdict)
            if reading.verdict == MESSAGES_CONTROL:
                fault = closing(&control) if control.opcode == OPCODE_CLOSE else 0
                if fault:
                    reading.verdict = fault
                    break
                check(reading.count < CONTROLS_MOST, "a control frame has a header")
                reading.events[reading.count].due = reading.size + state.ready
                reading.events[reading.count].control = control
                reading.count += 1
        if reading.verdict != MESSAGES_MORE or end == size:
            break
        if dice >> 20 & 3:
            window = deliver(reading, state, window, &n, dice >> 20 & 1)
    while state.ready:
        window = deliver(reading, state, window, &n, False)
    reading.rest = n - (MESSAGE_HEADER + state.size if state.message else 0)
    free(window)


cdef bint alike(const event_t *one, const event_t *other) noexcept nogil:
    return (
        one.due == other.due and one.control.opcode == other.control.opcode and
        one.control.length == other.control.length and
        memcmp(one.control.payload, other.control.payload, one.control.length) == 0
    )


cdef void compare() noexcept nogil:
    """Whole and in parts come to the same."""
    cdef size_t i
    check(parted.verdict == whole.verdict, "the same end in parts as whole")
    check(
        parted.size == whole.size and memcmp(parted.messages, whole.messages, whole.size) == 0,
        "the same messages in parts as whole"
    )
    check(parted.count == whole.count, "as many control frames in parts as whole")
    for i in range(whole.count):
        check(alike(&parted.events[i], &whole.events[i]), "the same control frames, in their order")
    if whole.verdict == MESSAGES_MORE:
        check(parted.rest == whole.rest, "as much left in parts as whole")
        check(
            memcmp(&parted.state, &whole.state, sizeof(reader_t)) == 0,
            "the same state in parts as whole"
        )


# --- finding it again -----------------------------------------------------------------------------

cdef void follow(
    const limits_t *limits, const reading_t *reading, const uint8_t *wire, size_t n,
) noexcept nogil:
    """Take the frames off the wire one by one: what was read is what they carry, each is one that a
    client may send, and the limits hold.
    """
    cdef size_t taken = 0, count = 0, size = 0, begin, i
    cdef uint64_t length
    cdef uint32_t fragments = 0
    cdef uint8_t message = 0, first, opcode
    cdef bint compressed = False
    while (
        taken < reading.size or count < reading.count or reading.verdict == MESSAGES_MORE
    ):
        begin = 2
        length = 0
        if n >= 2:
            length = wire[1] & 0x7F
            begin += 2 if length == 126 else 8 if length == 127 else 0
            if begin > 2 and n >= begin:
                length = 0
                for i in range(2, begin):
                    length = length * 256 + wire[i]
        begin += MASK_SIZE
        if n < begin or n - begin < length:
            break
        first = wire[0]
        opcode = first & 0x0F
        check(wire[1] & 0x80, "it is masked")
        check(
            begin == (6 if length < 126 else 8 if length < 65536 else 14),
            "its length is in the shortest form"
        )
        check(
            first & 0x70 == 0 or
            (limits.inflates and first & 0x70 == 0x40 and (opcode == 1 or opcode == 2)),
            "no reserved bit is set without a meaning"
        )
        check(length <= WIRE_MOST - size, "payload is no longer than frames")
        for i in range(length):
            payload[size + i] = wire[begin + i] ^ wire[begin - MASK_SIZE + i % 4]
        wire += begin + length
        n -= begin + length
        if opcode >= 8:
            check(first & 0x80, "a control frame is in one piece")
            check(length <= CONTROL_MOST, "a control frame is short")
            check(
                count < reading.count and reading.events[count].control.opcode == opcode and
                reading.events[count].control.length == length and
                memcmp(reading.events[count].control.payload, payload + size, length) == 0,
                "a control frame comes as it was sent"
            )
            check(reading.events[count].due == taken, "behind the messages before it")
            count += 1
            if opcode == OPCODE_CLOSE:
                check(reading.verdict == MESSAGES_MORE, "a CLOSE that counts is no error")
                check(taken == reading.size and count == reading.count, "nothing is behind a CLOSE")
                return
            continue
        check(opcode <= 2, "its opcode is none that is reserved")
        check((opcode == 0) == (message != 0), "messages do not mix")
        if opcode:
            message = opcode
            compressed = first & 0x40 != 0
        fragments += 1
        size += length
        check(fragments <= limits.max_fragments, "max_fragments holds for what is taken")
        check(size <= largest(limits, compressed), "max_message holds for what is taken")
        if not first & 0x80:
            continue
        check(
            taken < reading.size and
            reading.messages[taken] == (message | (0x40 if compressed else 0)),
            "a message comes with its type"
        )
        for i in range(1, 6):
            check(reading.messages[taken + i] == <uint64_t>size >> 40 - 8 * i & 0xFF, "its length")
        check(memcmp(reading.messages + taken + 6, payload, size) == 0, "and what it carries")
        check(
            message != OPCODE_TEXT or compressed or is_text(payload, size), "a text is UTF-8"
        )
        taken += 6 + size
        size = fragments = message = 0
    check(taken == reading.size and count == reading.count, "what was read is in the wire")
    if reading.verdict == MESSAGES_MORE:
        if reading.state.in_frame:
            check(
                n >= begin and reading.state.left == length - (n - begin) and
                reading.state.size == size + n - begin, "lengths add up in a frame"
            )
            message = message or wire[0] & 0x0F
        else:
            check(reading.rest == n and reading.state.size == size, "lengths add up")
        check(reading.state.message == message, "what is in work is what was begun")


# --- who calls ------------------------------------------------------------------------------------

cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef limits_t limits
    cdef uint8_t split
    cdef size_t begin = choose(&limits, &split, data, size)
    if begin:
        data += begin
        size -= begin
        check(
            (websocket_utf8(UTF8_BEGIN, data, size) == UTF8_BEGIN) == is_text(data, size),
            "UTF-8 is UTF-8"
        )
        read(&limits, &whole, data, size, WHOLE)
        read(&limits, &parted, data, size, split)
        compare()
        follow(&limits, &whole, data, size)
    return 0


cdef void say(const uint8_t *data, size_t size) noexcept nogil:
    """Check an input, and write what it means and what becomes of it, for the Python side to
    compare: messages and control frames in the order in which they came, each behind its opcode.
    """
    cdef limits_t limits
    cdef uint8_t split
    cdef size_t begin = choose(&limits, &split, data, size), at = 0, count = 0, length, i
    cdef const event_t *event
    LLVMFuzzerTestOneInput(data, size)
    if not begin:
        printf("skipped\n")
        return
    printf(
        "max_message=%zu max_fragments=%u inflates=%d", limits.max_message, limits.max_fragments,
        <int>limits.inflates
    )
    hex("wire", data + begin, size - begin)
    while at < whole.size or count < whole.count:
        event = &whole.events[count]
        if count < whole.count and event.due == at:
            hex("event", &event.control.opcode, 1)
            hex("payload", event.control.payload, event.control.length)
            count += 1
            continue
        length = 0
        for i in range(1, <size_t>MESSAGE_HEADER):
            length = length << 8 | whole.messages[at + i]
        hex("event", whole.messages + at, 1)
        hex("payload", whole.messages + at + MESSAGE_HEADER, length)
        at += MESSAGE_HEADER + length
    printf(" verdict=%d partial=%d\n", whole.verdict, <int>(whole.rest or whole.state.message))


cdef public int replay(int argc, char **argv) noexcept nogil:
    """The main function of the build that measures coverage."""
    replay_files(argc, argv, say)
    return 0
