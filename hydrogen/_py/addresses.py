"""Limits: how many connections there may be, of all and of each address. No socket is known here.

Of all the limit cannot be overshot because one thread adds, the accept thread, and it looks before:
others only take away. Of one address it is counted under a lock, for with PROXY protocol it is a
worker that learns whose connection it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from hydrogen.locks import under

_MAPPED = "::ffff:"


def address_of(peername: Any) -> str | None:
    """What a peer of that name is counted at; None for peers on Unix sockets, which have no address
    to tell them apart by.

    An IPv4-mapped IPv6 address counts as that of IPv4: whether a listener speaks both is no matter
    of the client's.
    """
    if not isinstance(peername, tuple):
        return None
    host: str = peername[0]
    return host[len(_MAPPED) :] if host.startswith(_MAPPED) and "." in host else host


class Place:
    """Of one connection.

    Attributes:
        address: at which it is counted; None: at none.
    """

    __slots__ = ("address",)

    def __init__(self) -> None:
        self.address: str | None = None


class Limits:
    """`max_connections` and `max_connections_per_ip`.

    Attributes:
        most: connections.
        most_per_address: connections of one address; None: no limit.
    """

    def __init__(self, most: int, most_per_address: int | None, count: Callable[[], int]) -> None:
        """Args: count: how many connections there are."""
        self.most = most
        self.most_per_address = most_per_address
        self._count = count
        self._lock = threading.Lock()
        self._of_address: dict[str, int] = {}

    def is_full(self) -> bool:
        """Whether there may be no more connections. By the accept thread; for others it is old when
        they hear it.
        """
        return self._count() >= self.most

    def enter(self, place: Place, address: str) -> bool:
        """Count `place` at `address`; False, and it is not counted, when there are too many."""
        most = self.most_per_address
        return most is None or bool(under(self._lock, lambda: self._enter(place, address, most)))

    def _enter(self, place: Place, address: str, most: int) -> bool:
        count = self._of_address.get(address, 0)
        if count >= most:
            return False
        # It is counted and noted, or neither, whatever is raised: no call is between the two, and
        # no jump, at which CPython 3.10 raises what was set, too. So it is in `_leave`.
        self._of_address[address] = count + 1
        place.address = address
        return True

    def leave(self, place: Place) -> None:
        """Count `place` no more, if it is counted."""
        address = place.address
        if address is not None:
            under(self._lock, lambda: self._leave(place, address))

    def _leave(self, place: Place, address: str) -> None:
        count = self._of_address[address] - 1
        if count:
            self._of_address[address] = count
            place.address = None
        else:
            del self._of_address[address]
            place.address = None
