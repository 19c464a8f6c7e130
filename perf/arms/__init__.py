"""The servers that are compared, each a program that prints its port and serves until it is ended.

Each is written as a good user of its library would write it, and all of them do the same jobs:

``raw``       send back every chunk as it was read
``simple``    send back every SimpleFrame (0x01, u16 big-endian length, payload, 0x17)
``sleeping``  raw, but exactly every 100th message of the server takes its handler 10 ms of blocking

and of the event loops, which must not be blocked, also

``simple_tuned``  simple, with a parser that its author has optimised
``executor``      sleeping, with exactly the handlers that block sent to a pool of 32 threads
"""

BLOCKING_EVERY = 100
BLOCKING_SECONDS = 0.01
THREADS = 32
