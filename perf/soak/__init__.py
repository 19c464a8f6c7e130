"""``python -m perf.soak``: one process with three servers, and for minutes clients of every kind,
half of them hostile.

What a soak finds and no single test does: a loss that needs thousands of neighbours, a count that
drifts, memory that creeps. It is no measurement of speed. `settings` has the limits, and who comes
from where; `protocol` what both sides say; `well_behaved` are clients that verify every byte,
`hostile` those that break every rule; `link` is a connection of either; `handler` and `server` the
other side; `checks` what must hold at the end.
"""
