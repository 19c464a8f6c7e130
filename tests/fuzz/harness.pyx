# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled frame codec under a fuzzer: any bytes, any builder, split anywhere. Built and run by
tools/fuzz.py; never imported.

libFuzzer calls `LLVMFuzzerTestOneInput`; what does not hold aborts. Nothing in here calls Python,
so that no interpreter has to be there. An input is

    max_size, 8 bytes little-endian (taken modulo what the format allows)
    shape, 1 byte: of lengths the width (bits 0-1) and the byte order (bit 2); of lines the
        delimiter's length less one (bits 0-5)
    split, 1 byte: how the wire is cut into parts
    of lines the delimiter
    the wire

and HYDROGEN_FUZZ in the environment names the framing. Each window that the codec is given is an
allocation of its very size: reading a byte beyond is seen.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdio cimport printf
from libc.stdlib cimport free, getenv
from libc.string cimport memcmp, memcpy, memset, strcmp

from common cimport WIRE_MOST, block, check, hex, part_size, replay_files
from hydrogen._c.framing cimport *

cdef enum:
    HEADER = 10

cdef int kind = FRAMING_RAW

# What the wire was read as: where each frame lies, from its own first byte, and why there are no
# more.
ctypedef struct reading_t:
    size_t count
    int verdict
    size_t left
    frame_t frames[WIRE_MOST]

cdef reading_t whole, parted


# --- what the input says --------------------------------------------------------------------------

cdef size_t choose(
    framing_t *framing, uint8_t *split, const uint8_t *data, size_t size,
) noexcept nogil:
    """Set the builder's fields; where the wire begins, 0 when the input is too short."""
    cdef uint64_t limit = <uint64_t>-1 >> 1
    cdef uint64_t value
    cdef size_t begin = HEADER
    if size < HEADER:
        return 0
    memset(framing, 0, sizeof(framing_t))
    framing.kind = kind
    framing.opcode = WEBSOCKET_BINARY
    split[0] = data[9]
    if kind == FRAMING_SIMPLE:
        limit = 0xFFFF
    elif kind == FRAMING_CHECKSUM32:
        limit = 16843009
    elif kind == FRAMING_LENGTH:
        framing.width = 1 << (data[8] & 3)
        framing.little = data[8] >> 2 & 1
        if framing.width < 8:
            limit = (<uint64_t>1 << 8 * framing.width) - 1
    elif kind == FRAMING_LINE:
        framing.delimiter_size = 1 + (data[8] & 63)
        begin += framing.delimiter_size
        if size < begin:
            return 0
        memcpy(framing.delimiter, data + HEADER, framing.delimiter_size)
        framing.strip_cr = framing.delimiter_size == 1 and framing.delimiter[0] == c"\n"
    memcpy(&value, data, 8)
    framing.max_size = value if value <= limit else value % (limit + 1)
    return begin if size - begin <= WIRE_MOST else 0


# --- what must hold -------------------------------------------------------------------------------

cdef bint begins(const framing_t *framing, const uint8_t *data, size_t n, size_t at) noexcept nogil:
    """Whether a delimiter begins at `at`."""
    return (
        n - at >= framing.delimiter_size and
        memcmp(data + at, framing.delimiter, framing.delimiter_size) == 0
    )


cdef bint alike(const frame_t *one, const frame_t *other) noexcept nogil:
    return (
        one.offset == other.offset and one.length == other.length and one.size == other.size and
        one.masked == other.masked
        and (not one.masked or memcmp(one.mask, other.mask, 4) == 0)
    )


cdef int find(
    const framing_t *framing, const uint8_t *data, size_t n, size_t *scanned, frame_t *frame,
) noexcept nogil:
    """framing_next, and what must hold of its answer and of framing_find's."""
    cdef size_t before = scanned[0], from_start = 0, at
    cdef frame_t again
    cdef int found = framing_find(framing, data, n, scanned, frame)
    cdef int verdict
    check(framing_find(framing, data, n, &from_start, &again) == found, "the hint changes nothing")
    check(from_start == scanned[0], "the hint does not depend on how it came about")
    check(found != FRAME_COMPLETE or alike(frame, &again), "the hint changes nothing of the frame")
    check(scanned[0] <= n, "what was searched is there")
    check(
        scanned[0] == 0 or framing.kind == FRAMING_HEAD or
        (framing.kind == FRAMING_LINE and found == FRAME_INCOMPLETE),
        "the hint is for heads, and for lines that are not complete"
    )
    if found == FRAME_INCOMPLETE and framing.kind == FRAMING_LINE:
        check(scanned[0] >= before, "the hint never goes back while a line grows")
        for at in range(before, scanned[0]):
            check(
                not begins(framing, data, n, at),
                "no delimiter begins in what the hint says to skip"
            )
        check(n - scanned[0] < framing.delimiter_size, "all but a part of a delimiter is skipped")
    verdict = framing_next(framing, data, n, scanned, &again)
    if found == FRAME_COMPLETE:
        check(alike(frame, &again), "both find the same frame")
        check(
            verdict == FRAME_COMPLETE or
            (verdict == FRAME_CHECKSUM and framing.kind == FRAMING_CHECKSUM32),
            "a frame found is a frame",
        )
        check(frame.size > 0, "a frame takes something off")
        check(frame.size <= n, "a frame is there")
        check(
            frame.offset <= frame.size and frame.length <= frame.size - frame.offset,
            "a payload lies within its frame"
        )
        check(framing.kind == FRAMING_RAW or frame.length <= framing.max_size, "max_size holds")
        check(not frame.masked or framing.kind == FRAMING_WEBSOCKET, "masks are WebSocket's")
    else:
        check(verdict == found, "both say the same of what is no frame")
    return verdict


