"""``python -m hydrogen.perf``: the command line."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydrogen.perf import comparison, conditions, plot, progress, report, search
from hydrogen.perf.framing import FRAMINGS
from hydrogen.perf.generator import Result, Session
from hydrogen.perf.loops import NOT_COMPILED
from hydrogen.perf.options import Address, Options

OK, FAULTS, USAGE, FAILED = 0, 1, 2, 3

DESCRIPTION = """\
Load an echo server, verify every reply, and report throughput and latency. The loop is closed
unless --rate is given: each reply triggers the next message. `python -m hydrogen.perf compare
A.json B.json` compares reports written by --json.
"""
EPILOG = """\
Exit status: 0 success; 1 faults (replies wrong or missing, connections lost or refused, sends
dropped); 2 incorrect usage, or something this run needs is missing; 3 a condition of --assert
or --find-rate did not hold. Ctrl-C ends the run early and reports the results so far.
"""


def parser() -> argparse.ArgumentParser:
    """The options, with their units."""
    p = argparse.ArgumentParser(
        prog="python -m hydrogen.perf", description=DESCRIPTION, epilog=EPILOG
    )
    p.add_argument(
        "address", nargs="?", metavar="HOST:PORT", help="the server's address; [HOST]:PORT for IPv6"
    )
    p.add_argument("--unix", metavar="PATH", help="the server's Unix socket, instead of HOST:PORT")

    load = p.add_argument_group("load")
    load.add_argument(
        "--connections",
        type=int,
        default=64,
        metavar="N",
        help="number of connections (default: %(default)s)",
    )
    load.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="threads that share the connections (default: %(default)s)",
    )
    load.add_argument(
        "--duration",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long to measure (default: %(default)s)",
    )
    load.add_argument(
        "--warm-up",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how long to warm up before that (default: %(default)s)",
    )
    load.add_argument(
        "--number",
        type=int,
        default=0,
        metavar="N",
        help="send exactly N messages, however long it takes",
    )
    load.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="PER_SECOND",
        help="open loop: send this many messages per second over all connections, and time each "
        "from when it was due",
    )
    flight = load.add_mutually_exclusive_group()
    flight.add_argument(
        "--in-flight",
        type=int,
        metavar="N",
        help="most messages in flight per connection (default: 1; with --rate, as many as are due)",
    )
    flight.add_argument(
        "--burst",
        type=int,
        metavar="N",
        help="each connection sends N messages at once, reading meanwhile, and the next N when all "
        "have been answered",
    )
    flight.add_argument(
        "--churn",
        action="store_true",
        help="use a new connection for each message, closed by RST after the reply; --connections "
        "are open at once (TCP without TLS)",
    )
    load.add_argument(
        "--timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="give up when nothing arrives for this long",
    )

    messages = p.add_argument_group("messages")
    content = messages.add_mutually_exclusive_group()
    content.add_argument(
        "--size",
        default="64",
        metavar="BYTES",
        help="payload size: 64, or chosen at random from 64,1k or from uniform:64-1k (default: "
        "%(default)s)",
    )
    content.add_argument(
        "--payload",
        metavar="FILE",
        help="send this file as the payload of every message, instead of random bytes",
    )
    messages.add_argument(
        "--framing",
        choices=FRAMINGS,
        help="how messages are delimited (default: raw; with --websocket websocket-text)",
    )
    messages.add_argument(
        "--websocket",
        nargs="?",
        const="/",
        metavar="/PATH",
        help="load a WebSocket server: ask for this path (default: %(const)s), and mask frames",
    )

    opening = p.add_argument_group("connections")
    opening.add_argument(
        "--tls",
        action="store_true",
        help="use TLS, through Python's ssl: each message then costs the generator half as much "
        "again",
    )
    opening.add_argument(
        "--cacert",
        metavar="FILE",
        help="certificate authorities to verify the server with, instead of the system's",
    )
    opening.add_argument(
        "--insecure", action="store_true", help="do not verify the server's certificate"
    )
    opening.add_argument(
        "--connect-rate",
        type=float,
        default=0.0,
        metavar="PER_SECOND",
        help="open at most this many connections per second",
    )
    opening.add_argument(
        "--idle",
        type=int,
        default=0,
        metavar="N",
        help="hold N further connections open, which stay silent",
    )
    opening.add_argument(
        "--source",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="ADDRESS,...",
        help="connect from these addresses in turn, for when one has too few ports (for a server "
        "in 127.0.0.0/8 several are used anyway)",
    )

    reports = p.add_argument_group("reports")
    reports.add_argument(
        "--pid", type=int, help="process ID of the server: report its CPU time too (needs psutil)"
    )
    reports.add_argument(
        "--json",
        metavar="FILE",
        help="write the report to this file as JSON; '-': to standard output, instead of the table",
    )
    reports.add_argument(
        "--plot",
        metavar="FILE",
        help="plot latency and throughput, as .svg or .png (needs matplotlib)",
    )
    reports.add_argument(
        "--assert",
        dest="conditions",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with status 3 unless this holds: 'p99<5ms' or 'rate>=100k', for example; "
        "several are separated by commas",
    )
    reports.add_argument(
        "--find-rate",
        metavar="CONDITION",
        help="search for the highest rate at which this holds: 'p99<10ms', for example",
    )
    reports.add_argument(
        "--loop",
        choices=("auto", "compiled", "python"),
        default="auto",
        help="which hot loop to use",
    )
    return p


def parse_address(text: str) -> Address:
    """``HOST:PORT``; the host may be in brackets, and is this machine when it is empty."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "localhost", int(port)


