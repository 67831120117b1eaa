"""Endpoints from the DNS: which records say what, and a thread that asks for them again as they grow old.

The records are those of DNS-based service discovery (RFC 6763): PTR records at the domain list the endpoints, and each
has one SRV record (RFC 2782) for its PUB socket and one TXT record for the rest. An answer is no more than a list of
places: whoever forges one can lead readers astray, and cannot say anything, since every message is verified.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedbus.clock import Clock
from fedbus.config.options import DnsOptions, parse_server
from fedbus.errors import ConfigError, ConnectError
from fedbus.transport.endpoint import Address, Endpoint, check_name
from fedbus.trust.curve import is_key

if TYPE_CHECKING:
    import dns.asyncresolver
    import dns.name
    import dns.resolver

log = logging.getLogger(__name__)

REASONS = ("empty", "count", "name", "service", "text", "address", "duplicate", "unanswered", "conflict")
_TEXT_BYTES = 1024  # of all strings of one TXT record
_UDP_BYTES = 1232  # what passes any network unfragmented; more comes over TCP
_QUESTIONS = 16  # under way at the same time
_SAID = 1000  # texts of refusals that are not said again
_SHOWN = 20  # refusals of one answer that are shown one by one
_PORT = re.compile(rb"[0-9]{1,5}")


# --- what records say ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Instance:
    """What the DNS says of one endpoint, unchecked."""

    labels: tuple[bytes, ...]  # its name, without the domain
    services: tuple[tuple[str, int], ...] = ()  # target, port of each SRV record
    texts: tuple[tuple[bytes, ...], ...] = ()  # the strings of each TXT record
    failure: str = ""  # why nobody answered for it


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record counts for nothing; *reason* is one of `REASONS`."""

    reason: str
    text: str
    endpoint: str = ""  # of which endpoint, where the name can be one


@dataclass(slots=True)
class Listing:
    """What is left of an answer after all checks."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)


def listing(instances: Iterable[Instance], domain: str) -> Listing:
    """Return the endpoints that *instances* describe, checked as strictly as a file would be; nothing is raised."""
    found = Listing()
    taken: dict[str, str] = {}
    seen: set[str] = set()
    for instance in instances:
        shown = ".".join(label.decode("ascii", "backslashreplace") for label in instance.labels)[:255]
        origin = f"{shown}.{domain}"
        name = ""
        try:
            name = _name(instance.labels)
            if name in seen:
                raise _Unusable("duplicate", f"endpoint {name!r} is listed twice; remove one")
            seen.add(name)
            endpoint = _endpoint(name, instance, origin)
            for address in (endpoint.publish, endpoint.replay):
                if address in taken:
                    raise _Unusable("address", f"{address} is in use already, by {taken[address]}; choose another port")
            taken.update(dict.fromkeys((endpoint.publish, endpoint.replay), name))
            found.endpoints[name] = endpoint
        except _Unusable as error:
            text = f"DNS: {ascii(origin)[1:-1]}: {error}"
            found.refused.append(Refusal(error.reason, text, name))
    return found


class _Unusable(Exception):
    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def _name(labels: tuple[bytes, ...]) -> str:
    """Join what may be one label with dots in it or several; both are in use for service discovery."""
    try:
        name = b".".join(labels).decode("ascii").lower()
        check_name(name)
    except (UnicodeDecodeError, ConfigError) as error:
        raise _Unusable("name", f"no name of an endpoint: {error}") from None
    return name


def _endpoint(name: str, instance: Instance, origin: str) -> Endpoint:
    if instance.failure:
        raise _Unusable("unanswered", instance.failure)
    if len(instance.services) != 1:
        count = len(instance.services) or "no"
        raise _Unusable("service", f"{count} SRV records, where one says where the endpoint publishes")
    target, port = instance.services[0]
    text = _attributes(instance.texts)
    replay = text.get(b"replay", b"")
    if not _PORT.fullmatch(replay):
        raise _Unusable("text", "its TXT record lacks replay=PORT, the port of its replay socket on the same host")
    if target in ("", "."):
        raise _Unusable("service", "the target of its SRV record is the root, which says that there is no such service")
    try:
        addresses = [str(Address.parse(_address(target, number))) for number in (port, int(replay))]
    except ConfigError as error:
        raise _Unusable("address", str(error)) from None
    if addresses[0] == addresses[1]:
        raise _Unusable("address", f"{addresses[0]} is its PUB socket and its replay socket; choose another port")
    key = text.get(b"curve", b"").decode("ascii", "replace")
    if b"curve" in text and not is_key(key):
        raise _Unusable("text", "curve= in its TXT record is not the public key of a CURVE pair")
    return Endpoint(name=name, publish=addresses[0], replay=addresses[1], origin=f"DNS: {origin}", curve=key)


def _address(target: str, port: int) -> str:
    return f"tcp://{target.removesuffix('.')}:{port}"


def _attributes(texts: tuple[tuple[bytes, ...], ...]) -> dict[bytes, bytes]:
    """Return KEY=VALUE pairs by lower case key; unknown ones are for other releases (RFC 6763, section 6)."""
    if len(texts) != 1:
        raise _Unusable("text", f"{len(texts) or 'no'} TXT records, where one holds replay=PORT")
    if sum(map(len, texts[0])) > _TEXT_BYTES:
        raise _Unusable("text", f"its TXT record has more than {_TEXT_BYTES} bytes")
    found: dict[bytes, bytes] = {}
    for text in texts[0]:
        key, _, value = text.partition(b"=")
        if key.lower() in found:
            raise _Unusable("text", f"its TXT record says {ascii(key[:64])[1:]} twice")
        found[key.lower()] = value
    return found


# --- asking ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What one look-up has brought, unchecked; *ttl*: seconds for which the shortest-lived record is good."""

    instances: tuple[Instance, ...]
    ttl: float