cdef void follow(
    const framing_t *framing, const uint8_t *data, const frame_t *frame,
) noexcept nogil:
    """What must hold of a frame that was found at `data`: its payload, and the frame made of that
    again.
    """
    cdef uint8_t *payload = block(NULL, frame.length)
    cdef size_t size = frame.length + framing_overhead(framing, frame.length)
    cdef uint8_t *wire = block(NULL, size)
    cdef uint8_t *other
    cdef size_t i, scanned = 0
    cdef frame_t again
    framing_copy(frame, data, <char *>payload)
    for i in range(frame.length):
        check(
            payload[i] == data[frame.offset + i] ^ (frame.mask[i % 4] if frame.masked else 0),
            "the payload is what lies there, unmasked"
        )
    verdict = framing_encode(framing, <const char *>payload, frame.length, <char *>wire)
    check(verdict == FRAME_COMPLETE, "a payload received can be sent")
    if framing.kind == FRAMING_WEBSOCKET:
        check(
            size == frame.size - (4 if frame.masked else 0),
            "a WebSocket frame has the shortest header"
        )
        check(wire[0] == 0x82, "it is a binary one")
        check(
            memcmp(wire + 1, data + 1, 0 if frame.masked else size - 1) == 0,
            "the rest is as it came"
        )
    elif framing.strip_cr and size < frame.size:
        check(
            size == frame.size - 1 and data[frame.length] == c"\r",
            "a line may be shorter by a carriage return"
        )
        check(memcmp(wire, data, frame.length) == 0, "and by nothing else")
    else:
        check(size == frame.size and memcmp(wire, data, size) == 0, "a frame is made as it came")
    check(
        find(framing, wire, size, &scanned, &again) == FRAME_COMPLETE and again.size == size,
        "what is made is a frame"
    )
    other = block(NULL, again.length)
    framing_copy(&again, wire, <char *>other)
    if framing.strip_cr and again.length < frame.length:
        check(
            again.length == frame.length - 1 and payload[frame.length - 1] == c"\r",
            "a line loses a carriage return and nothing else"
        )
    else:
        check(again.length == frame.length, "with the same length")
    check(memcmp(other, payload, again.length) == 0, "with the same payload")
    free(other)
    free(wire)
    free(payload)


cdef void send(const framing_t *framing, const uint8_t *data, size_t n) noexcept nogil:
    """Any bytes at all as a payload: a frame that is read as it was made, or refused for a
    reason.
    """
    cdef size_t size = n + framing_overhead(framing, n)
    cdef size_t at = 0, scanned = 0
    cdef frame_t frame
    cdef uint8_t *wire
    if framing.kind != FRAMING_RAW and n > framing.max_size:
        return
    wire = block(NULL, size)
    if framing_encode(framing, <const char *>data, n, <char *>wire) == FRAME_COMPLETE:
        if size:  # no bytes at all are no chunk
            check(
                find(framing, wire, size, &scanned, &frame) == FRAME_COMPLETE,
                "what is sent is a frame"
            )
            check(frame.size == size, "and only one")
            check(
                frame.length == n or
                (framing.strip_cr and n and frame.length == n - 1 and data[n - 1] == c"\r"),
                "of that length",
            )
            check(memcmp(wire + frame.offset, data, frame.length) == 0, "with that payload")
    else:
        check(framing.kind == FRAMING_LINE, "only lines refuse a payload")
        memcpy(wire, data, n)
        memcpy(wire + n, framing.delimiter, framing.delimiter_size)
        while at < n and not begins(framing, wire, size, at):
            at += 1
        check(at < n, "a line refused would end early")
    free(wire)


cdef void read_whole(const framing_t *framing, const uint8_t *wire, size_t n) noexcept nogil:
    cdef size_t scanned = 0
    whole.count = 0
    while True:
        whole.verdict = find(framing, wire, n, &scanned, &whole.frames[whole.count])
        if whole.verdict != FRAME_COMPLETE:
            break
        if framing.kind != FRAMING_HEAD:  # none is sent
            follow(framing, wire, &whole.frames[whole.count])
        wire += whole.frames[whole.count].size
        n -= whole.frames[whole.count].size
        whole.count += 1
    whole.left = n


