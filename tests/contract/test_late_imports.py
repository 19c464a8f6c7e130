"""A server that runs imports nothing. An import that there is no memory for can leave the lock of
its module taken (importlib), and whoever imports that module next waits for ever.
"""

import pytest
from support import child, finish

SERVER = """
import builtins, logging, sys
import certificates, hydrogen
from support import Client, TlsClient, recorder

logging.getLogger("hydrogen").addHandler(logging.NullHandler())  # what formats may import
logging.getLogger("hydrogen").propagate = False
engine, path, transport = sys.argv[1:]

def respond(socket, data):
    if data == b"abort":
        socket.abort()
    elif data == b"raise":
        raise ValueError
    elif data == b"later":
        socket.server.call_later(0.0, lambda: socket.send(b"ed"))
    else:
        socket.server.broadcast(data)

handler = recorder(new_connection=None, data_received=respond)
where = {"path": path} if transport == "unix" else {"port": 0}
if transport == "tls":
    where["ssl"] = certificates.server_context()
server = hydrogen.serve(
    handler, engine=engine, frame_timeout=0.01, framing=hydrogen.LineFrameBuilder, **where
)
imported, do_import = [], builtins.__import__

def note(name, space=None, *args):
    # The audit hook hears of those only that are not there yet, and not because of this side.
    if space and space.get("__name__", "").startswith("hydrogen."):
        imported.append(name)
    return do_import(name, space, *args)

def visit(line, answer=b""):
    with Client(server.address) as client:
        peer = client
        if transport == "tls":
            peer = TlsClient(client, certificates.client_context()).handshake()
        peer.send(line)
        assert peer.receive(len(answer)) == answer
        if not answer:
            client.at_end()

visit(b"echo\\n", b"echo\\n")  # what this side needs is imported
sys.addaudithook(lambda event, args: imported.append(args[0]) if event == "import" else None)
builtins.__import__ = note
visit(b"abort\\n")
visit(b"raise\\n")
visit(b"later\\n", b"ed\\n")
visit(b"echo\\n", b"echo\\n")
visit(b"the beginning of a frame")
handler.wait_removed(6)
server.stats()
with Client(server.address):
    handler.wait_for("new_connection", 7)
    server.stop(0.01)
assert not imported, imported
"""


@pytest.mark.parametrize("transport", ["tcp", "unix", "tls"])
def test_a_server_that_runs_imports_nothing(engine, tmp_path, transport):
    finish(child(SERVER, engine, str(tmp_path / "s"), transport))
