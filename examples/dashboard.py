"""What a server does, live in the browser: its own statistics, and a chart that moves.

Shows a timer that sends to all, and what `stats()` tells. There are two kinds of connection: those
that ask for /stats are sent the figures each second; what others send is echoed, so that there is
something to see.

    python examples/dashboard.py [--port PORT]        and then http://127.0.0.1:1337/
    python -m hydrogen.perf 127.0.0.1:1337 --websocket --rate 1000 --duration 60
"""

import argparse
import json
import threading

import hydrogen

SECONDS = 1.0

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Dashboard</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto }
  svg { width: 100%; height: 16rem; border: 1px solid #ccc }
  polyline { fill: none; stroke: #0969da; stroke-width: 1.5; vector-effect: non-scaling-stroke }
  td { padding-right: 2rem }
</style>
<h1>Messages per second</h1>
<svg viewBox="0 0 120 100" preserveAspectRatio="none" role="img" aria-label="messages per second">
  <polyline id="line" points=""/></svg>
<p>At most <b id="most">0</b> in two minutes.</p>
<table id="figures"></table>
<script>
  const url = new URL("/stats", location.href.replace(/^http/, "ws"))
  const rates = []
  function draw() {
    const most = Math.max(...rates)
    document.getElementById("most").textContent = most.toFixed(0)
    document.getElementById("line").setAttribute("points",
      rates.map((rate, at) => `${at},${99 - 98 * rate / (most || 1)}`).join(" "))
  }
  new WebSocket(url).onmessage = event => {
    const figures = JSON.parse(event.data)
    rates.push(figures["messages per second"])
    if (rates.length > 120) rates.shift()
    draw()
    document.getElementById("figures").replaceChildren(
      ...Object.entries(figures).map(([name, value]) => {
        const row = document.createElement("tr")
        for (const text of [name, value.toLocaleString()])
          row.insertCell().textContent = text
        return row
      }))
  }
</script>
"""


class Dashboard(hydrogen.WebSocketHandler):
    """Watchers are told the figures; what others send is echoed."""

    def __init__(self):
        self.lock = threading.Lock()
        self.watchers = set()
        self.received = 0

    def on_request(self, socket, request):
        if request.path == "/stats" or "upgrade" in request.headers:
            return None
        if request.path == "/":
            return hydrogen.Response(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})
        return hydrogen.Response(404, "there is no such page\n")

    def on_connected(self, socket):
        if socket.path == "/stats":
            with self.lock:
                self.watchers.add(socket)

    def on_message(self, socket, data):
        socket.send(data)

    def on_disconnected(self, socket, err):
        with self.lock:
            self.watchers.discard(socket)

    def tell(self):
        stats = self.server.stats()
        figures = {
            "messages per second": (stats.messages_received - self.received) / SECONDS,
            "connections": stats.connections,
            "messages": stats.messages_received,
            "bytes received": stats.bytes_received,
            "bytes sent": stats.bytes_sent,
            "bytes queued": stats.queued_bytes,
        }
        self.received = stats.messages_received
        with self.lock:
            watchers = list(self.watchers)
        for watcher in watchers:
            watcher.send(json.dumps(figures))
        self.server.call_later(SECONDS, self.tell)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    arguments = options.parse_args()
    dashboard = Dashboard()

    def started(server):
        server.call_later(SECONDS, dashboard.tell)
        print("listening on {}:{}".format(*server.address), flush=True)

    hydrogen.begin(dashboard, port=arguments.port, on_started=started)


if __name__ == "__main__":
    main()
