"""The listening sockets, without any engine: what they bind, what they refuse, and what they take
away.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
import sys

import pytest
from support import child, finish

from hydrogen import Config
from hydrogen import listener as module
from hydrogen.listener import PORT_TRIES, Listeners, listen_fds

NOWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses for documentation (RFC 5737, RFC 3849): no machine has them."""


def nothing(fd):
    """An `on_created` that does nothing."""


def listen(created=nothing, **options):
    """Listeners for these fields of Config."""
    if not options.keys() & {"path", "sock"}:
        options.setdefault("port", 0)
    listeners = Listeners(Config(**{"backlog": 128, **options}))
    listeners.listen(created)
    return listeners


def listening(sock):
    """Whether `listen` was called on it."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def raise_mine(fd):
    """An `on_created` that fails."""
    raise KeyError("mine")


def reach(address):
    """Connect to it."""
    if isinstance(address, str):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
    else:
        socket.create_connection(address[:2]).close()


def pairs(listeners):
    """(host, port) of each."""
    return [address[:2] for address in listeners.addresses]


@pytest.fixture
def resolve(monkeypatch):
    """Say what the name "many.test" resolves to: `resolve("::1", "127.0.0.1")`."""
    real = socket.getaddrinfo

    def resolve(*hosts):
        def look_up(host, port, *args, **kwargs):
            if host != "many.test" or kwargs["flags"] & socket.AI_NUMERICHOST:
                return real(host, port, *args, **kwargs)
            return [entry for found in hosts for entry in real(found, port, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return resolve


@pytest.fixture
def meddle(monkeypatch):
    """Have something happen before or after a socket is bound: `meddle(before=address -> address,
    after=address -> None)`.
    """

    def meddle(before=lambda address: address, after=nothing):
        class Meddled(socket.socket):
            def bind(self, address):
                super().bind(before(address))
                after(address)

        monkeypatch.setattr(module.socket, "socket", Meddled)

    return meddle


# ------------------------------------------------------------------------------------- any listener


def test_it_listens_without_blocking_and_is_not_inherited():
    listeners = listen()
    [sock] = listeners.sockets
    assert listening(sock)
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert listeners.addresses == [sock.getsockname()]
    listeners.close()
    assert sock.fileno() == -1


@pytest.mark.clause("H5")
def test_on_created_comes_for_each_when_all_are_bound_and_none_listens():
    seen = []

    def created(fd):
        with socket.socket(fileno=os.dup(fd)) as sock:
            seen.append((sock.getsockname(), listening(sock)))
            with pytest.raises(ConnectionRefusedError):
                reach(("127.0.0.91", sock.getsockname()[1]))

    listeners = listen(created, addr=("127.0.0.90", "127.0.0.91"))
    listeners.close()
    assert seen == [(address, False) for address in listeners.addresses]


@pytest.mark.parametrize("which", [1, 2])
def test_what_on_created_raises_is_raised_and_nothing_stays_open(tmp_path, which):
    fds = []

    def created(fd):
        fds.append(fd)
        if len(fds) == which:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        listen(created, addr=("127.0.0.1", "127.0.0.2"))
    assert len(fds) == which
    path = tmp_path / "socket"
    with pytest.raises(KeyError):
        listen(raise_mine, path=str(path))
    assert not path.exists()


@pytest.mark.clause("C13", "C14")
def test_options_that_connections_inherit_are_set_on_each_listener_and_not_on_a_unix_socket(
    tmp_path,
):
    listeners = listen(addr=("127.0.0.1", "::1"), nodelay=True, keepalive=(5, 6, 7))
    options = (socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    for sock in listeners.sockets:
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [1, 5, 6, 7]
    listeners.close()
    # Linux refuses SO_REUSEPORT on a Unix socket of late (seen on 6.18).
    listen(
        path=str(tmp_path / "socket"), nodelay=True, keepalive=(5, 6, 7), reuse_port=True
    ).close()


# ---------------------------------------------------------------------------------------------- TCP


def test_f30_a_port_in_use_names_the_address():
    first = listen()
    port = first.addresses[0][1]
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: ") as raised:
        listen(port=port)
    assert raised.value.errno == errno.EADDRINUSE
    first.close()


def test_f30_of_several_addresses_the_one_in_use_is_named_and_none_is_kept():
    # Addresses of its own, here and below: from 127.0.0.2 clients of other tests come, whose ports
    # would be in use too.
    first = listen(addr="127.0.0.88")
    port = first.addresses[0][1]
    try:
        with pytest.raises(
            OSError, match=rf"cannot listen on 127\.0\.0\.88 port {port}: "
        ) as raised:
            listen(addr=("127.0.0.89", "127.0.0.88"), port=port)
        assert raised.value.errno == errno.EADDRINUSE
        listen(addr="127.0.0.89", port=port).close()
    finally:
        first.close()


def test_f30_an_address_that_turns_out_to_be_taken_at_listen_is_named_and_none_is_kept():
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1 port \d+: ") as raised:
        # SO_REUSEADDR allows both to be bound, but not that both listen
        listen(addr=("0.0.0.0", "127.0.0.1"))
    assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("addr", NOWHERE)
def test_f30_an_address_of_another_machine_is_refused_by_name(addr):
    for several in (addr, (addr, "127.0.0.1"), ("127.0.0.1", addr)):
        with pytest.raises(OSError, match=rf"cannot listen on {addr} port \d+: ") as raised:
            listen(addr=several)
        assert raised.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("addr", ["no.such.host.invalid", "x" * 64, "a..b"])
def test_f30_a_name_without_address_is_refused_by_name(addr):
    with pytest.raises(OSError, match=rf"cannot listen on {addr} port 0: "):
        listen(addr=addr)


@pytest.mark.clause("C4")
def test_an_ipv6_address_is_listened_on():
    listeners = listen(addr="::1")
    assert listeners.sockets[0].family == socket.AF_INET6
    reach(listeners.addresses[0])
    listeners.close()


@pytest.mark.clause("C4")
def test_every_address_of_a_name_is_listened_on_once_and_in_their_order(resolve):
    resolve("::1", "127.0.0.2", "::1", "127.0.0.1", "127.0.0.2")
    listeners = listen(addr="many.test")
    port = listeners.addresses[0][1]
    assert pairs(listeners) == [("::1", port), ("127.0.0.2", port), ("127.0.0.1", port)]
    for sock, address in zip(listeners.sockets, listeners.addresses, strict=True):
        assert listening(sock)
        assert sock.getsockname() == address
        reach(address)
    listeners.close()
    assert [sock.fileno() for sock in listeners.sockets] == [-1, -1, -1]


@pytest.mark.clause("C4")
def test_localhost_is_listened_on():
    listeners = listen(addr="localhost")
    assert ("127.0.0.1", listeners.addresses[0][1]) in pairs(listeners)
    listeners.close()


@pytest.mark.parametrize(
    "hosts", [("2001:db8::1", "127.0.0.1"), ("127.0.0.1", "2001:db8::1"), (*NOWHERE, "127.0.0.1")]
)
def test_addresses_of_a_name_that_the_machine_does_not_have_are_left_out(resolve, hosts):
    resolve(*hosts)
    listeners = listen(addr="many.test")
    assert pairs(listeners) == [("127.0.0.1", listeners.addresses[0][1])]
    listeners.close()


def test_addresses_of_a_name_are_left_out_when_the_machine_does_not_know_their_family(
    resolve, monkeypatch
):
    class WithoutIPv6(socket.socket):
        def __init__(self, family=-1, *args, **kwargs):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *args, **kwargs)

    monkeypatch.setattr(module.socket, "socket", WithoutIPv6)
    resolve("::1", "127.0.0.1")
    listeners = listen(addr="many.test")
    assert pairs(listeners) == [("127.0.0.1", listeners.addresses[0][1])]
    listeners.close()
    with pytest.raises(OSError, match=r"cannot listen on ::1 port 0: ") as raised:
        listen(addr="::1")
    assert raised.value.errno == errno.EAFNOSUPPORT


def test_f30_a_name_none_of_whose_addresses_the_machine_has_is_refused_by_name(resolve):
    resolve(*NOWHERE)
    for addr in ("many.test", ("127.0.0.1", "many.test")):
        with pytest.raises(
            OSError, match=r"cannot listen on many\.test \(2001:db8::1\) port \d+: "
        ) as raised:
            listen(addr=addr)
        assert raised.value.errno == errno.EADDRNOTAVAIL


def test_f30_an_address_of_a_name_that_is_in_use_is_an_error_and_is_not_left_out(resolve):
    first = listen(addr="127.0.0.91")
    port = first.addresses[0][1]
    resolve("127.0.0.90", "127.0.0.91")
    with pytest.raises(
        OSError, match=rf"cannot listen on many\.test \(127\.0\.0\.91\) port {port}: "
    ) as raised:
        listen(addr="many.test", port=port)
    assert raised.value.errno == errno.EADDRINUSE
    first.close()


def test_several_addresses_are_listened_on_and_one_that_comes_twice_once(resolve):
    resolve("::1", "127.0.0.1")
    listeners = listen(addr=("127.0.0.1", "many.test", "127.0.0.2"))
    port = listeners.addresses[0][1]
    assert pairs(listeners) == [("127.0.0.1", port), ("::1", port), ("127.0.0.2", port)]
    listeners.close()


def test_ipv4_and_ipv6_of_all_interfaces_can_share_a_port():
    listeners = listen(addr=("0.0.0.0", "::"))
    port = listeners.addresses[0][1]
    assert pairs(listeners) == [("0.0.0.0", port), ("::", port)]
    assert listeners.sockets[1].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    reach(("127.0.0.1", port))
    reach(("::1", port))
    listeners.close()


@pytest.mark.clause("C12")
def test_reuse_port_is_set_on_each():
    first = listen(addr=("127.0.0.1", "::1"), reuse_port=True)
    second = listen(addr=("127.0.0.1", "::1"), reuse_port=True, port=first.addresses[0][1])
    assert second.addresses == first.addresses
    second.close()
    first.close()


@pytest.mark.clause("C5")
def test_a_port_of_the_kernel_s_choice_that_is_taken_on_another_address_is_given_up_for_another_one(
    meddle,
):
    first = listen(addr="127.0.0.91")
    taken = first.addresses[0][1]
    chosen = [taken, taken, 0]
    meddle(before=lambda address: address if address[1] else (address[0], chosen.pop(0)))
    listeners = listen(addr=("127.0.0.90", "127.0.0.91"))
    assert chosen == []
    assert {host for host, _ in pairs(listeners)} == {"127.0.0.90", "127.0.0.91"}
    assert taken not in {port for _, port in pairs(listeners)}
    listeners.close()
    first.close()


@pytest.mark.clause("C5")
def test_f30_a_port_for_all_addresses_is_looked_for_sixteen_times_then_the_error_names_the_address(
    meddle,
):
    first = listen(addr="127.0.0.91")
    taken = first.addresses[0][1]
    tries, fds = [], []

    def choose(address):
        if address[1] == 0:
            tries.append(address)
        return (address[0], taken)

    meddle(before=choose)
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.91 port {taken}: ") as raised:
        listen(fds.append, addr=("127.0.0.90", "127.0.0.91"))
    assert raised.value.errno == errno.EADDRINUSE
    assert len(tries) == PORT_TRIES == 16
    assert fds == []
    first.close()


# ------------------------------------------------------------------------------------ given sockets


@pytest.mark.clause("C10")
def test_given_sockets_are_listened_on_and_closed_at_the_stop(tmp_path):
    with socket.socket() as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(("127.0.0.1", 0))
        other.bind(str(tmp_path / "socket"))
        fds = []
        listeners = listen(fds.append, sock=(one, other))
        assert listeners.sockets == [one, other]
        assert listeners.addresses == [one.getsockname(), str(tmp_path / "socket")]
        assert fds == [one.fileno(), other.fileno()]
        for sock, address in zip(listeners.sockets, listeners.addresses, strict=True):
            assert not sock.getblocking()
            reach(address)
        listeners.close()
        assert (one.fileno(), other.fileno()) == (-1, -1)
    assert (tmp_path / "socket").exists()  # who bound it removes it


@pytest.mark.clause("C10")
def test_a_given_socket_stays_open_when_the_start_fails_here_or_later():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(KeyError):
            listen(raise_mine, sock=sock)
        assert not listening(sock)
        listen(sock=sock).undo()
        assert listening(sock)


def test_a_socket_of_its_own_is_closed_and_its_path_removed_when_the_start_fails_later(tmp_path):
    path = tmp_path / "socket"
    listeners = listen(path=str(path))
    listeners.undo()
    assert listeners.sockets[0].fileno() == -1
    assert not path.exists()


@pytest.mark.clause("C10", "C11")
def test_a_given_socket_that_listens_already_gets_the_backlog_and_on_created():
    with socket.create_server(("127.0.0.1", 0), backlog=5) as sock:
        fds = []
        listeners = listen(fds.append, sock=sock, backlog=7)
        assert fds == [sock.fileno()]
        # tcpi_sacked is the backlog while a socket listens: tcp_get_info of net/ipv4/tcp.c.
        assert (
            struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28)[
                0
            ]
            == 7
        )
        reach(listeners.addresses[0])
        listeners.close()


def test_f30_a_given_socket_that_cannot_listen_is_named_and_all_stay_open():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connected,
    ):
        host, port = connected.getsockname()
        with pytest.raises(OSError, match=rf"cannot listen on {host} port {port}: ") as raised:
            listen(sock=(server, connected))
        assert raised.value.errno == errno.EINVAL
        assert -1 not in (server.fileno(), connected.fileno())


def test_f30_a_given_socket_that_is_closed_already_is_named():
    sock = socket.socket()
    sock.close()
    with pytest.raises(OSError, match=r"cannot listen on <socket\.socket \[closed\]") as raised:
        listen(sock=sock)
    assert raised.value.errno == errno.EBADF


# ------------------------------------------------------------------------------------- Unix sockets


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


@pytest.fixture
def stale(path):
    """A socket at `path` that a server which died has left behind."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


