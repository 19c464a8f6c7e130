"""`python -m hydrogen`: a demonstration server (`echo`), or a server for your own handler (`run
module:name`), be it a `Handler` or a `WebSocketHandler`.

Prints `listening on ADDRESS` for each address once it accepts connections, and serves until SIGINT
or SIGTERM. Logs to stderr. A SIGINT that is ignored, as in a background job of a shell, stays
ignored.

Exit status: 0 after a complete shutdown, 1 if a connection was aborted or abandoned, 2 if the
server could not start.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import ssl
import sys
import traceback
from typing import Any, get_args

from hydrogen.backend import CHOICES
from hydrogen.config import Config, Handoff, Overload, ProxyProtocol
from hydrogen.connection import HydrogenSocket
from hydrogen.errors import HydrogenError
from hydrogen.frame import FrameBuilder
from hydrogen.framings import BUILT_IN
from hydrogen.handler import Handler, WebSocketHandler
from hydrogen.listener import listen_fds
from hydrogen.server import Server
from hydrogen.serving import begin

FRAMINGS: dict[str, type[FrameBuilder] | None] = {"raw": None, **BUILT_IN}

LOG_LEVELS = ("debug", "info", "warning", "error")


class Echo(Handler):
    """Sends back whatever it gets."""

    def on_data_received(self, socket: HydrogenSocket, data: bytes) -> None:
        """Echo one message."""
        socket.send(data)


class WebSocketEcho(WebSocketHandler):
    """The same of the messages of WebSocket clients."""

    def on_message(self, socket: HydrogenSocket, data: str | bytes) -> None:
        """Echo one message: text as text."""
        socket.send(data)


def load_handler(name: str) -> Handler:
    """The handler that `module:name` names: an instance, a class, or a function that returns a
    handler.

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
        raise TypeError(
            f"{name} is neither a hydrogen.Handler nor a class or function that returns one, but "
            f"{found!r}"
        )
    return found


def _octal(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"expected an octal number from 0 to 777, not {text!r}")
    return mode


def _listening_options(options: argparse._ArgumentGroup) -> None:
    options.add_argument(
        "--addr",
        action="append",
        help=f"address or host name to listen on; may be repeated (default: {Config.addr})",
    )
    options.add_argument(
        "--port", type=int, help=f"TCP port; 0: the kernel chooses one (default: {Config.port})"
    )
    options.add_argument("--path", help="listen on a Unix socket at this path instead")
    options.add_argument(
        "--path-mode",
        type=_octal,
        metavar="OCTAL",
        help="permissions of that socket, such as 660 (default: set by the umask)",
    )
    options.add_argument(
        "--systemd",
        action="store_true",
        help="listen on the sockets passed by systemd, or by another supervisor with its protocol",
    )
    options.add_argument(
        "--proxy-protocol",
        choices=get_args(ProxyProtocol),
        default="off",
        help="each connection begins with a PROXY header (default: %(default)s)",
    )
    options.add_argument(
        "--proxy-allow-from",
        action="append",
        default=[],
        metavar="NETWORK",
        help="who may send such a header: a network, or unix; may be repeated",
    )


