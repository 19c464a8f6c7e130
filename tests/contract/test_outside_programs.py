"""What programs that nobody here wrote make of a server: a relay, an attacker, a proxy, and the
administrator's tools.

Our clients and our servers may share a misunderstanding; socat, slowhttptest, HAProxy, ss(8) and
prlimit(1) do not share it. Each is told to speak to 127.0.0.0/8 or ::1 only. `ss -K` needs
CAP_NET_ADMIN, and a kernel with CONFIG_INET_DIAG_DESTROY.
"""

import ast
import collections
import contextlib
import csv
import errno
import os
import socket as stdlib_socket
import subprocess
import threading

import programs
import pytest
from certificates import client_context, server_context
from support import (
    Client,
    TlsClient,
    child,
    echo,
    family_of,
    finish,
    program,
    recorder,
    running,
    wait_until,
)

import hydrogen

# -------------------------------------------------------------------------------------------- socat


def socat(*arguments, say=b""):
    """What socat wrote, when it was given `say` and then an end of file."""
    out, said = finish(program("socat", *arguments, stdin=subprocess.PIPE), 0, say)
    assert said == b""
    return out


@pytest.fixture(params=["tcp", "unix"])
def place(request, tmp_path):
    """Options of a server, and socat's word for where that is."""
    if request.param == "tcp":
        return {}, lambda server: "TCP:{}:{}".format(*server.address)
    return {"path": str(tmp_path / "s")}, lambda server: f"UNIX-CONNECT:{server.address}"


def test_socat_that_has_ended_its_side_gets_the_whole_reply(start, place):
    """socat ends one side and goes on with the other, for as long as -t says. The reply is made at
    the end of the request.
    """
    options, where = place
    reply = os.urandom(3_000_000)
    handler = recorder(eof=lambda socket: (socket.send(reply), socket.close()))
    server = start(handler, **options)
    assert socat("-t30", "-", where(server), say=b"request") == reply
    assert handler.data() == b"request"
    (error,) = handler.wait_removed()
    assert type(error) in (hydrogen.LocalClosed, hydrogen.PeerClosed)


@pytest.mark.parametrize("block", [1021, 1 << 18])
def test_socat_that_ends_after_a_large_transfer_has_it_back_whole(start, place, block):
    """Both directions at once, and the FIN comes while replies are still under way."""
    options, where = place
    handler = recorder(data_received=echo)
    server = start(handler, **options)
    data = os.urandom((block << 9) if block < 4096 else 32 << 20)
    assert socat("-t30", f"-b{block}", "-", where(server), say=data) == data
    handler.wait_removed()
    assert server.stats().bytes_received == server.stats().bytes_sent == len(data)


def test_socat_relays_between_two_servers_and_passes_the_end_on(start, tmp_path):
    left = recorder(connected=lambda socket: socket.send(b"from the left"))
    right = recorder(connected=lambda socket: socket.send(b"from the right"), eof=None)
    sides = start(left), start(right, path=str(tmp_path / "s"))
    relay = program(
        "socat", "-t30", "TCP:{}:{}".format(*sides[0].address), f"UNIX-CONNECT:{sides[1].address}"
    )
    assert left.wait_bytes(14) == b"from the right"
    assert right.wait_bytes(13) == b"from the left"
    left.socket().close()
    right.wait_for("eof")
    right.socket().send(b"what nobody reads any more")
    right.socket().close()
    finish(relay)
    assert [type(error) for error in left.wait_removed()] == [hydrogen.LocalClosed]
    assert [type(error) for error in right.wait_removed()] == [hydrogen.LocalClosed]


# ------------------------------------------------------------------------------------- slowhttptest

ATTACKERS = 5


class Attack:
    """slowhttptest against a server, which it asks now and then for a response in time."""

    def __init__(self, server, folder, *arguments):
        self._said = folder / "slowhttptest"
        command = [
            "slowhttptest",
            "-c",
            ATTACKERS,
            "-r",
            200,
            "-l",
            90,
            "-p",
            10,
            "-v",
            4,
            *arguments,
        ]
        with self._said.open("wb") as file:
            self._process = program(
                *command,
                "-u",
                "http://{}:{}/".format(*server.address),
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self):
        """End it, for it has not noticed that its connections are gone."""
        assert self._process.poll() is None, self._said.read_bytes()[-3000:]
        self._process.kill()
        finish(self._process, None)

    def end(self):
        """It ends by itself when the last attacker is thrown out; what it said."""
        finish(self._process)
        said = self._said.read_bytes()
        assert b"No open connections left" in said, said[-3000:]
        return said


