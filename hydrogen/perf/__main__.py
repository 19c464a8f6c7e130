"""``python -m hydrogen.perf``: the command line."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hydrogen.perf import progress, report
from hydrogen.perf.framing import FRAMINGS
from hydrogen.perf.generator import NOT_COMPILED, Address, Options, Result, Session

OK, FAULTS, USAGE = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """The options, with their units."""
    p = argparse.ArgumentParser(
        prog="python -m hydrogen.perf",
        description="Load an echo server in a closed loop, verify every reply, and report throughput and latency.",
        epilog="Exit status: 0 all replies were right, 1 there were faults, 2 wrong usage. Ctrl-C ends the run early and "
        "reports what there is.",
    )
    p.add_argument("address", nargs="?", metavar="HOST:PORT", help="the server; [HOST]:PORT for IPv6")
    p.add_argument("--unix", metavar="PATH", help="the server's Unix socket, instead of HOST:PORT")
    p.add_argument("--connections", type=int, default=64, metavar="N", help="connections (default %(default)s)")
    flight = p.add_mutually_exclusive_group()
    flight.add_argument("--in-flight", type=int, default=1, metavar="N", help="messages in flight per connection (default %(default)s)")
    flight.add_argument(
        "--burst",
        type=int,
        metavar="N",
        help="each connection sends N messages in one go, reading meanwhile, and again when all have been answered",
    )
    flight.add_argument(
        "--churn",
        action="store_true",
        help="each message has a connection of its own, closed by RST after the reply; --connections are open at once (TCP without TLS)",
    )
    p.add_argument("--size", type=int, default=64, metavar="BYTES", help="of a message's payload (default %(default)s)")
    p.add_argument("--framing", choices=FRAMINGS, default="raw", help="of the messages (default %(default)s)")
    p.add_argument("--duration", type=float, default=5.0, metavar="SECONDS", help="of measuring (default %(default)s)")
    p.add_argument("--warm-up", type=float, default=1.0, metavar="SECONDS", help="before it (default %(default)s)")
    p.add_argument("--number", type=int, default=0, metavar="N", help="send exactly N messages, however long it takes")
    p.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="give up when nothing arrives for so long")
    p.add_argument("--tls", action="store_true", help="talk TLS, by Python's ssl: a message costs the generator half as much again")
    p.add_argument("--cacert", metavar="FILE", help="the certificate authorities that the server is verified by, instead of the system's")
    p.add_argument("--insecure", action="store_true", help="do not verify the server's certificate")
    p.add_argument("--pid", type=int, help="the server's process: report its CPU time too (needs psutil)")
    p.add_argument("--loop", choices=("auto", "compiled", "python"), default="auto", help="which hot loop to use")
    p.add_argument("--json", metavar="FILE", help="write the report there as JSON; '-' is standard output, without table")
    return p


def parse_address(text: str) -> Address:
    """``HOST:PORT``; the host may be in brackets, and is this machine when it is empty."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "localhost", int(port)


def parse(arguments: Sequence[str] | None) -> tuple[Options, str | None]:
    """The options and where the JSON goes; exits with status 2 when they make no sense."""
    p = parser()
    given = p.parse_args(arguments)
    if (given.address is None) == (given.unix is None):
        p.error("give either HOST:PORT or --unix PATH")
    try:
        options = Options(
            address=given.unix or parse_address(given.address),
            connections=given.connections,
            in_flight=given.in_flight if given.burst is None else given.burst,
            burst=given.burst is not None,
            churn=given.churn,
            size=given.size,
            framing=given.framing,
            duration=given.duration,
            warm_up=given.warm_up,
            number=given.number,
            timeout=given.timeout,
            tls=given.tls,
            cacert=given.cacert,
            insecure=given.insecure,
            pid=given.pid,
            loop=given.loop,
        )
    except ValueError as error:
        p.error(str(error))
    return options, given.json


def drive(session: Session) -> Result:
    """Run the session in a thread of its own, drawing progress here; Ctrl-C makes the result a partial one."""
    session.connect()
    with concurrent.futures.ThreadPoolExecutor(1, "hydrogen-perf") as pool, progress.Progress(session) as live:
        running = pool.submit(session.run)
        try:
            while not running.done():
                concurrent.futures.wait([running], progress.INTERVAL if live.enabled else None)
                live.draw()
        except KeyboardInterrupt:
            session.stop()
        return running.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options, json_path = parse(arguments)
    try:
        session = Session(options)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return USAGE
    if session.loop_name == "python" and options.loop == "auto":
        print(f"the compiled loop is not there, using the slow one in Python: {NOT_COMPILED}", file=sys.stderr)
    try:
        with session:
            result = drive(session)
    except KeyboardInterrupt:
        print("interrupted before there was anything to report", file=sys.stderr)
        return FAULTS
    text = json.dumps(report.as_json(result), indent=2) + "\n"
    if json_path == "-":
        sys.stdout.write(text)
    else:
        print(report.table(result))
        if json_path is not None:
            Path(json_path).write_text(text, encoding="utf-8")
    return OK if result.ok else FAULTS


if __name__ == "__main__":
    sys.exit(main())
