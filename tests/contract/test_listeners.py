"""Several listeners: addresses of both families with one port, sockets that exist already, Unix
sockets and their mode.
"""

import errno
import os
import socket as stdlib_socket
import stat

import pytest
from support import (
    PATIENCE,
    Client,
    Echo,
    child,
    echo,
    finish,
    open_fds,
    recorder,
    running,
    threads,
    wait_until,
)

import hydrogen


def listening(fd):
    """Whether listen(2) was called on it, and its address."""
    with stdlib_socket.socket(fileno=os.dup(fd)) as sock:
        return bool(
            sock.getsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_ACCEPTCONN)
        ), sock.getsockname()


# --------------------------------------------------------------------------------------------- addr


@pytest.mark.clause("C29", "S18", "C5", "K16")
@pytest.mark.parametrize(
    "addr",
    [
        ("127.0.0.1", "::1"),
        ("::1", "127.0.0.1"),
        ["127.0.0.1", "127.0.0.2", "127.0.0.3"],
        ("127.0.0.1",),
    ],
    ids=lambda addr: ",".join(addr),
)
def test_each_address_of_a_list_is_listened_on_with_one_port(start, connect, addr):
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, addr=addr)
    assert [address[0] for address in server.addresses] == list(addr)
    assert len({address[1] for address in server.addresses}) == 1
    assert server.addresses[0] == server.address
    for address in server.addresses:
        client = connect(address)
        client.echo(b"x")
        assert client.sock.getpeername() == address
        socket = handler.of("data_received")[-1].socket
        assert (socket.sockname, socket.peername) == (address, client.name)
    assert server.stats().accepted == len(addr)


@pytest.mark.clause("C29")
@pytest.mark.parametrize(
    "addr", [("0.0.0.0", "::"), ("::", "0.0.0.0")], ids=lambda addr: ",".join(addr)
)
def test_all_addresses_of_both_families_may_be_listened_on_together(start, connect, addr):
    """Each listener takes its own family only, or the second bind would fail; and names are of that
    family.
    """
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, addr=addr)
    port = server.address[1]
    assert [address[:2] for address in server.addresses] == [(one, port) for one in addr]
    for address in (("127.0.0.1", port), ("::1", port, 0, 0), ("127.0.0.9", port)):
        client = connect(address)
        client.echo(b"x")
        socket = handler.of("data_received")[-1].socket
        assert (socket.sockname, socket.peername) == (address, client.name)


@pytest.mark.clause("C4", "C29")
def test_a_name_stands_for_all_its_addresses(start, connect):
    infos = stdlib_socket.getaddrinfo("localhost", None, type=stdlib_socket.SOCK_STREAM)
    server = start(Echo(), addr="localhost")
    assert {address[0] for address in server.addresses} == {info[4][0] for info in infos}
    for address in server.addresses:
        connect(address).echo(b"x")


@pytest.mark.clause("H5", "C29")
def test_on_server_created_comes_for_each_listener_before_any_of_them_listens(start):
    seen = []
    server = start(
        recorder(server_created=lambda fd: seen.append(listening(fd))), addr=("127.0.0.1", "::1")
    )
    assert [address for _, address in seen] == server.addresses
    assert [is_listening for is_listening, _ in seen] == [False, False]


@pytest.mark.clause("H5", "S22")
def test_if_it_raises_for_the_second_one_the_start_fails_and_nothing_is_open(engine):
    fds, tasks, seen = open_fds(), threads(), []

    def created(fd):
        seen.append(fd)
        if len(seen) == 2:
            raise KeyError("mine")

    with pytest.raises(KeyError):
        hydrogen.serve(
            recorder(server_created=created), addr=("127.0.0.1", "::1"), port=0, engine=engine
        )
    assert len(seen) == 2
    assert open_fds() == fds
    wait_until(lambda: threads() <= tasks, "no thread is left")


@pytest.mark.clause("S22", "C29")
def test_f30_if_one_of_the_addresses_is_busy_the_start_fails_naming_it_and_nothing_is_open(engine):
    with stdlib_socket.socket(stdlib_socket.AF_INET6) as busy:
        busy.bind(("::1", 0))
        busy.listen()
        fds, tasks = open_fds(), threads()
        with pytest.raises(OSError, match=f"::1 port {busy.getsockname()[1]}") as raised:
            # The first is an address on which nobody else's port is in the way.
            hydrogen.serve(
                Echo(), addr=("127.0.0.77", "::1"), port=busy.getsockname()[1], engine=engine
            )
        assert raised.value.errno == errno.EADDRINUSE
        assert open_fds() == fds
        wait_until(lambda: threads() <= tasks, "no thread is left")


@pytest.mark.clause("C29", "S22")
def test_f30_if_one_of_the_addresses_is_not_ours_the_start_fails_naming_it(engine):
    fds = open_fds()
    with pytest.raises(OSError, match=r"192\.0\.2\.1"):
        hydrogen.serve(Echo(), addr=("127.0.0.1", "192.0.2.1"), port=0, engine=engine)
    assert open_fds() == fds