@pytest.mark.clause("C9")
def test_a_path_is_removed_with_the_listener(path):
    listeners = listen(path=path)
    assert listeners.addresses == [path]
    assert os.path.exists(path)
    listeners.close()
    assert not os.path.exists(path)


@pytest.mark.clause("C9")
def test_a_relative_path_is_removed_also_when_the_working_directory_has_changed(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    listeners = listen(path="socket")
    monkeypatch.chdir("/")
    listeners.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.clause("C9")
def test_a_path_that_was_taken_over_by_another_socket_is_left_alone(path):
    listeners = listen(path=path)
    os.rename(path, path + ".old")
    other = listen(path=path)
    listeners.close()
    assert os.path.exists(path)
    other.close()
    assert not os.path.exists(path)
    os.unlink(path + ".old")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_path_mode_is_exact_whatever_the_umask_and_without_it_the_umask_decides(path, umask):
    before = os.umask(umask)
    try:
        for mode in (None, 0o600, 0o666, 0o000, 0o777):
            listeners = listen(path=path, path_mode=mode)
            assert stat.S_IMODE(os.stat(path).st_mode) == (
                mode if mode is not None else 0o777 & ~umask
            )
            listeners.close()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_nobody_can_connect_before_the_mode_is_set(path):
    """connect(2) is refused from bind until listen, and the mode is set by then."""
    modes = []

    def created(fd):
        modes.append(stat.S_IMODE(os.stat(path).st_mode))
        with pytest.raises(ConnectionRefusedError):
            reach(path)

    listeners = listen(created, path=path, path_mode=0o600)
    reach(path)
    listeners.close()
    assert modes == [0o600]


def test_the_mode_of_a_file_to_which_the_path_was_made_to_lead_is_left_alone(
    path, tmp_path, meddle
):
    precious = tmp_path / "precious"
    precious.touch(0o600)

    def swap(address):
        os.unlink(path)
        os.symlink(precious, path)

    meddle(after=swap)
    with pytest.raises(OSError, match=path):
        listen(path=path, path_mode=0o666)
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


def test_a_path_is_removed_when_its_mode_cannot_be_set(path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    with pytest.raises(PermissionError, match=path):
        listen(path=path, path_mode=0o666)
    assert not os.path.exists(path)


def test_f30_a_live_socket_is_not_unlinked(path):
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(path)
        live.listen()
        with pytest.raises(OSError, match=path) as raised:
            listen(path=path)
        assert raised.value.errno == errno.EADDRINUSE
        reach(path)


def test_f30_a_live_socket_whose_queue_is_full_is_not_unlinked(path):
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(socket.socket(socket.AF_UNIX))
        live.bind(path)
        live.listen(0)
        error = 0
        while error == 0:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            error = waiting.connect_ex(path)
        assert error == errno.EAGAIN
        with pytest.raises(OSError, match=path) as raised:
            listen(path=path)
        assert raised.value.errno == errno.EADDRINUSE
        live.accept()[0].close()
        reach(path)


def test_f30_a_socket_of_another_type_is_not_unlinked(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(OSError, match=path) as raised:
            listen(path=path)
        assert raised.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect(path)


@pytest.mark.usefixtures("stale")
def test_f30_a_stale_socket_is_replaced(path, tmp_path):
    listeners = listen(path=path)
    reach(path)
    assert os.listdir(tmp_path) == ["socket"]
    listeners.close()


def test_f30_a_stale_socket_is_replaced_when_its_path_is_as_long_as_can_be(tmp_path):
    folder = tmp_path / ("x" * (104 - len(str(tmp_path))))
    folder.mkdir()
    path = str(folder / "s")
    assert len(path) == 107  # unix(7): 108 with the NUL
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    listeners = listen(path=path)
    reach(path)
    listeners.close()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("file", "it is a file that is not a socket"),
        ("directory", "it is a directory"),
        ("link to a file", "it is a symbolic link, which is not followed"),
        ("link to nothing", "it is a dangling symbolic link"),
        ("link to a stale socket", "it is a symbolic link, which is not followed"),
    ],
)
def test_f30_what_is_no_socket_is_left_alone_and_named(tmp_path, what, said):
    path, other = tmp_path / "there", tmp_path / "other"
    if what == "file":
        path.touch()
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to(other)
        if what == "link to a file":
            other.touch()
        elif what == "link to a stale socket":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(other))
    before = [os.lstat(tmp_path / name) for name in sorted(os.listdir(tmp_path))]
    with pytest.raises(OSError, match=f"cannot listen on {path}: {said}$") as raised:
        listen(path=str(path))
    assert raised.value.errno == errno.EADDRINUSE
    assert [(s.st_ino, s.st_mode) for s in before] == [
        (s.st_ino, s.st_mode)
        for s in (os.lstat(tmp_path / name) for name in sorted(os.listdir(tmp_path)))
    ]