def respond(*frames):
    """A hook: the response to a request that has ended, in frames. A neighbour says hello."""

    def received(socket, data):
        if data == b"hello":
            socket.send(data)
        elif data.startswith(b"GET ") or data == b"":
            for frame in frames:
                socket.send(frame)

    return received


def outlive(handler, neighbour, hello, timeout):
    """Serve the neighbour until all attackers are gone; each by `timeout`, and nobody else by
    any.
    """

    def timeouts():
        errors = [call.value for call in handler.of("connection_removed")]
        return [str(error) for error in errors if isinstance(error, hydrogen.ConnectionTimeout)]

    for _ in range(1 << 20):
        neighbour.echo(hello)
        if len(timeouts()) == ATTACKERS:
            break
    neighbour.echo(hello)
    assert [error.partition(":")[0] for error in timeouts()] == [timeout] * ATTACKERS


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["-H", "-B"], ids=["headers", "body"])
def test_slowhttptest_that_drips_a_request_is_removed_by_the_frame_timeout(
    start, connect, tmp_path, mode
):
    """A frame ends with an empty line, so headers without end, and a body that nobody asked for,
    are frames begun and never finished. What follows once in a second does not help them."""
    handler = recorder(data_received=respond(b"HTTP/1.1 200 OK\r\nContent-Length: 0"))
    server = start(handler, framing=hydrogen.LineFrameBuilder(b"\r\n\r\n"), frame_timeout=1.5)
    neighbour = connect(server)
    attack = Attack(server, tmp_path, mode, "-i", 1)
    outlive(handler, neighbour, b"hello\r\n\r\n", "frame_timeout")
    assert b"follow up data sent" in attack.end()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["-H", "-B"], ids=["headers", "body"])
def test_slowhttptest_that_falls_silent_is_removed_by_the_idle_timeout(
    start, connect, tmp_path, mode
):
    """Each line is a frame, and after some of them nothing comes for ten seconds; that the last may
    be unfinished is no matter here.
    """
    handler = recorder(data_received=respond(b"HTTP/1.1 200 OK\r", b"Content-Length: 0\r", b"\r"))
    server = start(
        handler, framing=hydrogen.LineFrameBuilder(), idle_timeout=0.5, frame_timeout=None
    )
    neighbour = connect(server)
    attack = Attack(server, tmp_path, mode, "-i", 10)
    outlive(handler, neighbour, b"hello\n", "idle_timeout")
    attack.end()


@pytest.mark.slow
def test_slowhttptest_that_reads_slowly_is_removed_by_the_write_timeout(start, connect, tmp_path):
    """It announces a window of a few bytes and reads one each ten seconds; the response waits in
    our kernel and with us. The reset it sees when it has read what it has, which is not waited for.
    """
    handler = recorder(
        data_received=respond(b"HTTP/1.1 200 OK\r\nContent-Length: 8388608", bytes(8 << 20))
    )
    server = start(
        handler,
        framing=hydrogen.LineFrameBuilder(b"\r\n\r\n", max_size=16 << 20),
        write_timeout=1.0,
        idle_timeout=None,
    )
    neighbour = connect(server)
    attack = Attack(server, tmp_path, "-X", "-w", 1, "-y", 2, "-n", 10, "-z", 1)
    outlive(handler, neighbour, b"hello\r\n\r\n", "write_timeout")
    attack.kill()


# ----------------------------------------------------------------------------------------------- ss


def kill(*where):
    """Let ss(8) kill the established sockets of TCP for which `where` holds; how many there
    were.
    """
    out, _ = finish(program("ss", "-K", "-H", "-n", "-t", "state", "established", *where))
    return len(out.splitlines())