class NoList(Exception):
    """There was an answer, and no list in it that could be used; *reason* is one of `REASONS`."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def need_dnspython(origin: str = "") -> None:
    """Return when the library is here.

    Raises:
        ConfigError: It is not; the text names the extra.
    """
    try:
        import dns.asyncresolver  # noqa: F401
    except ImportError as error:
        where = f"{origin}: " if origin else ""
        raise ConfigError(
            f"{where}discovery.dns needs the Python package dnspython, which is not installed ({error}); install "
            "fedbus[dns], or remove the section"
        ) from error


async def look_up(options: DnsOptions) -> Answer:
    """Ask for the records of all endpoints below the domain.

    Raises:
        ConnectError: Nobody answered in time, or only with an error.
        NoList: The answer is empty or too large.
    """
    import dns.exception

    try:
        async with asyncio.timeout(options.timeout):
            return await _look_up(options)
    except TimeoutError:
        raise ConnectError(f"no whole answer within {options.timeout:g} s") from None
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise ConnectError(_reason(error)) from error


async def _look_up(options: DnsOptions) -> Answer:
    import dns.name

    domain = dns.name.from_text(options.domain)
    resolver = _resolver(options)
    listed = await _ask(resolver, domain, "PTR")
    if listed is None or listed.rrset is None:
        raise NoList("empty", f"there is no PTR record at {options.domain}, so no endpoint is listed")
    if len(listed.rrset) > options.endpoints:
        raise NoList(
            "count", f"{len(listed.rrset)} endpoints are listed at {options.domain}; {options.endpoints} at most"
        )
    gate = asyncio.Semaphore(_QUESTIONS)
    targets = sorted({record.target for record in listed.rrset})
    parts = await asyncio.gather(*(_instance(resolver, gate, target, domain) for target in targets))
    ttl = min([_ttl(listed), *(one for _, one in parts)])
    instances = tuple(instance for instance, _ in parts)
    if all(instance.failure for instance in instances):
        raise ConnectError(instances[0].failure)
    return Answer(instances, ttl)


async def _instance(
    resolver: dns.asyncresolver.Resolver, gate: asyncio.Semaphore, name: dns.name.Name, domain: dns.name.Name
) -> tuple[Instance, float]:
    import dns.exception

    if not name.is_subdomain(domain) or name == domain:
        # nothing outside is asked for: whoever may write here must not make us ask anywhere; the name will be refused
        return Instance((name.to_text().encode("ascii", "replace"),)), float("inf")
    labels = name.relativize(domain).labels
    try:
        async with gate:
            service = await _ask(resolver, name, "SRV")
        async with gate:
            text = await _ask(resolver, name, "TXT")
    except (dns.exception.DNSException, OSError) as error:
        return Instance(labels, failure=_reason(error)), float("inf")
    services = tuple((str(one.target), int(one.port)) for one in _records(service))
    texts = tuple(tuple(bytes(part) for part in one.strings) for one in _records(text))
    return Instance(labels, services, texts), min(_ttl(service), _ttl(text))


def _resolver(options: DnsOptions) -> dns.asyncresolver.Resolver:
    import dns.asyncresolver
    import dns.nameserver

    # made anew each time, so the system's choice of servers may change under a running program
    resolver = dns.asyncresolver.Resolver(configure=not options.servers)
    if options.servers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(*parse_server(one)) for one in options.servers]
    resolver.lifetime = options.timeout
    resolver.timeout = min(2.0, options.timeout / 2)  # then the next server, or the same once more
    resolver.use_edns(0, 0, _UDP_BYTES)
    return resolver


async def _ask(resolver: dns.asyncresolver.Resolver, name: dns.name.Name, kind: str) -> dns.resolver.Answer | None:
    import dns.resolver

    try:
        return await resolver.resolve(name, kind, search=False, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return None


def _records(answer: dns.resolver.Answer | None) -> list[Any]:
    return [] if answer is None or answer.rrset is None else list(answer.rrset)


def _ttl(answer: dns.resolver.Answer | None) -> float:
    return float("inf") if answer is None else float(answer.chaining_result.minimum_ttl)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text[:300] or type(error).__name__}"


# --- again and again -------------------------------------------------------------------------------------------


class DnsDiscovery:
    """Keeps the list of endpoints of one domain, in a thread of its own; all that is public may be read from any.

    A look-up that fails leaves the last known list as it is, and so does an answer that lists nothing; an entry that
    cannot be used leaves the last one of that endpoint.
    """

    def __init__(self, options: DnsOptions, *, clock: Clock, known: Mapping[str, Endpoint] | None = None) -> None:
        """Prepare to ask; *known* is the list that counts until there is an answer."""
        self.options = options
        self.endpoints: Mapping[str, Endpoint] = known or {}
        self.version = 0  # grows with every list that differs from the one before it
        self.failure = ""  # why the last look-up brought no list
        self.answers = 0
        self.failures = 0
        self.refused: Counter[str] = Counter()  # by reason
        self.refusals: tuple[Refusal, ...] = ()  # of the last answer
        self.answered_at: float | None = None  # monotonic time of the last list
        self.began_at = clock.monotonic()
        self._clock = clock
        self._first = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._stopping = False
        self._row = 0  # failures since the last list
        self._said: set[str] = set()

    def start(self) -> None:
        """Begin to ask; calling it again does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="fedbus-dns", daemon=True)
            self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Return True as soon as the first look-up has ended in a list or a failure, False after *seconds*."""
        return self._first.wait(seconds)

    def stop(self) -> None:
        """Ask the thread to end; any thread may call this."""
        self._stopping = True
        loop, ended = self._loop, self._ended
        if loop is not None and ended is not None:
            try:
                loop.call_soon_threadsafe(ended.set)
            except RuntimeError:
                pass  # it has ended already

    def _work(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        while not self._stopping:
            work = asyncio.ensure_future(self._once())
            ended = asyncio.ensure_future(self._ended.wait())
            await asyncio.wait((work, ended), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                return
            ended.cancel()
            self._first.set()
            try:
                await asyncio.wait_for(self._ended.wait(), work.result())
            except TimeoutError:
                pass

    async def _once(self) -> float:
        """Look up once; return after how many seconds to do so again."""
        options = self.options
        try:
            answer = await look_up(options)
        except NoList as error:
            self._refuse([Refusal(error.reason, f"DNS: {error}")])
            return self._failed(str(error))
        except Exception as error:  # what comes from outside must not end the thread
            return self._failed(_reason(error))
        self._take(answer)
        # all hosts have the same TTL; they need not all ask in the same second
        return min(options.max_interval, max(options.min_interval, answer.ttl)) * random.uniform(1.0, 1.1)

    def _failed(self, text: str) -> float:
        options = self.options
        self.failures += 1
        self.failure = text
        self._row += 1
        if self._row == 1:
            log.warning(
                "DNS: the endpoints below %s cannot be looked up: %s; the last known list, of %d, stays in force",
                options.domain,
                text,
                len(self.endpoints),
            )
        pause = min(options.max_interval, options.min_interval * 2.0 ** min(self._row - 1, 10))
        return pause * random.uniform(0.9, 1.1)

    def _take(self, answer: Answer) -> None:
        found = listing(answer.instances, self.options.domain)
        kept = {one.endpoint for one in found.refused} & self.endpoints.keys() - found.endpoints.keys()
        endpoints = {**found.endpoints, **{name: self.endpoints[name] for name in kept}}
        self._refuse(found.refused)
        if self._row:
            log.info("DNS: the endpoints below %s are listed again", self.options.domain)
        self._row, self.failure = 0, ""
        self.answers += 1
        self.answered_at = self._clock.monotonic()
        if endpoints != self.endpoints:
            self.endpoints = endpoints
            self.version += 1

    def _refuse(self, refused: list[Refusal]) -> None:
        self.refusals = tuple(refused)
        self.refused.update(one.reason for one in refused)
        news = [one for one in refused if one.text not in self._said]
        for one in news[:_SHOWN]:
            log.warning("refused: %s%s", one.text, "; its last entry stays in force" if self._keeps(one) else "")
        if len(news) > _SHOWN:
            log.warning("refused: DNS: %d more records below %s", len(news) - _SHOWN, self.options.domain)
        # what is mended and breaks again is said again
        self._said = {one.text for one in refused[:_SAID]}

    def _keeps(self, refusal: Refusal) -> bool:
        return refusal.endpoint in self.endpoints