def test_a_stale_socket_is_replaced_in_a_folder_that_is_a_symbolic_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    path = str(tmp_path / "link" / "socket")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    listeners = listen(path=path)
    reach(path)
    listeners.close()
    assert os.listdir(tmp_path / "folder") == []


def test_f30_a_path_in_a_folder_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        listen(path=str(tmp_path / "missing" / "socket"))


@pytest.mark.usefixtures("stale")
def test_of_two_that_start_at_once_one_goes_on_and_the_other_fails(path, tmp_path):
    """The first is bound and does not listen yet, so the second takes its file for stale."""
    second = []
    with pytest.raises(OSError, match=path) as raised:
        listen(lambda fd: second.append(listen(path=path)), path=path)
    assert raised.value.errno == errno.EADDRINUSE
    reach(path)
    assert os.listdir(tmp_path) == ["socket"]
    second[0].close()
    assert os.listdir(tmp_path) == []


def test_one_that_begins_to_listen_while_it_is_replaced_keeps_its_path(path, tmp_path, monkeypatch):
    real = os.rename
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)

        def rename(old, new):
            other.listen()
            real(old, new)

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match=path) as raised:
            listen(path=path)
        assert raised.value.errno == errno.EADDRINUSE
        reach(path)
    assert os.listdir(tmp_path) == ["socket"]