@pytest.mark.parametrize("side", ["server", "client"])
def test_ss_kills_sockets_under_traffic_and_each_is_removed_once(start, connect, side):
    """The victims come from an address of their own. Which end is killed decides who is told
    ECONNABORTED, and who gets the reset.
    """
    programs.path_of("ss")
    programs.be_root()
    handler = recorder(data_received=echo)
    server = start(handler)
    neighbour = connect(server)
    us, them = f":{server.address[1]}", "127.0.0.2"
    where = (
        ("sport", "=", us, "and", "dst", "=", them)
        if side == "server"
        else ("dport", "=", us, "and", "src", "=", them)
    )
    victims = 20
    for round in (1, 2, 3):
        clients = [connect(server, source=them) for _ in range(victims)]
        talking = threading.Barrier(victims + 1)
        ends = []

        def talk(client, talking=talking, ends=ends):
            client.echo(b"before")
            talking.wait(30)
            try:
                while True:
                    client.echo(bytes(10_000))
            except ConnectionError as raised:
                ends.append(raised.errno)

        with running(*[lambda client=client: talk(client) for client in clients]):
            talking.wait(30)
            assert kill(*where) == victims, "ss -K needs CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY"
            neighbour.echo(b"meanwhile")
        told = {errno.ECONNRESET, errno.EPIPE} if side == "server" else {errno.ECONNABORTED}
        assert len(ends) == victims
        assert set(ends) <= told
        errors = handler.wait_removed(round * victims)
        assert {type(error) for error in errors} == {
            ConnectionAbortedError if side == "server" else ConnectionResetError
        }
        wait_until(lambda: server.stats().connections == 1, "only the neighbour is left")
        neighbour.echo(b"after")
    assert len(handler.of("connection_removed")) == 3 * victims


# ------------------------------------------------------------------------------------------ haproxy


CONFIGURATION = """
global
    stats socket fd@{admin}
defaults
    mode tcp
    timeout connect 30s
    timeout client 60s
    timeout server 60s
frontend clients
    bind fd@{ipv4}
    bind fd@{ipv6}
    bind fd@{unix}
    unique-id-format client-%[src_port]
    default_backend servers
backend servers
    server hydrogen {address} {options}
"""

Fronts = collections.namedtuple("Fronts", "ipv4 ipv6 unix admin")


@pytest.fixture
def haproxy(start, tmp_path):
    """Put HAProxy in front of a server: `haproxy(server, "send-proxy")`. Returned is where clients
    come to it, and who asks it for counts.

    Its listening sockets are made here and inherited: so the kernel chooses their ports, and they
    are there before HAProxy is.
    """
    started = []

    def haproxy(server, options):
        with contextlib.ExitStack() as stack:
            addresses = (
                ("127.0.0.1", 0),
                ("::1", 0, 0, 0),
                str(tmp_path / "front"),
                ("127.0.0.1", 0),
            )
            sockets = Fronts(
                *(
                    stack.enter_context(stdlib_socket.socket(family_of(address)))
                    for address in addresses
                )
            )
            for sock, address in zip(sockets, addresses, strict=True):
                sock.bind(address)
                sock.listen()
            address = (
                f"unix@{server.address}"
                if isinstance(server.address, str)
                else "{}:{}".format(*server.address)
            )
            fds = {name: sock.fileno() for name, sock in sockets._asdict().items()}
            file = tmp_path / "haproxy"
            file.write_text(CONFIGURATION.format(address=address, options=options, **fds))
            started.append(
                program(
                    "haproxy",
                    "-db",
                    "-q",
                    "-f",
                    file,
                    stdout=None,
                    stderr=None,
                    pass_fds=fds.values(),
                )
            )
            return Fronts(*(sock.getsockname() for sock in sockets))

    yield haproxy
    for process in started:
        assert process.poll() is None, "HAProxy has ended by itself"
        process.terminate()
        finish(process, None)


def introduce(socket, data):
    """A hook: who the client is, as the server sees it."""
    proxy = socket.get_extra_info("proxy")
    who = (
        None
        if proxy is None
        else (proxy.version, proxy.is_local, proxy.source, proxy.destination, proxy.tlvs)
    )
    socket.send(repr((socket.peername, who)).encode())


