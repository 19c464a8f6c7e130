"""`Secure`: `Plain` with TLS."""

from __future__ import annotations

import socket
from ssl import SSL_ERROR_SSL, SSLContext, SSLError

from hydrogen.config import Framing
from hydrogen.errors import Cause, removal_error
from hydrogen.plain import CHUNK, SocketStream, deadline_of
from hydrogen.tls import TlsSession, check_context, check_server_hostname

RECORD_HEADER = 5
"""Bytes before each TLS record; the last two are its length (RFC 8446, 5.1)."""

SILENT_MOST = 256 << 10
"""Bytes of TLS that may arrive before the next frame is complete, beyond the overhead below: a
handshake with its certificates, tickets, key updates. A peer that sends more is flooding, and would
keep one call busy for as long as it likes. So is one that has as many bytes of answers wait to be
sent, for it does not take them.
"""

OVERHEAD_TLS13 = 32
"""Bytes of TLS 1.3 allowed for each byte of a frame: a record of one byte takes 23, unless it is
padded (RFC 8446, 5.2).
"""

OVERHEAD_TLS12 = 128
"""The same for TLS 1.2: 85 with CBC and SHA-384 (RFC 5246, 6.2.3.2)."""

ANSWER_WEIGHT = 4
"""What each byte that must be sent in answer counts, once the handshake is done: a refused hello is
as short as its alert. (A certificate that is requested later is an answer, too.)
"""


class Secure(SocketStream):
    """A connection with TLS. One thread may receive while another sends.

    The handshake proceeds within whatever is called. Until it is done, records are read one by one:
    a call that sends must not take a message off the socket that a thread waits for there.
    """

    _session: TlsSession

    def __init__(
        self,
        sock_or_fd: socket.socket | int,
        framing: Framing,
        context: SSLContext,
        server_side: bool = True,
        server_hostname: str | None = None,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            sock_or_fd, framing: as for `Plain`.
            context: `OP_NO_RENEGOTIATION` is set on it.
            server_side: whether this is the server's side of the handshake.
            server_hostname: for a client: the name that the server's certificate must have, see
                `ssl.SSLContext.wrap_socket`.

        Raises:
            TypeError, ValueError, OSError: as `Plain`; also for a context of the other side, or
                without a name where the context checks it.
        """
        check_context("context", context, server_side=server_side)
        check_server_hostname(server_hostname)
        self._session = TlsSession(
            context, server_side=server_side, server_hostname=server_hostname
        )
        super().__init__(sock_or_fd, framing)
        self._is_ready = False
        self._wanted = RECORD_HEADER
        self._record = bytearray()
        if not server_side:
            self._session.start()
            self._heed()

    def handshake(self, timeout: float | None = None) -> None:
        """Wait until the handshake is done; `b_recv` and `b_send` begin with this.

        In TLS 1.3 a client is done before the server has looked at its certificate: a later call
        reports a refusal.

        Raises:
            TimeoutError: it took more than `timeout` seconds (None: no limit).
            ssl.SSLError, OSError: it failed.
        """
        self._shake_hands(deadline_of(timeout))

    def _end_output(self) -> None:
        self._unsent += self._session.close()

    def _open(self, data: bytes) -> bytes:
        if not data:
            # Without close_notify input may have been cut off by anybody, unless it is this side
            # that has ended it.
            is_ours = self._is_ready and not self._session.is_writable
            self._end = EOFError() if is_ours else removal_error(Cause.TRUNCATED)
            return b""
        if max(self._silent, self._answers) > SILENT_MOST:  # all frames before `data` are taken
            message = f"the peer sent {SILENT_MOST} bytes of TLS that carry no message"
            if self._answers > SILENT_MOST:
                message = f"the peer does not read {SILENT_MOST} bytes of TLS that answer it"
            self._end = SSLError(SSL_ERROR_SSL, message)
            return b""
        was_ready, unsent = self._is_ready, len(self._unsent)
        plaintext = self._session.receive(data)
        self._heed()
        overhead = OVERHEAD_TLS13 if self._session.version == "TLSv1.3" else OVERHEAD_TLS12
        self._silent = max(0, self._silent + len(data) - overhead * len(plaintext))
        if was_ready:  # key updates and hellos must be answered, and carry no message
            answer = len(self._unsent) - unsent
            self._silent += ANSWER_WEIGHT * answer
            self._answers += answer
        if self._is_ready:
            self._wanted = CHUNK
        else:
            self._count(data)
        return plaintext

    def _seal(self, data: bytes) -> bytes:
        return self._session.encrypt(data)

    def _can_seal(self) -> bool:
        return self._session.is_writable

    def _heed(self) -> None:
        """What follows from the session having received something."""
        self._unsent += self._session.take()
        self._is_ready = self._session.is_ready
        if self._session.failure is not None:
            self._end = self._session.failure
        elif self._session.is_ended:
            self._end = EOFError() if self._is_ready else removal_error(Cause.TRUNCATED)

    def _count(self, data: bytes) -> None:
        """Have no more asked for than what is left of the record, or of its header, that `data` is
        part of.
        """
        self._record += data
        left = RECORD_HEADER - len(self._record)
        if left <= 0:
            left += int.from_bytes(self._record[3:RECORD_HEADER], "big")
        if left == 0:
            self._record.clear()
        self._wanted = left or RECORD_HEADER
