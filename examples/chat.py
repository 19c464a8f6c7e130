"""A chat of lines: everybody hears what one client says.

Shows names in `user_data`, and state that callbacks share under a lock.

    python examples/chat.py [--port PORT]        and then, several times, `nc 127.0.0.1 1337`
"""

import argparse
import threading

import hydrogen

NAME_MOST = 20
LINE_MOST = 1000


class Chat(hydrogen.Handler):
    """The first line of a connection is its name; `user_data` is None until it has one."""

    def __init__(self):
        # Callbacks of different connections run at the same time. Under this lock names stay
        # unique, and all hear the lines in the same order. It is held while sending, which only
        # queues: a guest that does not read delays nobody, and is removed at `max_write_buffer`.
        self.lock = threading.Lock()
        # Connections by their names, until they are gone. (`server.connections` are the open ones.
        # One that still has output to send when its client ends is announced as leaving later.)
        self.guests = {}

    def on_connected(self, socket):
        socket.send(b"* your name?")

    def on_data_received(self, socket, data):
        with self.lock:
            if socket.user_data is None:
                self.join(socket, data.strip())
            elif len(data) > LINE_MOST:
                socket.send(b"* that was too long")
            else:
                self.tell_others(socket, b"%s: %s" % (socket.user_data, data))

    def on_disconnected(self, socket, err):
        if socket.user_data is not None:
            with self.lock:
                del self.guests[socket.user_data]
                self.tell_others(socket, b"* %s has left" % socket.user_data)

    def join(self, socket, name):
        """Give a connection its name, and make it known."""
        if not name or len(name) > NAME_MOST or name in self.guests:
            socket.send(b"* another name, please")
            return
        socket.user_data = name
        socket.send(b"* welcome, %s" % name)
        for other in sorted(self.guests):
            socket.send(b"* %s is here" % other)
        self.guests[name] = socket
        self.tell_others(socket, b"* %s has come" % name)

    def tell_others(self, socket, line):
        """Send a line to all guests but one. A connection that has ended meanwhile refuses it,
        which does no harm.
        """
        for other in self.guests.values():
            if other != socket:
                other.send(line)


def announce(server):
    print("listening on {}:{}".format(*server.address), flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    arguments = options.parse_args()
    config = hydrogen.Config(port=arguments.port, framing=hydrogen.LineFrameBuilder)
    hydrogen.begin(Chat(), config, on_started=announce)


if __name__ == "__main__":
    main()
