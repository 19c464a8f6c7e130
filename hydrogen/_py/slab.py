"""The slab: where connections are found by token.

Slots are taken from and given back to a free list that is threaded through the vacant ones. A *token* is (generation, index): the
generation of a slot grows when it is given back, so that a token of a connection that is gone finds nothing, never the next tenant.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

INDEX_BITS = 24
_INDEX_MASK = (1 << INDEX_BITS) - 1
_END = -1


class Slab(Generic[T]):
    """Slots for things of type `T`. Safe from any thread: its lock is a leaf, and no code but `make` of `acquire` runs under it."""

    def __init__(self, pre_allocated: int) -> None:
        """Args: pre_allocated: slots that exist from the start."""
        self._lock = threading.Lock()
        self._tenants: list[T | None] = [None] * pre_allocated
        self._generations = [1] * pre_allocated
        # For a vacant slot the index of the next vacant one; the first is `_vacant`.
        self._next = [*range(1, pre_allocated), _END] if pre_allocated else []
        self._vacant = 0 if pre_allocated else _END
        self._occupied = 0

    def acquire(self, make: Callable[[int], T]) -> T:
        """Take a slot for what `make(token)` returns, and return that."""
        with self._lock:
            if self._vacant == _END:
                self._tenants.append(None)
                self._generations.append(1)
                self._next.append(_END)
                self._vacant = len(self._tenants) - 1
            index = self._vacant
            tenant = make(self._generations[index] << INDEX_BITS | index)
            self._vacant = self._next[index]
            self._tenants[index] = tenant
            self._occupied += 1
            return tenant

    def find(self, token: int) -> T | None:
        """The tenant that `token` was made for, None when it is gone."""
        index = token & _INDEX_MASK
        with self._lock:
            return self._tenants[index] if self._generations[index] == token >> INDEX_BITS else None

    def release(self, token: int) -> None:
        """Give the slot of `token` back; the token finds nothing from now on. Once for each `acquire`."""
        index = token & _INDEX_MASK
        with self._lock:
            self._tenants[index] = None
            self._generations[index] += 1
            self._next[index] = self._vacant
            self._vacant = index
            self._occupied -= 1

    def snapshot(self) -> list[T]:
        """The tenants there are now, in the order of their slots."""
        with self._lock:
            return [tenant for tenant in self._tenants if tenant is not None]

    def tenants_unlocked(self) -> list[T]:
        """As `snapshot`, in a forked child, where a thread that does not exist may hold the lock."""
        return [tenant for tenant in self._tenants if tenant is not None]

    def __len__(self) -> int:
        """How many slots are occupied.

        Under the lock, so that of one who sets a flag and then looks here, and one who releases and then looks at the flag, one sees
        what the other did.
        """
        with self._lock:
            return self._occupied
