"""What records of the DNS say of endpoints, and what is refused of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.config.discovery_dns import REASONS, Instance, listing
from fedbus.config.options import DiscoveryOptions, DnsOptions, parse_server
from fedbus.config.settings import Settings, schema
from fedbus.errors import ConfigError
from fedbus.transport.endpoint import Address, check_name
from fedbus.trust.curve import make

DOMAIN = "_fedbus._tcp.example.org"
SERVICE = (("build01.example.org.", 3000),)
TEXT = ((b"replay=3001",),)


def one(labels: tuple[bytes, ...] = (b"koji", b"build01"), services=SERVICE, texts=TEXT) -> Instance:
    return Instance(labels, services, texts)


@pytest.mark.parametrize("labels", [(b"koji", b"build01"), (b"koji.build01",), (b"KOJI", b"Build01")])
def test_an_entry_is_an_endpoint(labels):
    found = listing([one(labels)], DOMAIN)
    assert found.refused == []
    endpoint = found.endpoints["koji.build01"]
    assert endpoint.publish == "tcp://build01.example.org:3000"
    assert endpoint.replay == "tcp://build01.example.org:3001"
    assert endpoint.curve == ""
    assert endpoint.certificate is endpoint.key is None
    assert endpoint.origin.startswith("DNS: ")


def test_a_curve_key_is_taken_along_and_unknown_keys_are_left_for_later_releases():
    public = make().public
    found = listing([one(texts=((b"txtvers=1", b"Replay=3001", b"curve=" + public.encode(), b"new", b"x=y"),))], DOMAIN)
    assert found.endpoints["koji.build01"].curve == public


@pytest.mark.parametrize(
    ("instance", "reason", "says"),
    [
        (one((b"*", b"build01")), "name", "SERVICE.HOST"),
        (one((b"*",)), "name", "SERVICE.HOST"),
        (one((b"ca",)), "name", "among the keys"),
        (one((b"koji", b"\xff\x00")), "name", "no name of an endpoint"),
        (one((b"koji", b"x" * 63)), "name", "64 at most"),
        (one((b"koji.build01.example.net.",)), "name", "SERVICE.HOST"),
        (one(services=()), "service", "no SRV records"),
        (one(services=(*SERVICE, ("web01.example.org.", 3000))), "service", "2 SRV records"),
        (one(services=((".", 3000),)), "service", "root"),
        (one(services=(("*.example.org.", 3000),)), "address", "host name"),
        (one(services=(("*", 3000),)), "address", "no host that others"),
        (one(services=(("0.0.0.0.", 3000),)), "address", "no host that others"),
        (one(services=(("127.0.0.1.2.", 3000),)), "address", "IPv4"),
        (one(services=((r"a\010b.example.org.", 3000),)), "address", "host name"),
        (one(services=(("x" * 64 + ".example.org.", 3000),)), "address", "host name"),
        (one(services=(("build01.example.org.", 0),)), "address", "between 1 and 65535"),
        (one(services=(("build01.example.org.", 3001),)), "address", "PUB socket and its replay socket"),
        (one(texts=()), "text", "no TXT records"),
        (one(texts=(*TEXT, (b"replay=3002",))), "text", "2 TXT records"),
        (one(texts=((b"",),)), "text", "lacks replay"),
        (one(texts=((b"replay=3001", b"REPLAY=3002"),)), "text", "twice"),
        (one(texts=((b"replay=http",),)), "text", "lacks replay"),
        (one(texts=((b"replay=0",),)), "address", "between 1 and 65535"),
        (one(texts=((b"replay=99999",),)), "address", "between 1 and 65535"),
        (one(texts=((b"replay=3001", b"x" * 1020),)), "text", "more than 1024 bytes"),
        (one(texts=((b"replay=3001", b"curve=short"),)), "text", "CURVE"),
        (Instance((b"koji", b"build01"), failure="no answer"), "unanswered", "no answer"),
    ],
)
def test_what_a_file_could_not_say_is_refused_with_its_reason(instance, reason, says):
    found = listing([instance, one((b"bodhi", b"web01"), (("web01.example.org.", 3000),))], DOMAIN)
    assert list(found.endpoints) == ["bodhi.web01"], "the others are taken up"
    (refusal,) = found.refused
    assert refusal.reason == reason
    assert says in refusal.text
    assert refusal.text.isprintable()


def test_one_name_or_address_is_taken_once():
    found = listing([one(), one(), one((b"bodhi", b"web01"))], DOMAIN)
    assert list(found.endpoints) == ["koji.build01"]
    assert [refusal.reason for refusal in found.refused] == ["duplicate", "address"]


def labels() -> st.SearchStrategy[tuple[bytes, ...]]:
    label = st.one_of(st.sampled_from([b"koji", b"build01", b"*", b"a.b"]), st.binary(min_size=1, max_size=63))
    return st.lists(label, min_size=1, max_size=4).map(tuple)


def instances() -> st.SearchStrategy[Instance]:
    target = st.one_of(st.sampled_from(["build01.example.org.", "localhost.", ".", "", "*", "[::]", "::1"]), st.text())
    service = st.tuples(target, st.integers(0, 65535))
    string = st.one_of(st.sampled_from([b"replay=3001", b"replay=1", b"curve="]), st.binary(max_size=255))
    text = st.lists(string, max_size=4).map(tuple)
    return st.builds(
        Instance,
        labels(),
        st.lists(service, max_size=2).map(tuple),
        st.lists(text, max_size=2).map(tuple),
        st.sampled_from(["", "", "no answer"]),
    )


@given(st.lists(instances(), max_size=6))
def test_whatever_records_hold_each_is_an_endpoint_that_a_file_could_name_or_refused(entries):
    found = listing(entries, DOMAIN)
    assert len(found.endpoints) + len(found.refused) == len(entries)
    addresses = [address for one in found.endpoints.values() for address in (one.publish, one.replay)]
    assert len(set(addresses)) == len(addresses)
    for name, endpoint in found.endpoints.items():
        check_name(name)
        assert all(str(Address.parse(text)) == text for text in (endpoint.publish, endpoint.replay))
    for refusal in found.refused:
        assert refusal.reason in REASONS
        assert refusal.text.isprintable()


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("192.0.2.53:5353", ("192.0.2.53", 5353)),
        ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
        ("2001:db8::53", ("2001:db8::53", 53)),
    ],
)
def test_a_server_is_an_address_with_or_without_a_port(text, server):
    assert parse_server(text) == server


@pytest.mark.parametrize("text", ["", "ns1.example.org", "192.0.2", "192.0.2.5:0", "192.0.2.5:65536", "[::1", "::1]:5"])
def test_what_is_no_address_is_no_server(text):
    with pytest.raises(ValueError, match="is no DNS server"):
        DnsOptions(domain=DOMAIN, servers=(text,))


@pytest.mark.parametrize("wrong", [{"timeout": 0.0}, {"timeout": 61.0}, {"min_interval": 0.0}, {"max_interval": 1.0}])
def test_times_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        DnsOptions(domain=DOMAIN, **wrong)


def test_every_option_can_be_set_and_nothing_else():
    discovery = schema()["properties"]["discovery"]["properties"]
    assert set(discovery) == {field.name for field in dataclasses.fields(DiscoveryOptions)}
    assert set(discovery["dns"]["properties"]) == {field.name for field in dataclasses.fields(DnsOptions)}


def load(folder: Path, text: str) -> Settings:
    """Return the settings of a folder with one file more."""
    (folder / "50-more.yaml").write_text(text)
    (folder / "50-more.yaml").chmod(0o600)
    return Settings.load(folder, {})


def test_the_section_is_read_with_its_units(bus_folder):
    settings = load(
        bus_folder,
        "discovery:\n  look_interval: 500ms\n  dns: {domain: _fedbus._tcp.example.org, servers: ['192.0.2.53:5353'], "
        "timeout: 2s, min_interval: 1m, max_interval: 1h, endpoints: 5}\n",
    )
    assert settings.discovery == DiscoveryOptions(
        look_interval=0.5,
        dns=DnsOptions(
            domain=DOMAIN,
            servers=("192.0.2.53:5353",),
            timeout=2.0,
            min_interval=60.0,
            max_interval=3600.0,
            endpoints=5,
        ),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("discovery: {dns: {}}", "lacks the key 'domain'"),
        ("discovery: {dns: {domain: '*.example.org'}}", "discovery.dns.domain must be a domain"),
        ("discovery: {dns: {domain: example}}", "discovery.dns.domain must be a domain"),
        ("discovery: {dns: {domain: a.b, servers: [ns1.example.org]}}", "is no DNS server"),
        ("discovery: {dns: {domain: a.b, min_interval: 1h}}", "at most max_interval"),
        ("discovery: {dns: {domain: a.b, domains: c.d}}", "unknown key 'discovery.dns.domains'; did you mean"),
        ("discovery: {dns: [a.b]}", "discovery.dns must be a mapping"),
    ],
)
def test_a_section_that_cannot_be_used_is_refused_with_its_line(bus_folder, text, says):
    with pytest.raises(ConfigError) as caught:
        load(bus_folder, text)
    assert any("50-more.yaml:1" in one and says in one for one in caught.value.problems), caught.value.problems


def test_with_the_dns_no_endpoint_need_stand_in_a_file_and_without_it_one_must(bus_folder):
    (bus_folder / "20-endpoints.yaml").unlink()
    assert load(bus_folder, "discovery: {dns: {domain: _fedbus._tcp.example.org}}").endpoints == {}
    with pytest.raises(ConfigError, match=r"neither endpoints nor discovery\.dns"):
        load(bus_folder, "discovery: {look_interval: 1s}")
    with pytest.raises(ConfigError, match="lacks the key 'endpoints'"):
        load(bus_folder, "log: {level: info}")


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    import sys

    from fedbus.config.discovery_dns import need_dnspython

    monkeypatch.setitem(sys.modules, "dns.asyncresolver", None)
    with pytest.raises(ConfigError, match=r"10-bus\.yaml:3: discovery\.dns needs .* install fedbus\[dns\]"):
        need_dnspython("10-bus.yaml:3")
