"""``python -m perf.contenders.twisted_server JOB``"""

# ruff: noqa: E402

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

from twisted.internet import epollreactor

epollreactor.install()  # before any other import of twisted's, which would install the default

from twisted.internet import reactor as installed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThreadPool

from perf.contenders import BLOCKING_EVERY, BLOCKING_SECONDS, QUERY_SECONDS, THREADS

reactor: Any = installed  # the module says what any reactor can do, not what this one can

_messages = itertools.count(1)


class Raw(Protocol):
    """Echo."""

    transport: Any  # by its declaration it may be None, and need not be TCP

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Executor(Raw):
    """Echo that now and then blocks, by an author who knows which handlers will, and sends exactly
    those to a pool.
    """

    every = BLOCKING_EVERY
    seconds = BLOCKING_SECONDS

    def dataReceived(self, data: bytes) -> None:
        if next(_messages) % self.every == 0:
            blocked = deferToThreadPool(reactor, reactor.getThreadPool(), time.sleep, self.seconds)
            blocked.addCallback(lambda _: self.transport.write(data))
        else:
            self.transport.write(data)


class ExecutorQuerying(Executor):
    """Each handler blocks for a moment, in the pool."""

    every = 1
    seconds = QUERY_SECONDS


JOBS = {"raw": Raw, "executor": Executor, "executor_querying": ExecutorQuerying}

reactor.suggestThreadPoolSize(THREADS)
listening = reactor.listenTCP(
    0, Factory.forProtocol(JOBS[sys.argv[1]]), backlog=4096, interface="127.0.0.1"
)
print(listening.getHost().port, flush=True)
reactor.run()