cdef void read_parted(
    const framing_t *framing, const uint8_t *wire, size_t n, uint8_t split,
) noexcept nogil:
    """As a connection does it: what is not used stays, with its hint, and the next part comes
    behind.
    """
    cdef uint32_t dice = split * <uint32_t>2654435761 + 1
    cdef uint32_t parts = 0
    cdef size_t begin = 0, end = 0, scanned = 0, most
    cdef uint8_t *window
    cdef const uint8_t *at
    parted.count = 0
    parted.verdict = FRAME_INCOMPLETE
    while end < n and parted.verdict == FRAME_INCOMPLETE:
        most = part_size(split, &dice, parts)
        parts += 1
        end = end + most if n - end > most else n
        at = window = block(wire + begin, end - begin)
        while True:
            parted.verdict = find(framing, at, end - begin, &scanned, &parted.frames[parted.count])
            if parted.verdict != FRAME_COMPLETE:
                break
            at += parted.frames[parted.count].size
            begin += parted.frames[parted.count].size
            parted.count += 1
        free(window)
    parted.left = n - begin


cdef void compare(const framing_t *framing) noexcept nogil:
    """Whole and in parts come to the same."""
    cdef size_t i
    if framing.kind == FRAMING_RAW:
        return  # each part is a chunk
    check(parted.count == whole.count, "as many frames in parts as whole")
    check(parted.verdict == whole.verdict, "the same end in parts as whole")
    check(parted.left == whole.left, "as much left in parts as whole")
    for i in range(whole.count):
        check(alike(&parted.frames[i], &whole.frames[i]), "the same frames in parts as whole")


# --- who calls ------------------------------------------------------------------------------------

cdef public int LLVMFuzzerInitialize(int *argc, char ***argv) noexcept nogil:
    global kind
    cdef const char *name = getenv("HYDROGEN_FUZZ")
    check(name != NULL, "HYDROGEN_FUZZ names a framing")
    if strcmp(name, "simple") == 0:
        kind = FRAMING_SIMPLE
    elif strcmp(name, "checksum32") == 0:
        kind = FRAMING_CHECKSUM32
    elif strcmp(name, "length") == 0:
        kind = FRAMING_LENGTH
    elif strcmp(name, "line") == 0:
        kind = FRAMING_LINE
    elif strcmp(name, "websocket") == 0:
        kind = FRAMING_WEBSOCKET
    elif strcmp(name, "head") == 0:
        kind = FRAMING_HEAD
    else:
        check(strcmp(name, "raw") == 0, "HYDROGEN_FUZZ is a framing's name")
    return 0


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef framing_t framing
    cdef uint8_t split
    cdef size_t begin = choose(&framing, &split, data, size)
    if begin:
        read_whole(&framing, data + begin, size - begin)
        read_parted(&framing, data + begin, size - begin, split)
        compare(&framing)
        if kind != FRAMING_HEAD:
            send(&framing, data + begin, size - begin)
    return 0


cdef void say(const uint8_t *data, size_t size) noexcept nogil:
    """Write what an input means and what becomes of it, for the Python side to compare."""
    cdef framing_t framing
    cdef uint8_t split
    cdef size_t begin = choose(&framing, &split, data, size)
    cdef const uint8_t *at = data + begin
    cdef size_t n = size - begin, i
    cdef uint8_t *out
    cdef int verdict
    if not begin:
        printf("skipped\n")
        return
    printf(
        "max_size=%zu width=%d little=%d", framing.max_size, <int>framing.width,
        <int>framing.little
    )
    hex("delimiter", framing.delimiter, framing.delimiter_size)
    hex("wire", at, n)
    read_whole(&framing, at, n)
    for i in range(whole.count):
        out = block(NULL, whole.frames[i].length)
        framing_copy(&whole.frames[i], at, <char *>out)
        hex("frame", out, whole.frames[i].length)
        free(out)
        at += whole.frames[i].size
    printf(" verdict=%d left=%zu", whole.verdict, whole.left)
    if n <= framing.max_size and kind != FRAMING_HEAD:
        out = block(NULL, n + framing_overhead(&framing, n))
        verdict = framing_encode(&framing, <const char *>data + begin, n, <char *>out)
        if verdict == FRAME_COMPLETE:
            hex("sent", out, n + framing_overhead(&framing, n))
        free(out)
    printf("\n")


cdef void check_and_say(const uint8_t *data, size_t size) noexcept nogil:
    LLVMFuzzerTestOneInput(data, size)
    say(data, size)


cdef public int replay(int argc, char **argv) noexcept nogil:
    """The main function of the build that measures coverage: the inputs in the files named, each
    checked and told.
    """
    LLVMFuzzerInitialize(NULL, NULL)
    replay_files(argc, argv, check_and_say)
    return 0
