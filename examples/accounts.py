"""Who may connect: users with passwords in a database, and a cookie for those who have logged in.

Shows `on_request`, which may block as long as it needs, HTTP's basic authentication, and sqlite3
with one connection for each worker. A password is kept as what scrypt makes of it, compared in
constant time; a session is a random cookie, which the page cannot read.

    python examples/accounts.py --add ann SECRET
    python examples/accounts.py [--port PORT]         and then http://127.0.0.1:1337/
"""

import argparse
import hashlib
import hmac
import secrets
import sqlite3
import threading
import time

import hydrogen

SESSION_SECONDS = 12 * 3600

TABLES = """
    CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, salt BLOB, hash BLOB);
    CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, name TEXT, until REAL);
"""

ASK = {"WWW-Authenticate": 'Basic realm="accounts", charset="UTF-8"'}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Accounts</title>
<p id="said">...</p>
<script>
  const socket = new WebSocket(new URL("/me", location.href.replace(/^http/, "ws")))
  const said = document.getElementById("said")
  socket.onopen = () => socket.send("who am I?")
  socket.onmessage = event => { said.textContent = event.data }
</script>
"""


def hashed(password, salt):
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << 14, r=8, p=1)


class Accounts:
    """The database. Any thread; each has a connection of its own."""

    def __init__(self, path):
        self.path = path
        self.local = threading.local()
        self.opened = []
        self.nobody = secrets.token_bytes(16)
        self.database().executescript(TABLES)

    def database(self):
        if not hasattr(self.local, "database"):
            # `check_same_thread` is for `close`, when all threads have ended
            self.local.database = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False
            )
            self.opened.append(self.local.database)
        return self.local.database

    def close(self):
        for database in self.opened:
            database.close()

    def add(self, name, password):
        salt = secrets.token_bytes(16)
        self.database().execute(
            "INSERT INTO users VALUES (?, ?, ?)", (name, salt, hashed(password, salt))
        )

    def is_right(self, name, password):
        query = "SELECT salt, hash FROM users WHERE name = ?"
        # Of a name that nobody has, too: the time must not tell.
        salt, known = self.database().execute(query, (name,)).fetchone() or (self.nobody, b"")
        return hmac.compare_digest(hashed(password, salt), known)

    def begin_session(self, name):
        cookie = secrets.token_urlsafe(32)
        self.database().execute("DELETE FROM sessions WHERE until < ?", (time.time(),))
        self.database().execute(
            "INSERT INTO sessions VALUES (?, ?, ?)", (cookie, name, time.time() + SESSION_SECONDS)
        )
        return cookie

    def of_session(self, cookie):
        query = "SELECT name FROM sessions WHERE id = ? AND until > ?"
        found = self.database().execute(query, (cookie, time.time())).fetchone()
        return found and found[0]


class Door(hydrogen.WebSocketHandler):
    """Tells everybody who they are."""

    def __init__(self, accounts):
        self.accounts = accounts

    def on_request(self, socket, request):
        if request.path == "/":
            return self.log_in(request)
        if request.path != "/me":
            return hydrogen.Response(404, "there is no such page\n")
        socket.user_data = self.accounts.of_session(request.cookies.get("session", ""))
        if socket.user_data is None:
            return hydrogen.Response(403, "log in first\n")
        return None

    def log_in(self, request):
        """The page, and a cookie, for who knows a password."""
        given = request.basic_auth
        if given is None or not self.accounts.is_right(*given):
            return hydrogen.Response(401, "who are you?\n", ASK)
        cookie = self.accounts.begin_session(given[0])
        return hydrogen.Response(
            200,
            PAGE,
            {
                "Content-Type": "text/html; charset=utf-8",
                "Cache-Control": "no-store",
                # Add "; Secure" where the page is served over TLS, as it should be.
                "Set-Cookie": f"session={cookie}; HttpOnly; SameSite=Strict; Path=/; "
                f"Max-Age={SESSION_SECONDS}",
            },
        )

    def on_message(self, socket, data):
        socket.send(f"You are {socket.user_data}.")


def announce(server):
    print("listening on {}:{}".format(*server.address), flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    options.add_argument("--database", default="accounts.sqlite3", metavar="FILE")
    options.add_argument("--add", nargs=2, metavar=("NAME", "PASSWORD"), help="and do not serve")
    arguments = options.parse_args()
    accounts = Accounts(arguments.database)
    if arguments.add:
        accounts.add(*arguments.add)
    else:
        hydrogen.begin(Door(accounts), port=arguments.port, on_started=announce)
    accounts.close()


if __name__ == "__main__":
    main()
