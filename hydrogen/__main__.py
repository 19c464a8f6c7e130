"""`python -m hydrogen`: a demonstration server (`echo`), or a server of the user's own handler (`run module:name`).

Prints `listening on ADDRESS` when connections are accepted, serves until SIGINT or SIGTERM, and exits with 0 after a full stop, with 1 when
anything was aborted or abandoned, with 2 when it could not start.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import ssl
import sys
from typing import Any

from hydrogen.backend import CHOICES
from hydrogen.config import Config
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import HydrogenError
from hydrogen.frame import Checksum32FrameBuilder, LengthFrameBuilder, LineFrameBuilder, SimpleFrameBuilder, WebSocketFrameBuilder
from hydrogen.handler import Handler
from hydrogen.server import Server, run

FRAMINGS = {
    "raw": None,
    "simple": SimpleFrameBuilder,
    "checksum32": Checksum32FrameBuilder,
    "length": LengthFrameBuilder,
    "line": LineFrameBuilder,
    "websocket": WebSocketFrameBuilder,
}


class Echo(Handler):
    """Sends back whatever it gets."""

    def on_data_received(self, socket: HydrogenSocket, data: bytes) -> None:
        """Echo one message."""
        socket.send(data)


def load_handler(name: str) -> Handler:
    """The handler that `module:name` names: an instance, a class, or a function that returns a handler.

    Raises:
        ValueError: no such module or name; the message says which.
        TypeError: what it names is none of the three.
    """
    module_name, separator, attribute = name.partition(":")
    if not separator or not module_name or not attribute:
        raise ValueError(f"{name!r} is not of the form module:name")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise ValueError(f"there is no module {error.name!r}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    if not isinstance(found, Handler) and callable(found):
        found = found()
    if not isinstance(found, Handler):
        raise TypeError(f"{name} is no hydrogen.Handler, nor a class or a function that makes one, but {found!r}")
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--addr", default=Config.addr, help="address or name to listen on (%(default)s)")
    options.add_argument("--port", type=int, default=Config.port, help="TCP port, 0: the kernel chooses (%(default)s)")
    options.add_argument("--path", help="listen on a Unix socket of this name instead")
    options.add_argument("--framing", choices=sorted(FRAMINGS), default="raw", help="how messages are told apart (%(default)s)")
    options.add_argument("--cert", metavar="FILE", help="speak TLS with this certificate chain (PEM)")
    options.add_argument("--key", metavar="FILE", help="its private key, when it is not in the same file")
    options.add_argument("--threads", type=int, default=Config.max_threads, help="handlers that may block at once (%(default)s)")
    options.add_argument("--engine", choices=CHOICES, default=None, help="(HYDROGEN_ENGINE, or auto)")
    options.add_argument("--handoff", choices=("auto", "inline", "eager"), default="auto", help="who is woken when (%(default)s)")
    options.add_argument("--stop-timeout", type=float, default=Config.stop_timeout, help="seconds for a stop in order (%(default)s)")
    options.add_argument("--verbose", "-v", action="store_true", help="log on stderr from INFO up")
    main = argparse.ArgumentParser(prog="python -m hydrogen", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main.add_subparsers(dest="command", required=True)
    commands.add_parser("echo", parents=[options], help="a server that sends back what it gets")
    own = commands.add_parser("run", parents=[options], help="a server of your own handler")
    own.add_argument("handler", metavar="module:name", help="an instance, a class, or a function that returns a handler")
    return main


def _context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if cert is None:
        if key is not None:
            raise ValueError("--key: a certificate is expected with it, by --cert")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:  # it does not say which file
        raise ValueError(f"--cert {cert}, --key {key}: {error}") from error
    return context


def _config(arguments: argparse.Namespace) -> Config:
    where = {"path": arguments.path} if arguments.path else {"addr": arguments.addr, "port": arguments.port}
    return Config(
        **where,
        max_threads=arguments.threads,
        framing=FRAMINGS[arguments.framing],
        ssl=_context(arguments.cert, arguments.key),
        handoff=arguments.handoff,
        stop_timeout=arguments.stop_timeout,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return the exit status."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")

    def announce() -> None:
        address = server.address
        if not isinstance(address, str):
            address = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
        print(f"listening on {address}", flush=True)

    try:
        handler = Echo() if arguments.command == "echo" else load_handler(arguments.handler)
        server = Server(handler, _config(arguments), engine=arguments.engine)
        report = run(server, announce)
    except (HydrogenError, OSError, TypeError, ValueError) as error:
        print(f"python -m hydrogen: {error}", file=sys.stderr)
        return 2
    return 1 if report.aborted or report.abandoned else 0


if __name__ == "__main__":
    sys.exit(main())
