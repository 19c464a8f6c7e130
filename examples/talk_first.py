"""A protocol in which the server speaks first: enough of SMTP (RFC 5321) to take a letter.

It says what the letter was, and delivers nothing. Shows `on_connected`, which greets, and
`user_data`, which holds how far the dialogue has come. It needs no lock: the callbacks of one
connection run one at a time and in order.

    python examples/talk_first.py [--port PORT]
    python -c "import smtplib; smtplib.SMTP('127.0.0.1', 1337).sendmail(
        'me@localhost', ['you@localhost'], 'Subject: hello')"
"""

import argparse
from dataclasses import dataclass, field

import hydrogen

LETTER_MOST = 1 << 20
"""Bytes of a letter. `max_size` bounds a line; what is put together of lines the handler has to
bound.
"""


@dataclass
class Letter:
    """What is known so far. `lines` is None until the client begins with the text."""

    sender: bytes | None = None
    recipients: list[bytes] = field(default_factory=list)
    lines: list[bytes] | None = None
    size: int = 0


class Mail(hydrogen.Handler):
    def on_connected(self, socket):
        socket.user_data = Letter()
        socket.send(b"220 hydrogen is ready")

    def on_data_received(self, socket, data):
        if socket.user_data.lines is None:
            self.command(socket, socket.user_data, data)
        else:
            self.line(socket, socket.user_data, data)

    def command(self, socket, letter, data):
        verb, _, rest = data.partition(b" ")
        whose = rest.partition(b":")[2]  # of `FROM:<address>` or `TO:<address>`
        match verb.upper():
            case b"HELO" | b"EHLO":
                socket.send(b"250 hydrogen")
            case b"MAIL":
                socket.user_data = Letter(sender=whose)
                socket.send(b"250 ok")
            case b"RCPT" if letter.sender is not None and len(letter.recipients) < 100:
                letter.recipients.append(whose)
                socket.send(b"250 ok")
            case b"DATA" if letter.recipients:
                letter.lines = []
                socket.send(b"354 end with a line of one dot")
            case b"RSET":
                socket.user_data = Letter()
                socket.send(b"250 ok")
            case b"NOOP":
                socket.send(b"250 ok")
            case b"QUIT":
                socket.send(b"221 goodbye")
                # flushes first; commands that came after it are not delivered any more
                socket.close()
            case b"RCPT" | b"DATA":
                socket.send(b"503 not now")
            case _:
                socket.send(b"500 that is not understood")

    def line(self, socket, letter, data):
        if data == b".":
            print(
                f"{len(letter.lines)} lines from {letter.sender!r} to {letter.recipients!r}",
                flush=True,
            )
            socket.user_data = Letter()
            socket.send(b"250 taken")
            return
        letter.size += len(data) + 2  # with its CR and LF: empty lines take memory, too
        if letter.size > LETTER_MOST:
            socket.send(b"552 that is too long")
            socket.close()
            return
        # a dot was put before a line that begins with one (4.5.2)
        letter.lines.append(data.removeprefix(b"."))


def announce(server):
    print("listening on {}:{}".format(*server.address), flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    arguments = options.parse_args()
    framing = hydrogen.LineFrameBuilder(delimiter=b"\r\n", max_size=1000)
    hydrogen.begin(
        Mail(), hydrogen.Config(port=arguments.port, framing=framing), on_started=announce
    )


if __name__ == "__main__":
    main()
