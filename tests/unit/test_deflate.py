"""permessage-deflate: what is agreed on, and messages compressed and inflated."""

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from hydrogen import FrameTooLarge
from hydrogen.deflate import Agreement, Compressor, Deflate, Inflater, negotiate, offers_of
from hydrogen.errors import InvalidText
from hydrogen.http import Refusal

TAIL = b"\0\0\xff\xff"


def answer(*fields, **settings):
    """What is answered to these fields; None: nothing."""
    agreed = negotiate(offers_of(fields), Deflate(**settings))
    return None if agreed is None else agreed[0]


DEFAULT = (
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; "
    "server_max_window_bits=12"
)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("permessage-deflate", DEFAULT),
        ("Permessage-Deflate", DEFAULT),
        ("x-other, permessage-deflate", DEFAULT),
        ("x-other; a=b; c , permessage-deflate", DEFAULT),
        ("permessage-deflate; client_max_window_bits", DEFAULT + "; client_max_window_bits=12"),
        ("permessage-deflate;client_max_window_bits=9", DEFAULT + "; client_max_window_bits=9"),
        ("permessage-deflate; client_max_window_bits=8", DEFAULT + "; client_max_window_bits=8"),
        ("permessage-deflate; client_max_window_bits=15", DEFAULT + "; client_max_window_bits=12"),
        ('permessage-deflate; server_max_window_bits="10"', DEFAULT.replace("12", "10")),
        ("permessage-deflate; server_max_window_bits = 15", DEFAULT),
        ("permessage-deflate; server_no_context_takeover", DEFAULT),
        ("permessage-deflate; unknown, permessage-deflate", DEFAULT),
    ],
)
def test_an_offer_is_answered(field, expected):
    assert answer(field) == expected


@pytest.mark.parametrize(
    "parameter",
    [
        "unknown",
        "server_max_window_bits",
        "server_max_window_bits=8",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=010",
        "server_max_window_bits=100",
        "server_max_window_bits=10; server_max_window_bits=11",
        "client_max_window_bits=16",
        "client_max_window_bits=150",
        "client_max_window_bits=x",
        "client_max_window_bits; client_max_window_bits",
        "server_no_context_takeover=1",
        "client_no_context_takeover=true",
    ],
)
def test_an_offer_that_cannot_be_accepted_is_declined(parameter):
    assert answer(f"permessage-deflate; {parameter}") is None
    assert answer(f"permessage-deflate; {parameter}, permessage-deflate") == DEFAULT


def test_nothing_is_answered_to_others():
    assert answer() is None
    assert answer("x-webkit-deflate-frame") is None


@pytest.mark.parametrize(
    "field", ["", ",", "a,", "a;", "a; =b", "a b", 'a; b="c', 'a; b=""', "a; b=c d", "a, ,b", "(a)"]
)
def test_malformed_extensions_are_refused(field):
    with pytest.raises(Refusal) as caught:
        offers_of([field])
    assert caught.value.response.status == 400


def test_context_takeover_is_what_both_want():
    settings = Deflate(server_no_context_takeover=False, client_no_context_takeover=False)
    for parameters, server, client in (
        ("", True, True),
        ("; server_no_context_takeover", False, True),
        ("; client_no_context_takeover", True, False),
    ):
        _, agreed = negotiate(offers_of([f"permessage-deflate{parameters}"]), settings)
        assert agreed == Agreement(server, client, 12, 15)
    _, agreed = negotiate(offers_of(["permessage-deflate; client_max_window_bits"]), settings)
    assert agreed.client_bits == 12


def test_a_window_that_was_asked_for_is_answered_though_it_is_whole():
    assert answer("permessage-deflate; server_max_window_bits=15", window_bits=15) == (
        DEFAULT.rpartition(";")[0] + "; server_max_window_bits=15"
    )


def test_a_whole_window_goes_without_saying():
    assert answer("permessage-deflate", window_bits=15) == DEFAULT.rpartition(";")[0]


@pytest.mark.parametrize("takeover", [True, False])
@given(st.lists(st.one_of(st.binary(max_size=300), st.just(b"the same again " * 9)), max_size=5))
def test_messages_come_out_as_they_went_in(takeover, messages):
    compressor, inflater = Compressor(9, 1, takeover), Inflater(9, takeover)
    for message in messages:
        data = compressor.compress(message)
        assert not data.endswith(TAIL)
        assert inflater.inflate(data, len(message)) == message


def test_with_takeover_what_comes_again_costs_less():
    message = bytes(range(256)) * 2
    for takeover in (True, False):
        compressor = Compressor(12, 5, takeover)
        first, second = compressor.compress(message), compressor.compress(message)
        assert (len(second) < len(first)) is takeover


@pytest.mark.parametrize("takeover", [True, False])
def test_a_message_is_inflated_up_to_the_limit(takeover):
    data = Compressor(15, 8, False).compress(bytes(1000))
    assert Inflater(15, takeover).inflate(data, 1000) == bytes(1000)
    with pytest.raises(FrameTooLarge, match="max_message 999"):
        Inflater(15, takeover).inflate(data, 999)


def test_a_bomb_is_not_inflated():
    bomb = Compressor(15, 8, False).compress(bytes(100 << 20))
    assert len(bomb) < 110_000
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge):
            Inflater(15, False).inflate(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def stored(data, final):
    """One block of deflate, not compressed (RFC 1951 section 3.2.4)."""
    n = len(data)
    return bytes([final]) + n.to_bytes(2, "little") + (n ^ 0xFFFF).to_bytes(2, "little") + data


@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize(
    "data", [b"\xff", b"\x06", stored(b"hello", True), stored(b"hello", True) + b"more"]
)
def test_what_is_not_compressed_as_it_says_is_refused(takeover, data):
    with pytest.raises(InvalidText):
        Inflater(15, takeover).inflate(data, 100)


def test_a_block_that_is_stored_is_no_end():
    assert Inflater(15, True).inflate(stored(b"hello", False) + b"\0", 5) == b"hello"


def test_an_empty_message_is_one_byte():
    assert Compressor(15, 8, False).compress(b"") == b"\0"
    assert Inflater(15, False).inflate(b"\0", 0) == b""


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("server_no_context_takeover", 1, TypeError),
        ("client_no_context_takeover", None, TypeError),
        ("window_bits", 8, ValueError),
        ("window_bits", 16, ValueError),
        ("mem_level", 0, ValueError),
        ("min_size", -1, ValueError),
    ],
)
def test_wrong_settings_are_refused_by_name(field, value, kind):
    with pytest.raises(kind, match=field):
        Deflate(**{field: value})


def test_websockets_takes_the_answer_and_reads_what_is_compressed():
    factory = ClientPerMessageDeflateFactory(client_max_window_bits=True)
    parameters = "; ".join(
        name if value is None else f"{name}={value}" for name, value in factory.get_request_params()
    )
    text, agreed = negotiate(offers_of([f"permessage-deflate; {parameters}"]), Deflate())
    answered = [part.strip().partition("=") for part in text.split(";")[1:]]
    extension = factory.process_response_params(
        [(name, value or None) for name, _, value in answered], []
    )
    assert extension.remote_no_context_takeover is not agreed.server_takeover
    assert extension.local_max_window_bits == agreed.client_bits
    data = Compressor(agreed.server_bits, 5, agreed.server_takeover).compress(b"hello" * 99)
    assert zlib.decompressobj(-agreed.server_bits).decompress(data + TAIL) == b"hello" * 99
