"""What is checked of a handler before anything is opened."""

import functools

import pytest
from support import Echo

import hydrogen
from hydrogen.handler import Callbacks, Handler, WebSocketHandler, callbacks_of

CALLBACKS = [name for name in Callbacks.__dataclass_fields__ if name != "received"]


def given(**members):
    """An instance of a handler class with these members besides `on_data_received`."""
    return type("Mine", (Echo,), members)()


@pytest.mark.clause("H4")
def test_a_class_is_no_handler():
    with pytest.raises(TypeError, match="expected an instance, not the class Echo"):
        callbacks_of(Echo)


@pytest.mark.clause("H4")
@pytest.mark.parametrize(
    "wrong", [None, 7, "handler", object(), print], ids=["None", "int", "str", "object", "function"]
)
def test_something_else_is_no_handler(wrong):
    with pytest.raises(TypeError, match=r"expected a hydrogen\.Handler"):
        callbacks_of(wrong)


@pytest.mark.clause("H4")
def test_on_data_received_is_required():
    with pytest.raises(TypeError, match="Handler has no on_data_received"):
        callbacks_of(Handler())
    with pytest.raises(TypeError, match="Mine has no on_data_received"):
        callbacks_of(type("Mine", (Handler,), {"on_eof": lambda self, socket: None})())


@pytest.mark.clause("H4")
@pytest.mark.parametrize("name", [name for name in vars(Handler) if name.startswith("on_")])
def test_no_callback_may_be_async(name):
    async def callback(self, *args):
        pass

    async def generator(self, *args):
        yield

    for wrong in (callback, generator):
        with pytest.raises(TypeError, match=rf"Mine\.{name} is `async def`"):
            callbacks_of(given(**{name: wrong}))


@pytest.mark.clause("H4")
@pytest.mark.parametrize("name", ["on_data_recieved", "on_connect", "on_timer", "on_"])
def test_an_unknown_name_is_refused_and_the_known_ones_are_told(name):
    with pytest.raises(
        TypeError, match=rf"Mine\.{name} is not a callback; the callbacks are .*on_data_received"
    ):
        callbacks_of(given(**{name: lambda self: None}))


@pytest.mark.clause("H4")
def test_a_callback_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"Mine\.on_eof is not callable"):
        callbacks_of(given(on_eof=None))


def test_callbacks_that_are_not_overridden_are_none():
    callbacks = callbacks_of(Echo())
    assert callbacks.on_data_received is not None
    assert [name for name in CALLBACKS if getattr(callbacks, name)] == ["on_data_received"]
    assert callbacks.received == "on_data_received"


def test_every_callback_that_is_overridden_is_found():
    names = [name for name in vars(Handler) if name.startswith("on_")]
    handler = given(**{name: lambda self, *args: None for name in names})
    callbacks = callbacks_of(handler)
    for name in CALLBACKS:
        assert getattr(callbacks, name) == getattr(handler, name, None)


def test_the_callbacks_of_a_websocket_handler_are_found():
    names = [name for name in vars(WebSocketHandler) if name.startswith("on_")]
    kind = type("Mine", (WebSocketHandler,), {name: lambda self, *args: None for name in names})
    handler = kind()
    callbacks = callbacks_of(handler)
    assert callbacks.on_data_received == handler.on_message
    assert callbacks.received == "on_message"
    assert (callbacks.on_request, callbacks.on_pong) == (handler.on_request, handler.on_pong)
    assert callbacks.on_eof is None


def test_callbacks_may_be_inherited_set_on_the_instance_or_no_functions_at_all():
    class Base(Echo):
        def on_eof(self, socket):
            pass

    class Derived(Base):
        pass

    handler = Derived()
    handler.on_connected = functools.partial(print, "connected")
    callbacks = callbacks_of(handler)
    assert callbacks.on_eof == handler.on_eof
    assert callbacks.on_connected is handler.on_connected


@pytest.mark.clause("H4")
def test_a_server_checks_its_handler_and_its_config_when_it_is_made(engine):
    with pytest.raises(TypeError, match="instance"):
        hydrogen.Server(Echo, engine=engine)
    with pytest.raises(TypeError, match=r"config: expected a hydrogen\.Config"):
        hydrogen.Server(Echo(), {"port": 0}, engine=engine)
