"""Clients of others: the sync and the asyncio client of `websockets`, which check what they get."""

import asyncio
import random

import certificates
import pytest
import websockets.asyncio.client
import websockets.sync.client
from support import PATIENCE, wait_until
from websocket_peers import Echo, options_of, recorder
from websockets.exceptions import ConnectionClosed

import hydrogen
from hydrogen import Deflate, WebSocket

MESSAGES = ["", "caf\xe9 \U0001f600", b"", bytes(range(256)), "x" * 125, "x" * 126]
MESSAGES += [random.Random(1).randbytes(2 << 20), "much the same " * 150_000]

deflated = pytest.mark.parametrize(
    "deflate",
    [None, Deflate(), Deflate(server_no_context_takeover=False, client_no_context_takeover=False)],
    ids=["plain", "deflate", "takeover"],
)
families = pytest.mark.parametrize("family", ["tcp", "tls"])


def connected(server, **more):
    """The sync client."""
    url = "ws://{}:{}/chat".format(*server.address)
    return websockets.sync.client.connect(url, max_size=4 << 20, **more)


@deflated
def test_messages_come_back_to_the_sync_client(start, deflate):
    """Without TLS: it uses one SSLSocket in two threads, which OpenSSL does not bear."""
    settings = WebSocket(deflate=deflate, max_message=4 << 20, subprotocols=["v2", "v1"])
    server = start(Echo(), websocket=settings)
    with connected(server, subprotocols=["v1", "v2"]) as client:
        assert client.subprotocol == "v2"
        assert bool(client.protocol.extensions) is (deflate is not None)
        for data in MESSAGES:
            client.send(data)
            assert client.recv(PATIENCE) == data
        client.send(iter(["in ", "parts"]))
        assert client.recv(PATIENCE) == "in parts"
        assert client.ping().wait(PATIENCE)
    assert client.close_code == 1000
    wait_until(lambda: dict(server.stats().closes) == {1000: 1}, "it is counted")


@families
@deflated
def test_messages_come_back_to_the_asyncio_client(start, family, deflate):
    server = start(
        Echo(),
        websocket=WebSocket(deflate=deflate, max_message=4 << 20),
        **options_of(family, ""),
    )

    async def talk():
        async with websockets.asyncio.client.connect(
            f"{'wss' if family == 'tls' else 'ws'}://localhost:{server.address[1]}/chat",
            host=server.address[0],
            ssl=certificates.client_context() if family == "tls" else None,
            max_size=4 << 20,
        ) as client:
            for data in MESSAGES:
                await client.send(data)
                assert await client.recv() == data
            await (await client.ping())
        return client.close_code

    assert asyncio.run(asyncio.wait_for(talk(), PATIENCE)) == 1000


def test_a_client_is_told_a_code_and_a_reason(start):
    def received(socket, data):
        raise hydrogen.Close(4001, "abgelaufen, schön")

    server = start(recorder(message=received))
    with connected(server) as client:
        client.send("go")
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(PATIENCE)
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "abgelaufen, schön")
