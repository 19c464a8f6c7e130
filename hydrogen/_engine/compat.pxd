"""What the engine asks of CPython beyond its documented interface."""

from cpython.object cimport PyObject

cdef extern from "compat.h":
    void *compat_this_thread()
    void compat_forget_async_exception(void *thread)
    bint compat_call(PyObject *function, PyObject *first, PyObject *second)
    int compat_raise() except -1
    Py_ssize_t compat_context_size(PyObject *context)
