"""Config is checked when it is made; what it says names the field, the value and what is
allowed.
"""

import dataclasses
import ipaddress
import os
import resource
import socket
import ssl
from pathlib import Path

import pytest

import hydrogen
from hydrogen.config import MAX_SECONDS, MAX_SLOTS, Options, default_max_connections

REFUSED = [
    ("addr", 7, TypeError, "str"),
    ("addr", None, TypeError, "str"),
    ("addr", b"127.0.0.1", TypeError, "str"),
    ("addr", {"127.0.0.1"}, TypeError, "str"),
    ("addr", ["127.0.0.1", 7], TypeError, "str"),
    ("addr", ["127.0.0.1", ["::1"]], TypeError, "str"),
    ("addr", (), ValueError, "one address or several"),
    ("addr", ["::1", "127.0.0.1", "::1"], ValueError, "different"),
    ("addr", ["127.0.0.1", ""], ValueError, "address"),
    ("addr", "", ValueError, "address"),
    ("addr", "a\0b", ValueError, "address"),
    ("port", -1, ValueError, "0 to 65535"),
    ("port", 65_536, ValueError, "0 to 65535"),
    ("port", "80", TypeError, "int"),
    ("port", True, TypeError, "int"),
    ("port", 80.0, TypeError, "int"),
    ("max_threads", 0, ValueError, "1 to"),
    ("max_threads", -3, ValueError, "1 to"),
    ("max_threads", 1025, ValueError, "to 1024"),
    ("max_threads", None, TypeError, "int"),
    ("pre_allocated", -1, ValueError, "0 to"),
    ("pre_allocated", MAX_SLOTS + 1, ValueError, f"to {MAX_SLOTS}"),
    ("pre_allocated", 1.5, TypeError, "int"),
    ("framing", 7, TypeError, "FrameBuilder"),
    ("framing", "simple", TypeError, "FrameBuilder"),
    ("framing", object, TypeError, "FrameBuilder"),
    ("framing", hydrogen.SimpleFrame(b""), TypeError, "FrameBuilder"),
    ("framing", [hydrogen.LineFrameBuilder], TypeError, "FrameBuilder"),
    ("ssl", 7, TypeError, "ssl.SSLContext"),
    ("ssl", True, TypeError, "ssl.SSLContext"),
    ("ssl", "cert.pem", TypeError, "ssl.SSLContext"),
    ("ssl", ssl.SSLContext, TypeError, "ssl.SSLContext"),
    ("path", 7, TypeError, "str"),
    ("path", b"/tmp/x", TypeError, "str"),
    ("path", "", ValueError, "1 to 107 bytes"),
    ("path", "x" * 108, ValueError, "1 to 107 bytes"),
    ("path", "\N{EURO SIGN}" * 36, ValueError, "1 to 107 bytes"),
    ("path", "a\0b", ValueError, "NUL"),
    ("path_mode", "rw", TypeError, "int"),
    ("path_mode", True, TypeError, "int"),
    ("path_mode", -1, ValueError, "0 to 511"),
    ("path_mode", 0o1000, ValueError, "0 to 511"),
    ("sock", 7, TypeError, "socket"),
    ("sock", [7], TypeError, "socket"),
    ("sock", ["127.0.0.1"], TypeError, "socket"),
    ("max_connections", 0, ValueError, "1 to"),
    ("max_connections", MAX_SLOTS + 1, ValueError, f"to {MAX_SLOTS}"),
    ("max_connections", "many", TypeError, "int"),
    ("max_connections", True, TypeError, "int"),
    ("max_connections", 1.5, TypeError, "int"),
    ("max_connections_per_ip", 0, ValueError, "1 to"),
    ("max_connections_per_ip", -1, ValueError, "1 to"),
    ("max_connections_per_ip", "1", TypeError, "int"),
    ("overload", "reject", ValueError, "'pause' or 'close'"),
    ("overload", None, ValueError, "'pause' or 'close'"),
    ("overload", True, ValueError, "'pause' or 'close'"),
    ("proxy_protocol", "v3", ValueError, "'off', 'v1', 'v2' or 'auto'"),
    ("proxy_protocol", True, ValueError, "'off', 'v1', 'v2' or 'auto'"),
    ("proxy_protocol", None, ValueError, "'off', 'v1', 'v2' or 'auto'"),
    ("backlog", 0, ValueError, "1 to"),
    ("backlog", "many", TypeError, "int"),
    ("reuse_port", 1, TypeError, "True or False"),
    ("nodelay", None, TypeError, "True or False"),
    ("keepalive", 60, TypeError, "three"),
    ("keepalive", (60, 10), TypeError, "three"),
    ("keepalive", (0, 10, 6), ValueError, "1 to 32767"),
    ("keepalive", (60, 40_000, 6), ValueError, "1 to 32767"),
    ("keepalive", (60, 10, 128), ValueError, "1 to 127"),
    ("keepalive", (60, "10", 6), TypeError, "int"),
    ("socket_options", 7, TypeError, "sequence"),
    ("socket_options", [(1, 2)], TypeError, "three"),
    ("socket_options", [("1", 2, 3)], TypeError, "int"),
    ("socket_options", [(1, -2, 3)], ValueError, "0 to"),
    ("socket_options", [(1, 2, 1 << 31)], ValueError, "to 2147483647"),
    ("socket_options", [(1, 2, "x")], TypeError, "int"),
    ("write_buffer_limits", 7, TypeError, "low, high"),
    ("write_buffer_limits", (1, 2, 3), TypeError, "low, high"),
    ("write_buffer_limits", (2, 1), ValueError, "low must not exceed high"),
    ("write_buffer_limits", (0, 1), ValueError, "1 to"),
    ("write_buffer_limits", ("1", 2), TypeError, "int"),
    ("max_write_buffer", 0, ValueError, "1 to"),
    ("max_write_buffer", 1e6, TypeError, "int"),
    ("max_buffered", 0, ValueError, "1 to"),
    ("max_buffered", None, TypeError, "int"),
    ("read_budget", 0, ValueError, "1 to"),
    ("read_budget", (1 << 30) + 1, ValueError, "1 to"),
    *(
        (field, *refused)
        for field in (
            "open_timeout",
            "frame_timeout",
            "idle_timeout",
            "write_timeout",
            "slow_callback",
        )
        for refused in (
            (0, ValueError, "more than 0"),
            (0.0, ValueError, "more than 0"),
            (-1, ValueError, "more than 0"),
            (float("nan"), ValueError, "more than 0"),
            (float("inf"), ValueError, f"at most {MAX_SECONDS} seconds"),
            (MAX_SECONDS + 1, ValueError, f"at most {MAX_SECONDS} seconds"),
            ("10", TypeError, "seconds"),
            (True, TypeError, "seconds"),
            ((10,), TypeError, "seconds"),
        )
    ),
    ("stop_timeout", -0.1, ValueError, "0 or more"),
    ("stop_timeout", float("inf"), ValueError, "0 or more"),
    ("stop_timeout", float("nan"), ValueError, "0 or more"),
    ("stop_timeout", "8", TypeError, "seconds"),
    ("stop_timeout", True, TypeError, "seconds"),
    ("handoff", "lazy", ValueError, "'auto', 'inline' or 'eager'"),
    ("handoff", None, ValueError, "'auto', 'inline' or 'eager'"),
]