def ask(client):
    """What the server knows of `client`: its peername, and the header."""
    client.send(b"who am I?")
    return ast.literal_eval(client.sock.recv(1 << 16).decode())


LOCAL = {"proxy_allow_from": ("127.0.0.0/8",)}


@pytest.mark.parametrize(
    ("options", "versions"),
    [
        ("send-proxy", "v1"),
        ("send-proxy", "auto"),
        ("send-proxy-v2", "v2"),
        ("send-proxy-v2 proxy-v2-options unique-id,crc32c", "auto"),
    ],
)
def test_haproxy_passes_on_who_its_clients_are(start, connect, haproxy, options, versions):
    """Of a client on a Unix socket it knows nothing to pass on, and says so; then its own address
    stays.
    """
    server = start(recorder(data_received=introduce), proxy_protocol=versions, **LOCAL)
    fronts = haproxy(server, options)
    version = 2 if "v2" in options else 1
    for front in (fronts.ipv4, fronts.ipv6):
        client = connect(front)
        peername, (seen, is_local, source, destination, tlvs) = ask(client)
        assert peername == source == client.name
        assert (seen, is_local, destination) == (version, False, front)
        assert dict(tlvs).get(0x05) == (
            b"client-%d" % client.name[1] if "unique-id" in options else None
        )
        assert (0x03 in dict(tlvs)) == ("crc32c" in options)
    (host, _), (seen, _, source, destination, _) = ask(connect(fronts.unix))
    assert (host, seen, source, destination) == ("127.0.0.1", version, None, None)


def test_haproxy_passes_on_who_its_clients_are_to_a_server_with_tls(start, connect, haproxy):
    """It passes the handshake through as it comes, right behind its header."""
    server = start(
        recorder(data_received=introduce), proxy_protocol="v2", ssl=server_context(), **LOCAL
    )
    client = connect(haproxy(server, "send-proxy-v2").ipv4)
    tls = TlsClient(client, client_context()).handshake()
    expected = repr((client.name, (2, False, client.name, client.sock.getpeername(), ()))).encode()
    tls.send(b"who am I?")
    assert tls.receive(len(expected)) == expected
    tls.close()


def test_haproxy_passes_on_who_its_clients_are_to_a_server_on_a_unix_socket(
    start, connect, haproxy, tmp_path
):
    server = start(
        recorder(data_received=introduce),
        path=str(tmp_path / "s"),
        proxy_protocol="auto",
        proxy_allow_from=("unix",),
    )
    client = connect(haproxy(server, "send-proxy-v2").ipv4)
    peername, (_, _, source, _, _) = ask(client)
    assert peername == source == client.name


def test_haproxy_that_was_not_told_to_send_a_header_gets_nowhere(start, connect, haproxy):
    handler = recorder(data_received=introduce)
    server = start(handler, proxy_protocol="auto", **LOCAL)
    client = connect(haproxy(server, "").ipv4)
    client.send(b"who am I?")
    assert client.at_end() in ("end", "reset")
    client.close()
    assert type(handler.wait_removed()[0]) is hydrogen.ProtocolError
    assert handler.messages() == []


def verdict(fronts):
    """What HAProxy thinks of the server: is it up, how did the last check go, and how many have
    failed.
    """
    with Client(fronts.admin) as admin:
        admin.send(b"show stat\n")
        said = admin.receive_until_end().decode().removeprefix("# ")
    (ours,) = (row for row in csv.DictReader(said.splitlines()) if row["svname"] == "hydrogen")
    # the star: one is being made
    return ours["status"], ours["check_status"].removeprefix("* "), ours["chkfail"]


