"""A chat in the browser: a page, and a WebSocket for each room.

Shows pages and health checks on the port of the WebSocket, rooms by the path, text in JSON, and how
a guest is shown the door.

    python examples/browser_chat.py [--port PORT]     and then http://127.0.0.1:1337/ in two windows
"""

import argparse
import collections
import json
import threading

import hydrogen

TEXT_MOST = 1000

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Chat</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto }
  #lines { border: 1px solid #ccc; height: 20rem; overflow-y: auto; padding: .5rem 1rem }
  #lines p { margin: 0 }
  form { display: flex; gap: .5rem; margin-top: 1rem }
  [name=text] { flex: 1 }
  .note { color: #777 }
</style>
<h1>Chat</h1>
<div id="lines" role="log"></div>
<form><input name="name" placeholder="your name" required maxlength="20" size="10">
<input name="text" placeholder="what you say" required maxlength="1000"><button>Send</button></form>
<script>
  const room = location.hash.slice(1) || "lobby"
  const url = new URL("/rooms/" + encodeURIComponent(room), location.href.replace(/^http/, "ws"))
  const socket = new WebSocket(url)
  const form = document.forms[0], lines = document.getElementById("lines")
  function show(text, kind) {
    const line = document.createElement("p")
    line.textContent = text
    line.className = kind
    lines.append(line)
    line.scrollIntoView()
  }
  socket.onopen = () => show(`You are in ${room}.`, "note")
  socket.onmessage = event => {
    const said = JSON.parse(event.data)
    show(`${said.name}: ${said.text}`)
  }
  socket.onclose = event => show(`Closed: ${event.code} ${event.reason}`, "note")
  form.onsubmit = event => {
    event.preventDefault()
    socket.send(JSON.stringify({name: form.name.value, text: form.text.value}))
    form.text.value = ""
  }
</script>
"""


class BrowserChat(hydrogen.WebSocketHandler):
    """Those in a room hear what each of them says."""

    def __init__(self):
        # Callbacks of different connections run at the same time. `send` only queues: a guest that
        # does not read delays nobody, and is removed at `max_write_buffer`.
        self.lock = threading.Lock()
        self.rooms = collections.defaultdict(set)

    def on_request(self, socket, request):
        if request.path == "/":
            return hydrogen.Response(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})
        if request.path == "/healthz":
            return hydrogen.Response(200, "ok\n")
        if not request.path.startswith("/rooms/"):
            return hydrogen.Response(404, "there is no such page\n")
        return None

    def on_connected(self, socket):
        with self.lock:
            self.rooms[socket.path].add(socket)

    def on_message(self, socket, data):
        try:
            said = json.loads(data)
            line = {"name": str(said["name"])[:20], "text": str(said["text"])}
        except (ValueError, TypeError, KeyError, RecursionError):
            raise hydrogen.Close(1003, "name and text, in JSON") from None
        if len(line["text"]) > TEXT_MOST:
            raise hydrogen.Close(1009, "that was too long")
        with self.lock:  # so that all hear the lines in the same order
            for other in self.rooms[socket.path]:
                other.send(json.dumps(line))

    def on_disconnected(self, socket, err):
        with self.lock:
            self.rooms[socket.path].discard(socket)
            if not self.rooms[socket.path]:
                del self.rooms[socket.path]


def announce(server):
    print("listening on {}:{}".format(*server.address), flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    arguments = options.parse_args()
    hydrogen.begin(BrowserChat(), port=arguments.port, on_started=announce)


if __name__ == "__main__":
    main()
