"""`make demo`: an echo server in one process, ten seconds of load on it from another, the table,
the end.
"""

import os
import re
import signal
import subprocess
import sys

SECONDS = 10


def main() -> int:
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "hydrogen", "echo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=unbuffered) as server:
        assert server.stdout is not None
        try:
            # The kernel chose the port; the server's first line says which.
            line = server.stdout.readline()
            print(line, end="", flush=True)
            found = re.search(r"(\d+)\)?\s*$", line)
            if not found:
                return server.wait() or 1
            load = [f"127.0.0.1:{found[1]}", "--duration", str(SECONDS), "--pid", str(server.pid)]
            status = subprocess.run([sys.executable, "-m", "hydrogen.perf", *load]).returncode
        finally:
            server.send_signal(signal.SIGINT)
        print(server.stdout.read(), end="")
        return status or server.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
