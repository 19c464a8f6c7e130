"""Where the head of an HTTP request ends, sans-I/O. http.HeadReader does the same in Python.

Each byte is checked when it comes, once: what cannot be part of a head is refused there, be it a
line that ends otherwise than by CRLF (RFC 9112 section 2.2), or TLS.
"""

from libc.stdint cimport uint8_t

# What a look at the bytes says; of an error, the status of the answer.
cdef enum:
    HEAD_MORE = 0
    HEAD_COMPLETE = 1
    HEAD_BAD = 400
    HEAD_LARGE = 431

cdef enum:
    HEAD_END = 4  # bytes of the empty line that ends it, with the end of the line before


cdef inline int head_find(
    const uint8_t *data, size_t n, size_t max_header, size_t *seen, size_t *size,
) noexcept nogil:
    """HEAD_COMPLETE, and `size` with the empty line that ends it. `seen`: bytes that were checked
    before, 0 at first; more may be added between calls.
    """
    cdef size_t i
    cdef uint8_t byte, before
    for i in range(seen[0], n):
        if i >= max_header:
            return HEAD_LARGE
        byte = data[i]
        before = data[i - 1] if i else 0
        if (before == c"\r") != (byte == c"\n") or byte == 0x7F or (
            byte < 0x20 and byte != c"\t" and byte != c"\r" and byte != c"\n"
        ):
            return HEAD_BAD
        if byte == c"\n" and i >= 3 and data[i - 2] == c"\n":
            size[0] = i + 1
            return HEAD_COMPLETE
        seen[0] = i + 1
    return HEAD_MORE
