"""TLS without I/O: ciphertext in, plaintext out, and the other way round. No fd is ever seen here,
and no engine.

The narrow face behind which TLS hides: both engines and the streams of the library know no more of
it than `TlsSession`. It is Python's `ssl`, an `SSLObject` over two memory BIOs. Who uses a session
holds its `lock`: reader and senders are different threads, CPython gives the GIL away inside
OpenSSL, and what it locks by itself changed from release to release. What `encrypt`, `take` and
`close` return must be queued before the lock is given back, for records are numbered.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
import threading
from collections import deque
from typing import Any

from hydrogen.errors import described

RECORD = 1 << 14
"""The longest plaintext of one record (RFC 8446, 5.1)."""

SLICE = 1 << 24
"""Bytes of a long message that are encrypted at a time."""


def check_context(name: str, context: object, *, server_side: bool) -> ssl.SSLContext:
    """`context`, made to refuse renegotiation, which only costs servers CPU (CVE-2011-1473; TLS 1.3
    has none).

    Raises:
        TypeError: it is no `ssl.SSLContext`.
        ValueError: it is one for the other side.
    """
    if not isinstance(context, ssl.SSLContext):
        raise TypeError(f"{name}: expected an ssl.SSLContext, not {described(context)}")
    wrong = ssl.PROTOCOL_TLS_CLIENT if server_side else ssl.PROTOCOL_TLS_SERVER
    if context.protocol == wrong:
        raise ValueError(
            f"{name}: expected a context for the {'server' if server_side else 'client'} side, not "
            f"{context.protocol!r}"
        )
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def check_server_hostname(name: object) -> None:
    """Raise TypeError unless it is a str or None; `ssl` raises AttributeError, or what it likes."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"server_hostname: expected a str, not {described(name)}")


