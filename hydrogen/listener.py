"""The listening sockets: made from a `Config`, or inherited from systemd, and given back when the
server stops.

What fails here leaves nothing behind: no fd open that was opened here, no path that was made here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from hydrogen.config import Config
from hydrogen.errors import described

PORT_TRIES = 16
"""How often the kernel is asked for a port that is free on all addresses. One try is nearly always
enough: it picks among some 28,000.
"""

_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""bind(2) and socket(2) where the machine does not have the address, or no such family: so it is
with ::1 in /etc/hosts and IPv6 off.
"""

FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


class Listeners:
    """The listening sockets of one server, and what they must take away with them.

    IPv6 sockets have IPV6_V6ONLY set (ipv6(7)), whatever net.ipv6.bindv6only says: "::" is IPv6
    only, and ("0.0.0.0", "::") can share a port. So an IPv4-mapped address ("::ffff:127.0.0.1")
    cannot be bound; write the IPv4 address.

    Attributes:
        sockets: listening and non-blocking, in the order of `addr` or `sock`; of a name in the
            order of getaddrinfo(3).
        addresses: what `getsockname` gives for each: a tuple, or the path.
    """

    def __init__(self, config: Config) -> None:
        """Bind all.

        Of a name, addresses that the machine does not have are left out as long as one remains.
        With port 0 all get the port that the kernel chose for the first; when another one finds it
        taken, that is done again, `PORT_TRIES` times at most.

        Raises:
            OSError: an address is in use, is not ours or cannot be resolved, or `path` exists and
                is not a stale socket; names the address.
        """
        self.sockets: list[socket.socket] = []
        self.addresses: list[Any] = []
        self._config = config
        self._given = config.sock is not None
        self._file: _SocketFile | None = None
        try:
            if config.sock is not None:
                self.sockets.extend(config.socks)
            elif config.path is not None:
                path = os.fspath(config.path)
                with _naming(path):
                    sock, self._file = _bound_unix(path)
                    self.sockets.append(sock)
                    if config.path_mode is not None:
                        self._file.set_mode(config.path_mode)
            else:
                self.sockets.extend(_bound_tcp(config))
            for sock in self.sockets:
                with _naming(_where(sock)):
                    _set_inherited_options(sock, config)
        except BaseException:
            self.undo()
            raise

    def listen(self, on_created: Callable[[int], None]) -> None:
        """Call `on_created` with the fd of each, listen on all. After what it raises all is undone.

        Raises:
            OSError: as above.
            Exception: whatever `on_created` raises.
        """
        config = self._config
        try:
            for sock in self.sockets:
                on_created(sock.fileno())
            for sock in self.sockets:
                with _naming(_where(sock)):
                    # of one that listens already, as systemd's do, it only sets the backlog:
                    # listen(2)
                    sock.listen(config.backlog)
            if self._file is not None and not self._file.is_ours():
                # Until listen(2) the file looks stale, and another server may have replaced it.
                # From here on it looks alive.
                raise OSError(
                    errno.EADDRINUSE,
                    f"cannot listen on {config.path}: another server has just taken it",
                )
            for sock in self.sockets:
                sock.setblocking(False)
                self.addresses.append(sock.getsockname())
        except BaseException:
            self.undo()
            raise

    def close(self) -> None:
        """Close the sockets, given ones as well; remove the path if it is still the socket that was
        bound here.
        """
        if self._file is not None:
            # while the socket listens: nobody takes the file for stale, and its inode number is not
            # used again
            self._file.remove()
        for sock in self.sockets:
            sock.close()

    def undo(self) -> None:
        """Close as after a start that failed: sockets that were given stay open, they are the
        caller's again.
        """
        if not self._given:
            self.close()


def _where(sock: socket.socket) -> str:
    """The address of a bound socket, for a message."""
    with contextlib.suppress(OSError):
        address = sock.getsockname()
        return f"{address[0]} port {address[1]}" if _is_internet(sock) else str(address)
    return repr(sock)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Let an OSError from here name the address."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror or error}") from None
    except UnicodeError as error:  # a name that the codec "idna" cannot encode
        raise OSError(socket.EAI_NONAME, f"cannot listen on {where}: {error}") from None


def _is_internet(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _set_inherited_options(sock: socket.socket, config: Config) -> None:
    """Set `nodelay` and `keepalive` on the listener: Linux clones it for each connection, so
    accepting one costs no setsockopt(2).
    """
    if not _is_internet(sock):
        return
    if config.nodelay:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if config.keepalive is not None:
        idle, interval, probes = config.keepalive
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)


# ---------------------------------------------------------------------------------------------- TCP


class _Addresses(NamedTuple):
    """What one `addr` stands for."""

    addr: str
    is_name: bool
    found: list[tuple[int, Any]]
    """(family, socket address), in the order of getaddrinfo(3)."""