ALLOWED = {
    "addr": ["0.0.0.0", "::", "localhost", ("127.0.0.1",), ("0.0.0.0", "::")],
    "port": [0, 1, 65_535],
    "max_threads": [1, 1024],
    "pre_allocated": [0, 100_000, MAX_SLOTS],
    "framing": [
        None,
        hydrogen.SimpleFrameBuilder,
        hydrogen.SimpleFrameBuilder(10),
        hydrogen.Checksum32FrameBuilder,
        hydrogen.LengthFrameBuilder(width=8, byteorder="little"),
        hydrogen.LineFrameBuilder(delimiter=b"\0"),
        hydrogen.WebSocketFrameBuilder(max_size=0),
    ],
    "ssl": [None, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)],
    "path": ["x", "x" * 107],
    "backlog": [1, 65_536],
    "reuse_port": [True, False],
    "nodelay": [True, False],
    "keepalive": [None, (1, 1, 1), (32_767, 32_767, 127)],
    "socket_options": [(), ((1, 9, 1),), ((1, 13, b"\0" * 8),), ((1, 2, -1),)],
    "write_buffer_limits": [(1, 1), (1000, 2000)],
    "max_write_buffer": [1, 1 << 30],
    "max_buffered": [1, 1 << 40],
    "read_budget": [1, 1 << 30],
    "open_timeout": [None, 0.001, 1, MAX_SECONDS],
    "frame_timeout": [None, 0.001, 1, MAX_SECONDS],
    "idle_timeout": [None, 0.001, 1, MAX_SECONDS],
    "write_timeout": [None, 0.001, 1, MAX_SECONDS],
    "slow_callback": [None, 0.001, 1, MAX_SECONDS],
    "max_connections": [None, 1, MAX_SLOTS],
    "max_connections_per_ip": [None, 1, MAX_SLOTS],
    "overload": ["pause", "close"],
    "stop_timeout": [0, 0.5, 3600],
    "handoff": ["auto", "inline", "eager"],
}