class TlsSession:
    """The TLS of one connection. Every method but `info` is for one thread at a time: whoever holds
    `lock`.

    The Python engine has a way of its own to see to that, see `_py.role`.

    Attributes:
        lock: see the module.
        is_ready: the handshake is done: `encrypt` may be called.
        is_ended: the peer has sent close_notify: it will send no more, and that is no truncation.
        failure: what OpenSSL found wrong; nothing more can be received.

    Of the compiled engine, where whoever gets the lock does what anybody has asked for:

        received: what was read; `plaintexts`: what became of it, one for each, for the owner.
        waiting: messages that were taken, to be encrypted, each in an object of its own.
        is_closing: nothing more is put there; close_notify comes behind what is there.
        is_sealed: close_notify is in the output.
        is_cut: messages that waited were dropped, for the failure.
        user: the thread that has the lock.
        below: None: what is encrypted goes to the output.
    """

    __slots__ = (
        "_asks_later",
        "_facts",
        "_incoming",
        "_is_closed",
        "_object",
        "_outgoing",
        "failure",
        "is_closing",
        "is_cut",
        "is_ended",
        "is_ready",
        "is_sealed",
        "lock",
        "plaintexts",
        "received",
        "user",
        "waiting",
    )

    below = None

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        if context.check_hostname and not server_side and not server_hostname:
            # ssl.SSLSocket refuses this; an SSLObject would check no name at all.
            raise ValueError(
                "server_hostname: expected a name, because the context checks host names"
            )
        self.lock = threading.Lock()
        self.received: deque[bytes] = deque()
        self.plaintexts: deque[bytes] = deque()
        self.waiting: deque[Any] = deque()
        self.is_closing = False
        self.is_sealed = False
        self.is_cut = False
        self.user: int | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self.is_ready = False
        self.is_ended = False
        self._is_closed = False
        self._facts: dict[str, Any] = {}
        self._asks_later = context.post_handshake_auth
        self.failure: ssl.SSLError | None = None

    def receive(self, ciphertext: bytes) -> bytes:
        """Take in what the peer sent; returns the plaintext that is complete now, or b"".

        Goes on with the handshake while that is not done. What OpenSSL finds wrong is in `failure`
        afterwards, for the plaintext before it is good. There may be something to `take` after each
        call: handshake, alert, key update.
        """
        parts = []
        self._incoming.write(ciphertext)
        # As much as came, there is no more plaintext in that.
        size = min(len(ciphertext), RECORD) or 1
        try:
            if not self.is_ready:
                self._object.do_handshake()
                self._find_facts()
                self.is_ready = True
            # What OpenSSL holds already does not show at the socket any more: read on until there
            # is nothing.
            while not self.is_ended:
                plaintext = self._object.read(size)
                if not plaintext:
                    self.is_ended = True
                    break
                parts.append(plaintext)
                size = self._object.pending()  # the rest of a record that came in drops
                if not size:
                    if not self._incoming.pending:
                        break
                    size = RECORD
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            if self.is_ready:
                self.is_ended = True
            else:
                self.failure = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended the handshake")
        except ssl.SSLError as error:
            # that refers to this session: a cycle, which would keep OpenSSL's memory
            self.failure = error.with_traceback(None)
        if self._asks_later and self.is_ready:  # a certificate may come any time
            self._find_facts()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _find_facts(self) -> None:
        """A certificate is as it was known where CPython says none: while it comes, after a
        failure, and where it cannot decode one.
        """
        tls = self._object
        peercert = self._facts.get("peercert")
        with contextlib.suppress(ValueError, ssl.SSLError):
            peercert = tls.getpeercert()
        if tls.context.verify_mode != ssl.CERT_NONE:
            _clear_errors()
        self._facts = {
            "peercert": peercert,
            "cipher": tls.cipher(),
            "compression": tls.compression(),
        }

    @property
    def version(self) -> str | None:
        """Of TLS, as `ssl.SSLSocket.version` gives it; None before it is agreed on."""
        return self._object.version()

    def start(self) -> None:
        """Begin the handshake, as a client does; a server waits for what it will `receive`. Then
        `take`.
        """
        self.receive(b"")

    def encrypt(self, *messages: bytes) -> bytes:
        """The records that carry `messages`, and whatever else is to be sent. The handshake must
        be done, and `close` not called.
        """
        plaintext = messages[0] if len(messages) == 1 else b"".join(messages)
        if len(plaintext) <= SLICE:
            return self._encrypt(plaintext)
        # A memory BIO of OpenSSL holds less than 2 GiB: what is encrypted is taken out at once.
        view = memoryview(plaintext)
        return b"".join(self._encrypt(view[at : at + SLICE]) for at in range(0, len(view), SLICE))

    def _encrypt(self, plaintext: bytes | memoryview) -> bytes:
        written = self._object.write(plaintext)
        while written < len(plaintext):
            plaintext = plaintext[written:]
            written = self._object.write(plaintext)
        return self._outgoing.read()

    def take(self) -> bytes:
        """What is to be sent now that nobody asked for: handshake, alerts, key updates, tickets;
        b"" for nothing.
        """
        return self._outgoing.read() if self._outgoing.pending else b""

    @property
    def is_writable(self) -> bool:
        """Whether `encrypt` may be called."""
        return self.is_ready and not self._is_closed and self.failure is None

    def close(self) -> bytes:
        """Our close_notify (RFC 8446, 6.1), with what is to be sent before it; nothing to say when
        the handshake was not done, or again.
        """
        if self.is_writable:
            self._is_closed = True
            # the peer's own has not come, or it sent on: neither matters to who closes
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()
        return self.take()

    def info(self, name: str) -> Any:
        """What `asyncio.BaseTransport.get_extra_info` gives by that name; None: nothing.

        From any thread, at any moment, without the lock: it was found out when the handshake was
        done.
        """
        if name == "ssl_object":
            return self._object
        if name == "sslcontext":
            return self._object.context
        return self._facts.get(name)


@functools.cache
def _scratch() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _clear_errors() -> None:
    """Clear OpenSSL's error queue of this thread (ERR_clear_error(3)), as whoever reports a failure
    does. CPython's `getpeercert` leaves errors of extensions there that it cannot parse, and the
    next read, of whatever connection, is then taken to have failed.
    """
    with contextlib.suppress(ssl.SSLError):
        _scratch().load_verify_locations(cadata=b"\0")
