"""The load generator: ``python -m hydrogen.perf``.

It opens connections to an echo server, keeps a fixed number of messages in flight on each (a closed loop), verifies
every reply byte for byte and reports throughput and latency. It knows nothing of the server library beside it: any
server that sends back what it receives can be measured.

Rooms: ``__main__`` is the command line; ``generator`` opens the connections and walks through warm-up and
measurement; ``_generator`` is the compiled hot loop and ``_generator_py`` the same in Python; ``framing`` says what
messages look like on the wire, ``tunnel`` is their TLS; ``histogram`` holds the
bucket arithmetic both record with; ``report`` turns counts into a table or JSON; ``progress`` draws the live line;
``machine`` describes the computer.
"""
