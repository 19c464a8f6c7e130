"""The exceptions, and how the cause of a removal becomes one."""

import errno
import ssl
import traceback

import pytest

import hydrogen
from hydrogen.errors import (
    Cause,
    Timeout,
    cause_of,
    cut_traceback,
    described,
    handler_error,
    removal_error,
)

BASES = {
    "PeerClosed": ConnectionError,
    "LocalClosed": ConnectionError,
    "ServerStopped": ConnectionError,
    "SlowConsumer": ConnectionError,
    "Reject": ConnectionError,
    "HandlerError": RuntimeError,
    "ConnectionTimeout": TimeoutError,
    "ProtocolError": ValueError,
    "FrameTooLarge": hydrogen.ProtocolError,
    "ChecksumMismatch": hydrogen.ProtocolError,
    "IncompleteFrame": hydrogen.ProtocolError,
    "EngineUnavailable": ImportError,
}


@pytest.mark.clause("H21")
@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_each_error_is_a_hydrogen_error_and_a_builtin_that_fits(name, base):
    error = getattr(hydrogen, name)
    assert issubclass(error, hydrogen.HydrogenError)
    assert issubclass(error, base)
    assert str(error("why")) == "why"


@pytest.mark.clause("H20")
@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (Cause.PEER_CLOSED, hydrogen.PeerClosed),
        (Cause.LOCAL_CLOSED, hydrogen.LocalClosed),
        (Cause.SERVER_STOPPED, hydrogen.ServerStopped),
        (Cause.SLOW_CONSUMER, hydrogen.SlowConsumer),
        (Cause.HANDLER_ERROR, hydrogen.HandlerError),
        (Cause.REJECT, hydrogen.Reject),
        (Cause.BAD_FRAME, hydrogen.ProtocolError),
        (Cause.FRAME_TOO_LARGE, hydrogen.FrameTooLarge),
        (Cause.INCOMPLETE_FRAME, hydrogen.IncompleteFrame),
        (Cause.CHECKSUM_MISMATCH, hydrogen.ChecksumMismatch),
        (Cause.TRUNCATED, ssl.SSLEOFError),
        (Cause.TLS_ERROR, ssl.SSLError),
    ],
)
def test_each_cause_has_its_error_and_a_message(cause, kind):
    error = removal_error(int(cause))
    assert type(error) is kind
    assert str(error)
    assert removal_error(cause) is not error


def has_setting(timeout):
    """The class of which it is a field."""
    return hydrogen.WebSocket if timeout is Timeout.PING_TIMEOUT else hydrogen.Config


@pytest.mark.parametrize("timeout", Timeout)
def test_a_timeout_is_named_by_its_field_of_config(timeout):
    error = removal_error(Cause.TIMEOUT, timeout)
    assert type(error) is hydrogen.ConnectionTimeout
    assert str(error).startswith(timeout.name.lower())
    assert hasattr(has_setting(timeout), timeout.name.lower())


def test_every_cause_gives_an_error():
    for cause in Cause:
        assert isinstance(removal_error(cause, 1), Exception)


@pytest.mark.clause("H20")
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ECONNRESET, ConnectionResetError),
        (errno.EPIPE, BrokenPipeError),
        (errno.ETIMEDOUT, TimeoutError),
        (errno.ENOMEM, OSError),
        (0, OSError),
    ],
)
def test_an_errno_gives_the_os_error_that_python_has_for_it(code, kind):
    error = removal_error(Cause.OS_ERROR, code)
    assert type(error) is kind
    assert error.errno == (code or errno.EIO)
    assert error.strerror


def test_what_user_code_raises_stands_for_itself_or_is_a_handler_error():
    broken = OSError(errno.EPROTO, "broken")
    assert cause_of(broken) == (Cause.OS_ERROR, broken)
    bad = ssl.SSLError(1, "bad")
    assert cause_of(bad) == (Cause.TLS_ERROR, bad)
    wrong = hydrogen.ChecksumMismatch("wrong")
    assert cause_of(wrong) == (Cause.BAD_FRAME, wrong)
    cause, error = cause_of(EOFError())
    assert (cause, type(error)) == (Cause.PEER_CLOSED, hydrogen.PeerClosed)
    mine = ZeroDivisionError("mine")
    cause, error = cause_of(mine)
    assert (cause, type(error)) == (Cause.HANDLER_ERROR, hydrogen.HandlerError)
    assert error.__cause__ is mine


@pytest.mark.clause("H16")
def test_a_handler_error_tells_what_was_raised():
    mine = ZeroDivisionError("mine")
    error = handler_error(mine)
    assert error.__cause__ is mine
    assert "ZeroDivisionError" in str(error)
    assert "mine" in str(error)


