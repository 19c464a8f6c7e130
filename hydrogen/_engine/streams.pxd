"""Streams written by the user: the slow path.

Messages that the stream gave out and that were not delivered are in the adapter; FLAG_UNDECODED
says off the GIL that there are some.

One thread at a time is in a stream, as `flushing` of the connection says, so that its end waits
until nobody is, and is told. Nobody waits to enter, the owner neither: who is in it does what
others want meanwhile, be it to send a message or to receive, and looks again before he leaves.
"""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t

from hydrogen._c.adapter cimport adapter_enter, adapter_leave, adapter_sent, adapter_writes
from hydrogen._c.atomic cimport atomic_load32, atomic_load64, relaxed_store32
from hydrogen._c.constants cimport (
    ADAPTER_BUSY, ADAPTER_ENTERED, AGAIN, CAUSE_HANDLER_ERROR, CAUSE_OS_ERROR, DELIVER_MOST,
    FLAG_EOF, FLAG_READABLE, FLAG_RECEIVING, FLAG_STOP, FLAG_UNDECODED, RECEIVED,
    STATE_ABORTING, STATE_CLOSING, STATE_OPEN, STOP,
)
from hydrogen._c.counters cimport counters_add_to
from hydrogen._c.deadlines cimport deadlines_watch_output
from hydrogen._c.kernel cimport kernel_unacknowledged, kernel_unread, kernel_worker_get
from hydrogen._c.mailbox cimport mailbox_pauses
from hydrogen._c.queues cimport queues_check_memory, queues_leave_output, queues_post
from hydrogen._c.structs cimport connection_t, io_t, worker_t
from hydrogen._c.waiting cimport waiting_count, waiting_rest, waiting_uncount
from hydrogen._core cimport Engine, HydrogenSocket, Message, class_name, errors
from hydrogen._engine.callbacks cimport callbacks_caught, callbacks_message, callbacks_run
from hydrogen._engine.ending cimport ending_ask, ending_with
from hydrogen._engine.references cimport references_held


cdef inline int streams_read(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket,
) except -1:
    """Deliver what a user's stream has, until it has nothing, raises, or the budget is used up.

    While the connection closes, what it has is thrown away; while the server stops, nothing more is
    asked of it.
    """
    cdef int budget = DELIVER_MOST
    cdef bint closing
    adapter = <object>connection.adapter
    while True:
        closing = atomic_load32(&connection.state) == STATE_CLOSING
        if (
            not closing and
            (atomic_load32(&connection.state) != STATE_OPEN or mailbox_pauses(connection))
        ):
            break
        if budget <= 0:
            connection.mail |= AGAIN
            break
        budget -= 1
        while closing and adapter.messages:
            streams_take(adapter)
        if not adapter.messages:
            if not connection.flags & FLAG_READABLE or (streams_stops(connection) and not closing):
                break
            if not streams_receive(engine, worker, connection, socket, adapter):
                break
            continue
        callbacks_message(engine, worker, connection, socket, streams_take(adapter))
    return streams_note(connection, adapter)


cdef inline bytes streams_take(adapter):
    """The next message that the stream gave out."""
    cdef bytes data = adapter.messages.popleft()
    adapter.delivered += len(data)
    return data


cdef inline bint streams_stops(connection_t *connection) noexcept:
    """Whether the server stops, be STOP taken or not: the callback of now may have lasted."""
    return connection.flags & FLAG_STOP or atomic_load64(&connection.slot.word) & STOP


