from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbus.errors import BindError, ConfigError
from fedbus.transport.endpoint import Address, Endpoint, bind_address, check_name


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("tcp://127.0.0.1:3000", "tcp://127.0.0.1:3000"),
        ("tcp://Build01.Example.ORG:1", "tcp://build01.example.org:1"),
        ("tcp://[::1]:65535", "tcp://[::1]:65535"),
        ("tcp://[2001:DB8:0::1]:3000", "tcp://[2001:db8::1]:3000"),
        ("tcp://host:0080", "tcp://host:80"),
        ("ipc:///run/fedbus/koji.sock", "ipc:///run/fedbus/koji.sock"),
        ("ipc://run/koji.sock", "ipc:///etc/fedbus.d/run/koji.sock"),
    ],
)
def test_an_address_has_one_form_however_it_was_written(text, canonical):
    address = Address.parse(text, Path("/etc/fedbus.d"))
    assert str(address) == canonical
    assert Address.parse(canonical) == address


@pytest.mark.badinput("B47")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "neither tcp://"),
        ("udp://h:1", "neither tcp://"),
        ("127.0.0.1:3000", "neither tcp://"),
        ("tcp://host", "no port"),
        ("tcp://host:", "no port"),
        ("tcp://host:http", "no port"),
        ("tcp://host:0", "between 1 and 65535"),
        ("tcp://host:65536", "between 1 and 65535"),
        ("tcp://*:3000", "no host that others could connect to"),
        ("tcp://0.0.0.0:3000", "no host that others could connect to"),
        ("tcp://[::]:3000", "no host that others could connect to"),
        ("tcp://[0:0::0]:3000", "no host that others could connect to"),
        ("tcp://::1:3000", "in brackets"),
        ("tcp://[::g]:3000", "not an IPv6 address"),
        ("tcp://1.2.3.256:3000", "not an IPv4 address"),
        ("tcp://a b:3000", "not a host name"),
        ("tcp://eth0;h:3000", "not a host name"),
        ("tcp://:3000", "not a host name"),
        ("ipc://", "names no path"),
        ("ipc://@abstract", "names no path"),
        ("ipc:///a\nb", "names no path"),
        ("ipc://relative", "three slashes"),
        ("ipc:///" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_what_to_write(text, words):
    with pytest.raises(ConfigError) as caught:
        Address.parse(text)
    assert words in str(caught.value)


@given(
    st.one_of(st.text(), st.text().map("tcp://{}:1".format), st.text("[]:.0123456789abcx*%-").map("tcp://{}".format))
)
def test_any_text_is_an_address_with_one_form_or_a_config_error(text):
    try:
        address = Address.parse(text)
    except ConfigError:
        return
    assert Address.parse(str(address)) == address


def test_a_name_is_resolved_for_binding_since_zeromq_does_not():
    assert bind_address("tcp://localhost:3000", endpoint="a.b") == "tcp://127.0.0.1:3000"
    assert bind_address("tcp://[::1]:3000", endpoint="a.b") == "tcp://[::1]:3000"
    assert bind_address("ipc:///run/x", endpoint="a.b") == "ipc:///run/x"


def test_a_name_that_does_not_resolve_is_a_bind_error_that_names_the_endpoint():
    with pytest.raises(
        BindError, match=r"endpoint 'koji.a': the name 'no-such-host.invalid' does not resolve"
    ) as caught:
        bind_address("tcp://no-such-host.invalid:3000", endpoint="koji.a")
    assert (caught.value.endpoint, caught.value.address) == ("koji.a", "tcp://no-such-host.invalid:3000")


def test_the_service_is_the_first_field_of_the_name():
    endpoint = Endpoint(name="koji.build01.example", publish="", replay="")
    assert (endpoint.service, endpoint.host) == ("koji", "build01.example")


@pytest.mark.parametrize("name", ["koji.build01", "a.b.c-d_e", "0.1", "archive"])
def test_a_good_name_passes(name):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("", "fields joined by dots"),
        ("ca", "another file among the keys"),
        ("link", "another file among the keys"),
        ("Koji.Build", "koji.build"),
        ("koji..a", "fields joined by dots"),
        ("koji.a\n", "fields joined by dots"),
        ("../x", "fields joined by dots"),
        ("kо.ji", "fields joined by dots"),  # noqa: RUF001 - the o is Cyrillic
        ("a." + "b" * 64, "64 at most"),
    ],
)
def test_a_bad_name_is_refused_with_a_hint(name, hint):
    with pytest.raises(ConfigError) as caught:
        check_name(name)
    assert hint in str(caught.value)