class Silent(Exception):
    """Whose own code raises when it is formatted, and no `Exception` at that."""

    def __str__(self):
        raise SystemExit("no str")

    __repr__ = __str__


def test_an_exception_that_cannot_be_formatted_is_a_handler_error_like_any_other():
    silent = Silent()
    error = handler_error(silent)
    assert error.__cause__ is silent
    assert "Silent" in str(error)
    assert cause_of(silent)[0] == Cause.HANDLER_ERROR


def test_a_value_is_described_within_bounds_whatever_its_repr_does():
    class Text(str):
        __slots__ = ()

        def __len__(self):
            raise AssertionError

    class Strange:
        def __repr__(self):
            return Text("strange")

    assert described(7) == "7"
    assert described(bytes(100), 60) == repr(bytes(100))[:57] + "..."
    assert described(Silent()) == "<Silent, whose __repr__ raises>"
    assert described(Strange()) == "strange"


def test_a_handler_error_holds_none_of_the_memory_errors_that_the_interpreter_has_in_reserve():
    its_own, mine = MemoryError(), MemoryError("mine")
    error = handler_error(its_own)
    assert type(error.__cause__) is MemoryError
    assert error.__cause__ is not its_own
    assert handler_error(mine).__cause__ is mine


@pytest.mark.parametrize("kind", [KeyError, hydrogen.ProtocolError, hydrogen.HandlerError, OSError])
@pytest.mark.parametrize("how", ["context", "cause", "further back"])
def test_what_is_kept_of_an_exception_holds_no_memory_error_that_it_came_from(how, kind):
    its_own, mine = MemoryError(), MemoryError("mine")
    try:
        try:
            try:
                raise its_own
            except MemoryError:
                if how == "further back":
                    raise ValueError("in between") from mine
                raise
        except Exception as before:
            raise kind("too large") from before if how == "cause" else None
    except kind as raised:
        kept = cause_of(raised)[1]
    chain, left = [], [kept]
    while left:
        error = left.pop()
        if error is not None and error not in chain:
            chain.append(error)
            left += [error.__cause__, error.__context__]
    assert its_own not in chain
    assert any(type(error) is MemoryError for error in chain)
    assert (mine in chain) == (how == "further back")


def test_exceptions_that_came_from_each_other_in_a_ring_are_told_all_the_same():
    first, second = KeyError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    assert handler_error(first).__cause__ is first


@pytest.mark.parametrize(
    "convert", [handler_error, lambda error: cause_of(error)[1], lambda error: cut_traceback(error)]
)
@pytest.mark.parametrize("kind", [KeyError, OSError, hydrogen.HandlerError])
def test_an_exception_that_is_raised_again_keeps_the_traceback_of_the_last_raise_only(
    convert, kind
):
    # As an engine calls a callback: a function of a module of ours, which lets nothing pass.
    code = (
        "def call(callback, convert):\n    try:\n        callback()\n    except BaseException as "
        "error:\n        convert(error)\n"
    )
    scope = {"__name__": "hydrogen.fake"}
    exec(code, scope)
    kept = kind("kept")

    def callback(depth=3):
        if depth:
            callback(depth - 1)  # a recursion of the user's is no earlier raise
        raise kept

    lengths = set()
    held = None
    for _ in range(5):
        scope["call"](callback, convert)
        names = [frame.name for frame in traceback.extract_tb(kept.__traceback__)]
        assert names == ["call", *["callback"] * 4]
        if held is not None:
            assert len(traceback.extract_tb(held)) == 5  # what somebody has kept is whole still
        held = kept.__traceback__
        lengths.add(len(names))
    assert lengths == {5}


def test_a_traceback_that_begins_with_the_users_code_is_left_alone():
    kept = KeyError("kept")

    def callback():
        raise kept

    for _ in range(3):
        with pytest.raises(KeyError):
            callback()
    before = len(traceback.extract_tb(kept.__traceback__))
    cut_traceback(kept)
    assert len(traceback.extract_tb(kept.__traceback__)) == before == 6


def test_an_exception_whose_traceback_is_a_property_that_raises_is_the_cause_all_the_same():
    class Traceless(Exception):
        @property
        def __traceback__(self):
            raise RuntimeError

    error = Traceless("why")
    assert handler_error(error).__cause__ is error


@pytest.mark.parametrize("timeout", Timeout)
def test_the_table_of_timeouts_names_the_field_and_the_message(timeout):
    assert Timeout(int(timeout)) is timeout
    assert timeout.field == timeout.name.lower()
    assert hasattr(has_setting(timeout), timeout.field)
    assert hasattr(hydrogen.Stats, f"removed_{timeout.field}")
    assert str(removal_error(Cause.TIMEOUT, timeout)) == f"{timeout.field}: {timeout.message}"
