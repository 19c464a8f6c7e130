"""The compiled hot loop; its contract is :class:`hydrogen.perf.generator.HotLoop`."""

from collections.abc import Sequence
from typing import final

from typing_extensions import Self

from hydrogen.perf.framing import Shape
from hydrogen.perf.tunnel import Tunnel

BUCKETS: int

def bucket(value: int) -> int: ...

@final
class Loop:
    def __new__(
        cls,
        fds: Sequence[int],
        *,
        shape: Shape,
        depth: int,
        burst: bool,
        seed: int,
        stall: float,
        tunnels: Sequence[Tunnel] = (),
        churn: bool = False,
    ) -> Self: ...
    def run(self, seconds: float, number: int = 0) -> None: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...
    def reset(self) -> None: ...
    @property
    def messages(self) -> int: ...
    def counters(self) -> dict[str, int]: ...
    def latencies(self) -> list[int]: ...
    def bursts(self) -> list[int]: ...
