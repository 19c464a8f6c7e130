"""Exceptions that code of a user's may raise, some of which answer no question; for tests of what
that costs.

Where pytest asks, in the main thread, they answer: what a test raises there has to be reported.
"""

import ssl
import threading

import pytest

import hydrogen


def is_asked_by_pytest():
    """The main thread is no engine's: what a test raises there has to be reported."""
    return threading.current_thread() is threading.main_thread()


class StrRaises(Exception):
    """Cannot be printed."""

    def __str__(self):
        if is_asked_by_pytest():
            return "StrRaises"
        raise RuntimeError("no words")

    __repr__ = __str__


class StrExits(Exception):
    """Ends whoever prints it."""

    def __str__(self):
        if is_asked_by_pytest():
            return "StrExits"
        raise SystemExit("no words")

    __repr__ = __str__


class OnlyOnce(Exception):
    """Cannot be made again, as who copies or wraps it might."""

    made = False

    def __init__(self, *, token):
        if self.made:
            raise RuntimeError("made twice")
        self.made = True
        super().__init__("once", token)

    def __reduce__(self):
        raise RuntimeError("no copies")


def refusing(name):
    """The method `name`, which has no answer."""

    def method(self, *arguments):
        if is_asked_by_pytest():
            return getattr(Exception, name, lambda self: True)(self, *arguments)
        raise RuntimeError(f"no {name}")

    return method


QUESTIONS = ["__str__", "__repr__", "__eq__", "__ne__", "__hash__", "__bool__", "__format__"]
Hostile = type("Hostile", (Exception,), {name: refusing(name) for name in QUESTIONS})
"""Has an answer to no question."""


class Veiled(Exception):
    """Even its class is not to be asked for."""

    @property
    def __class__(self):
        if is_asked_by_pytest():
            return Veiled
        raise RuntimeError("no class")


class NamelessType(type):
    """Of a class without a name."""

    @property
    def __name__(cls):
        if is_asked_by_pytest():
            return "Nameless"
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=NamelessType):
    """Its class has no name."""


ERRORS = {
    "BaseException": lambda: BaseException("mine"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "MemoryError": MemoryError,
    "RecursionError": lambda: RecursionError("mine"),
    "StopIteration": lambda: StopIteration("mine"),
    "ZeroDivisionError": lambda: ZeroDivisionError("mine"),
    "UnicodeEncodeError": lambda: UnicodeEncodeError("ascii", "\udcff", 0, 1, "mine"),
    "StrRaises": StrRaises,
    "StrExits": StrExits,
    "OnlyOnce": lambda: OnlyOnce(token=1),
    "Hostile": Hostile,
    "Veiled": Veiled,
    "Nameless": Nameless,
    "ProtocolError": lambda: hydrogen.ProtocolError("mine"),
    "FrameTooLarge": lambda: hydrogen.FrameTooLarge("mine"),
    "Reject": lambda: hydrogen.Reject("mine"),
    "PeerClosed": lambda: hydrogen.PeerClosed("mine"),
    "LocalClosed": lambda: hydrogen.LocalClosed("mine"),
    "ServerStopped": lambda: hydrogen.ServerStopped("mine"),
    "ConnectionTimeout": lambda: hydrogen.ConnectionTimeout("mine"),
    "EOFError": EOFError,
    "OSError": lambda: OSError(5, "mine"),
    "BlockingIOError": lambda: BlockingIOError(11, "mine"),
    "SSLWantReadError": lambda: ssl.SSLWantReadError(2, "mine"),
    "TimeoutError": lambda: TimeoutError("mine"),
}
errors = pytest.mark.parametrize("make", ERRORS.values(), ids=ERRORS)
"""A test of each: `make()` is one."""


def is_a(error, kind):
    """`isinstance`, which would ask `__class__`."""
    return issubclass(type(error), kind)


def raising(error):
    """A function that raises `error`."""

    def function(*arguments):
        raise error

    return function


class Switch:
    """Whether hooks are to raise now: on while `with` lasts."""

    on = False

    def __enter__(self):
        self.on = True

    def __exit__(self, *exc):
        self.on = False


def blame(removals, error):
    """They were removed with a HandlerError for `error`."""
    for removal in removals:
        assert type(removal) is hydrogen.HandlerError
        if type(error) is MemoryError:  # one stands for all: the interpreter has few
            assert type(removal.__cause__) is MemoryError
        else:
            assert removal.__cause__ is error