@pytest.mark.parametrize(
    ("options", "versions"),
    [
        ("send-proxy check", "v1"),
        ("send-proxy check", "auto"),
        ("send-proxy-v2 check", "v2"),
        ("send-proxy-v2 check check-send-proxy", "auto"),
    ],
)
def test_health_checks_of_haproxy_with_a_header_are_no_errors(
    start, connect, haproxy, options, versions
):
    """It connects, sends its header (with v2 LOCAL), and resets. (That no error is logged is
    asserted after each test.)
    """
    seen = []

    def hook(socket):
        seen.append((socket.peername, socket.get_extra_info("proxy")))

    handler = recorder(connected=hook, data_received=introduce)
    fronts = haproxy(start(handler, proxy_protocol=versions, **LOCAL), f"{options} inter 20ms")
    client = connect(fronts.ipv4)
    assert ask(client)[0] == client.name
    errors = handler.wait_removed(10)
    assert {type(error) for error in errors} <= {hydrogen.PeerClosed, ConnectionResetError}
    checks = [(peername, proxy) for peername, proxy in seen if peername != client.name]
    assert checks
    for (host, _), proxy in checks:
        assert host == "127.0.0.1"
        assert (proxy.version, proxy.is_local) == ((2, True) if "v2" in options else (1, False))
    assert ask(client)[0] == client.name
    assert verdict(fronts) == ("UP", "L4OK", "0")


@pytest.mark.parametrize(
    ("options", "versions"),
    [("send-proxy", "v1"), ("send-proxy-v2", "v2"), ("send-proxy-v2", "auto")],
)
def test_health_checks_of_haproxy_without_a_header_are_no_errors(
    start, connect, haproxy, options, versions
):
    """As it makes them where a port is named. It resets before the handshake is complete, so that
    they are seldom accepted at all.
    """
    handler = recorder(data_received=introduce)
    server = start(handler, proxy_protocol=versions, **LOCAL)
    fronts = haproxy(server, f"{options} check port {server.address[1]} inter 20ms")
    wait_until(lambda: verdict(fronts)[1] == "L4OK", "a check has been made")
    client = connect(fronts.ipv4)
    for _ in range(100):
        assert ask(client)[0] == client.name
        assert verdict(fronts) == ("UP", "L4OK", "0")
    assert {type(call.value) for call in handler.of("connection_removed")} <= {
        hydrogen.PeerClosed,
        ConnectionResetError,
    }


# ------------------------------------------------------------------------------------------ prlimit

LIMITED = """
import sys
import hydrogen
from support import Echo

server = hydrogen.serve(Echo(), port=0, engine=sys.argv[1], max_threads=3)
print(server.address[1], flush=True)
for line in iter(sys.stdin.readline, ""):
    print(server.stats().accept_pauses, server.stats().connections, flush=True)
report, stats = server.stop(20), server.stats()
print(report.aborted, report.abandoned, stats.accepted, stats.removed)
"""


def test_prlimit_takes_the_fds_of_a_live_server_and_accepting_recovers_by_itself_when_they_are_back(
    engine,
):
    process = child(LIMITED, engine)
    address = ("127.0.0.1", int(process.stdout.readline()))

    def ask():
        process.stdin.write("\n")
        process.stdin.flush()
        return tuple(map(int, process.stdout.readline().split()))

    def limit(fds):
        finish(program("prlimit", "--pid", process.pid, f"--nofile={fds}:"))

    with contextlib.ExitStack() as stack:
        before = [stack.enter_context(Client(address)) for _ in range(5)]
        for client in before:
            client.echo(b"before")
        pauses, connections = ask()
        assert (pauses, connections) == (0, 5)
        held = {int(fd) for fd in os.listdir(f"/proc/{process.pid}/fd")}
        # the lowest number that is free would be the next fd
        limit(min(set(range(1 << 20)) - held))
        waiting = [stack.enter_context(Client(address)) for _ in range(5)]
        for client in waiting:
            client.send(b"waiting")
        for times in (1, 2, 3):
            wait_until(
                lambda times=times: ask()[0] >= times, "accepting is paused, again and again"
            )
            for client in before:
                client.echo(b"meanwhile")
        assert ask()[1] == 5
        for client in waiting:
            client.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.sock.recv(1)
            client.sock.settimeout(30)
        limit(1024)
        for client in waiting:  # nobody else comes, and nothing has to happen for it
            assert client.receive(7) == b"waiting"
        pauses, connections = ask()
        assert connections == 10
        with Client(address) as late:
            late.echo(b"after")
        assert ask()[0] == pauses
    out, _ = finish(process)
    assert out == "0 0 11 11\n"
