"""A server as it runs in production: limits, counters for Prometheus, a health check, sockets from
systemd, and a graceful stop.

    pip install hydrogen-server[metrics]
    python examples/production.py [--port PORT] [--admin-port PORT] [--log-level LEVEL]
    systemd-socket-activate --listen 1337 python examples/production.py

    curl http://127.0.0.1:9100/metrics
    curl http://127.0.0.1:9100/ready        200, and 503 as soon as it stops

It answers lines with the same in capitals. The exit status is 1 when the stop had to cut something
short. docs/how-to/limits.md says why each limit is there, docs/how-to/deployment.md has the units
for systemd.
"""

import argparse
import logging
import sys
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import prometheus_client

import hydrogen
from hydrogen.contrib.prometheus import Collector

LIMITS = {
    # callbacks that block at the same moment, and so connections to a database, say
    "max_threads": 16,
    "framing": hydrogen.LineFrameBuilder(max_size=1000),
    "max_connections_per_ip": 100,
    "idle_timeout": 300,
    "frame_timeout": 30,
    "write_timeout": 30,
    "max_write_buffer": 1 << 20,
    "max_buffered": 128 << 20,
    "slow_callback": 1.0,
    "stop_timeout": 8.0,  # systemd's TimeoutStopSec and a container's grace must be longer
}


class Capitals(hydrogen.Handler):
    def on_data_received(self, socket, data):
        socket.send(data.upper())


class AdminServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that resets, or is silent for too long, is no news


class Quiet(WSGIRequestHandler):
    # seconds of silence; or a client that never asks holds a thread and an fd for ever
    timeout = 10

    def log_message(self, format, *arguments):
        pass


def admin_app(server):
    """What answers the operator: the counters, and whether connections are accepted. Both are asked
    without a worker of the server.
    """
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(server))
    prometheus_client.ProcessCollector(registry=registry)
    metrics = prometheus_client.make_wsgi_app(registry)

    def app(environ, start_response):
        if environ["PATH_INFO"] != "/ready":
            return metrics(environ, start_response)
        status, body = (
            ("200 OK", b"ready\n") if server.ready else ("503 Service Unavailable", b"not ready\n")
        )
        start_response(status, [("Content-Type", "text/plain")])
        return [body]

    return app


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    options.add_argument(
        "--admin-port", type=int, default=9100, help="for the operator, on 127.0.0.1 (%(default)s)"
    )
    options.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="warning"
    )
    arguments = options.parse_args()
    # Before the start: the server asks then, once, whether DEBUG is on.
    # the journal has the time
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(message)s")

    sockets = hydrogen.listen_fds()
    where = {"sock": sockets} if sockets else {"port": arguments.port}
    admin = make_server("127.0.0.1", arguments.admin_port, None, AdminServer, Quiet)

    def started(server):
        admin.set_app(admin_app(server))
        threading.Thread(target=admin.serve_forever, daemon=True).start()
        address = server.address  # of a Unix socket from systemd: its path
        shown = "{}:{}".format(*address) if isinstance(address, tuple) else address
        print("listening on", shown, flush=True)
        print(f"admin on http://127.0.0.1:{admin.server_port}", flush=True)

    config = hydrogen.Config(**where, **LIMITS)
    # Until SIGTERM or SIGINT; a second one cuts the stop short.
    report = hydrogen.begin(Capitals(), config, on_started=started)
    admin.shutdown()  # last: /ready tells of the stop while it lasts
    admin.server_close()
    sys.exit(1 if report.aborted or report.abandoned else 0)


if __name__ == "__main__":
    main()