@pytest.mark.usefixtures("stale")
def test_one_that_replaces_the_stale_file_first_keeps_its_path(path, tmp_path, monkeypatch):
    real = os.rename
    with socket.socket(socket.AF_UNIX) as other:

        def rename(old, new):
            monkeypatch.setattr(os, "rename", real)
            os.unlink(path)
            other.bind(path)
            other.listen()
            real(old, new)

        monkeypatch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match=path) as raised:
            listen(path=path)
        assert raised.value.errno == errno.EADDRINUSE
        reach(path)
    assert os.listdir(tmp_path) == ["socket"]


# ------------------------------------------------------------------------------------------ systemd

MANAGER = """
import fcntl, os, sys
pid, fds, *command = sys.argv[1:]
aside = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds.split(",")]
os.closerange(3, 100)
for number, fd in enumerate(aside, 3):
    os.dup2(fd, number)
    os.close(fd)
os.environ["LISTEN_PID"] = pid or str(os.getpid())
os.execv(command[0], command)
"""
"""What systemd does between fork(2) and exec(2): the sockets become the fds from 3 on, and
LISTEN_PID names the process.
"""

TELL = """
import os
from hydrogen.listener import listen_fds

def tell(names=None):
    try:
        for sock in listen_fds(names):
            print(sock.fileno(), sock.family.name, sock.get_inheritable(), end=";")
            sock.detach()
    except ValueError as error:
        print("ValueError:", error, end="")
    print()
"""