@pytest.mark.clause("C29", "S8", "S10")
def test_a_stop_closes_all_of_them(start, connect):
    server = start(Echo(), addr=("127.0.0.1", "::1", "127.0.0.2"))
    clients = [connect(address) for address in server.addresses]
    for client in clients:
        client.echo(b"x")
    with running(lambda: server.stop(PATIENCE)):
        for client in clients:
            assert client.at_end() == "end"
            client.close()
    for address in server.addresses:
        with pytest.raises(ConnectionRefusedError):
            Client(address)


@pytest.mark.clause("C29", "C6")
def test_clients_of_all_listeners_are_served_at_once(start):
    server = start(Echo(), addr=("127.0.0.1", "::1", "127.0.0.2"))

    def converse(address):
        for number in range(30):
            with Client(address) as client:
                client.echo(b"%d" % number)

    with running(*(lambda address=address: converse(address) for address in server.addresses * 2)):
        pass
    wait_until(lambda: server.stats().connections == 0, "they are gone")
    assert server.stats().accepted == 180


@pytest.mark.clause("C29", "C32")
def test_max_connections_is_over_all_listeners_and_when_one_leaves_any_of_them_goes_on(
    start, connect
):
    server = start(Echo(), addr=("127.0.0.1", "::1"), max_connections=2)
    clients = [connect(address) for address in server.addresses]
    for client in clients:
        client.echo(b"x")
    waiting = [connect(address) for address in server.addresses]
    for client in waiting:
        client.send(b"patient")
    wait_until(lambda: server.stats().accept_pauses == 1, "accepting is paused")
    assert server.stats().accepted == 2
    for client in clients:
        client.close()
    for client in waiting:
        assert client.receive(7) == b"patient"


@pytest.mark.clause("C12", "C29")
def test_several_addresses_may_be_shared_by_reuse_port(start, connect):
    first = start(Echo(), addr=("127.0.0.1", "::1"), reuse_port=True)
    second = start(Echo(), addr=("127.0.0.1", "::1"), port=first.address[1], reuse_port=True)
    assert first.addresses == second.addresses
    for address in first.addresses:
        connect(address).echo(b"x")


# --------------------------------------------------------------------------------------------- sock


@pytest.mark.clause("C30", "S18", "C10", "K16")
@pytest.mark.parametrize("already", [False, True], ids=["bound", "listening"])
def test_sockets_of_several_families_that_exist_already_are_taken_over(
    start, connect, tmp_path, already
):
    path = str(tmp_path / "socket")
    socks = [
        stdlib_socket.socket(family)
        for family in (stdlib_socket.AF_INET, stdlib_socket.AF_UNIX, stdlib_socket.AF_INET6)
    ]
    for sock, address in zip(socks, (("127.0.0.1", 0), path, ("::1", 0)), strict=True):
        sock.bind(address)
        if already:
            sock.listen(5)
    addresses = [sock.getsockname() for sock in socks]
    handler = recorder(connected=None, data_received=echo)
    server = start(handler, sock=socks)
    assert server.addresses == addresses
    assert server.address == addresses[0]
    for address in addresses:
        client = connect(address)
        client.echo(b"x")
        socket = handler.of("data_received")[-1].socket
        assert (socket.sockname, socket.peername) == (address, client.name)
        client.finish()
        assert client.receive_until_end() == b""
        client.close()
    server.stop()
    assert [sock.fileno() for sock in socks] == [-1] * 3


NODELAY = (stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY)
SEND_BUFFER = (stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF)


@pytest.mark.clause("C13", "C15", "C30")
def test_options_are_set_on_connections_of_each_family_that_has_them(start, connect, tmp_path):
    socks = (stdlib_socket.socket(), stdlib_socket.socket(stdlib_socket.AF_UNIX))
    socks[0].bind(("127.0.0.1", 0))
    socks[1].bind(str(tmp_path / "socket"))
    seen = []

    def connected(socket):
        with stdlib_socket.socket(fileno=os.dup(socket.fileno())) as accepted:
            nodelay = (
                [accepted.getsockopt(*NODELAY)] if accepted.family == stdlib_socket.AF_INET else []
            )
            seen.append((accepted.getsockopt(*SEND_BUFFER), *nodelay))

    options = [(*SEND_BUFFER, 50_000)]
    server = start(
        recorder(connected=connected, data_received=echo), sock=socks, socket_options=options
    )
    for address in server.addresses:
        connect(address).echo(b"x")
    assert seen == [(100_000, 1), (100_000,)]  # socket(7): the kernel doubles it


@pytest.mark.clause("C30", "S22")
def test_f30_if_one_of_the_sockets_cannot_listen_all_of_them_stay_the_caller_s(engine):
    left, right = stdlib_socket.socketpair()
    with stdlib_socket.socket() as good, left, right:
        good.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match=r"[Ii]nvalid|not supported"):
            hydrogen.serve(Echo(), sock=(good, left), engine=engine)
        assert good.fileno() != -1
        assert left.fileno() != -1
        good.listen()


