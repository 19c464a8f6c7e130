"""The opening handshake of a WebSocket, by the owner of the connection: a request head is answered,
as `on_request` says.
"""

from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.atomic cimport atomic_load32
from hydrogen._c.constants cimport (
    CAUSE_BAD_FRAME, CAUSE_REJECT, FLAG_HEAD, FLAG_TLS_END, SEND_REFUSED, STATE_OPEN,
    WATCH_CONFIGURED,
)
from hydrogen._c.deadlines cimport deadlines_announce
from hydrogen._c.kernel cimport kernel_now
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.messages cimport messages_new, messages_take
from hydrogen._c.structs cimport connection_t, websocket_t, worker_t
from hydrogen._core cimport (
    Accepted, Answered, Engine, HydrogenSocket, Refusal, Response, _Callbacks, errors, lifetime_of,
    take_request,
)
from hydrogen._engine.callbacks cimport (
    callbacks_caught, callbacks_check, callbacks_connected, callbacks_failed, callbacks_leave,
    callbacks_run,
)
from hydrogen._engine.ending cimport ending_with
from hydrogen._engine.references cimport references_hold
from hydrogen._engine.sending cimport sending_send_coded


cdef inline int handshake_await(connection_t *connection) noexcept:
    """The head is to come: until it is answered the connection is not ready."""
    connection.flags |= FLAG_HEAD
    return 0


cdef inline int handshake_serve(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, bytes head,
) except -1:
    """Answer a request; `on_connected` comes next, or the end."""
    cdef _Callbacks callbacks = <_Callbacks>worker.callbacks
    result = None
    handshake = take_request(head, engine._websocket, socket.peername)
    if isinstance(handshake, Refusal):
        return handshake_refuse(engine, worker, socket, handshake)
    if callbacks.on_request is not None:
        try:
            result = callbacks_run(engine, worker, callbacks.on_request, socket, handshake.request)
        except BaseException as error:
            handshake_failed(engine, worker, socket, error)
        callbacks_leave(engine, worker)
        if atomic_load32(&connection.state) != STATE_OPEN:
            return 0
    answer = handshake.answer(result)
    callbacks_check(engine)  # attributes of the user's were read
    if isinstance(answer, Accepted):
        handshake_accept(engine, worker, connection, socket, answer)
    elif isinstance(answer, Answered):
        handshake_respond(engine, worker, socket, answer.status, answer.wire)
        error = errors.Reject(f"on_request has answered with {answer.status}")
        ending_with(engine, socket, False, CAUSE_REJECT, error)
    elif isinstance(answer, Refusal):
        handshake_refuse(engine, worker, socket, answer)
    else:
        handshake_failed(engine, worker, socket, answer)
    return 0


cdef inline int handshake_accept(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, accepted,
) except -1:
    """Speak WebSocket from now on, unless another thread has closed the connection."""
    cdef websocket_t *websocket
    cdef uint64_t now = kernel_now()
    cdef uint64_t ends_at = lifetime_of(engine._websocket, now)
    # first: who pings looks for the websocket
    if handshake_write(engine, worker, socket, accepted.answer) == SEND_REFUSED:
        return 0
    websocket = messages_new()
    if websocket == NULL:
        raise MemoryError
    websocket.heard_at, websocket.ends_at = now, ends_at
    websocket.reader.inflates = accepted.agreement is not None
    websocket.said_goodbye = connection.flags & FLAG_TLS_END != 0
    lock_take(&connection.lock)
    connection.websocket = websocket
    lock_give(&connection.lock)
    connection.framing = engine._loop.context.framing
    connection.flags &= ~<uint32_t>FLAG_HEAD
    below = None if connection.session == NULL else <object>connection.session
    references_hold(connection, &connection.opening, engine._opened(accepted, below))
    if not messages_take(&engine._loop.context, &worker.io, connection):
        raise MemoryError
    if engine._loop.context.pings != NULL:
        deadlines_announce(&engine._loop, WATCH_CONFIGURED)
    return callbacks_connected(engine, worker, connection, socket)


cdef inline int handshake_failed(
    Engine engine, worker_t *worker, HydrogenSocket socket, error,
) except -1:
    """`on_request` has raised `error`, or returned what cannot be answered."""
    callbacks_caught(engine, worker)
    if not issubclass(type(error), errors.Reject):
        handshake_respond(engine, worker, socket, 500, Response(500).to_bytes())
        return callbacks_failed(engine, worker, socket, "on_request", error)
    errors.cut_traceback(error)
    handshake_respond(engine, worker, socket, 403, Response(403).to_bytes())
    ending_with(engine, socket, False, CAUSE_REJECT, error)
    return 0


cdef inline int handshake_refuse(
    Engine engine, worker_t *worker, HydrogenSocket socket, refusal,
) except -1:
    """Answer a request that cannot be accepted."""
    response = refusal.response
    handshake_respond(engine, worker, socket, response.status, response.to_bytes())
    ending_with(engine, socket, False, CAUSE_BAD_FRAME, refusal.error())
    return 0


cdef inline int handshake_respond(
    Engine engine, worker_t *worker, HydrogenSocket socket, status, bytes wire,
) except -1:
    """Send a response; the end is next."""
    engine._responses.add(status)
    handshake_write(engine, worker, socket, wire)
    return 0


cdef inline int handshake_write(
    Engine engine, worker_t *worker, HydrogenSocket socket, bytes wire,
) except -1:
    """Send what is no message, with TLS or without: SEND_..."""
    cdef uint64_t rest = 0
    return sending_send_coded(engine, worker, socket, wire, &rest, wire)
