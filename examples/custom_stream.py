"""A stream of your own: everything is compressed with zlib, in both directions.

The handler does not know. What a stream has to get right: `recv` returns nothing only when the
kernel has nothing, because it is called again only when more has arrived; what the kernel does not
take is kept in order, and `send(b"")` continues with it; the socket is closed once, by `close`.

    python examples/custom_stream.py [--port PORT]
"""

import argparse
import contextlib
import socket
import zlib

import hydrogen

CHUNK = 1 << 16


class ZlibStream(hydrogen.Stream):
    def __init__(self, fd):
        self.packer = zlib.compressobj()
        self.unpacker = zlib.decompressobj()
        self.kept = bytearray()  # compressed, and not taken by the kernel yet
        # Last: from here on this object closes the fd, and nothing may raise before the server
        # knows this stream.
        self.sock = socket.socket(fileno=fd)  # which is non-blocking

    def recv(self):
        """A chunk of plain bytes: at most `CHUNK`, however far compressed ones unfold. Raises
        BlockingIOError: there is nothing.

        Compressed bytes may unfold to nothing, for as long as a hostile peer sends such: this must
        not go on for ever.
        """
        # when it is b"" too: the last chunk may not have been all that was in there
        packed = self.unpacker.unconsumed_tail
        vain = 0
        try:
            while not (message := self.unpacker.decompress(packed, CHUNK)):
                vain += len(packed)
                if vain > CHUNK:
                    raise hydrogen.ProtocolError(f"{vain} bytes that unfold to nothing")
                packed = self.sock.recv(CHUNK)
                if not packed or self.unpacker.eof:
                    raise EOFError
        except zlib.error as error:
            raise hydrogen.ProtocolError(f"this is not zlib's format: {error}") from error
        return [message]

    def send(self, buf):
        """Write all that is kept, and `buf`. Raises BlockingIOError, as the socket does, when the
        kernel takes no more.
        """
        if buf:
            self.kept += self.packer.compress(buf) + self.packer.flush(zlib.Z_SYNC_FLUSH)
        while self.kept:
            del self.kept[: self.sock.send(self.kept)]

    def shutdown(self):
        """Say that this is the end, so that the peer can tell it from being cut off, and end both
        ways.
        """
        self.kept += self.packer.flush(zlib.Z_FINISH)
        # the peer is gone, or does not read: that is no reason to wait
        with contextlib.suppress(OSError):
            self.send(b"")
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Close by way of the socket object: `Stream.close` would close the number only, and this
        object would close it once more.
        """
        self.sock.close()

    def fileno(self):
        return self.sock.fileno()


class Echo(hydrogen.Handler):
    def on_new_connection(self, fd):
        return ZlibStream(fd)

    def on_data_received(self, socket, data):
        socket.send(data)


def announce(server):
    print("listening on {}:{}".format(*server.address), flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    arguments = options.parse_args()
    hydrogen.begin(Echo(), hydrogen.Config(port=arguments.port), on_started=announce)


if __name__ == "__main__":
    main()