cdef inline bint streams_receive(
    Engine engine, worker_t *worker, connection_t *connection, HydrogenSocket socket, adapter,
) except -1:
    """One `Stream.recv`; False when there is nothing more, it raised, or it is left to who is in
    the stream.

    He looks again before he leaves, receives once, and posts RECEIVED: so threads that send without
    rest keep nobody from receiving. `wanted` is set before it is tried to enter; it is in vain only
    if he was told, under the same lock, to look again.
    """
    cdef int entered
    adapter.answer = None
    adapter.wanted = True
    connection.flags &= ~<uint32_t>FLAG_READABLE  # an edge that comes now is told of anew
    entered = adapter_enter(&engine._loop.context, connection, socket._generation)
    if entered == ADAPTER_BUSY:
        connection.flags |= FLAG_RECEIVING
    if entered != ADAPTER_ENTERED:
        return False
    streams_leave(engine, worker, socket, adapter, True, True)
    return streams_received(connection, adapter)


cdef inline bint streams_received(connection_t *connection, adapter) except -1:
    """What came of the owner's wish to receive, if it was fulfilled: whether there was
    something.
    """
    if adapter.is_ended:
        connection.flags |= FLAG_EOF
    if adapter.answer is None:
        return False
    connection.flags &= ~<uint32_t>FLAG_RECEIVING
    if adapter.answer:
        connection.flags |= FLAG_READABLE
    return adapter.answer


cdef inline int streams_note(connection_t *connection, adapter) except -1:
    """Note for steps off the GIL what is left for the owner."""
    connection.flags &= ~<uint32_t>FLAG_UNDECODED
    connection.held = 0
    if adapter.messages:
        connection.flags |= FLAG_UNDECODED
        connection.held = adapter.received - adapter.delivered
    return 0


cdef inline int streams_told(connection_t *connection) except -1:
    """Another thread has received for the owner, or was asked to."""
    adapter = <object>connection.adapter
    if connection.flags & FLAG_RECEIVING:
        streams_received(connection, adapter)
    streams_note(connection, adapter)
    connection.mail |= AGAIN
    return 0


cdef inline object streams_ask(
    Engine engine, worker_t *worker, HydrogenSocket socket, adapter, bint counts,
):
    """In the stream: one `Stream.recv`, as the owner wants. Returns what a thread of the user's is
    to be told. `counts`: see callbacks_begin.
    """
    cdef io_t *io = &worker.io if worker != NULL else &engine._loop.outside_io
    cdef bint received = False
    raised = None
    before = adapter.received
    adapter.wanted = False
    if (
        atomic_load32(&socket._connection.state) == STATE_OPEN and
        mailbox_pauses(socket._connection)
    ):
        # Since it was wanted. There may be something to receive, later.
        adapter.answer = True
        return None
    # What is there has come, be it a whole message or not.
    if engine._loop.context.idle_timeout and kernel_unread(socket._connection.poll_fd) > 0:
        relaxed_store32(&socket._connection.active, 1)
    try:
        if not adapter.is_ended:
            received = callbacks_run(engine, worker, adapter.receive, None, None, counts)
    except EOFError:
        adapter.is_ended = True
    except BaseException as error:
        if engine._inert():
            raise
        adapter.is_ended = True
        raised = streams_failed(engine, worker, socket, adapter, "recv", error)
    finally:
        counters_add_to(io, &io.counters.bytes_received, adapter.received - before)
        adapter.answer = received
    if received:
        relaxed_store32(&socket._connection.active, 1)
    return raised


cdef inline object streams_failed(
    Engine engine, worker_t *worker, HydrogenSocket socket, adapter, name, error,
):
    """`Stream.recv` or `send` raised. Returns what a thread of the user's is to be told: that, or
    Ctrl-C that comes meanwhile.
    """
    cause = shown = None
    interrupt = streams_interrupt(engine, error)
    callbacks_caught(engine, worker)
    try:
        cause, shown = errors.cause_of(error)
    except BaseException as raised:
        if engine._inert():
            raise
        interrupt = streams_interrupt(engine, raised) if interrupt is None else interrupt
        callbacks_caught(engine, worker)
    if shown is None:
        try:
            cause, shown = errors.cause_of(error)
        except BaseException:  # there is no memory
            ending_ask(engine, socket, True, CAUSE_OS_ERROR, ENOMEM)
    if shown is None:
        return interrupt
    if engine._inert():  # the `__str__` of `error` is user code
        return None
    ending_with(engine, socket, cause == CAUSE_OS_ERROR or name == "send", cause, shown)
    if cause == CAUSE_HANDLER_ERROR:
        try:
            engine._log.callback_error(f"{class_name(adapter.stream)}.{name}", error, socket)
        except BaseException as raised:
            interrupt = streams_interrupt(engine, raised) if interrupt is None else interrupt
    return interrupt


