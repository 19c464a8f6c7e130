"""The listening socket, without any engine: what it binds, what it refuses, and what it takes away."""

import errno
import os
import socket

import pytest

import hydrogen
from hydrogen.listener import Listener


def listen(created=lambda fd: None, **options):
    """A listener for these fields of Config."""
    if "path" not in options and "sock" not in options:
        options.setdefault("port", 0)
    return Listener(hydrogen.Config(**options), created)


def listening(sock):
    """Whether `listen` was called on it."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def test_it_listens_without_blocking_and_is_not_inherited():
    listener = listen()
    try:
        assert listening(listener.sock)
        assert not listener.sock.getblocking()
        assert not listener.sock.get_inheritable()
        assert listener.address == listener.sock.getsockname()
    finally:
        listener.close()
    assert listener.sock.fileno() == -1


@pytest.mark.clause("H5")
def test_on_created_comes_between_bind_and_listen():
    seen = []

    def created(fd):
        with socket.socket(fileno=os.dup(fd)) as sock:
            seen.append((sock.getsockname()[1] > 0, listening(sock)))

    listen(created).close()
    assert seen == [(True, False)]


def test_what_on_created_raises_is_raised_and_nothing_stays_open(tmp_path):
    def created(fd):
        raise KeyError("mine")

    path = str(tmp_path / "socket")
    for options in ({}, {"path": path}):
        with pytest.raises(KeyError):
            listen(created, **options)
    assert not os.path.exists(path)


@pytest.mark.clause("C10")
def test_a_given_socket_stays_open_when_the_start_fails():
    def created(fd):
        raise KeyError("mine")

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(KeyError):
            listen(created, sock=sock)
        assert sock.fileno() != -1


def test_f30_a_port_in_use_names_the_address():
    first = listen()
    try:
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1 port {first.address[1]}") as raised:
            listen(port=first.address[1])
        assert raised.value.errno == errno.EADDRINUSE
    finally:
        first.close()


def test_f30_an_address_of_another_machine_is_refused_by_name():
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1 port 0") as raised:
        listen(addr="192.0.2.1")
    assert raised.value.errno == errno.EADDRNOTAVAIL


def test_f30_a_name_without_address_is_refused_by_name():
    with pytest.raises(OSError, match=r"cannot listen on no\.such\.host\.invalid"):
        listen(addr="no.such.host.invalid")


@pytest.mark.clause("C9")
def test_a_path_is_removed_with_the_listener(tmp_path):
    path = str(tmp_path / "socket")
    listener = listen(path=path)
    assert listener.address == path
    assert os.path.exists(path)
    listener.close()
    assert not os.path.exists(path)


@pytest.mark.clause("C9")
def test_a_path_that_was_taken_over_by_another_socket_is_left_alone(tmp_path):
    path = str(tmp_path / "socket")
    listener = listen(path=path)
    os.rename(path, path + ".old")
    other = listen(path=path)
    listener.close()
    assert os.path.exists(path)
    other.close()
    assert not os.path.exists(path)
    os.unlink(path + ".old")


def test_f30_a_live_socket_is_not_unlinked(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(path)
        live.listen()
        with pytest.raises(OSError, match=path) as raised:
            listen(path=path)
        assert raised.value.errno == errno.EADDRINUSE
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_f30_a_live_socket_whose_queue_is_full_is_not_unlinked(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(path)
        live.listen(0)
        waiting = []
        try:
            for _ in range(10):
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                try:
                    waiting[-1].connect(path)
                except BlockingIOError:
                    break
            with pytest.raises(OSError, match=path):
                listen(path=path)
            assert os.path.exists(path)
        finally:
            for sock in waiting:
                sock.close()


def test_f30_a_stale_socket_is_replaced(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    listener = listen(path=path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    listener.close()


@pytest.mark.parametrize("what", ["file", "directory", "link to a file"])
def test_f30_what_is_no_socket_is_left_alone(tmp_path, what):
    path = tmp_path / "there"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        (tmp_path / "file").write_text("precious")
        path.symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="there"):
        listen(path=str(path))
    assert path.exists()
    assert what == "directory" or path.read_text() == "precious"


def test_f30_a_path_in_a_folder_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        listen(path=str(tmp_path / "missing" / "socket"))


@pytest.mark.clause("C4")
def test_an_ipv6_address_is_listened_on():
    listener = listen(addr="::1")
    assert listener.sock.family == socket.AF_INET6
    listener.close()


@pytest.mark.clause("C13", "C14")
def test_options_that_connections_inherit_are_set_on_the_listener_and_not_on_a_unix_socket(tmp_path):
    listener = listen(nodelay=True, keepalive=(5, 6, 7))
    options = (socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    assert [listener.sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [1, 5, 6, 7]
    listener.close()
    listen(path=str(tmp_path / "socket"), nodelay=True, keepalive=(5, 6, 7)).close()
