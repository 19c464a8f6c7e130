"""The first example of the Rust crate hydrogen, from its README, ported to Python statement by
statement.

Users of the crate write a stream; this one is made of simple-stream's `Plain` and `SimpleFrame`,
which are built in here. Where Rust passes on an `Err`, Python raises, so there is no `match` on the
result of `nb_recv`.

A stream of your own runs in Python, with the GIL. If you need no more than this one does, let the
server do it without the GIL: write no `Stream` and no `on_new_connection`, and set
`framing=hydrogen.SimpleFrameBuilder` in the `Config`.

    python examples/upstream.py [--addr ADDRESS] [--port PORT]
"""

import argparse
import os
import socket

import hydrogen
from hydrogen import Plain, SimpleFrame, SimpleFrameBuilder


# Any type can carry a connection, as long as it is a `hydrogen.Stream`. This one is built on the
# library's `Plain`.
class Stream(hydrogen.Stream):
    def __init__(self, fd):
        self.inner = Plain(fd, SimpleFrameBuilder)

    # Called when epoll has reported something to read: returns the messages that are complete.
    def recv(self):
        frame_vec = self.inner.nb_recv()
        ret_buf = []
        for frame in frame_vec:
            ret_buf.append(frame.payload())
        return ret_buf

    # Called with each message that is sent. After a BlockingIOError it is called again, with b"",
    # when epoll has reported that the socket takes more; `nb_send` knows that from an empty
    # message, and then writes only what it has kept.
    def send(self, buf):
        frame = SimpleFrame(buf)
        self.inner.nb_send(frame)

    # Called when the connection ends: it was reset, somebody closed it, or `recv` or `send` raised.
    def shutdown(self):
        self.inner.shutdown()

    def fileno(self):
        return self.inner.fileno()


# The server's side: what happens is reported to this handler.
class Server(hydrogen.Handler):
    def on_server_created(self, fd):
        # The place for options of the listening socket, the one that accepts all connections. It
        # has its address already.
        with socket.socket(fileno=os.dup(fd)) as listener:
            print("listening on {}:{}".format(*listener.getsockname()), flush=True)

    def on_new_connection(self, fd):
        # From here on the stream owns the fd.
        return Stream(fd)

    def on_data_received(self, socket, buffer):
        # A whole message, as `Stream.recv` has made it; it goes back through `Stream.send`.
        socket.send(buffer)

    def on_connection_removed(self, fd, err):
        # The connection is not watched any more; `err` says why.
        print(f"connection {fd} is gone: {err!r}", flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--addr", default="0.0.0.0")
    options.add_argument("--port", type=int, default=1337)
    arguments = options.parse_args()
    config = hydrogen.Config(
        addr=arguments.addr,
        port=arguments.port,
        max_threads=8,
        pre_allocated=100_000,
    )
    hydrogen.begin(Server(), config)


if __name__ == "__main__":
    main()
