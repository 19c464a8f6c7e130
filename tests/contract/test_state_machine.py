"""Whole servers under random steps: connects, frames whole and in parts, half-closes, resets,
sends, closes, stops; see `state_machine/`.

hypothesis chooses the steps, from the model alone and never from what happened: a seed stands for
steps, and comes with the same ones each time. How the threads meet in between is the kernel's
choice each time, so a failure may need its seed more than once. The log in a failure's message says
how they met.

HYDROGEN_MACHINE: seconds for which to go on, with a new seed each time (`make machine`);
HYDROGEN_MACHINE_SEED: that seed, again and again.
"""

import contextlib
import itertools
import math
import os
import secrets
import socket
import time

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from state_machine.life import Life, Setup
from state_machine.server import Boom
from state_machine.wires import WIRES
from support import open_fds, threads, wait_until

SECONDS = float(os.environ.get("HYDROGEN_MACHINE") or 0)
SEED = os.environ.get("HYDROGEN_MACHINE_SEED")
# Shrinking is of no use where a failure may not come again, and an example that waits in vain does
# so for long.
SETTINGS = hypothesis.settings(
    max_examples=12,
    stateful_step_count=40,
    deadline=None,
    database=None,
    print_blob=False,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)

SIZES = (0, 10, 1000, 20_000, 60_000)
WORKERS = [
    {"max_threads": threads, "loops": loops}
    for threads, loops in ((1, 1), (2, 1), (8, 1), (2, 2), (8, 3))
]
SETUPS = st.builds(
    Setup,
    wire=st.sampled_from(sorted(WIRES)),
    transport=st.sampled_from(["tcp", "tcp", "unix"]),
    attended=st.booleans(),
    eof=st.sampled_from([None, "close", "leave", "raise", "reply"]),
    options=st.builds(
        dict.__or__,
        st.sampled_from(WORKERS),
        st.fixed_dictionaries(
            {
                "handoff": st.sampled_from(["auto", "inline", "eager"]),
                "write_buffer_limits": st.sampled_from([(65_536, 262_144), (1000, 4000), (1, 1)]),
                "max_write_buffer": st.sampled_from([16 << 20, 300_000]),
                # With little room in the kernel, output is soon pending.
                "socket_options": st.sampled_from(
                    [(), ((socket.SOL_SOCKET, socket.SO_SNDBUF, 4096),)]
                ),
                "read_budget": st.sampled_from([256 << 10, 1000]),
                "pre_allocated": st.sampled_from([0, 16]),
            }
        ),
    ),
)
# Their receive buffers, until they begin to read, and their send buffers.
CLIENTS = st.lists(
    st.tuples(st.sampled_from([None, 4096, 65_536]), st.sampled_from([None, 4096])),
    min_size=1,
    max_size=3,
)
# Where a frame is cut. (Not st.floats: it would look for constants in whatever modules are loaded,
# and a seed stand for other steps then.)
CUTS = st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999, 1.0])
# What ends a connection is rare, or nothing else would come to pass.
ACTIONS = (
    [f"reply {count} {size}" for count in (1, 1, 3, 20) for size in SIZES] * 2
    + ["hold", "pause"] * 3
    + ["close", "abort", "raise"]
)
MESSAGES = st.lists(
    st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3), min_size=1, max_size=5
)
MEDDLING = [(name, size) for name in ("send_foreign", "broadcast") for size in SIZES] * 3 + [
    ("toggle",),
    ("look",),
] * 4
MEDDLING += [("end", "close"), ("end", "abort")]


def of(name):
    """One of those on the machine's list of that name."""
    return st.runner().flatmap(lambda machine: st.sampled_from(getattr(machine, name)))


def there_is(name):
    return precondition(lambda machine: getattr(machine, name))