def systemd(code, *given, pid="", **variables):
    """The lines that `code` prints in a process to which the `given` sockets or files are
    handed.
    """
    fds = tuple(each.fileno() for each in given)
    prefix = (sys.executable, "-c", MANAGER, pid, ",".join(map(str, fds)))
    return finish(
        child(
            TELL + code, prefix=prefix, pass_fds=fds, **{"LISTEN_FDS": str(len(fds)), **variables}
        )
    )[0].splitlines()


@pytest.fixture
def given(tmp_path):
    """A TCP and a Unix socket that listen."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "given"))
        other.listen()
        yield one, other


VARIABLES = 'print(sorted(name for name in os.environ if name.startswith("LISTEN_")))'


def test_listen_fds_gives_the_sockets_of_systemd_close_on_exec_and_removes_the_variables(given):
    lines = systemd(f"tell(); {VARIABLES}; tell()", *given, LISTEN_FDNAMES="web:admin")
    assert lines == ["3 AF_INET False;4 AF_UNIX False;", "[]", ""]


def test_listen_fds_chooses_by_name_and_a_further_call_gives_what_is_left(given):
    choose = f'tell(("admin", "other")); {VARIABLES}; print(os.get_inheritable(3)); '
    choose += 'tell(["admin"]); tell(["web"]); tell()'
    assert systemd(choose, *given, LISTEN_FDNAMES="web:admin") == [
        "4 AF_UNIX False;",
        "[]",
        "False",
        "",
        "3 AF_INET False;",
        "",
    ]


def test_listen_fds_of_the_same_name_come_together_and_those_without_are_unknown(given):
    assert systemd('tell({"web"})', *given, LISTEN_FDNAMES="web:web") == [
        "3 AF_INET False;4 AF_UNIX False;"
    ]
    assert systemd('tell({"unknown"})', *given) == ["3 AF_INET False;4 AF_UNIX False;"]


def test_sockets_of_systemd_are_listened_on(given):
    code = """