cdef inline object streams_interrupt(Engine engine, error):
    """What was raised, if it is for the thread that sends and not about the stream: not in a worker
    of the server, nor an Exception.
    """
    cdef worker_t *worker = <worker_t *>kernel_worker_get()
    if (
        worker != NULL and worker.loop.acceptor == engine._loop.acceptor or
        issubclass(type(error), Exception)
    ):
        return None
    return error


cdef inline bint streams_send(
    Engine engine, HydrogenSocket socket, bytes data, uint64_t *rest, bint counts=False,
) except -1:
    """Have a user's stream write; None: go on with what it has kept. False when it is too late. Any
    thread. `counts`, see callbacks_begin: this is not within a callback.

    `rest`, for a message: how long the caller is to let the thread that writes it get on.

    Nobody waits for who is in the stream: it may be this thread, further out, or one that is about
    to send by the stream in which this one is. The message waits in the adapter, and he looks
    again.
    """
    cdef connection_t *connection = socket._connection
    cdef bint waits = False
    cdef uint32_t bits
    cdef int entered
    cdef Message message = None
    adapter = references_held(engine, socket, &connection.adapter)  # None: the connection is gone
    if adapter is None:
        return False
    if data is not None:
        message = Message.__new__(Message)
        message.data = data
        if not waiting_count(
            &engine._loop.context, connection, socket._generation, len(data), STATE_OPEN
        ):
            return False
    try:
        adapter.waiting.append(message)
        waits = True
    finally:
        if not waits and data is not None:
            bits = waiting_uncount(&engine._loop.context, connection, socket._generation, len(data))
            queues_post(
                &engine._loop, connection, socket._generation, bits, engine._worker() == NULL
            )
    entered = adapter_enter(&engine._loop.context, connection, socket._generation)
    queues_check_memory(&engine._loop)
    if entered == ADAPTER_ENTERED:
        streams_leave(engine, engine._worker(), socket, adapter, False, counts)
        return not engine._inert()
    if entered == ADAPTER_BUSY and data is not None and adapter.user != PyThread_get_thread_ident():
        rest[0] = waiting_rest(&engine._loop.context, connection)
    return (
        entered == ADAPTER_BUSY or
        (message is not None and not streams_take_back(adapter, message))
    )


cdef inline bint streams_take_back(holder, Message message) except -1:
    """It is too late. False when another thread has taken the message out of what waits in a
    stream's adapter, or a session, meanwhile.
    """
    cdef bint was_there = False
    try:
        holder.waiting.remove(message)
        was_there = True
    except ValueError:
        pass
    return was_there