class Machine(RuleBasedStateMachine):
    """The steps. Its lists, from which they choose, follow from the steps before and from nothing
    else.
    """

    engine = ""
    failures: list[AssertionError]
    life: Life

    @initialize(setup=SETUPS, clients=CLIENTS)
    def start(self, setup, clients):
        self.life = Life(self.engine, setup)
        self.life.connect(clients)

    @property
    def links(self):
        return self.life.links

    @property
    def present(self):
        return [link for link in self.links if link.gone is None]

    @property
    def speaking(self):
        return [link for link in self.links if link.is_speaking]

    @property
    def terse(self):
        """Those that have not said much."""
        return [link for link in self.speaking if len(link.payloads) < 300]

    @property
    def due(self):
        """Those that nothing holds up."""
        is_served = self.life.stopping is None and self.life.has_free_workers
        return [link for link in self.links if is_served and link.is_free]

    @property
    def closed_gates(self):
        return [gate for gate in self.life.gates if not gate.event.is_set()]

    @property
    def has_room(self):
        return self.life.stopping is None and len(self.links) < 12

    @property
    def is_visited(self):
        return self.life.stopping is None and len(self.links) > 3

    @property
    def is_stopping(self):
        return self.life.stopping is not None

    # ------------------------------------------------------------------ clients

    @there_is("has_room")
    @rule(clients=CLIENTS)
    def connect(self, clients):
        self.life.note(f"step: connect({clients})")
        self.life.connect(clients)

    @there_is("speaking")
    @rule(
        link=of("speaking"),
        messages=MESSAGES,
        padding=st.sampled_from([0, 10, 5000, 60_000]),
        cut=st.none() | CUTS,
    )
    def say(self, link, messages, padding, cut):
        messages = [
            [
                f"{action} {self.life.gate(link, action == 'hold').number}"
                if action in ("hold", "pause")
                else action
                for action in actions
            ]
            for actions in messages
        ]
        self.life.note(f"step: {link} says({messages}, {padding}, {cut})")
        link.say(messages, padding, cut)

    @there_is("speaking")
    @rule(link=of("speaking"), action=st.sampled_from(ACTIONS))
    def say_one(self, link, action):
        self.say(link, [[action]], 0, None)

    @there_is("terse")
    @rule(link=of("terse"))
    def say_more_than_a_step_delivers(self, link):
        self.life.note(f"step: {link} says much")
        link.say([["reply 1 0"]] * 300, 0, None)

    @there_is("speaking")
    @rule(link=of("speaking"), cut=CUTS)
    def say_a_part(self, link, cut):
        self.say(link, [["reply 1 10"]], 0, cut)

    @there_is("present")
    @rule(
        link=of("present"),
        how=st.sampled_from(["spoil", "finish", "finish", "leave", "reset"]),
        data=st.data(),
    )
    def end(self, link, how, data):
        """One rule for all of these, for they are not to be more frequent than `say`."""
        arguments = (
            data.draw(st.sampled_from(self.life.wire.spoilt))
            if how == "spoil" and self.life.wire.spoilt
            else ()
        )
        if how in ("leave", "reset") or (link.is_speaking and (arguments or how == "finish")):
            self.life.note(f"step: {link} {how} {arguments!r:.40}")
            getattr(link, how)(*arguments)

    @there_is("terse")
    @rule(link=of("terse"), size=st.sampled_from(SIZES[2:]))
    def go_on_saying_while_it_should_read(self, link, size):
        """Both directions fill up: nobody of the two reads."""
        self.life.note(f"step: {link} goes on with {size}")
        for _ in range(8):
            link.say([[f"reply 3 {size}"]] * 4, size, None)

    @there_is("present")
    @rule(link=of("present"))
    def read_a_little(self, link):
        self.life.note(f"step: {link} reads a little")
        if link.client.sock.fileno() >= 0:
            link.sip_a_little()

    @there_is("present")
    @rule(link=of("present"))
    def read(self, link):
        self.life.note(f"step: {link} reads")
        link.pump()

    # ------------------------------------------------------------------ the server's side

    @there_is("links")
    @rule(link=of("links"), what=st.lists(st.sampled_from(MEDDLING), min_size=1, max_size=4))
    def meddle(self, link, what):
        self.life.note(f"step: meddle with {link}: {what}")
        for name, *arguments in what:
            self.life.meddle(link, name, *arguments)

    @there_is("closed_gates")
    @rule(gate=of("closed_gates"))
    def release(self, gate):
        self.life.note(f"step: release({gate.number})")
        self.life.release(gate)

    @there_is("due")
    @rule(link=of("due"))
    def settle(self, link):
        self.life.note(f"step: settle {link}")
        self.life.settle(link)

    @there_is("is_visited")
    @rule(how=st.sampled_from(["stop", "spread", "hurry", "abort"]))
    def stop(self, how):
        self.life.note(f"step: stop({how})")
        self.life.stop(how)

    @there_is("is_stopping")
    @rule(setup=SETUPS, clients=CLIENTS)
    def start_again(self, setup, clients):
        self.close()
        self.start(setup, clients)

    @invariant()
    def nothing_is_wrong_so_far(self):
        if hasattr(self, "life"):
            self.life.look()

    def close(self):
        try:
            if self.life.failure is None:
                self.life.finish()
        finally:
            self.life.clean_up()
            if self.life.failure is not None:
                self.failures.append(self.life.failure)

    def teardown(self):
        if hasattr(self, "life"):
            self.close()