def _limit_options(options: argparse._ArgumentGroup) -> None:
    options.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        help="connections open at once (default: what RLIMIT_NOFILE allows)",
    )
    options.add_argument(
        "--max-connections-per-ip",
        type=int,
        metavar="N",
        help="connections open at once from one address (default: no limit)",
    )
    options.add_argument(
        "--overload",
        choices=get_args(Overload),
        default=Config.overload,
        help="what to do at --max-connections (default: %(default)s)",
    )
    options.add_argument(
        "--idle-timeout",
        type=float,
        metavar="SECONDS",
        help="close a connection that is silent in both directions for this long (default: no "
        "limit)",
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(add_help=False)
    _listening_options(options.add_argument_group("where it listens"))
    _limit_options(options.add_argument_group("limits (hydrogen.Config explains them)"))
    options.add_argument(
        "--framing",
        choices=sorted(FRAMINGS),
        default="raw",
        help="how messages are delimited (default: %(default)s)",
    )
    options.add_argument("--cert", metavar="FILE", help="use TLS with this certificate chain (PEM)")
    options.add_argument("--key", metavar="FILE", help="its private key, if not in the same file")
    options.add_argument(
        "--threads",
        type=int,
        default=Config.max_threads,
        help="how many handlers may block at once (default: %(default)s)",
    )
    options.add_argument(
        "--loops",
        type=int,
        default=Config.loops,
        help="event loops that share the threads and connections (default: %(default)s)",
    )
    options.add_argument(
        "--engine",
        choices=CHOICES,
        default=None,
        help="which engine to use (default: HYDROGEN_ENGINE, or auto)",
    )
    options.add_argument(
        "--handoff",
        choices=get_args(Handoff),
        default="auto",
        help="when to wake another thread (default: %(default)s)",
    )
    options.add_argument(
        "--stop-timeout",
        type=float,
        metavar="SECONDS",
        default=Config.stop_timeout,
        help="time allowed for a graceful shutdown (default: %(default)s)",
    )
    options.add_argument(
        "--slow-callback",
        type=float,
        metavar="SECONDS",
        help="log the stack of a callback that runs for this long",
    )
    options.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="warning",
        help="lowest level to log (default: %(default)s)",
    )
    options.add_argument(
        "--verbose",
        "-v",
        action="store_const",
        dest="log_level",
        const="info",
        help="the same as --log-level info",
    )
    main = argparse.ArgumentParser(
        prog="python -m hydrogen",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = main.add_subparsers(dest="command", required=True)
    echo = commands.add_parser(
        "echo", parents=[options], help="a server that sends back what it receives"
    )
    echo.add_argument("--websocket", action="store_true", help="speak WebSocket")
    own = commands.add_parser("run", parents=[options], help="a server for your own handler")
    own.add_argument(
        "handler",
        metavar="module:name",
        help="an instance, a class, or a function that returns a handler",
    )
    return main


def _context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if cert is None:
        if key is not None:
            raise ValueError("--key: requires a certificate (--cert)")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:  # it does not say which file
        raise ValueError(f"--cert {cert}, --key {key}: {error}") from error
    return context


def _where(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Config` that say where it listens: only those that were given, so that its
    check finds what contradicts.
    """
    fields = {name: getattr(arguments, name) for name in ("addr", "port", "path", "path_mode")}
    where = {name: value for name, value in fields.items() if value is not None}
    if len(where.get("addr", ())) == 1:
        (where["addr"],) = where["addr"]
    if not arguments.systemd:
        return where
    if where:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in where)
        raise ValueError(
            f"--systemd: systemd decides where to listen, so {names} cannot be combined with it"
        )
    sockets = listen_fds()
    if not sockets:
        raise ValueError(
            "--systemd: no socket was passed to this process (see LISTEN_PID and LISTEN_FDS in "
            "sd_listen_fds(3))"
        )
    return {"sock": tuple(sockets)}


def _shown(address: Any) -> str:
    """An address as people write it."""
    if isinstance(address, tuple):
        return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    # the name of an abstract Unix socket begins with NUL: unix(7)
    return os.fsdecode(address).replace("\0", "@", 1)


def _config(arguments: argparse.Namespace) -> Config:
    return Config(
        **_where(arguments),
        proxy_protocol=arguments.proxy_protocol,
        proxy_allow_from=tuple(arguments.proxy_allow_from),
        max_connections=arguments.max_connections,
        max_connections_per_ip=arguments.max_connections_per_ip,
        overload=arguments.overload,
        idle_timeout=arguments.idle_timeout,
        slow_callback=arguments.slow_callback,
        max_threads=arguments.threads,
        loops=arguments.loops,
        framing=FRAMINGS[arguments.framing],
        ssl=_context(arguments.cert, arguments.key),
        handoff=arguments.handoff,
        stop_timeout=arguments.stop_timeout,
    )


def _handler(arguments: argparse.Namespace) -> Handler:
    if arguments.command == "run":
        return load_handler(arguments.handler)
    return WebSocketEcho() if arguments.websocket else Echo()


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own) and return the exit status."""
    arguments = parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be of bytes that are no text
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )

    def announce(server: Server) -> None:
        for address in server.addresses:
            print(f"listening on {_shown(address)}", flush=True)

    try:
        handler = _handler(arguments)
        report = begin(handler, _config(arguments), engine=arguments.engine, on_started=announce)
    except (HydrogenError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"python -m hydrogen: {error}", file=sys.stderr)
        return 2
    except Exception:  # of the handler's module: where it is wrong is what matters
        traceback.print_exc()
        return 2
    return 1 if report.aborted or report.abandoned else 0


if __name__ == "__main__":
    sys.exit(main())
