"""An exception set in a worker from outside for a callback that has ended meanwhile: it is dropped,
and what comes next goes its way.

What may come at any other moment: test_guard.py, test_worker_interrupted.py.
"""

import ctypes
import functools
import os
import threading
import weakref

import pytest
from families import PassThrough, connect_to, options_of
from support import PATIENCE, recorder, wait_event, wait_until

import hydrogen

set_late = ctypes.PyDLL(None).PyThreadState_SetAsyncExc
set_late.restype = None


class Late(BaseException):
    """What a library for timeouts sets."""


def sets_late(ident):
    """Sets `Late` in a thread when it is called, once; by C code only, also as the callback of a
    weak reference.
    """
    return functools.partial(next, map(set_late, [ctypes.c_ulong(ident)], [ctypes.py_object(Late)]))


class Own(hydrogen.LineFrameBuilder):
    """A frame builder of the user's."""


def end(peer):
    peer.finish()


def reset(peer):
    peer.client.reset()


def overflow(peer):
    peer.send(bytes(2000))


ENDS = [
    (end, hydrogen.PeerClosed),
    (reset, ConnectionResetError),
    (overflow, hydrogen.FrameTooLarge),
]


@pytest.fixture
def idle(compiled, start, tmp_path):
    """Starts a server with one worker and a connection that it has served, and sets the exception
    in the worker.

    A worker of the Python engine is never known to wait: an edge may be told of at any moment, and
    what comes in a step ends that connection.
    """

    def begin(family, **options):
        idents = []

        def received(socket, data):
            idents.append(threading.get_ident())
            socket.send(data)

        handler = recorder(data_received=received)
        options = (
            options_of("tcp" if family in ("proxy", "builder") else family, str(tmp_path / "s"))
            | options
        )
        if family == "proxy":
            options |= {"proxy_protocol": "v1", "proxy_allow_from": ["127.0.0.1"]}
        if family == "builder":
            options["framing"] = Own(max_size=1000)
        server = start(handler, max_threads=1, **options)
        peer = joined(server, family)
        idle = threading.Event()
        server.call_later(0, idle.set)  # behind it the worker waits
        wait_event(idle, "the worker has nothing to do")
        sets_late(idents[0])()
        return server, handler, peer

    return begin


def joined(server, family):
    """A peer that is served."""
    peer = connect_to(server, "tls" if family == "tls" else "tcp")
    if family == "proxy":
        peer.send(b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 1001\r\n")
    ask(peer)
    return peer


def ask(peer):
    peer.send(b"x\n")
    assert peer.receive(2) == b"x\n"


@pytest.mark.clause("H16")
@pytest.mark.parametrize("family", ["tcp", "tls", "proxy", "builder"])
@pytest.mark.parametrize("by", ["one that is there", "a new one"])
def test_the_next_message_is_served(idle, family, by):
    server, _, peer = idle(family)
    if by == "a new one":
        joined(server, family).close()
    ask(peer)
    peer.close()


@pytest.mark.clause("H16", "E1")
@pytest.mark.parametrize(("action", "error"), ENDS)
def test_the_next_end_is_told_as_what_it_is(idle, action, error):
    _, handler, peer = idle("tcp", framing=hydrogen.LineFrameBuilder(max_size=1000))
    action(peer)
    assert type(handler.wait_removed()[0]) is error
    peer.close()


@pytest.mark.clause("H16", "T4")
def test_a_stream_is_closed_once_that_was_returned_as_it_came(start, connect, error_log):
    closed = []

    class Counts(PassThrough):
        def close(self):
            closed.append(self.fd)
            os.close(self.fd)

    class Local:
        """Something that goes with the frame of the callback."""

    gone = []

    class Streams(hydrogen.Handler):
        def on_new_connection(self, fd):
            local = Local()
            gone.append(weakref.ref(local, sets_late(threading.get_ident())))
            return Counts(fd)

        def on_data_received(self, socket, data):
            pass

    server = start(Streams(), max_threads=1)
    client = connect(server)
    client.finish()
    client.at_end()
    wait_until(lambda: closed, "the stream is closed")
    assert server.stop(PATIENCE).abandoned == 0
    assert len(closed) == 1