def run(engine, seed):
    """The examples of one seed, which leave nothing behind."""
    failures = []
    machine = hypothesis.seed(seed)(
        type("Machine", (Machine,), {"engine": engine, "failures": failures})
    )
    fds, tasks = open_fds(), threads()
    try:
        run_state_machine_as_test(machine, settings=SETTINGS)
    except hypothesis.errors.Flaky:
        # the failure did not come again, and that is all that hypothesis says then
        raise (
            failures[0]
            if failures
            else AssertionError(f"the steps of seed {seed} are not always the same")
        ) from None
    wait_until(
        lambda: open_fds() == fds and len(threads()) <= len(tasks), "the fds and threads of before"
    )


@pytest.mark.slow
@pytest.mark.clause(
    "H2",
    "H10",
    "H14",
    "H15",
    "H16",
    "H18",
    "H19",
    "H20",
    "K3",
    "K6",
    "K8",
    "K18",
    "S10",
    "S11",
    "S15",
    "S23",
    "S24",
    "S36",
)
@pytest.mark.timeout(SECONDS + 300 if SECONDS else 120)
def test_whatever_steps_are_taken_each_client_and_each_handler_gets_what_it_must(
    engine, error_log, caplog, capsys
):
    seeds = (
        itertools.repeat(int(SEED))
        if SEED
        else (secrets.randbits(32) for _ in itertools.count())
        if SECONDS
        else range(2)
    )
    until = time.monotonic() + SECONDS if SECONDS else math.inf
    for seed in seeds:
        with capsys.disabled() if SECONDS else contextlib.nullcontext():
            print(f"HYDROGEN_MACHINE_SEED={seed} make machine ARGS=--engine={engine}", flush=True)
        run(engine, seed)
        # without: how many were left out
        assert {record.exc_info[0] for record in error_log() if record.exc_info} <= {Boom}
        caplog.clear()
        if time.monotonic() >= until:
            break


@pytest.mark.slow
def test_a_seed_stands_for_the_same_steps_each_time(engine, error_log, monkeypatch):
    steps, note = [], Life.note

    def listen(life, what):
        if what.startswith("step: "):
            steps.append(what)
        note(life, what)

    monkeypatch.setattr(Life, "note", listen)
    run(engine, 7)
    first = steps.copy()
    steps.clear()
    run(engine, 7)
    assert len(first) > 100
    assert steps == first
