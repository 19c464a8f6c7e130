"""How a connection begins: the PROXY header, `on_new_connection`, and who reads and writes. By its
owner.
"""

from __future__ import annotations

import errno
import functools
import time
from typing import Any

from hydrogen._py import callbacks, deadlines, input, kernel, mailbox, tls
from hydrogen._py.connection import Connection
from hydrogen._py.framing import ChunkDecoder, decoder_for
from hydrogen._py.streams import SocketTransport, StreamTransport
from hydrogen.errors import Cause, ProtocolError, handler_error, stripped
from hydrogen.locks import under
from hydrogen.plain import Plain
from hydrogen.proxy import V2_SIGNATURE, HeaderReader, ProxyHeader, may_send, no_proxy
from hydrogen.secure import Secure
from hydrogen.stream import Stream, not_a_stream, not_an_fd
from hydrogen.tls import TlsSession


def begin(connection: Connection) -> None:
    """After accepting, by the first owner: have a worker go on, or be polled."""
    if not connection.ready:
        connection.post(mailbox.NEW)
    elif connection.error is None:
        connection.register()
        deadlines.ask_for_reminder(connection)


def take_up(connection: Connection) -> None:
    """A worker has come to the connection, perhaps late: its time begins now."""
    connection.last_byte = time.monotonic()
    if connection.header is None:
        introduce(connection)
        return
    connection.register()
    if not may_send(connection.loop.config.proxy_allow_from, connection.peername):
        connection.end(Cause.BAD_FRAME, no_proxy(connection.peername))


def serve_header(connection: Connection, reader: HeaderReader) -> None:
    """Read the PROXY header, and not a byte more, until it is there or nothing is left."""
    header = None
    while connection.readable and connection.error is None and header is None:
        try:
            header = reader.feed(b"".join(input.receive(connection, reader.wanted)))
        except ProtocolError as error:
            connection.end(Cause.BAD_FRAME, stripped(error))
    if connection.error is not None:
        return
    if header is not None:
        connection.header = None
        follow_header(connection, header)
    elif connection.has_eof:
        connection.end(*reader.ended())


def follow_header(connection: Connection, header: ProxyHeader) -> None:
    """Go on as the connection of the client that `header` speaks of."""
    assert isinstance(connection.transport, SocketTransport)
    connection.proxy = header
    if header.source is not None:
        connection.peername = header.source
        if not connection.loop.admit(connection):
            connection.end(Cause.OVERLOAD, at_once=True)
            return
    # Here for those who read by themselves; what is read by us is looked at again as it comes.
    connection.first_bytes = b""
    if input.is_second_header(connection, connection.transport.peek(len(V2_SIGNATURE))):
        return
    connection.first_bytes = b""
    began = time.monotonic()
    # a stream may poll its own, and be given what is said of this one
    connection.loop.poller.remove(connection.transport.poll_fd)
    introduce(connection)
    connection.deadline += time.monotonic() - began  # see invariant 1


def introduce(connection: Connection) -> None:
    """Settle who reads and writes, and be polled. `on_connected` comes now, or when the handshake
    is done.
    """
    connection.is_settled = settle_streams(connection)
    connection.loop.leave_if_forked()
    if not connection.at_once:
        connection.register()
    if connection.is_due:
        callbacks.connected(connection)


def new_stream(connection: Connection) -> Any:
    """What `on_new_connection` returns, even if an exception set from outside arrives just then.

    A stream that was dropped would close the fd, and the engine would close it again.
    """
    callback = connection.loop.callbacks.on_new_connection
    if callback is None:
        return None
    # It keeps what was returned, by C code only; partial, for cache() copies attributes.
    ask = functools.cache(functools.partial(callback, connection.fd))
    callbacks.call(connection, "on_new_connection", ask)
    return ask() if ask.cache_info().currsize else None


def settle_streams(connection: Connection) -> bool:
    """Ask `on_new_connection`, and set up what it wants; False when it refuses or fails, then the
    connection ends.

    A stream that it returns is taken also where the connection was aborted meanwhile: it owns the
    fd, or has a socket that would close it.
    """
    stream = new_stream(connection)
    try:
        if type(stream) is Plain or type(stream) is Secure:
            take_over(connection, stream)
        elif isinstance(stream, Stream):
            return adopt(connection, stream)
        elif connection.error is not None:
            return False
        elif stream is not None:
            raise not_a_stream(stream)
        elif connection.context is not None:
            tls.secure(connection, TlsSession(connection.context, server_side=True))
    except BaseException as error:
        connection.complain("on_new_connection", error)
        connection.end(Cause.HANDLER_ERROR, handler_error(error))
        return False
    return True


def take_over(connection: Connection, stream: Plain | Secure) -> None:
    """Go on where a stream of the library's own stands. It was made of our fd, which stays ours."""
    if stream.fileno() != connection.fd:
        raise ValueError(
            f"on_new_connection({connection.fd}) returned a {type(stream).__name__} of another fd: "
            f"{stream.fileno()}"
        )
    handover = stream.hand_over()
    if connection.awaits_head and handover.builder is not None:
        raise ValueError("on_new_connection: a stream with a framing cannot speak WebSocket")
    assert isinstance(connection.transport, SocketTransport)
    connection.transport.reported = handover.code
    if not connection.awaits_head:
        connection.builder = handover.builder
        connection.decoder = decoder_for(connection.builder)
    if handover.received:
        connection.decoder.feed(handover.received)
    connection.append(handover.unsent)
    connection.tend()
    if handover.session is not None:
        tls.secure(connection, handover.session)


def adopt(connection: Connection, stream: Stream) -> bool:
    """Use a stream of the user's, which owns the fd from now on; False when there is no fd left to
    poll, then the connection ends.

    If its fd is none, ours stays ours. Raises: Exception: then, and whatever its `fileno` raises.
    """
    if connection.awaits_head:
        raise TypeError("on_new_connection: a stream of yours cannot speak WebSocket")
    transport = StreamTransport(stream, connection.complain)
    fd = stream.fileno()
    if type(fd) is not int:
        raise not_an_fd(stream, fd)
    ours = connection.transport
    assert isinstance(ours, SocketTransport)

    def open_it() -> int:
        code = 0
        try:
            try:
                transport.open(fd)
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise
                code = error.errno or errno.EIO
            # Nothing is called between the two: the fd has one owner, whatever is raised.
            connection.transport = transport
            ours.abandon()
        except BaseException:
            transport.forget()
            raise
        return code

    code = under(kernel.fork_gate.lock, open_it) or 0
    connection.builder = None
    connection.decoder = ChunkDecoder()
    connection.readable = True  # it may have read already, and then no edge tells of that
    if code:  # for want of fds, say: no fault of the handler's
        connection.fail(code)
    return not code
