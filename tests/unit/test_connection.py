"""What the two classes of sockets share: timeouts, buffers, copies."""

import array
import copy
import math
import pickle
import weakref

import pytest

from hydrogen.config import MAX_SECONDS
from hydrogen.connection import (
    HydrogenSocket,
    check_timeout,
    contiguous,
    refuse_to_pickle,
    same,
    same_deeply,
)


class Strange:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (0.0, 0.0),
        (1.5, 1.5),
        (7, 7.0),
        (math.inf, None),
        (10**400, None),
        (1e300, None),
        (MAX_SECONDS, 1e9),
    ],
)
def test_a_timeout_is_seconds_or_none(value, seconds):
    assert check_timeout("timeout", value) == seconds
    assert type(check_timeout("timeout", value)) is type(seconds)


@pytest.mark.parametrize("value", [-1, -0.001, -math.inf, math.nan, -(10**400)])
def test_a_timeout_that_is_negative_or_no_number_is_a_value_error_that_names_it(value):
    with pytest.raises(ValueError, match="seconds"):
        check_timeout("seconds", value)


@pytest.mark.parametrize("value", ["1", True, False, 1j, [1], Strange()])
def test_a_timeout_of_another_type_is_a_type_error_that_names_it(value):
    with pytest.raises(TypeError, match="patience"):
        check_timeout("patience", value)


def test_the_bytes_of_a_buffer_are_taken_and_bytes_are_not_copied():
    data = b"abcdef"
    assert contiguous(data) is data
    for buffer in (
        bytearray(data),
        memoryview(data),
        memoryview(data).cast("B", (2, 3)),
        array.array("B", data),
    ):
        assert contiguous(buffer) == data
        assert type(contiguous(buffer)) is bytes
    assert contiguous(type("Mine", (bytes,), {"__bytes__": lambda self: b"other"})(data)) == data


@pytest.mark.parametrize("data", [memoryview(b"abcdef")[::2], memoryview(b"abcdef")[::-1]])
def test_a_buffer_that_is_not_contiguous_is_a_type_error(data):
    with pytest.raises(TypeError, match="contiguous"):
        contiguous(data)


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]])
def test_what_is_no_buffer_is_a_type_error(data):
    with pytest.raises(TypeError):
        contiguous(data)


def test_a_socket_is_its_own_copy_and_cannot_be_pickled():
    class Socket:
        __copy__, __deepcopy__, __reduce__ = same, same_deeply, refuse_to_pickle

    socket = Socket()
    assert copy.copy(socket) is socket
    assert copy.deepcopy([socket])[0] is socket
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="Socket cannot be pickled"):
            pickle.dumps(socket, protocol)


def test_the_contract_lets_sockets_be_referred_to_weakly():
    kind = type(
        "Socket",
        (HydrogenSocket,),
        {"__slots__": (), **dict.fromkeys(HydrogenSocket.__abstractmethods__)},
    )
    socket = kind()
    assert weakref.ref(socket)() is socket
    assert copy.copy(socket) is socket
    assert not hasattr(socket, "__dict__")