@pytest.mark.clause("C2")
@pytest.mark.parametrize(
    ("field", "value", "error", "allowed"), REFUSED, ids=lambda value: repr(value)[:30]
)
def test_f30_a_bad_value_is_refused_by_a_message_that_names_field_value_and_what_is_allowed(
    field, value, error, allowed
):
    with pytest.raises(error) as raised:
        hydrogen.Config(**{field: value})
    message = str(raised.value)
    assert message.startswith(field)
    assert allowed in message
    assert repr(value) in message or any(repr(part) in message for part in _parts(value)), message


def _parts(value):
    """`value`, and what it is made of."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield part
            yield from _parts(part)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in ALLOWED.items() for value in values]
)
def test_a_value_at_the_edge_of_what_is_allowed_is_taken_as_it_is(field, value):
    assert getattr(hydrogen.Config(**{field: value}), field) == value


@pytest.mark.clause("C1")
def test_the_fields_of_the_rust_crate_come_first_and_the_rest_by_keyword():
    config = hydrogen.Config("::1", 80, 4, 100)
    assert (config.addr, config.port, config.max_threads, config.pre_allocated) == (
        "::1",
        80,
        4,
        100,
    )
    with pytest.raises(TypeError):
        hydrogen.Config("::1", 80, 4, 100, None)
    with pytest.raises(TypeError):
        hydrogen.Config(nonsense=1)


@pytest.mark.clause("C1")
def test_the_defaults_are_those_of_the_documentation():
    config = hydrogen.Config()
    assert {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.init
    } == {
        "addr": "127.0.0.1",
        "port": 1337,
        "max_threads": 32,
        "loops": 1,
        "websocket": None,
        "pre_allocated": 1024,
        "framing": None,
        "ssl": None,
        "path": None,
        "path_mode": None,
        "sock": None,
        "backlog": 4096,
        "reuse_port": False,
        "nodelay": True,
        "keepalive": (60, 10, 6),
        "socket_options": (),
        "max_connections": None,
        "max_connections_per_ip": None,
        "overload": "pause",
        "write_buffer_limits": (65_536, 262_144),
        "max_write_buffer": 16 << 20,
        "max_buffered": 512 << 20,
        "read_budget": 256 << 10,
        "open_timeout": 10.0,
        "idle_timeout": None,
        "frame_timeout": 60.0,
        "write_timeout": 60.0,
        "proxy_protocol": "off",
        "proxy_allow_from": (),
        "stop_timeout": 8.0,
        "slow_callback": None,
        "handoff": "auto",
    }


@pytest.mark.clause("C1")
def test_a_config_is_frozen_hashable_and_compares_by_value():
    config = hydrogen.Config(port=80, socket_options=[[1, 9, 1]], write_buffer_limits=[1, 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 81
    same = hydrogen.Config(port=80, socket_options=((1, 9, 1),), write_buffer_limits=(1, 2))
    assert config == same
    assert hash(config) == hash(same)
    assert dataclasses.replace(config, port=81).port == 81


@pytest.mark.clause("C8")
def test_a_builder_class_is_instantiated_and_an_instance_kept():
    builder = hydrogen.SimpleFrameBuilder(10)
    assert hydrogen.Config(framing=builder).builder is builder
    assert hydrogen.Config(framing=hydrogen.SimpleFrameBuilder).builder.max_size == 65_535
    assert hydrogen.Config().builder is None


@pytest.mark.clause("C3")
def test_path_sock_and_addr_exclude_one_another():
    with socket.socket() as sock:
        for together in (
            {"path": "x", "port": 80},
            {"path": "x", "addr": "::1"},
            {"sock": sock, "port": 80},
            {"sock": sock, "addr": "localhost"},
            {"sock": sock, "path": "x"},
            {"sock": sock, "path": "x", "port": 0},
        ):
            with pytest.raises(ValueError, match="addr/port, path, sock"):
                hydrogen.Config(**together)


@pytest.mark.clause("C3", "C29", "C30")
def test_several_sockets_and_several_addresses_exclude_one_another_too():
    with socket.socket() as first, socket.socket() as second:
        for together in (
            {"addr": ["::1", "127.0.0.1"], "path": "x"},
            {"sock": [first, second], "port": 80},
            {"sock": (first,), "path": "x"},
        ):
            with pytest.raises(ValueError, match="addr/port, path, sock"):
                hydrogen.Config(**together)


@pytest.mark.clause("C29", "C30")
def test_several_addresses_and_sockets_are_kept_as_tuples_and_one_as_it_is():
    config = hydrogen.Config(addr=["::1", "127.0.0.1"])
    assert config.addr == config.addresses == ("::1", "127.0.0.1")
    assert hydrogen.Config().addresses == ("127.0.0.1",)
    with socket.socket() as first, socket.socket() as second:
        config = hydrogen.Config(sock=[first, second])
        assert config.sock == config.socks == (first, second)
        assert hydrogen.Config(sock=first).sock is first
        assert hydrogen.Config(sock=first).socks == (first,)
    assert hydrogen.Config().socks == ()
    for none in ([], ()):
        with pytest.raises(ValueError, match="sock: expected one socket or several"):
            hydrogen.Config(sock=none)
        with pytest.raises(ValueError, match="addr: expected one address or several"):
            hydrogen.Config(addr=none)


@pytest.mark.clause("C31")
def test_path_mode_is_allowed_with_path_only():
    for mode in (0, 0o600, 0o777):
        assert hydrogen.Config(path="x", path_mode=mode).path_mode == mode
    with pytest.raises(ValueError, match="path_mode: only allowed with path"):
        hydrogen.Config(path_mode=0o600)
    with pytest.raises(ValueError, match="path_mode: must be 0 to 511"):
        hydrogen.Config(path="x", path_mode=0o1000)


@pytest.mark.clause("C37")
@pytest.mark.parametrize("protocol", ["v1", "v2", "auto"])
def test_who_may_send_a_proxy_header_is_required_with_it_and_not_allowed_without(protocol):
    with pytest.raises(ValueError, match="proxy_allow_from"):
        hydrogen.Config(proxy_protocol=protocol)
    with pytest.raises(ValueError, match="proxy_allow_from"):
        hydrogen.Config(proxy_allow_from=["10.0.0.0/8"])
    assert (
        hydrogen.Config(proxy_protocol=protocol, proxy_allow_from=["10.0.0.0/8"]).proxy_protocol
        == protocol
    )


@pytest.mark.clause("C37")
def test_networks_are_taken_as_text_and_as_networks_and_kept_as_a_tuple():
    networks = (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("2001:db8::/32"),
        ipaddress.ip_network("192.0.2.1/32"),
        "unix",
    )
    as_text = hydrogen.Config(
        proxy_protocol="auto", proxy_allow_from=["10.0.0.0/8", "2001:db8::/32", "192.0.2.1", "unix"]
    )
    as_networks = hydrogen.Config(proxy_protocol="auto", proxy_allow_from=networks)
    assert as_text.proxy_allow_from == as_networks.proxy_allow_from == networks
    assert as_text == as_networks
    assert hash(as_text) == hash(as_networks)


@pytest.mark.clause("C37", "C2")
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (["10.0.0.1/8"], ValueError),
        (["10.0.0.0/33"], ValueError),
        (["example.org"], ValueError),
        ([""], ValueError),
        (["UNIX"], ValueError),
        ("10.0.0.0/8", TypeError),
        ("unix", TypeError),
        (7, TypeError),
        ([7], TypeError),
        ([None], TypeError),
        ([b"\n\0\0\0"], TypeError),
    ],
    ids=repr,
)
def test_what_is_no_network_is_refused_by_a_message_that_names_the_field_and_the_value(
    value, error
):
    with pytest.raises(error) as raised:
        hydrogen.Config(proxy_protocol="auto", proxy_allow_from=value)
    message = str(raised.value)
    assert message.startswith("proxy_allow_from")
    assert repr(value) in message or any(repr(part) in message for part in _parts(value)), message


@pytest.mark.clause("C34")
@pytest.mark.parametrize(
    ("limit", "most"),
    [
        (1, 1),
        (2, 1),
        (64, 32),
        (128, 64),
        (256, 192),
        (1024, 960),
        (1600, 1500),
        (4096, 3840),
        (16_384, 15_360),
        (20_000, 18_976),
        (1 << 20, (1 << 20) - 1024),
        (1 << 30, MAX_SLOTS),
        (resource.RLIM_INFINITY, MAX_SLOTS),
    ],
)
def test_the_default_of_max_connections_leaves_fds_for_the_program(monkeypatch, limit, most):
    monkeypatch.setattr(
        resource,
        "getrlimit",
        lambda what: (limit, limit) if what == resource.RLIMIT_NOFILE else None,
    )
    assert default_max_connections() == most


@pytest.mark.clause("C2")
@pytest.mark.parametrize(
    ("family", "type"),
    [(socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_VSOCK, socket.SOCK_STREAM)],
    ids=["UDP", "vsock"],
)
def test_a_socket_of_another_kind_is_refused(family, type):
    try:
        sock = socket.socket(family, type)
    except OSError:
        pytest.skip("the kernel has none")
    with sock, pytest.raises(ValueError, match="sock: expected a TCP or Unix stream socket"):
        hydrogen.Config(sock=sock)


@pytest.mark.clause("C2", "C22")
def test_a_context_for_the_client_side_is_refused():
    with pytest.raises(ValueError, match=r"^ssl: .*server side.*PROTOCOL_TLS_CLIENT"):
        hydrogen.Config(ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


@pytest.mark.clause("C23")
def test_a_context_is_made_to_refuse_renegotiation_and_is_otherwise_left_alone():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    before = context.options
    assert not before & ssl.OP_NO_RENEGOTIATION
    assert hydrogen.Config(ssl=context).ssl is context
    assert context.options == before | ssl.OP_NO_RENEGOTIATION


@pytest.mark.clause("C8", "F15")
def test_a_builder_of_the_user_s_is_taken_as_class_and_as_instance():
    class Mine(hydrogen.FrameBuilder):
        def from_bytes(self, buf):
            return None

        def frame(self, payload):
            return hydrogen.SimpleFrame(payload)

    builder = Mine()
    assert hydrogen.Config(framing=builder).builder is builder
    assert type(hydrogen.Config(framing=Mine).builder) is Mine


@pytest.mark.clause("C2")
@pytest.mark.parametrize(
    "framing",
    [hydrogen.FrameBuilder, type("Half", (hydrogen.FrameBuilder,), {"frame": None})],
    ids=["abstract", "half"],
)
def test_a_builder_class_that_cannot_be_instantiated_is_a_type_error_that_names_the_field(framing):
    with pytest.raises(TypeError, match=r"^framing: "):
        hydrogen.Config(framing=framing)


SEQUENCES = {
    "addr": ["127.0.0.1", "::1"],
    "keepalive": [60, 10, 6],
    "socket_options": [[1, 9, 1], [1, 13, b"\0" * 8]],
    "write_buffer_limits": [1, 2],
    "proxy_allow_from": ["127.0.0.1", "10.0.0.0/8"],
}


def as_tuple(value):
    """`value` with tuples in the place of lists."""
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("field", SEQUENCES)
def test_a_config_made_of_lists_equals_and_hashes_as_one_of_tuples(field):
    options = {"proxy_protocol": "v1"} if field == "proxy_allow_from" else {}
    of_lists = hydrogen.Config(**{field: SEQUENCES[field]}, **options)
    of_tuples = hydrogen.Config(**{field: as_tuple(SEQUENCES[field])}, **options)
    assert of_lists == of_tuples
    assert hash(of_lists) == hash(of_tuples)
    assert type(getattr(of_lists, field)) is tuple


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in ALLOWED.items() for value in values]
)
def test_every_config_can_be_hashed_and_is_a_key(field, value):
    config = hydrogen.Config(**{field: value})
    assert {config: 1}[hydrogen.Config(**{field: value})] == 1


def test_a_config_with_sockets_can_be_hashed():
    with socket.socket() as first, socket.socket() as second:
        assert hash(hydrogen.Config(sock=[first, second])) == hash(
            hydrogen.Config(sock=(first, second))
        )


def test_a_path_may_be_an_object_and_need_not_be_utf_8():
    assert hydrogen.Config(path=Path("/run/x")).path == "/run/x"
    assert hydrogen.Config(path=Path("/run/x")) == hydrogen.Config(path="/run/x")
    name = os.fsdecode(b"/run/\xff\xfe")
    assert hydrogen.Config(path=name).path == name
    assert hydrogen.Config(path=os.fsdecode(b"\xff" * 107)).path
    with pytest.raises(ValueError, match="1 to 107 bytes"):
        hydrogen.Config(path=os.fsdecode(b"\xff" * 108))

    class OfBytes:
        def __fspath__(self):
            return b"/run/x"

    with pytest.raises(TypeError, match="path: expected a str or a path-like object of str"):
        hydrogen.Config(path=OfBytes())


class Strange:
    """An object that cannot be shown."""

    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(hydrogen.Config) if field.init]
)
def test_of_a_value_that_cannot_be_shown_the_message_names_the_class(field):
    for value in (Strange(), [Strange()]):
        with pytest.raises(
            (TypeError, ValueError), match=f"^{field}.*(__repr__ raises|expected .*, not)"
        ):
            hydrogen.Config(**{field: value}, **({"path": "x"} if field == "path_mode" else {}))


def test_the_options_that_type_checkers_know_are_the_fields():
    """In names, order and types."""
    # As they are written: typing.get_type_hints of CPython 3.10 cannot evaluate a KW_ONLY.
    fields = {field.name: field.type for field in dataclasses.fields(hydrogen.Config) if field.init}
    options = {name: hint.__forward_arg__ for name, hint in Options.__annotations__.items()}
    assert list(options.items()) == list(fields.items())
    assert not Options.__required_keys__