# ---------------------------------------------------------------------------------------- path_mode


@pytest.mark.clause("C31", "C9")
@pytest.mark.parametrize("mode", [0o600, 0o666, 0o660, 0o777])
def test_the_unix_socket_has_the_mode_asked_for_whatever_the_umask(start, connect, tmp_path, mode):
    path = str(tmp_path / "socket")
    before = os.umask(0o077)
    try:
        server = start(Echo(), path=path, path_mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    connect(server).echo(b"x")


@pytest.mark.clause("C31")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_without_path_mode_the_umask_decides(start, tmp_path, umask):
    path = str(tmp_path / "socket")
    before = os.umask(umask)
    try:
        start(Echo(), path=path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o777 & ~umask


@pytest.mark.clause("C31", "H5")
def test_the_mode_is_set_before_anybody_can_connect(start, tmp_path):
    path, seen = str(tmp_path / "socket"), []

    def created(fd):
        seen.append((stat.S_IMODE(os.stat(path).st_mode), listening(fd)[0]))

    start(recorder(server_created=created), path=path, path_mode=0o640)
    assert seen == [(0o640, False)]


@pytest.mark.clause("C10")
def test_a_listener_that_is_made_to_block_while_it_serves_holds_nobody_up(start, connect):
    """Whether it blocks is of the open file, which others may have, too."""
    with stdlib_socket.create_server(("127.0.0.1", 0)) as mine:
        server = start(recorder(data_received=echo), sock=mine.dup(), max_threads=2)
        first = connect(server)
        first.echo(b"before")
        mine.setblocking(True)
        connect(server).echo(b"new")
        first.echo(b"still")
        server.stop(PATIENCE)


TAKEN_AWAY = """
import os, socket, sys, warnings

def take_away():
    # All hooks of the engine's have run: the accept thread, which has polled, waits for the fork
    # to be over.
    with socket.create_connection(mine.getsockname()):
        wait_until(comes_to_the_gate, "the accept thread has polled")
        mine.setblocking(True)
        mine.accept()[0].close()

def comes_to_the_gate():
    frames = sys._current_frames().values()
    names = [(frame.f_code.co_name, frame.f_back.f_code.co_name) for frame in frames]
    return ("under", "lock") in names

mine, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
os.register_at_fork(before=lambda: armed and take_away())
armed = False
import hydrogen
from hydrogen._py import kernel
from support import PATIENCE, Client, Echo, wait_until

kernel.FORK_PATIENCE = PATIENCE  # the accept thread is there until the hook has seen it
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
socks = [mine.dup(), other.dup()]
with hydrogen.serve(Echo(), sock=socks, engine="python", max_threads=2) as server:
    with Client(server.addresses[1]) as client:
        client.echo(b"before")
    armed = True
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with Client(server.addresses[1]) as client:
        client.echo(b"after")
mine.close()
other.close()
"""


@pytest.mark.clause("C10")
def test_a_listener_that_blocks_and_whose_connection_another_process_takes_holds_nobody_up(engine):
    """The compiled engine cannot be held there."""
    if engine == "python":
        assert finish(child(TAKEN_AWAY), 0) == ("", "")


@pytest.mark.clause("C10")
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first", "last"])
def test_a_listener_that_somebody_shuts_down_holds_up_no_other(start, connect, order, error_log):
    """Another process that was passed the socket can do so. accept(2) says EINVAL of it from then
    on.
    """
    mine = [stdlib_socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    with mine[0], mine[1]:
        server = start(
            recorder(data_received=echo), sock=[sock.dup() for sock in mine], max_threads=2
        )
        dead, good = (server.addresses[number] for number in order)
        connect(dead).echo(b"before")
        mine[order[0]].shutdown(stdlib_socket.SHUT_RDWR)
        for _ in range(5):
            connect(good).echo(b"after")
        assert server.stats().accept_pauses == 0
        wait_until(error_log, "it is told")
        assert {record.getMessage() for record in error_log()} == {
            "accept: [Errno 22] Invalid argument"
        }


@pytest.mark.clause("C10")
def test_a_socket_that_is_given_twice_is_listened_on(start, connect):
    with stdlib_socket.create_server(("127.0.0.1", 0)) as mine:
        server = start(recorder(data_received=echo), sock=[mine, mine], max_threads=2)
        for _ in range(3):
            connect(server).echo(b"x")
        assert server.stats().accept_pauses == 0


@pytest.mark.clause("C10")
def test_the_number_of_a_listener_that_somebody_closes_does_no_harm(engine, start, connect):
    """Where another process holds the open file, epoll(7) would report it for ever, and let nobody
    take it out.
    """
    with stdlib_socket.create_server(("127.0.0.1", 0)) as mine:
        given = mine.dup()
        server = start(recorder(data_received=echo), sock=given, max_threads=2)
        first = connect(server)
        first.echo(b"before")
        given.close()
        if engine == "compiled":  # the other one is left without a listener
            connect(server).echo(b"new")
        first.echo(b"still")
