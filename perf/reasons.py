"""Why goals are missed: by workload, the figure of the goal, and the contender it is held against
(None: the figure itself).

docs/performance.md prints those of goals that the published results miss. What can be computed from
the results stands there beside them, so a reason has no measured figures in it.
"""

from __future__ import annotations

from perf.loads import RATE

REASONS = {
    ("W1", RATE, "c"): (
        "Both make the same two system calls for each message, and nearly all their time is the "
        "kernel's, inside those calls. What "
        "hydrogen does beside them, one Python call for each message among it, is of the size of "
        "what the machine varies by between two "
        "runs; the CPU time per message in the table, which hangs less on how busy the generator "
        "is, is the steadier of the two "
        "comparisons."
    ),
    ("W1", RATE, "uvloop"): (
        "An echo of a small message leaves nearly nothing to win: uvloop makes one recv and one "
        "send for each message, too, and those "
        "calls are nearly all that an echo costs. The C limit, which makes them and does nothing "
        "else, shows how far the ratio can go."
    ),
    ("W1", "server_us", "c"): (
        "Beside recv and send, which cost both the same, hydrogen makes the payload an object, "
        "calls the handler, and takes the locks that "
        "let other threads send to the connection. Where the kernel's part is cheap, that is a "
        "larger share."
    ),
    ("W2", RATE, "c"): (
        "For each frame hydrogen makes an object of the payload and calls the handler, which calls "
        "`send`; the C limit copies bytes from "
        "one buffer into another."
    ),
    ("W2", RATE, "uvloop"): (
        "The peer's parser is tuned: one pass over what a read brought, without a call for each "
        "message, and one write; it is no handler "
        "called for each message, but hydrogen is compared with it all the same. The C limit, "
        "which has no Python at all, shows how far "
        "the ratio can go. Beside the parser that people write first (`uvloop-usual`) the ratio is "
        "larger."
    ),
    ("W3", RATE, "c"): (
        "A whole burst is in one buffer, so there is hardly a system call to share the cost with: "
        "what is compared is a copy of a few "
        "bytes in C with an object, a call of the handler and a call of `send` for each message. A "
        "single call of a function written in "
        "Python takes several times as long as that copy. The C limit waits for the generator "
        "here, and would be further ahead with a "
        "faster one."
    ),
    ("W4", "p50_us", "c"): (
        "A ping-pong is two wake-ups, the server's and the generator's, and the kernel takes the "
        "most of both. What remains to hydrogen is "
        "the GIL, taken once for each message as no other comes with it, and the handler's call."
    ),
    ("W5", RATE, "uvloop"): (
        "An event loop that blocks in every hundredth message spends nearly all its time asleep, "
        "and its rate is that of the sleep, "
        "whatever the machine. So the ratio says how long hydrogen takes for the messages between "
        "two that block, and a machine on which "
        "the kernel takes longer for recv and send has a smaller one. The C limit here is its "
        "plain echo, in which nothing blocks."
    ),
    ("W5", RATE, "uvloop-executor"): (
        "The author of that peer knew which messages would block, and sends exactly those to a "
        "pool: the other ninety-nine pay nothing. "
        "hydrogen is not told. While handlers keep blocking it keeps a second worker awake, which "
        "waits for the GIL to go on at the moment "
        "when one blocks; each such moment is a wake-up and a change of threads, paid for at the "
        "place where the peer pays for its "
        "executor. The C limit here is its plain echo, in which nothing blocks."
    ),
    ("W5", "p98_us", None): (
        "The messages whose handlers block are the slowest hundredth, so the 98th percentile is of "
        "those which waited behind one. How long "
        "they wait is how soon another worker goes on, and it needs a core for that: where neither "
        "side is pinned and there are as few as "
        "two, the generator has the other. The C limit here is its plain echo, in which nothing "
        "blocks."
    ),
    ("W6i", "kept", None): (
        "Idle connections are not visited: epoll reports only those that are ready. What the "
        "kernel's and the server's records of them "
        "take from the caches remains."
    ),
    ("W6i", "kept", "c"): (
        "This is a ratio of two ratios, of four runs in all, and has the variation of each. Idle "
        "connections cost hydrogen no work: what "
        "it keeps beside them, without the C limit in the divisor, stands in the table, and is "
        "held against a goal of its own."
    ),
    ("W6a", "kept", None): (
        "With so many active connections the kernel's records of them no longer fit into the "
        "caches, and every recv and send fetches them "
        "from memory. It is the same for whoever makes those calls: the C limit loses as well."
    ),
    ("W6a", "kept", "c"): (
        "This is a ratio of two ratios, of four runs in all, and has the variation of each. Beside "
        "what the kernel keeps of a connection, "
        "which the C limit pays for too, hydrogen has a slot, an object and a buffer for each, "
        "which share the caches with it."
    ),
    ("W7", RATE, "c"): (
        "Most of the time goes into the kernel's making and unmaking of a connection. What is left "
        "is hydrogen's "
        "slot for it, and the Python object by which the handler knows it."
    ),
    ("W8", "deliveries_per_second", "uvloop"): (
        "A broadcast is one send for each receiver, and the kernel's part of that is nearly all of "
        "its cost. The C limit, which does "
        "nothing else, shows how far the ratio can go with one thread; several would take turns at "
        "the kernel's locks on a machine this "
        "small. What hydrogen saves is Python's part: no call for each receiver, and the GIL is "
        "free meanwhile."
    ),
    ("W1L", RATE, "hydrogen-unlimited"): (
        "A deadline costs a store or two for each message, and a sweep over the connections now "
        "and then. That is less than what the "
        "machine varies by between two runs: with many short rounds the two contenders cannot be "
        "told apart."
    ),
    ("TLS", RATE, "uvloop"): (
        "Nearly all of the time is OpenSSL's and the kernel's, which is the same for both. "
        "Python's `ssl` releases the GIL in every call "
        "of OpenSSL, and takes it again."
    ),
    ("W12-memory", "bytes_per_connection", None): (
        "A connection that opens alone leaves less than 600 bytes. Those that open in a burst need "
        "a block of input each, and a request, at the same moment: that memory stays with the "
        "workers' pools and the allocator, once, some 2.5 MB after a thousand at a time, which is "
        "counted here for 5,000 connections. Each further one takes some 640 bytes."
    ),
    ("client", "p99_us", "c-client"): (
        "With both cores full the slowest hundredth is made by the scheduler and the kernel's "
        "timers, and two comparisons of the same "
        "programs differ by more than the goal allows, in either direction. Nearly all of the "
        "generator's CPU time is the kernel's, in the "
        "calls that the second client makes, too (`perf record`)."
    ),
    ("client", RATE, "c-client"): (
        "Where server and client have a core each, both full, whatever slows down either of the "
        "cores shows, and the range over the rounds "
        "is several times what the goal allows, in either direction. Nearly all of the generator's "
        "CPU time is the kernel's, in the calls "
        "that the second client makes, too (`perf record`)."
    ),
}