def _resolved(addr: str, port: int) -> _Addresses:
    def look_up(flags: int) -> list[tuple[int, Any]]:
        found = socket.getaddrinfo(
            addr,
            port,
            type=socket.SOCK_STREAM,
            proto=socket.IPPROTO_TCP,
            flags=socket.AI_PASSIVE | flags,
        )
        return [(family, address) for family, _, _, _, address in found]

    with _naming(f"{addr} port {port}"):
        try:
            return _Addresses(addr, False, look_up(socket.AI_NUMERICHOST))
        except socket.gaierror:
            return _Addresses(addr, True, look_up(0))


def _bound_tcp(config: Config) -> list[socket.socket]:
    """A bound socket for each address, all with the same port."""
    wanted = [_resolved(addr, config.port) for addr in config.addresses]
    for _ in range(PORT_TRIES - 1):
        try:
            return _bound_to(wanted, config)
        except OSError as error:
            if config.port != 0 or error.errno != errno.EADDRINUSE:
                raise
    return _bound_to(wanted, config)


def _bound_to(wanted: list[_Addresses], config: Config) -> list[socket.socket]:
    bound: dict[tuple[int, Any], socket.socket] = {}
    port = config.port
    try:
        for addr, is_name, found in wanted:
            absent: OSError | None = None
            for key in found:
                if key in bound:
                    continue
                family, address = key
                where = address[0] if address[0] == addr else f"{addr} ({address[0]})"
                try:
                    with _naming(f"{where} port {port}"):
                        bound[key] = _bound_at(
                            family, (address[0], port, *address[2:]), config.reuse_port
                        )
                except OSError as error:
                    if not is_name or error.errno not in _ABSENT:
                        raise
                    absent = error
                else:
                    port = bound[key].getsockname()[1]
            if absent is not None and bound.keys().isdisjoint(found):
                raise absent
    except BaseException:
        for sock in bound.values():
            sock.close()
        raise
    return list(bound.values())


def _bound_at(family: int, address: Any, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Also with port 0: a connection that waits in TIME_WAIT hands the option down, and the next
        # server may be told this very port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


# ------------------------------------------------------------------------------------- Unix sockets
#
# A file in the way is replaced if it is a socket that refuses connections. So do those of servers
# that have died, and those that are bound and do not listen yet: a server that starts is not safe
# from another one with the same path. What is meant to hold is that of two which start at once one
# goes on at most, and the other fails with EADDRINUSE:
#
# - Who replaces moves the file aside, which only one can, and asks it again where it is. If it
#   listens by now it gets its name back, and who replaces fails. Else it was not alive before it
#   was moved, and
# - who starts looks, once it listens, whether the path is still its own, and fails if not.
#
# Debts: who is replaced between its bind(2) and the lstat(2) that follows takes the other's file
# for its own, and serves nobody (an unprivileged process cannot simply ask a socket for its file).
# It takes two processes released at the same moment on a stale file, and one preempted right there:
# seen 19 times in 4,000 such starts on two cores. And a third one that binds, listens and looks in
# the very moment when the file is aside loses its name to the one that gets it back.
#
# Rejected: to bind to another name and rename(2) it, which would be atomic: getsockname(2), and
# getpeername(2) of each client, would tell the other name. A lock: flock(2) on the folder can be
# held by any user who can read it, a lock file stays behind.
#
# A file is looked at through an O_PATH fd, whose /proc/self/fd name means this very inode, however
# the path changes meanwhile. Without /proc stale sockets are not replaced and `path_mode` fails. A
# symbolic link is no socket, wherever it leads: it is left alone.


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


class _SocketFile:
    """The file of a socket that is bound here."""

    def __init__(self, path: str, status: os.stat_result) -> None:
        self._status = status
        # a daemon changes its working directory
        self._path = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)

    def set_mode(self, mode: int) -> None:
        """Set the mode, between bind(2) and listen(2), so that nobody gets in with a laxer one.

        connect(2) to a socket that is bound and does not listen is refused, and it looks at the
        mode of that moment, however the client found the file. Not by umask(2): that is the
        process's, and other threads create files at the same time. Not by name: in a folder that
        others can write to it may lead to somebody's file by now.
        """
        with _opened(self._path) as fd:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode) or not os.path.samestat(status, self._status):
                raise OSError(errno.EADDRINUSE, "the socket was replaced")
            os.chmod(f"/proc/self/fd/{fd}", mode)

    def is_ours(self) -> bool:
        """Whether the path still is this file."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.lstat(self._path), self._status)
        return False

    def remove(self) -> None:
        if self.is_ours():
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _bound_unix(path: str) -> tuple[socket.socket, _SocketFile]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # what could not be removed is in the way of bind(2), and so is what was left alone
        with contextlib.suppress(OSError):
            _remove_stale(path)
        try:
            sock.bind(path)
        except OSError as error:
            # The kernel says "address already in use" of whatever has that name.
            found = _found_at(path) if error.errno == errno.EADDRINUSE else None
            raise error if found is None else OSError(error.errno, f"it is {found}") from error
        status = os.lstat(path)  # at once: see the debts above
        return sock, _SocketFile(path, status)
    except BaseException:
        sock.close()
        raise


def _found_at(path: str) -> str | None:
    """What is in the way of a socket, for a message; None when it is another socket, or nothing any
    more.
    """
    with contextlib.suppress(OSError):
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return (
                "a symbolic link, which is not followed"
                if os.path.exists(path)
                else "a dangling symbolic link"
            )
        if stat.S_ISDIR(mode):
            return "a directory"
        if not stat.S_ISSOCK(mode):
            return "a file that is not a socket"
    return None


def _remove_stale(path: str) -> None:
    aside = f"{path}.{os.urandom(8).hex()}"
    with _opened(path) as fd:
        status = os.fstat(fd)
        if not _refuses(fd) or not os.path.samestat(os.lstat(path), status):
            return
        os.rename(path, aside)
        if os.path.samestat(os.lstat(aside), status) and _refuses(fd):
            os.unlink(aside)
        else:
            os.rename(aside, path)


def _refuses(fd: int) -> bool:
    """Whether it is a socket that nobody listens on. One whose queue is full says EAGAIN, one of
    another type EPROTOTYPE: unix(7).
    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"/proc/self/fd/{fd}")
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


