"""The slab: where connections are found by token.

A *token* is (generation, index): the generation of a slot grows when it is given back, so that a
token of a connection that is gone finds nothing, never the next tenant. A tenant knows its token,
so finding it is one look.

No lock for those who look: each change of a list is whole. Who acquires and who releases does so
one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Tenant(Protocol):
    """What has a slot."""

    token: int


T = TypeVar("T", bound=Tenant)

INDEX_BITS = 24
_INDEX_MASK = (1 << INDEX_BITS) - 1


class Slab(Generic[T]):
    """Slots for things of type `T`. Safe from any thread but for `acquire` and `release`, of which
    there is one at a time.

    `_vacant` is a stack as long as there are slots, of which the first `_left` entries count:
    giving back allocates nothing.
    """

    def __init__(self, pre_allocated: int) -> None:
        """Args: pre_allocated: slots that exist from the start."""
        self._tenants: list[T | None] = [None] * pre_allocated
        self._generations = [1] * pre_allocated
        # the one given back last is used first
        self._vacant = list(range(pre_allocated - 1, -1, -1))
        self._left = pre_allocated

    def acquire(self, make: Callable[[int], T]) -> T:
        """Take a slot for what `make(token)` returns, and return that."""
        if not self._left:
            last = len(self._tenants)
            self._generations[last:] = [1]
            self._vacant[last:] = [0]
            self._vacant[0] = last
            self._tenants[last:] = [None]
            # nothing is called or allocated between these two: a slot that is not vacant would
            # count as occupied
            self._left = 1
        left = self._left - 1
        index = self._vacant[left]
        tenant = make(self._generations[index] << INDEX_BITS | index)
        self._tenants[index] = tenant
        self._left = left
        return tenant

    def find(self, token: int) -> T | None:
        """The tenant that `token` was made for, None when it is gone."""
        tenant = self._tenants[token & _INDEX_MASK]
        return tenant if tenant is not None and tenant.token == token else None

    def release(self, token: int) -> None:
        """Give the slot of `token` back; the token finds nothing from now on. Once for each
        `acquire`.
        """
        index = token & _INDEX_MASK
        generation, left = self._generations[index] + 1, self._left
        following = left + 1
        # Nothing is called or allocated from here on: this is done as a whole, or not at all.
        self._vacant[left] = index
        self._generations[index] = generation
        self._tenants[index] = None
        self._left = following

    def snapshot(self) -> list[T]:
        """The tenants there are now, in the order of their slots."""
        return [tenant for tenant in self._tenants.copy() if tenant is not None]

    def __len__(self) -> int:
        """How many slots are occupied."""
        return len(self._tenants) - self._left
