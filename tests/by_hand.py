"""What the tests of streams by hand share. Nothing here knows a server, or pytest.

Socket pairs of AF_UNIX deliver before send(2) returns: what was written can be read, and tests need
no threads for that.
"""

import fcntl
import select
import socket
import ssl
import struct
import sys
import termios

import certificates

import hydrogen

NAME = "localhost"


def name_of(version):
    """Of a version of TLS, for pytest."""
    return version.name


def connected(stack, family=socket.AF_UNIX, buffer=None):
    """Two connected sockets, of AF_UNIX or of TCP, which `stack` closes. `buffer`: bytes of each
    socket buffer.
    """
    if family == socket.AF_UNIX:
        ends = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ends = (socket.create_connection(listener.getsockname()), listener.accept()[0])
    for end in ends:
        stack.callback(end.close)
        if buffer is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    return ends


def secure(sock, framing=None, *, version=None, server_side=True, context=None):
    """A `Secure` with good certificates."""
    if server_side:
        return hydrogen.Secure(
            sock, framing, context or certificates.server_context(version=version)
        )
    return hydrogen.Secure(
        sock, framing, context or certificates.client_context(version=version), False, NAME
    )


def shake_hands(*ends):
    """The handshake, without threads: over AF_UNIX two round trips are enough for any version.
    Nobody has sent a message.
    """
    for _ in range(3):
        for end in ends:
            assert end.nb_recv() == []


def payloads(frames):
    """The payload of each."""
    return [frame.payload() for frame in frames]


def waiting_bytes(sock):
    """Bytes that can be read from a socket."""
    return int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)


def readable(sock):
    """Whether a level-triggered poll would report it now."""
    return bool(select.select([sock], [], [], 0)[0])


def is_broken(sock):
    """Whether the peer's reset has arrived."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def reset(sock):
    """Close with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(stream, sink):
    """What a stream gives until nothing more is there, non-blocking."""
    while frames := stream.nb_recv():
        sink += payloads(frames)


def send_rest(stream, other, sink):
    """Go on with what is kept until it is gone, with the other end reading into `sink`."""
    for _ in range(100_000):
        read_all(other, sink)
        try:
            stream.send(b"")
        except BlockingIOError:
            continue
        read_all(other, sink)
        return
    raise AssertionError("what was kept does not get less")


def wrapped(sock, context, **options):
    """Python's own, which does not forgive an end without close_notify."""
    return context.wrap_socket(sock, suppress_ragged_eofs=False, **options)


class Memory:
    """One side of TLS by Python's ssl, without a socket: what it sends can be cut and joined at
    will.
    """

    def __init__(self, version, server_side=False):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = (certificates.server_context if server_side else certificates.client_context)(
            version=version
        )
        self.object = context.wrap_bio(
            self.incoming, self.outgoing, server_side, None if server_side else NAME
        )

    def step(self, data=b""):
        """Take in what the other side sent; whether the handshake is done."""
        self.incoming.write(data)
        try:
            self.object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def shake_hands(self, stream, sock):
        """With a stream, to which `sock` is connected, until it is done here: what is then to be
        sent has not been sent yet.
        """
        sock.setblocking(False)
        data = b""
        while not self.step(data):
            sock.sendall(self.outgoing.read())
            assert stream.nb_recv() == []
            data = sock.recv(100_000)

    def encrypt(self, data):
        """The records that carry it, after what there is to be sent."""
        self.object.write(data)
        return self.outgoing.read()
