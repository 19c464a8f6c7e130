"""The compiled hot loop; its contract is :class:`hydrogen.perf.loops.HotLoop`."""

from collections.abc import Sequence
from typing import final

from typing_extensions import Self

from hydrogen.perf.framing import Mix
from hydrogen.perf.tunnel import Tunnel

BUCKETS: int

def bucket(value: int) -> int: ...

@final
class Loop:
    def __new__(
        cls,
        fds: Sequence[int],
        *,
        mix: Mix,
        depth: int,
        burst: bool,
        seed: int,
        stall: float,
        tunnels: Sequence[Tunnel] = (),
        churn: bool = False,
        interval: float = 0,
        phase: float = 0,
        backlog: int = 0,
        websocket: bool = False,
    ) -> Self: ...
    def run(self, seconds: float, number: int = 0) -> None: ...
    def drain(self) -> None: ...
    def stop(self) -> None: ...
    def reset(self) -> None: ...
    @property
    def messages(self) -> int: ...
    def counters(self) -> dict[str, int]: ...
    def histograms(self) -> dict[str, list[int]]: ...
