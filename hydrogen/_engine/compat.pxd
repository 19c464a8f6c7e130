"""What the engine asks of CPython beyond its documented interface."""

cdef extern from "compat.h":
    void compat_forget_async_exception()
