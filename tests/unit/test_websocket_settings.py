"""The settings of a WebSocket server, and what ends a connection."""

import dataclasses
import re

import pytest

from hydrogen.websocket import Close, WebSocket


def test_the_defaults_are_what_the_documentation_says():
    assert dataclasses.asdict(WebSocket()) == {
        "max_message": 1 << 20,
        "max_fragments": 65_536,
        "max_header": 8192,
        "max_headers": 100,
        "origins": "same",
        "subprotocols": (),
        "deflate": None,
        "ping_interval": 20.0,
        "ping_timeout": 20.0,
        "close_timeout": 5.0,
        "max_lifetime": None,
        "stop_code": 1001,
    }


def test_settings_can_be_hashed_and_do_not_change():
    origins = ["https://Example.org"]
    settings = WebSocket(origins=origins, subprotocols=["v2", "v1"])
    origins.append("https://evil.example")
    assert settings.origins == ("https://example.org",)
    assert settings.subprotocols == ("v2", "v1")
    assert hash(settings) == hash(
        WebSocket(origins=["https://example.org"], subprotocols=("v2", "v1"))
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.max_message = 1


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("max_message", -1, ValueError),
        ("max_message", 1.0, TypeError),
        ("max_fragments", 0, ValueError),
        ("max_header", 63, ValueError),
        ("max_headers", True, TypeError),
        ("origins", "https://example.org", TypeError),
        ("origins", [b"https://example.org"], TypeError),
        ("origins", ["example.org"], ValueError),
        ("origins", ["https://example.org/"], ValueError),
        ("origins", ["*"], ValueError),
        ("subprotocols", "v1", TypeError),
        ("subprotocols", [b"v1"], TypeError),
        ("subprotocols", ["a b"], ValueError),
        ("ping_interval", 0, ValueError),
        ("ping_timeout", "20", TypeError),
        ("close_timeout", None, TypeError),
        ("max_lifetime", -1, ValueError),
        ("stop_code", 1006, ValueError),
        ("stop_code", "1001", TypeError),
    ],
)
def test_wrong_settings_are_refused_by_name(field, value, kind):
    name = {"stop_code": "code"}.get(field, field).removesuffix("s")
    with pytest.raises(kind, match=re.escape(name)):
        WebSocket(**{field: value})


@pytest.mark.parametrize("origins", [None, "same", [], ["null"], ["https://a.example:8443"]])
def test_origins_that_may_be_set(origins):
    WebSocket(origins=origins)


def test_none_turns_deadlines_off():
    WebSocket(ping_interval=None, ping_timeout=None, max_lifetime=None)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((999,), ValueError),
        ((1005,), ValueError),
        ((1000.0,), TypeError),
        ((True,), TypeError),
        ((1000, b"x"), TypeError),
        ((1000, "\xe9" * 62), ValueError),
    ],
)
def test_what_a_close_cannot_say_is_refused(arguments, kind):
    with pytest.raises(kind, match=r"code|reason"):
        Close(*arguments)


def test_a_close_says_code_and_reason():
    close = Close(4001, "\xe9" * 61 + "x")
    assert (close.code, close.reason) == (4001, "\xe9" * 61 + "x")
    assert str(Close(4001, "expired")) == "4001 expired"
    assert str(Close()) == "1000"
