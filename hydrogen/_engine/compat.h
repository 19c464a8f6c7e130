/* What the engine asks of CPython beyond its documented interface. */
#ifndef HYDROGEN_COMPAT_H
#define HYDROGEN_COMPAT_H

#include <Python.h>

/* The PyThreadState of the calling thread, as long as that runs. */
static inline void *compat_this_thread(void) { return PyThreadState_Get(); }

/* An exception that somebody has set in this thread (PyThreadState_SetAsyncExc), for a callback
 * that has ended by now, would be raised in the next one, which is another connection's. */
static inline void compat_forget_async_exception(void *thread) {
    PyThreadState *state = thread;
    if (__builtin_expect(__atomic_load_n(&state->async_exc, __ATOMIC_RELAXED) != NULL, 0)) {
        PyThreadState_SetAsyncExc(state->thread_id, NULL);
    }
}

/* Whether `function(first, second)` returned; else it has raised. Bound methods are taken apart:
 * that is what callbacks are, as a rule. */
static inline int compat_call(PyObject *function, PyObject *first, PyObject *second) {
    PyObject *arguments[3] = {NULL, first, second};
    PyObject *result;
    if (PyMethod_Check(function)) {
        arguments[0] = PyMethod_GET_SELF(function);
        result = PyObject_Vectorcall(PyMethod_GET_FUNCTION(function), arguments, 3, NULL);
    } else {
        result =
            PyObject_Vectorcall(function, arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    if (result == NULL) { return 0; }
    Py_DECREF(result);
    return 1;
}

/* What was raised goes on. */
static inline int compat_raise(void) { return -1; }

/* `len(context)`, the variables that are set in a context (PEP 567). */
static inline Py_ssize_t compat_context_size(PyObject *context) {
    return Py_TYPE(context)->tp_as_mapping->mp_length(context);
}

#endif
