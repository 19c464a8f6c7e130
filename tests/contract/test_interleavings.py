"""Two threads at the output of one connection, opcode by opcode: what another thread may do between
any two of them, without a GIL.

Of the Python engine. The compiled one runs no opcodes there: it takes the same steps once.
"""

import contextlib
import socket as stdlib_socket
import sys
import threading
from pathlib import Path

import pytest
from families import PassThrough
from support import PATIENCE, Client, recorder, running, wait_event, wait_until

import hydrogen

OUTPUT = str(Path(hydrogen.__file__).parent / "_py" / "output.py")


class Point:
    """Before opcode `number` of call `call` of `function` for a connection, counted from `arm` on:
    there `action` is called.

    It is a function of output.py, in a thread that began within `traced`.

    Attributes:
        calls: so far.
        came: whether that opcode was reached.
        is_over: that call has returned.
    """

    def __init__(self, function, number, call=1):
        self._function, self._left, self._call = function, number, call
        self._socket = self._action = None
        self.calls = 0
        self.came = self.is_over = False

    @contextlib.contextmanager
    def traced(self):
        threading.settrace(self._trace)
        try:
            yield
        finally:
            threading.settrace(None)

    def arm(self, socket, action):
        self._action = action
        self._socket = socket

    def _trace(self, frame, event, argument):
        if (
            self._socket is None
            or frame.f_code.co_filename != OUTPUT
            or frame.f_code.co_name != self._function
        ):
            return None
        if frame.f_locals["self"].socket != self._socket:
            return None
        self.calls += 1
        frame.f_trace_opcodes = True
        return self._step if self.calls == self._call else None

    def _step(self, frame, event, argument):
        if event == "return":
            self.is_over = True
        elif event == "opcode" and not self.came:
            if self._left == 0:
                self.came = True
                self._action()
            self._left -= 1
        return self._step


@pytest.mark.slow
@pytest.mark.clause("C16", "K7")
def test_no_edge_is_lost_to_who_takes_an_earlier_one(engine):
    """The worker that an edge was left to comes while the event thread notes the next one, and
    writes until the kernel is full again.
    """
    size = 100_000
    small = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_SNDBUF, 4096)]
    number, came = 0, True
    while came:
        go, has_written = threading.Event(), threading.Event()
        point = Point("on_writable", number, call=2)

        def received(socket, data, go=go):
            if data == b"block":
                wait_event(go, "let go")

        handler = recorder(new_connection=PassThrough, connected=None, data_received=received)
        with (
            point.traced(),
            hydrogen.serve(
                handler, engine=engine, port=0, max_threads=1, socket_options=small
            ) as server,
            Client(server.address, receive_buffer=2048) as client,
        ):
            handler.wait_for("connected")
            socket = handler.socket()
            assert socket.send(bytes(size))
            read = len(client.receive(1))  # it may be left to a worker: that is at it
            with Client(server.address) as other:
                other.send(b"block")
                handler.wait_for("data_received")

                def has_told(client=client, point=point):
                    nonlocal read
                    client.sock.settimeout(0)
                    with contextlib.suppress(BlockingIOError):
                        read += len(client.sock.recv(1024))
                    client.sock.settimeout(PATIENCE)
                    return point.calls

                def action(server=server, go=go, has_written=has_written):
                    go.set()
                    server.call_later(0, has_written.set)
                    wait_event(has_written, "the worker has been in the stream")

                point.arm(socket, action)
                if engine == "python":
                    wait_until(has_told, "an edge")
                    # what is new is reported with what is so still: that there is room
                    client.send(b"x")
                    # Where the kernel has used that up, for packets that it has split, more room is
                    # news again.
                    wait_until(
                        lambda point=point, has_told=has_told: point.calls > 1 or has_told() > 1,
                        "another edge",
                    )
                    wait_until(lambda point=point: point.is_over, "its end")
                go.set()
                assert client.receive(size - read) == bytes(size - read)
        came = point.came
        number += 1


@pytest.mark.slow
@pytest.mark.clause("K3", "K8")
def test_a_message_that_comes_as_the_end_of_messages_is_found_is_written_or_refused(engine):
    """Its sender has found the connection open. It looks whether its message was in time while the
    owner works on.
    """
    number, came = 0, True
    while came:
        goes, looks, goes_on, is_done = (threading.Event() for _ in range(4))
        stands = threading.Event()
        point = Point("_end_messages", number)
        sent = []

        def profile(frame, event, argument, stands=stands, goes=goes, looks=looks, goes_on=goes_on):
            if event == "call" and frame.f_code.co_filename == OUTPUT:
                if frame.f_code.co_name == "pending" and not stands.is_set():
                    stands.set()
                    wait_event(goes, "the owner is there")
                elif frame.f_code.co_name == "_take_back":
                    looks.set()
                    wait_event(goes_on, "the owner is further")

        def send(socket, profile=profile, sent=sent, stands=stands, is_done=is_done):
            sys.setprofile(profile)
            try:
                sent.append(socket.send(b"late"))
            finally:
                sys.setprofile(None)
                stands.set()
                is_done.set()

        def action(goes=goes, looks=looks, is_done=is_done):
            goes.set()
            wait_until(lambda: looks.is_set() or is_done.is_set(), "the sender looks")

        def trace(
            frame, event, argument, point=point, looks=looks, goes_on=goes_on, is_done=is_done
        ):
            if (
                frame.f_code.co_filename == OUTPUT
                and frame.f_code.co_name == "_enqueue"
                and looks.is_set()
            ):
                goes_on.set()
                wait_event(is_done, "the sender is done")
            return point._trace(frame, event, argument)

        handler = recorder(connected=None, eof=None)
        with point.traced():
            threading.settrace(trace)
            with (
                hydrogen.serve(handler, engine=engine, port=0, max_threads=1) as server,
                Client(server.address) as client,
            ):
                client.finish()  # so that nothing lingers
                handler.wait_for("eof")
                socket = handler.socket()
                point.arm(socket, action)
                with running(lambda socket=socket, send=send: send(socket)):
                    wait_event(stands, "the sender has found the connection open")
                    socket.close()
                    if engine == "python":
                        wait_until(lambda point=point: point.is_over, "the end of messages")
                    goes.set()
                    goes_on.set()
                assert client.receive_until_end() == (b"late" if sent == [True] else b"")
                assert type(handler.wait_removed()[0]) is hydrogen.LocalClosed
        came = point.came
        number += 1
