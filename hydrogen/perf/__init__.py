"""The load generator: ``python -m hydrogen.perf``.

It opens connections to an echo server, sends in a closed loop (so many messages in flight on each)
or in an open one (at a given rate, whatever has been answered), verifies every reply byte for byte
and reports throughput and latency. It knows nothing of the server library beside it: any server
that sends back what it receives can be measured.

Modules: ``__main__`` is the command line and ``options`` what it may say; ``opening`` opens the
connections; ``generator`` walks through warm-up and measurement; ``loops`` runs the hot loops,
``_generator`` the compiled one (its messages: ``_message.pxd``) and ``_generator_py`` the same in
Python; ``framing`` says what messages look like on the wire, ``tunnel`` is their TLS; ``histogram``
holds the bucket arithmetic both record with, ``series`` throughput over time; ``report`` turns
counts into a table or JSON, ``plot`` draws it, ``comparison`` sets several side by side;
``conditions`` are thresholds, ``search`` looks for the rate at which they hold; ``progress`` draws
the live line; ``machine`` describes the computer.
"""
