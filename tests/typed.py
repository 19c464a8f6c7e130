"""What a type checker says of a user's program: read by mypy, run by nobody (tox's `types`).

A line with an error that is expected says so, and mypy reports the ones that are not needed.
"""

import socket

import hydrogen


class Echo(hydrogen.Handler):
    def on_data_received(self, socket: hydrogen.HydrogenSocket, data: bytes) -> None:
        socket.send(data)


def announce(server: hydrogen.Server) -> None:
    print(server.address)


def served(sock: socket.socket) -> None:
    """Every form that the documentation shows."""
    config = hydrogen.Config(addr=["127.0.0.1", "::1"], proxy_allow_from=("127.0.0.1",))
    hydrogen.serve(Echo(), config, port=0, framing=hydrogen.LineFrameBuilder, engine="python")
    hydrogen.serve(Echo(), sock=hydrogen.listen_fds(), path_mode=0o660, idle_timeout=300)
    hydrogen.serve(Echo(), sock=sock, framing=hydrogen.LineFrameBuilder(max_size=1000))
    report = hydrogen.begin(Echo(), port=0, on_started=announce)
    print(report.closed, hydrogen.begin(Echo(), config, on_started=lambda server: server.stop()))


def mistaken() -> None:
    """An option that does not exist, or of a wrong type."""
    hydrogen.serve(Echo(), prot=80)  # type: ignore[call-arg]
    hydrogen.serve(Echo(), port="80")  # type: ignore[arg-type]
    hydrogen.serve(Echo(), builder=None)  # type: ignore[call-arg]
    hydrogen.begin(Echo(), prot=80)  # type: ignore[call-arg]
    hydrogen.begin(Echo(), on_started=7)  # type: ignore[arg-type]
    hydrogen.Config(addr=80)  # type: ignore[arg-type]
    hydrogen.serve(Echo(), overload="drop")  # type: ignore[arg-type]
    hydrogen.Config(proxy_protocol="v3")  # type: ignore[arg-type]