@dataclass(frozen=True)
class Command:
    """What the command line asks for."""

    options: Options
    json: str | None
    plot: Path | None
    asserted: tuple[conditions.Condition, ...]
    find_rate: tuple[conditions.Condition, ...]


def parse(arguments: Sequence[str] | None) -> Command:
    """The command; exits with status 2 when it makes no sense."""
    p = parser()
    given = p.parse_args(arguments)
    if (given.address is None) == (given.unix is None):
        p.error("give either HOST:PORT or --unix PATH")
    try:
        if given.find_rate is not None and (
            given.rate or given.burst is not None or given.number or given.conditions
        ):
            raise ValueError(
                "--find-rate cannot be combined with --rate, --burst, --number or --assert"
            )
        plot_path = None if given.plot is None else Path(given.plot)
        if plot_path is not None:
            plot.check(plot_path)
        return Command(
            options=Options(
                address=parse_address(given.address) if given.unix is None else given.unix,
                connections=given.connections,
                threads=given.threads,
                in_flight=given.in_flight if given.burst is None else given.burst,
                burst=given.burst is not None,
                churn=given.churn,
                size=given.size,
                payload=given.payload,
                framing=given.framing or ("raw" if given.websocket is None else "websocket-text"),
                websocket=given.websocket,
                duration=given.duration,
                warm_up=given.warm_up,
                number=given.number,
                rate=given.rate,
                connect_rate=given.connect_rate,
                idle=given.idle,
                sources=given.source,
                timeout=given.timeout,
                tls=given.tls,
                cacert=given.cacert,
                insecure=given.insecure,
                pid=given.pid,
                loop=given.loop,
            ),
            json=given.json,
            plot=plot_path,
            asserted=tuple(
                condition for text in given.conditions for condition in conditions.parse_all(text)
            ),
            find_rate=()
            if given.find_rate is None
            else tuple(conditions.parse_all(given.find_rate)),
        )
    except (ValueError, OSError) as error:
        p.error(str(error))


def measure(options: Options) -> Result:
    """Run a session in a thread of its own, sampling it and drawing its progress here; Ctrl-C makes
    the result a partial one.
    """
    with (
        Session(options) as session,
        concurrent.futures.ThreadPoolExecutor(1, "hydrogen-perf") as pool,
        progress.Progress(session) as live,
    ):

        def whole() -> Result:
            session.connect()
            return session.run()

        running = pool.submit(whole)
        while not running.done():
            try:
                concurrent.futures.wait([running], progress.INTERVAL)
                session.sample()
                live.draw()
            except KeyboardInterrupt:
                session.stop()
        return running.result()


def run(command: Command) -> int:
    """One measurement; returns the exit status."""
    result = measure(command.options)
    document = report.as_json(result)
    failed = [
        condition for condition in command.asserted if not condition.holds(document["result"])
    ]
    lines = [
        report.table(result),
        *(condition.describe(document["result"]) for condition in command.asserted),
    ]
    write(command, document, document, "\n".join(lines))
    return FAULTS if not result.ok else FAILED if failed else OK


def find(command: Command) -> int:
    """A search; returns the exit status."""
    found = search.search(
        command.options, command.find_rate, measure, lambda line: print(line, file=sys.stderr)
    )
    shown = found.broken or (found.best or found.tries[-1]).result
    write(command, search.as_json(found), report.as_json(shown), search.told(found))
    return FAULTS if found.broken is not None else OK if found.best is not None else FAILED


def write(command: Command, document: dict[str, Any], shown: dict[str, Any], text: str) -> None:
    """Put the report where it was asked for."""
    as_text = json.dumps(document, indent=2) + "\n"
    if command.json == "-":
        sys.stdout.write(as_text)
    else:
        print(text)
        if command.json is not None:
            Path(command.json).write_text(as_text, encoding="utf-8")
    if command.plot is not None:
        plot.draw([shown], [report.shown_address(command.options)], command.plot)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "compare":
        return comparison.main(arguments[1:])
    command = parse(arguments)
    if NOT_COMPILED and command.options.loop == "auto":
        print(
            f"the compiled loop is not available, using the slower one in Python: {NOT_COMPILED}",
            file=sys.stderr,
        )
    try:
        return find(command) if command.find_rate else run(command)
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("interrupted before there was anything to report", file=sys.stderr)
        return FAULTS


if __name__ == "__main__":
    sys.exit(main())
