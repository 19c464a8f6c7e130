/* What the engine asks of CPython beyond its documented interface. */
#ifndef HYDROGEN_COMPAT_H
#define HYDROGEN_COMPAT_H

#include <Python.h>

/* An exception that somebody has set in this thread (PyThreadState_SetAsyncExc), for a callback that has
 * ended by now, would be raised in the next one, which is another connection's. */
static inline void compat_forget_async_exception(void) {
    PyThreadState *state = PyThreadState_Get();
    if (__atomic_load_n(&state->async_exc, __ATOMIC_RELAXED) != NULL) {
        PyThreadState_SetAsyncExc(state->thread_id, NULL);
    }
}

#endif