cdef inline int streams_leave(
    Engine engine, worker_t *worker, HydrogenSocket socket, adapter, bint owner, bint counts,
) except -1:
    """Receive, if the owner wants it; write what waits; and come out of the stream.

    After DELIVER_MOST messages the rest is left to a worker: others send as fast as this thread.
    The owner leaves all of it: `send` of the stream may block, and deadlines and abort() need him.

    What a thread of the user's is to be told (Ctrl-C, or `sys.exit()` of a signal handler, that
    came while it was in the stream) is raised again. Whatever is raised, also by catching an
    exception without memory: the stream is left.
    """
    cdef connection_t *connection = socket._connection
    cdef uint32_t bits = 0
    cdef int left = DELIVER_MOST
    cdef bint is_out = False
    cdef bint hands_over
    interrupt = None
    try:
        while not is_out:
            hands_over = False
            try:
                adapter.user = PyThread_get_thread_ident()
                if adapter.wanted:
                    raised = streams_ask(engine, worker, socket, adapter, counts)
                    interrupt = raised if interrupt is None else interrupt
                    if engine._inert():
                        return 0
                    if not owner:
                        queues_post(
                            &engine._loop, connection, socket._generation, RECEIVED, worker == NULL
                        )
                if owner:
                    hands_over = (
                        adapter.waiting and atomic_load32(&connection.state) < STATE_ABORTING
                    )
                else:
                    left = streams_write(engine, worker, socket, adapter, left, counts)
                    hands_over = (
                        left == 0 and adapter.waiting and
                        atomic_load32(&connection.state) < STATE_ABORTING
                    )
            except BaseException as error:
                if engine._inert():
                    raise
                raised = streams_failed(engine, worker, socket, adapter, "send", error)
                interrupt = raised if interrupt is None else interrupt
            if engine._inert():  # the child of a thread of the user's
                return 0
            adapter.user = None
            is_out = adapter_leave(&engine._loop.context, connection, hands_over, &bits)
            if not is_out and adapter.blocked and not adapter.waiting:
                adapter.waiting.append(None)
    finally:
        if not engine._inert():
            if not is_out:
                adapter.user = None
                ending_ask(engine, socket, True, CAUSE_OS_ERROR, ENOMEM)
                adapter_leave(&engine._loop.context, connection, True, &bits)
            queues_post(&engine._loop, connection, socket._generation, bits, worker == NULL)
            if is_out and hands_over:
                queues_leave_output(&engine._loop, connection, True, True)
    if interrupt is not None:
        raise interrupt
    return 0


cdef inline int streams_write(
    Engine engine, worker_t *worker, HydrogenSocket socket, adapter, int most, bint counts,
) except -1:
    """In the stream: write what waits, while it is open `most` messages; how many more there might
    have been.
    """
    cdef connection_t *connection = socket._connection
    cdef io_t *io = &worker.io if worker != NULL else &engine._loop.outside_io
    cdef Message message
    cdef size_t size
    cdef int queued
    cdef bint moved
    while adapter.waiting and atomic_load32(&connection.state) < STATE_ABORTING:
        if most == 0 and atomic_load32(&connection.state) == STATE_OPEN:
            break
        most = max(most - 1, 0)
        try:
            message = adapter.waiting.popleft()
        except IndexError:  # taken back
            break
        size = adapter.pending
        queued = kernel_unacknowledged(connection.poll_fd) if adapter.blocked else -1
        if message is not None:
            size += len(message.data)
            adapter_writes(&engine._loop.context, connection, len(message.data))
            callbacks_run(engine, worker, adapter.send, message.data, None, counts)
            counters_add_to(io, &io.counters.bytes_sent, len(message.data))
        elif adapter.blocked:
            callbacks_run(engine, worker, adapter.resume, None, None, counts)
        if engine._inert():
            return 0
        moved = queued >= 0 and kernel_unacknowledged(connection.poll_fd) > queued
        streams_sent(engine, socket, adapter.blocked, moved, 0 if adapter.blocked else size)
    return most


cdef inline void streams_sent(
    Engine engine, HydrogenSocket socket, bint blocked, bint moved, size_t freed,
) noexcept:
    """The stream has written; what it has kept until now and keeps no more is `freed`."""
    cdef uint32_t bits = adapter_sent(
        &engine._loop.context, socket._connection, blocked, moved, freed,
    )
    deadlines_watch_output(&engine._loop, socket._connection)
    queues_check_memory(&engine._loop)
    queues_post(
        &engine._loop, socket._connection, socket._generation, bits, engine._worker() == NULL
    )


cdef inline bint streams_is_mine(Engine engine, HydrogenSocket socket) except -1:
    """Whether the calling thread is in the stream of the connection, further out."""
    adapter = references_held(engine, socket, &socket._connection.adapter)
    return adapter is not None and adapter.user == PyThread_get_thread_ident()