# ------------------------------------------------------------------------------------------ systemd

_left: list[tuple[str, int]] = []
"""(name, fd) of what was inherited and not given out yet. No lock: see `listen_fds`."""


def listen_fds(names: Collection[str] | None = None) -> list[socket.socket]:
    """The sockets that systemd, or another supervisor with its protocol, has opened for this
    process.

    Use them as `Config(sock=hydrogen.listen_fds())`. Follows sd_listen_fds_with_names(3):
    LISTEN_PID must be this process's id, LISTEN_FDS is how many there are, from fd 3 on, and
    LISTEN_FDNAMES their names, separated by colons ("unknown" without it). All are made close-on-
    exec, and the variables are removed from `os.environ`, so that no child mistakes them for its
    own. Each socket is returned once: what `names` left out is available to a further call. Call it
    while the process has only one thread, like everything that changes the environment.

    Args:
        names: only sockets with these names (FileDescriptorName= in systemd.socket(5)); None: all.

    Returns:
        Stream sockets in the order of their fds; [] when there are none for this process.

    Raises:
        TypeError: `names` is a str.
        ValueError: a variable is malformed, or one of the fds is not open or not a stream socket;
            the message names the variable and the fd.
    """
    if isinstance(names, str):
        raise TypeError(f"names: expected a collection of names, not {described(names)}")
    try:
        _left.extend(_inherited())
    finally:
        for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            os.environ.pop(variable, None)
    chosen = [(name, fd) for name, fd in _left if names is None or name in names]
    sockets: list[socket.socket] = []
    try:
        for name, fd in chosen:
            sockets.append(_stream_socket(name, fd))
    except ValueError:
        for sock in sockets:
            sock.detach()
        raise
    _left[:] = [entry for entry in _left if entry not in chosen]
    return sockets


def _inherited() -> list[tuple[str, int]]:
    """(name, fd) of what the environment says is this process's; made close-on-exec."""
    if (
        "LISTEN_PID" not in os.environ
        or _number("LISTEN_PID") != os.getpid()
        or "LISTEN_FDS" not in os.environ
    ):
        return []
    fds = range(FIRST_FD, FIRST_FD + _number("LISTEN_FDS"))
    names = os.environ.get("LISTEN_FDNAMES")
    if names is not None and names.count(":") + 1 != len(fds):
        raise ValueError(
            f"LISTEN_FDNAMES: expected {len(fds)} names, as LISTEN_FDS says, not {names!r}"
        )
    for fd in fds:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise ValueError(
                f"LISTEN_FDS: fd {fd}, one of {len(fds)} starting at {FIRST_FD}, is not open"
            ) from error
    return list(
        zip(names.split(":") if names is not None else ["unknown"] * len(fds), fds, strict=True)
    )


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0):
        raise ValueError(f"{variable}: expected a number above 0, not {text!r}")
    return int(text)


def _stream_socket(name: str, fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ValueError(
            f"LISTEN_FDS: fd {fd} ({name}) is not a socket: {error.strerror}"
        ) from error
    if sock.type != socket.SOCK_STREAM:
        kind = sock.type
        sock.detach()
        raise ValueError(f"LISTEN_FDS: fd {fd} ({name}) is not a stream socket but {kind!r}")
    return sock
