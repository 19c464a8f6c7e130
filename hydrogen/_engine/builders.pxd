"""Frame builders written by the user: the slow path."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.buffer cimport block_bytes, block_free, block_length, block_t
from hydrogen._c.constants cimport (
    AGAIN, CAUSE_BAD_FRAME, DELIVER_MOST, FLAG_COMPLETE, FLAG_PARTIAL, FLAG_STOP, FLAG_UNDECODED,
    STATE_OPEN,
)
from hydrogen._c.mailbox cimport mailbox_pauses
from hydrogen._c.structs cimport connection_t, worker_t
from hydrogen._core cimport Engine, FrameDecoder, HydrogenSocket, class_name, errors
from hydrogen._engine.callbacks cimport (
    callbacks_caught, callbacks_failed, callbacks_message, callbacks_run,
)
from hydrogen._engine.ending cimport ending_with
from hydrogen._engine.references cimport references_hold


cdef inline object builders_decoder(Engine engine, connection_t *connection):
    """The decoder of a user's frame builder."""
    if connection.decoder == NULL:
        references_hold(connection, &connection.decoder, FrameDecoder(engine._builder))
    return <object>connection.decoder


cdef inline object builders_next(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, decoder,
):
    """The next message; None when none is complete, or it has to wait for a resume, or the
    connection ends.
    """
    cdef bint is_done = False
    data = None
    try:
        data = callbacks_run(engine, worker, decoder.next)
        is_done = True
    except BaseException as error:
        callbacks_caught(engine, worker)
        if issubclass(type(error), errors.ProtocolError):
            errors.cut_traceback(error)
            ending_with(engine, socket, False, CAUSE_BAD_FRAME, error)
        else:
            callbacks_failed(
                engine, worker, socket, f"{class_name(decoder.builder)}.from_bytes", error
            )
    if not is_done:
        return None
    if data is None:
        connection.flags &= ~<uint32_t>(FLAG_UNDECODED | FLAG_PARTIAL)
        if decoder.is_partial():
            connection.flags |= FLAG_PARTIAL
    elif atomic_load32(&connection.state) != STATE_OPEN or mailbox_pauses(connection):
        connection.flags |= FLAG_COMPLETE
        decoder.put_back(data)
        data = None
    connection.held = decoder.size
    return data


cdef inline int builders_deliver(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Give to the handler what a user's frame builder makes of the input, until it has nothing,
    raises, or the budget is used up.

    While the server stops the builder is asked in a pause, too: whether there is a message to wait
    for.
    """
    cdef block_t *input = connection.input
    cdef int budget = DELIVER_MOST
    decoder = builders_decoder(engine, connection)
    if input != NULL:
        data = PyBytes_FromStringAndSize(block_bytes(input) + input.start, block_length(input))
        connection.input = NULL
        block_free(&worker.io.pool, input)
        decoder.feed(data)
        connection.held = decoder.size
    connection.flags |= FLAG_UNDECODED
    while atomic_load32(&connection.state) == STATE_OPEN and (
        connection.flags & FLAG_STOP or not mailbox_pauses(connection)
    ):
        if budget == 0:
            connection.mail |= AGAIN
            break
        budget -= 1
        data = builders_next(engine, worker, connection, socket, decoder)
        if data is None:
            break
        callbacks_message(engine, worker, connection, socket, data)
    return 0
