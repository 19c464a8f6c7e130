"""What the engine needs of the codec: see _codec.pyx."""

from libc.stdint cimport uint8_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from hydrogen._c.framing cimport frame_t, framing_copy, framing_t


cdef class Framing:
    cdef framing_t value
    cdef bytes key(self)


cdef inline object payload_of(const frame_t *frame, const uint8_t *data):
    """The payload of a frame that was found in `data`."""
    if not frame.masked:
        return PyBytes_FromStringAndSize(<const char *>data + frame.offset, frame.length)
    payload = PyBytes_FromStringAndSize(NULL, frame.length)
    framing_copy(frame, data, PyBytes_AS_STRING(payload))
    return payload


cdef bytes framed(const framing_t *framing, bytes payload)
cdef object too_large(const framing_t *framing, size_t n)
cdef object unfit()
cdef object refusal(const framing_t *framing, const uint8_t *data, size_t n)
