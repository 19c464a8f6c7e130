"""The collector for prometheus-client: scraped over HTTP, and compared with `Server.stats`."""

import contextlib
import dataclasses
import subprocess
import sys
import urllib.request

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import PATIENCE, ROOT, Echo, wait_until

import hydrogen
from hydrogen.contrib import prometheus
from hydrogen.contrib.prometheus import CAUSES, CODES, COUNTERS, GAUGES, Collector


@contextlib.contextmanager
def served(collector):
    """A registry with the collector behind prometheus-client's own server; the URL."""
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(collector)
    http, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        yield f"http://127.0.0.1:{http.server_port}/metrics"
    finally:
        http.shutdown()
        http.server_close()
        thread.join(PATIENCE)


def scrape(url):
    """(name, labels) -> value, of a page as Prometheus would get it."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    found = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples
    }
    assert len(found) == len(samples), "the same sample twice"
    return found


def expected(stats, *labels):
    """What a page must say of these `Stats`."""
    values = dataclasses.asdict(stats)
    found = {(name, labels): values[field] for field, (name, _) in {**GAUGES, **COUNTERS}.items()}
    for field, cause in CAUSES.items():
        found["hydrogen_connections_removed_total", tuple(sorted([("cause", cause), *labels]))] = (
            values[field]
        )
    return found


def agree(url, server, *labels):
    """The page says what the server says; asked again while it is still busy."""
    wait_until(
        lambda: (
            (stats := server.stats())
            and scrape(url) == expected(stats, *labels)
            and server.stats() == stats
        ),
        "the page agrees",
    )


def test_a_scrape_says_what_stats_says_before_and_after_traffic(start, connect):
    server = start(Echo(), framing=hydrogen.SimpleFrameBuilder)
    with served(Collector(server)) as url:
        agree(url, server)
        assert scrape(url)["hydrogen_connections_accepted_total", ()] == 0
        client, rude = connect(server), connect(server)
        client.echo(b"\x01\x00\x05hello\x17")
        rude.send(b"no frame")
        assert rude.at_end() == "end"
        rude.close()
        wait_until(lambda: server.stats().connections == 1, "the rude one is removed")
        wait_until(lambda: server.stats().bytes_sent == 9, "what went out is counted")
        agree(url, server)
        page = scrape(url)
    assert page["hydrogen_connections_accepted_total", ()] == 2
    assert page["hydrogen_connections", ()] == 1
    assert page["hydrogen_messages_received_total", ()] == 1
    assert page["hydrogen_sent_bytes_total", ()] == 9
    assert page["hydrogen_connections_removed_total", (("cause", "protocol_error"),)] == 1
    assert page["hydrogen_connections_removed_total", (("cause", "idle_timeout"),)] == 0


def test_it_may_be_registered_before_the_start_and_outlives_the_stop(engine):
    server = hydrogen.Server(Echo(), hydrogen.Config(port=0), engine=engine)
    with served(Collector(server)) as url:
        assert scrape(url) == expected(hydrogen.Stats())
        with server, hydrogen.connect(server.address, timeout=PATIENCE) as client:
            client.send(b"hello")
            assert client.recv() == b"hello"
        assert scrape(url) == expected(server.stats())
        assert scrape(url)["hydrogen_messages_sent_total", ()] == 1


def test_several_servers_are_told_apart_by_a_label(start, connect):
    servers = {"inner": start(Echo()), "outer": start(Echo())}
    with served(Collector(servers)) as url:
        connect(servers["outer"]).echo(b"hello")
        wait_until(
            lambda: (
                scrape(url).items()
                >= expected(servers["outer"].stats(), ("server", "outer")).items()
            ),
            "the page agrees",
        )
        page = scrape(url)
    assert page["hydrogen_messages_received_total", (("server", "outer"),)] == 1
    assert page["hydrogen_messages_received_total", (("server", "inner"),)] == 0


def test_every_field_of_stats_is_exported_once():
    exported = [*GAUGES, *COUNTERS, *CODES, *CAUSES]
    assert sorted(exported) == sorted(field.name for field in dataclasses.fields(hydrogen.Stats))


def test_the_names_follow_the_conventions():
    for name, text in COUNTERS.values():
        assert name.startswith("hydrogen_")
        assert name.endswith("_total")
        assert text.endswith(".")
    for field, (name, _) in {**GAUGES, **COUNTERS}.items():
        for unit in ("bytes", "seconds"):
            assert (unit in field) == name.removesuffix("_total").endswith(f"_{unit}"), name


def test_without_prometheus_client_the_import_says_so():
    code = (
        "import sys, hydrogen; sys.modules['prometheus_client'] = None; import "
        "hydrogen.contrib.prometheus"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        check=False,
    )
    assert process.returncode == 1
    assert "prometheus_client" in process.stderr.splitlines()[-1]
    assert process.stderr.splitlines()[-1].startswith(("ImportError", "ModuleNotFoundError"))


def test_a_registry_refuses_the_same_names_twice(engine):
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    server = hydrogen.Server(Echo(), engine=engine)
    registry.register(prometheus.Collector(server))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(prometheus.Collector(server))
