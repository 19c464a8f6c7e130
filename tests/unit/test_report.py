"""`Stats`: the one table of counters, and what engines, Prometheus and the documents take from
it.
"""

import collections
import dataclasses
import re

from support import ROOT

import hydrogen
from hydrogen.__main__ import FRAMINGS
from hydrogen.errors import Cause, Timeout
from hydrogen.framings import BUILT_IN
from hydrogen.perf.framing import FRAMINGS as SHAPES
from hydrogen.report import REMOVALS, removals, removed_by

FIELDS = {field.name: field for field in dataclasses.fields(hydrogen.Stats)}


def test_each_cause_is_counted_by_one_field_of_stats():
    fields = {removed_by(cause) for cause in Cause if cause != Cause.TIMEOUT}
    fields |= {removed_by(Cause.TIMEOUT, timeout) for timeout in Timeout}
    assert fields == set(REMOVALS)


def test_what_an_engine_has_counted_becomes_fields_whose_sum_is_the_same():
    removed = collections.Counter({cause: 10 + cause for cause in Cause if cause != Cause.TIMEOUT})
    timed_out = collections.Counter({timeout: 100 + timeout for timeout in Timeout})
    stats = hydrogen.Stats(**removals(removed, timed_out))
    assert stats.removed == sum(removed.values()) + sum(timed_out.values())
    assert stats.removed_timeout == sum(timed_out.values())
    assert stats.removed_write_timeout == 100 + Timeout.WRITE_TIMEOUT
    assert stats.removed_reject == 10 + Cause.REJECT
    assert stats.removed_tls_error == 20 + Cause.TLS_ERROR + Cause.TRUNCATED
    arrays = [[counts.get(k, 0) for k in range(20)] for counts in (removed, timed_out)]
    assert hydrogen.Stats(**removals(*arrays)) == stats


def test_every_field_says_what_it_counts_in_a_sentence_and_help_shows_it():
    for name, field in FIELDS.items():
        assert field.metadata["help"].endswith("."), name
        assert f"    {name}: {field.metadata['help']}" in hydrogen.Stats.__doc__
        assert (name in REMOVALS) == name.startswith("removed_")


def test_the_table_of_the_statistics_page_has_every_field_of_stats_and_no_other():
    text = (ROOT / "docs" / "reference" / "statistics.md").read_text()
    table = text.partition("| field of `Stats` |")[2].partition("\n\n")[0]
    named = [
        name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert sorted(named) == sorted(FIELDS)


def test_the_command_line_and_the_load_generator_know_all_built_in_framings():
    assert list(FRAMINGS) == ["raw", *BUILT_IN]
    assert list(SHAPES) == [*FRAMINGS, "websocket-text"]
