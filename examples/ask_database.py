"""A database server, one question a line.

Shows handlers that block, and a connection to sqlite3 for each worker.

    set NAME VALUE      ok
    get NAME            the value, or nothing
    anything else       error: ...

    python examples/ask_database.py [--port PORT] [--file FILE]
"""

import argparse
import sqlite3
import threading

import hydrogen

PATIENCE = 5.0
"""Seconds that a question waits for another one that writes. It blocks one worker and one client;
the other workers go on.

Less than `stop_timeout`: a stop does not wait longer than that for a worker, and the question would
get no answer.
"""


class Notes(hydrogen.Handler):
    def __init__(self, file):
        self.file = file
        # sqlite3's objects belong to the thread that made them, and callbacks run in several
        self.local = threading.local()
        self.opened = []

    def on_data_received(self, socket, data):
        try:
            answer = self.answer(data.decode())
        except (UnicodeDecodeError, sqlite3.Error) as error:
            # the client's affair; what else is raised is logged, and ends the connection
            answer = f"error: {error}"
        socket.send(answer.encode())

    def answer(self, question):
        match question.split(maxsplit=2):
            case ["set", name, value]:
                self.database().execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))
                return "ok"
            case ["get", name]:
                row = (
                    self.database()
                    .execute("SELECT value FROM notes WHERE name = ?", (name,))
                    .fetchone()
                )
                return row[0] if row else ""
        return "error: expected `set NAME VALUE` or `get NAME`"

    def database(self):
        """This worker's connection, made when it is first needed."""
        if not hasattr(self.local, "database"):
            # `check_same_thread` is for `close`, which is called when all workers have ended: until
            # then each uses its own only.
            self.local.database = sqlite3.connect(
                self.file, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            self.opened.append(self.local.database)
        return self.local.database

    def close(self):
        for database in self.opened:
            database.close()


def announce(server):
    print("listening on {}:{}".format(*server.address), flush=True)


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--port", type=int, default=1337)
    options.add_argument("--file", default="notes.sqlite")
    arguments = options.parse_args()
    handler = Notes(arguments.file)
    handler.database().execute(
        "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT)"
    )
    config = hydrogen.Config(port=arguments.port, max_threads=8, framing=hydrogen.LineFrameBuilder)
    report = hydrogen.begin(handler, config, on_started=announce)
    # such a worker still uses its connection: the exit of the process closes that
    if not report.abandoned:
        handler.close()


if __name__ == "__main__":
    main()
