"""The two names of a connection, as the socket module gives them."""

from hydrogen._c.constants cimport STATE_GONE
from hydrogen._c.kernel cimport UNIX_PATH_MOST, kernel_local_name, kernel_unix_peer, name_t
from hydrogen._c.lock cimport lock_give, lock_take
from hydrogen._c.mailbox cimport mailbox_generation
from hydrogen._core cimport AF_INET, HydrogenSocket, ProxyHeader, fsdecode, inet_ntop
from hydrogen._engine.references cimport references_held


cdef inline object names_peer(HydrogenSocket socket):
    """`HydrogenSocket.peername`: what the PROXY header says, or the kernel said as it was
    accepted.
    """
    cdef name_t name
    cdef bint valid
    header = references_held(socket._engine, socket, &socket._connection.header)
    if isinstance(header, ProxyHeader) and header.source is not None:
        return header.source
    if not socket._valid():
        return None
    if socket._connection.unix_domain:
        return names_unix_peer(socket)
    lock_take(&socket._connection.lock)
    valid = mailbox_generation(socket._connection) == socket._generation
    name = socket._connection.peer
    lock_give(&socket._connection.lock)
    return names_of(&name) if valid else None


cdef inline object names_unix_peer(HydrogenSocket socket):
    """The kernel keeps it as long as the socket is open. Abstract names are bytes (unix(7))."""
    cdef char path[UNIX_PATH_MOST]
    cdef int size = -1
    lock_take(&socket._engine._loop.context.fd_lock)
    if mailbox_generation(socket._connection) == socket._generation:
        size = kernel_unix_peer(socket._connection.poll_fd, path, UNIX_PATH_MOST)
    lock_give(&socket._engine._loop.context.fd_lock)
    if size < 0:
        return None
    return path[:size] if size and path[0] == 0 else fsdecode(path[:size])


cdef inline object names_local(HydrogenSocket socket):
    """`HydrogenSocket.sockname`: asked of the kernel while the connection is there; then it is what
    `local` keeps.
    """
    cdef name_t name
    cdef int listener = -1
    if not socket._valid():
        return None
    name.family = 0
    lock_take(&socket._engine._loop.context.fd_lock)
    if mailbox_generation(socket._connection) == socket._generation:
        if socket._connection.unix_domain:
            listener = socket._connection.listener
        kernel_local_name(socket._connection.poll_fd, &name)
        lock_take(&socket._connection.lock)
        if socket._connection.state >= STATE_GONE or socket._connection.local.family != 0:
            name = socket._connection.local
        lock_give(&socket._connection.lock)
    lock_give(&socket._engine._loop.context.fd_lock)
    return names_of(&name) if listener < 0 else socket._engine._addresses[listener]


cdef inline object names_of(name_t *name):
    """None when there is none."""
    if name.family == 0:
        return None
    if name.family == AF_INET:
        return inet_ntop(name.family, name.bytes[:4]), name.port
    return inet_ntop(name.family, name.bytes[:16]), name.port, name.flow, name.scope