from hydrogen import Config
from hydrogen.listener import Listeners
fds = []
listeners = Listeners(Config(sock=listen_fds(), backlog=9, keepalive=None))
listeners.listen(fds.append)
print(fds, listeners.addresses)
for sock in listeners.sockets:
    sock.setblocking(True)
    sock.accept()[0].close()
listeners.close()
"""
    addresses = [sock.getsockname() for sock in given]
    with contextlib.ExitStack() as stack:
        for sock in given:
            client = stack.enter_context(socket.socket(sock.family))
            client.connect(sock.getsockname())
        assert systemd(code, *given) == [f"[3, 4] {addresses}"]


def test_listen_fds_that_are_another_process_s_are_none_and_the_variables_are_removed(given):
    assert systemd(f"tell(); {VARIABLES}", *given, pid="1") == ["", "[]"]


def test_listen_fds_is_empty_without_systemd(monkeypatch):
    assert listen_fds() == []
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    assert listen_fds() == []
    assert "LISTEN_PID" not in os.environ
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert listen_fds() == []
    assert "LISTEN_FDS" not in os.environ


@pytest.mark.parametrize("variable", ["LISTEN_PID", "LISTEN_FDS"])
@pytest.mark.parametrize(
    "value", ["", "x", "-1", "0", "1.0", " 1", "\N{SUPERSCRIPT TWO}", "9" * 5000]
)
def test_nonsense_in_a_variable_is_named_and_the_variables_are_removed(
    monkeypatch, variable, value
):
    for name, good in (
        ("LISTEN_PID", str(os.getpid())),
        ("LISTEN_FDS", "1"),
        ("LISTEN_FDNAMES", "web"),
    ):
        monkeypatch.setenv(name, value if name == variable else good)
    with pytest.raises(ValueError, match=f"^{variable}: expected a number above 0, not '{value}'"):
        listen_fds()
    assert not any(name.startswith("LISTEN_") for name in os.environ)


@pytest.mark.parametrize("names", ["", "web", "web:admin:more"])
def test_names_that_are_not_as_many_as_the_fds_are_refused(given, names):
    expected = f"ValueError: LISTEN_FDNAMES: expected 2 names, as LISTEN_FDS says, not {names!r}"
    assert systemd("tell()", *given, LISTEN_FDNAMES=names) == [expected]


def test_an_fd_that_is_not_open_is_named(given):
    for count in ("3", "999999999"):
        lines = systemd("tell()", *given, LISTEN_FDS=count)
        assert lines == [f"ValueError: LISTEN_FDS: fd 5, one of {count} starting at 3, is not open"]


def test_an_fd_that_is_no_stream_socket_is_named_unless_it_is_not_chosen(given):
    with socket.socket(type=socket.SOCK_DGRAM) as datagram:
        lines = systemd('tell(); tell({"web"})', given[0], datagram, LISTEN_FDNAMES="web:log")
        assert lines[0].startswith("ValueError: LISTEN_FDS: fd 4 (log) is not a stream socket but ")
        assert lines[1:] == ["3 AF_INET False;"]
    with open(os.devnull) as file:
        assert systemd("tell()", given[0], file)[0].startswith(
            "ValueError: LISTEN_FDS: fd 4 (unknown) is not a socket: "
        )


def test_one_name_instead_of_several_is_a_type_error():
    with pytest.raises(TypeError, match=r"^names: expected a collection of names, not 'web'"):
        listen_fds("web")
