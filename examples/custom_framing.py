"""A frame format of your own: netstrings (`5:hello,`), for a server and its client.

python examples/custom_framing.py [--port PORT]
    a server that answers in capitals
python examples/custom_framing.py --port PORT --say hello world
    a client that sends each word, and prints the answers
"""

import argparse

import hydrogen


class Netstring(hydrogen.Frame):
    def __init__(self, payload):
        self._payload = payload

    def to_bytes(self):
        return b"%d:%s," % (len(self._payload), self._payload)

    def payload(self):
        return self._payload


class NetstringBuilder(hydrogen.FrameBuilder):
    """Keeps nothing between two calls, so that one instance serves all connections: all there is to
    know is in the buffer.
    """

    def __init__(self, max_size=65_536):
        self.max_size = max_size
        self.header = len(f"{max_size}:")  # of the longest

    def from_bytes(self, buf):
        """The first frame, taken off `buf`; None while it is not whole. What can never become a
        frame is refused as soon as it shows.
        """
        colon = buf.find(b":", 0, self.header)
        digits = bytes(buf[: self.header if colon < 0 else colon])
        if buf and (not digits.isdigit() or (digits.startswith(b"0") and digits != b"0")):
            raise hydrogen.ProtocolError(
                f"a netstring begins with its length and a colon, not with {digits!r}"
            )
        if len(digits) == self.header or (colon > 0 and int(digits) > self.max_size):
            raise hydrogen.FrameTooLarge(
                f"a netstring of at least {digits.decode()} bytes is over max_size {self.max_size}"
            )
        if colon < 0 or len(buf) <= (end := colon + 1 + int(digits)):
            return None
        if buf[end] != ord(","):
            raise hydrogen.ProtocolError(
                f"a netstring ends with a comma, not with {chr(buf[end])!r}"
            )
        payload = bytes(buf[colon + 1 : end])
        del buf[: end + 1]
        return Netstring(payload)

    def frame(self, payload):
        if len(payload) > self.max_size:
            raise hydrogen.FrameTooLarge(
                f"a payload of {len(payload)} bytes is over max_size {self.max_size}"
            )
        return Netstring(payload)


class Capitals(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data.upper())


def announce(server):
    print("listening on {}:{}".format(*server.address), flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    options.add_argument("--say", nargs="+", metavar="WORD")
    arguments = options.parse_args()
    if arguments.say:
        with hydrogen.connect(
            ("127.0.0.1", arguments.port), framing=NetstringBuilder, timeout=10
        ) as client:
            for word in arguments.say:
                client.send(word.encode())
                print(client.recv().decode())
        return
    config = hydrogen.Config(port=arguments.port, framing=NetstringBuilder)
    hydrogen.begin(Capitals(), config, on_started=announce)


if __name__ == "__main__":
    main()
