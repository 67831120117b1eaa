"""The merged mapping, checked, to frozen options; every fault is reported, with file and line, before any is used."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedbus.config.files import (
    PROBLEM_LIMIT,
    Document,
    Fingerprint,
    KeyPath,
    Origin,
    Problem,
    dotted,
    find_folder,
    fingerprint,
    load_folder,
)
from fedbus.config.fits import fits
from fedbus.config.options import DiscoveryOptions, DnsOptions
from fedbus.config.units import parse_duration, parse_size
from fedbus.errors import ConfigError, FedbusError
from fedbus.fedmsg.options import ENVIRONMENTS, BridgeOptions, FedmsgOptions
from fedbus.hub.options import Batch, ConsumerSettings, HubOptions
from fedbus.journal.options import JournalOptions, SyncPolicy
from fedbus.model.limits import Limits
from fedbus.model.topic import Naming, TopicFilter
from fedbus.monitor.options import MetricsOptions
from fedbus.schemas.options import SchemaOptions
from fedbus.transport.endpoint import Address, Also, Endpoint, check_name
from fedbus.transport.options import LinkOptions, PublisherOptions, RelayOptions, RelayRule, SubscriberOptions
from fedbus.trust import curve
from fedbus.trust.options import KeyringOptions
from fedbus.trust.policy import Policy, Rule

SOCKET_BYTES = 107  # sun_path of unix(7) holds 108, the last one NUL
ENDPOINT_PATTERN = r"(\*|[a-z0-9][a-z0-9_-]*)(\.(\*|[a-z0-9][a-z0-9_-]*))+"
SCHEMAS = "schemas"  # the folder of schemas below the configuration, where none is named
STATE = Path("/var/lib/fedbus")  # what FHS calls for; `fedbus init` writes a folder of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What the programs log, and how."""

    level: str = "info"
    format: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All options of a bus, from one configuration folder.

    ``values`` is the merged mapping as written, with ``${NAME}`` replaced; ``origins`` says for each dotted key of it
    ``FILE:LINE``; ``variables`` holds, for those keys where one was replaced, the text as it stands in the file.
    """

    directory: Path
    naming: Naming
    environment: str
    state: Path
    keys: Path
    keyring: KeyringOptions
    endpoints: Mapping[str, Endpoint]
    policy: Policy
    journal: JournalOptions
    journals: Mapping[str, JournalOptions]
    publisher: PublisherOptions
    subscriber: SubscriberOptions
    links: LinkOptions
    limits: Limits
    relay: RelayOptions
    fedmsg: FedmsgOptions
    bridge: BridgeOptions
    metrics: MetricsOptions
    hub: HubOptions
    discovery: DiscoveryOptions
    consumers: Mapping[str, ConsumerSettings]
    schemas: SchemaOptions
    texts: Mapping[str, Mapping[str, Any]]
    log: LogSettings
    values: Mapping[str, Any]
    origins: Mapping[str, str]
    variables: Mapping[str, str]

    @classmethod
    def load(cls, directory: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the folder that *directory*, else ``FEDBUS_CONFIG``, else the default names.

        Raises:
            ConfigError: Nothing usable is there; ``problems`` lists every fault as ``FILE:LINE: text``.
        """
        folder = find_folder(directory, environ)
        return from_document(load_folder(folder, environ), folder)

    @property
    def spools(self) -> Path:
        """The folder with a folder for each endpoint, in which messages wait for their publisher."""
        return self.state / "spool"

    @property
    def cursors(self) -> Path:
        """The file in which readers of this host keep their cursors."""
        return self.state / "cursors.db"

    @property
    def dead(self) -> Path:
        """The file in which the hub of this host keeps dead letters, and how often messages were tried."""
        return self.state / "dead.db"

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint *name*.

        Raises:
            ConfigError: There is none of that name.
        """
        if found := self.endpoints.get(name):
            return found
        near = _near(name, self.endpoints)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(self.endpoints))}"
        raise ConfigError(f"{self.directory}: there is no endpoint {name!r}; {hint}")

    def journal_for(self, name: str) -> JournalOptions:
        """Return the journal's options of the endpoint *name*: the general ones under those of the endpoint.

        Raises:
            ConfigError: There is no endpoint of that name.
        """
        return self.journals[self.endpoint(name).name]


class ConfigWatcher:
    """The settings in force, and whether the files have changed since they were read."""

    def __init__(self, directory: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """Load the settings.

        Raises:
            ConfigError: As `Settings.load`.
        """
        self._environ = environ
        self._folder = find_folder(directory, environ)
        self.seen = fingerprint(self._folder)  # as of the last load
        self.settings = Settings.load(self._folder, environ)
        self.seen += self._of_schemas()

    def look(self) -> Fingerprint:
        """Return what :attr:`seen` would be now; stats only, opens nothing."""
        return fingerprint(self._folder) + self._of_schemas()

    def _of_schemas(self) -> Fingerprint:
        """Return the same of the folder of schemas, which are read with the settings by those who use them."""
        folder = self.settings.schemas.folder or self._folder / SCHEMAS
        return fingerprint(folder, (".yaml", ".json"))

    def changed(self) -> bool:
        """Say whether a file was edited, replaced, added or removed since the last load; stats only, opens nothing."""
        return self.look() != self.seen

    def reload(self) -> Settings:
        """Read the files again and return the new settings, which are then in force.

        A refused folder counts as seen: `changed` is false until somebody edits it again. One that could not be read,
        for want of descriptors or memory, does not.

        Raises:
            ConfigError: The new files cannot be used; ``settings`` are still the old ones.
        """
        # taken before reading, so a change while we read is seen as one
        folder = self.settings.schemas.folder
        before, self.seen = self.seen, self.look()
        try:
            self.settings = Settings.load(self._folder, self._environ)
        except OSError as error:
            self.seen = before
            raise ConfigError(f"{self._folder}: cannot be read now: {error.strerror or error}") from error
        if self.settings.schemas.folder != folder:
            self.seen = self.look()
        return self.settings


@functools.cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema that ships with the package."""
    # importlib.resources takes 7 ms to import, and scripts start often
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("schema.json").read_text("utf-8"))
    return loaded


def from_document(document: Document, folder: Path) -> Settings:
    """Return the settings that *document* holds; relative paths are taken below *folder*.

    Raises:
        ConfigError: With the problems of *document* and all that are found here.
    """
    # a section whose lines are all commented out reads as null
    values = {key: value for key, value in document.values.items() if value is not None}
    faulty: set[KeyPath] = set(document.doubtful)
    problems = list(document.problems)
    for path, problem in _schema_problems(values, document):
        problems.append(problem)
        if path is not None:
            faulty.add(path)
    builder = _Builder(document, folder, faulty)
    settings = builder.build(_convert(values, schema(), (), builder))
    problems += builder.problems
    if problems:
        raise ConfigError([str(problem) for problem in sorted(set(problems))])
    return settings


# --- the schema's verdict, in words ----------------------------------------------------------------------------

_KINDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


def _schema_problems(values: dict[str, Any], document: Document) -> Iterator[tuple[KeyPath | None, Problem]]:
    """Yield each fault with the path of the value that cannot be used; None where only something is missing."""
    if fits(values, schema()):
        return
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema())
    told: set[tuple[KeyPath, str]] = set()
    for error in validator.iter_errors(values):
        path: KeyPath = tuple(error.absolute_path)
        if path in document.doubtful:
            continue
        for where, text in _explain(error, path, document):
            if (where, text) not in told:
                told.add((where, text))
                yield None if error.validator == "required" else where, document.origin(where).problem(text)


def _explain(error: Any, path: KeyPath, document: Document) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path, text) for one *error* of the validator."""
    here = dotted(path) or "the configuration"
    rule, wanted, found = error.validator, error.validator_value, error.instance
    if "propertyNames" in error.absolute_schema_path:
        name = str(found)
        text = f"consumer name {name[:64]!r} must be at most 64 of a-z, 0-9, '_' and '-'"
        if "endpoints" in error.absolute_schema_path:
            text = next(iter(_faults(check_name, name)), "")
        elif "routing_policy" in error.absolute_schema_path:
            text = f"fedmsg.routing_policy: {name[:64]!r} is no topic"
        yield (*path, name), text
    elif rule == "additionalProperties":
        unknown = [key for key in found if key not in error.schema["properties"]]
        for key in unknown[:PROBLEM_LIMIT]:
            yield (*path, key), f"unknown key {dotted((*path, key))!r}{_suggestion(key, error.schema, path)}"
    elif rule == "required":
        if document.whole:
            for key in wanted:
                if key not in found:
                    yield path, f"{here} lacks the key {key!r}; add it{_described(error.schema, key)}"
    elif rule == "type":
        kinds = [wanted] if isinstance(wanted, str) else wanted
        expected = error.schema.get("description") or " or ".join(_KINDS[kind] for kind in kinds)
        yield path, f"{here} must be {expected}, not {_shown(found)}"
    elif rule == "enum":
        near = _near(str(found), wanted)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        yield path, f"{here} must be one of {', '.join(wanted)}, not {_shown(found)}{hint}"
    elif rule in ("pattern", "not"):
        yield path, f"{here} must be {error.schema.get('description', wanted)}, not {_shown(found)}"
    elif rule in ("minimum", "exclusiveMinimum"):
        yield path, f"{here} must be {'more than' if rule != 'minimum' else 'at least'} {wanted}, not {_shown(found)}"
    elif rule == "maximum":
        yield path, f"{here} must be at most {wanted}, not {_shown(found)}"
    elif rule in ("minLength", "minItems", "minProperties"):
        yield path, f"{here} is empty; {'remove it' if path else 'fill it'} or write a value"
    elif rule in ("maxLength", "maxItems"):
        yield path, f"{here} is too long: {len(found)}, where {wanted} are allowed"
    else:
        yield path, f"{here}: {error.message[:200]}"


def _suggestion(key: str, part: Mapping[str, Any], path: KeyPath) -> str:
    known = list(part["properties"])
    if near := _near(key, known):
        return f"; did you mean {near[0]!r}?"
    # a key that is right in itself, and stands at the wrong depth
    sections = {name: _resolved(section) for name, section in schema()["properties"].items()}
    owners = [name for name, section in sections.items() if key in section.get("properties", ())]
    if owners and not path:
        return f"; it belongs below {' or '.join(owners)}"
    return f"; known here: {', '.join(known)}"


def _resolved(part: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = part.get("$ref")
    found: Mapping[str, Any] = schema()["$defs"][reference.removeprefix("#/$defs/")] if reference else part
    return found


def _described(part: Mapping[str, Any], key: str) -> str:
    found = part.get("properties", {}).get(key, {})
    text = found.get("description") or (f"one of {', '.join(found['enum'])}" if "enum" in found else "")
    return f" ({text})" if text else ""


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _near(name: str, known: Iterable[str]) -> list[str]:
    import difflib  # only where something is wrong

    return difflib.get_close_matches(name, list(known), n=1)


def _faults(check: Any, *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except (FedbusError, ValueError) as error:
        return [str(error)]
    return []


# --- values ----------------------------------------------------------------------------------------------------


def _convert(value: Any, part: Mapping[str, Any], path: KeyPath, builder: _Builder) -> Any:
    """Return *value* with durations as seconds, sizes as bytes, paths as `Path`; what is faulty is left out."""
    if path in builder.faulty:
        return None
    reference = part.get("$ref")
    if reference in ("#/$defs/duration", "#/$defs/size"):
        parse = parse_duration if reference == "#/$defs/duration" else parse_size
        try:
            return parse(value)
        except ValueError as error:
            builder.refuse(path, f"{dotted(path)}: {error}")
            return None
    if reference == "#/$defs/path":
        return builder.path(path, value)
    part = _resolved(part)
    if isinstance(value, dict) and "properties" not in part and "additionalProperties" not in part:
        return value  # the settings of a consumer, which knows their meaning
    if isinstance(value, dict):
        rest = part.get("additionalProperties") or {}
        converted = {
            key: _convert(inner, part.get("properties", {}).get(key, rest), (*path, key), builder)
            for key, inner in value.items()
        }
        return {key: inner for key, inner in converted.items() if inner is not None}
    if isinstance(value, list):
        return [_convert(inner, part.get("items", {}), (*path, place), builder) for place, inner in enumerate(value)]
    if part.get("type") == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


class _Builder:
    """From converted values to options; collects what the schema cannot say."""

    def __init__(self, document: Document, folder: Path, faulty: set[KeyPath]) -> None:
        self.problems: list[Problem] = []
        self.faulty = faulty
        self._document = document
        self._folder = folder
        self._addresses: dict[str, tuple[str, Origin]] = {}

    def refuse(self, path: KeyPath, text: str) -> None:
        self.problems.append(self._document.origin(path).problem(text))

    def path(self, path: KeyPath, text: str) -> Path | None:
        if any(ord(letter) < 32 for letter in text):
            self.refuse(path, f"{dotted(path)}: a path holds no control characters")
            return None
        return self._folder / text

    def build(self, values: dict[str, Any]) -> Settings:
        def section(name: str) -> dict[str, Any]:
            found = values.get(name)
            return found if isinstance(found, dict) else {}

        environment = str(values.get("environment", "dev"))
        naming = Naming(prefix=str(values.get("topic_prefix", "org.example")), environment=environment)
        state = values.get("state") or STATE
        keys = section("keys")
        key_folder = keys.get("directory") or self._folder / "keys"
        journal = self._options(JournalOptions, "journal", self._journal(section("journal"), state / "journal"))
        endpoints: dict[str, Endpoint] = {}
        journals: dict[str, JournalOptions] = {}
        for name, values_of_one in section("endpoints").items():
            endpoint = self._endpoint(name, values_of_one, key_folder)
            if endpoint is not None:
                endpoints[name] = endpoint
                overlay = self._journal(values_of_one.get("journal") or {}, state / "journal" / name)
                journals[name] = replace(journal, **overlay)
        document = self._document
        return Settings(
            directory=self._folder,
            naming=naming,
            environment=environment,
            state=state,
            keys=key_folder,
            keyring=self._keyring(keys, key_folder, environment),
            endpoints=endpoints,
            policy=Policy(naming, self._rules(values.get("policy") or [], naming)),
            journal=journal,
            journals=journals,
            publisher=self._options(PublisherOptions, "publisher", section("publisher")),
            subscriber=self._options(SubscriberOptions, "subscriber", section("subscriber")),
            links=self._options(LinkOptions, "links", self._links(section("links"))),
            limits=self._options(Limits, "limits", section("limits")),
            relay=self._served(RelayOptions, "relay", self._relay(section("relay"), state, endpoints)),
            fedmsg=self._fedmsg(section("fedmsg"), key_folder, naming),
            bridge=self._bridge(section("bridge"), naming, endpoints),
            metrics=self._served(MetricsOptions, "metrics", section("metrics")),
            hub=self._served(HubOptions, "hub", section("hub")),
            discovery=self._discovery(section("discovery")),
            consumers=dict(self._consumers(section("consumers"), naming)),
            schemas=self._options(SchemaOptions, "schemas", section("schemas")),
            texts={topic: rule for topic, rule in section("texts").items() if isinstance(rule, dict)},
            log=LogSettings(**section("log")),
            values=document.values,
            origins={dotted(path): str(origin) for path, origin in document.origins.items()},
            variables={dotted(path): text for path, text in document.variables.items()},
        )

    def _options(self, kind: Any, name: str, values: dict[str, Any]) -> Any:
        """Fill *kind*, whose own checks may refuse a value too."""
        try:
            return kind(**values)
        except (FedbusError, ValueError) as error:
            self.refuse((name,), f"{name}: {error}")
            required = {key: values[key] for key in ("directory", "socket", "ca", "crl") if key in values}
            return kind(**required)

    def _journal(self, values: dict[str, Any], directory: Path) -> dict[str, Any]:
        options: dict[str, Any] = {**values, "directory": directory}
        if "sync" in options:
            options["sync"] = SyncPolicy(options["sync"]) if options["sync"] in list(SyncPolicy) else SyncPolicy.ALWAYS
        return options

    def _crl(self, section: str, values: dict[str, Any], default: Path, environment: str) -> Path | None:
        """Return the path of a revocation list; false, for none, is for dev alone."""
        chosen = values.get("crl")
        if isinstance(chosen, str):
            return self.path((section, "crl"), chosen)
        if chosen is not False:
            return default
        if environment != "dev":
            self.refuse(
                (section, "crl"),
                f"{section}.crl: revocation can be left unchecked in dev only, not in {environment}; name the list",
            )
        return None

    def _fedmsg(self, values: dict[str, Any], keys: Path, naming: Naming) -> FedmsgOptions:
        policy: dict[str, tuple[str, ...]] = {}
        for topic, signers in (values.get("routing_policy") or {}).items():
            faults = _faults(TopicFilter, topic) if any(letter in topic for letter in "*#") else ()
            for fault in faults:
                self.refuse(("fedmsg", "routing_policy", topic), f"fedmsg.routing_policy: {fault}")
            if not faults and isinstance(signers, list):
                policy[topic] = tuple(signers)
        crl = self._crl("fedmsg", values, keys / "fedmsg-crl.pem", naming.environment)
        options = {
            "topic_prefix": naming.prefix,
            "environment": ENVIRONMENTS.get(naming.environment, naming.environment),
            **values,
            "ca": values.get("ca") or keys / "fedmsg-ca.crt",
            "crl": crl,
            "routing_policy": policy,
        }
        found: FedmsgOptions = self._options(FedmsgOptions, "fedmsg", options)
        return found

    def _bridge(self, values: dict[str, Any], naming: Naming, endpoints: Mapping[str, Endpoint]) -> BridgeOptions:
        found = values.get("fedmsg")
        chosen = dict(found) if isinstance(found, dict) else {}
        path: KeyPath = ("bridge", "fedmsg")
        for key, wire in (("endpoint", "native"), ("publish", "fedmsg")):
            name = chosen.get(key)
            if isinstance(name, str) and name in endpoints and endpoints[name].wire != wire:
                self.refuse(
                    (*path, key), f"bridge.fedmsg.{key}: endpoint {name!r} does not speak the {wire} format; name one"
                )
        chosen["topics"] = self._topics((*path, "topics"), chosen.get("topics"), naming)
        chosen["endpoints"] = tuple(chosen.get("endpoints") or ())
        http = chosen.get("http")
        if isinstance(http, str) and not 1 <= int(re.sub(r".*:", "", http)) <= 65535:
            self.refuse((*path, "http"), f"bridge.fedmsg.http: the port of {http!r} must be between 1 and 65535")
        options: BridgeOptions = self._options(BridgeOptions, "bridge", chosen)
        return options

    def _keyring(self, keys: dict[str, Any], folder: Path, environment: str) -> KeyringOptions:
        crl = self._crl("keys", keys, folder / "crl.pem", environment)
        return KeyringOptions(ca=keys.get("ca") or folder / "ca.crt", crl=crl, crl_grace=keys.get("crl_grace") or 0.0)

    def _endpoint(self, name: str, values: Any, keys: Path) -> Endpoint | None:
        path: KeyPath = ("endpoints", name)
        if not isinstance(values, dict):
            return None
        if "kafka" in values:
            self.refuse(path, f"endpoint {name!r} lives in Kafka, which this release of fedbus cannot use; remove it")
            return None
        for text in _faults(check_name, name):
            self.refuse(path, text)
        wire = values.get("wire", "native")
        if "publish" in values and "replay" not in values and wire == "native" and (*path, "replay") not in self.faulty:
            self.refuse(path, f"endpoint {name!r} lacks the key 'replay'; add the address of its replay socket")
        if wire == "fedmsg":
            for key in ("replay", "curve", "curve_key", "also", "journal", "relay"):
                if key in values:
                    text = f"endpoint {name!r} speaks fedmsg, which has no {key!r}; remove the key"
                    self.refuse((*path, key), text)
        return Endpoint(
            name=name,
            publish=self._address((*path, "publish"), values.get("publish")),
            replay=self._address((*path, "replay"), values.get("replay")),
            wire=wire,
            origin=str(self._document.origin(path)),
            certificate=values.get("certificate") or keys / f"{name}.crt",
            key=values.get("key") or keys / f"{name}.key",
            curve=self._curve((*path, "curve"), values.get("curve")),
            curve_key=values.get("curve_key") or keys / f"{name}{curve.SUFFIX}",
            relay=values.get("relay", False),
            also=self._also((*path, "also"), values.get("also"), keys / f"{name}{curve.SUFFIX}"),
        )

    def _also(self, path: KeyPath, values: Any, key: Path) -> Also | None:
        if not isinstance(values, dict):
            return None
        return Also(
            publish=self._address((*path, "publish"), values.get("publish")),
            replay=self._address((*path, "replay"), values.get("replay")),
            curve=self._curve((*path, "curve"), values.get("curve")),
            curve_key=values.get("curve_key") or key,
        )

    def _curve(self, path: KeyPath, text: Any) -> str:
        if not isinstance(text, str) or not curve.is_key(text):
            if isinstance(text, str):
                self.refuse(path, f"{dotted(path)}: not the public key of a CURVE pair; `fedbus keys curve` shows it")
            return ""
        return text

    def _links(self, values: dict[str, Any]) -> dict[str, Any]:
        """Take "any" for every client; a list of clients is a file."""
        clients = values.get("clients")
        if isinstance(clients, str):
            path = None if clients == "any" else self.path(("links", "clients"), clients)
            return {**values, "clients": path}
        return values

    def _relay(self, values: dict[str, Any], state: Path, endpoints: Mapping[str, Endpoint]) -> dict[str, Any]:
        options = {"socket": state / "relay.sock", **values}
        # a state folder whose path is long is nobody's fault where no relay is used
        used = "socket" in values or any(endpoint.relay for endpoint in endpoints.values())
        if used and len(os.fsencode(options["socket"])) > SOCKET_BYTES - len(".new"):
            self.refuse(
                ("relay", "socket"),
                f"relay.socket: the path of a socket has at most {SOCKET_BYTES - len('.new')} bytes; choose a shorter "
                f"one than {options['socket']}",
            )
        rules = []
        for place, entry in enumerate(values.get("allow") or ()):
            if isinstance(entry, dict) and "endpoints" in entry:
                self._check_patterns(("relay", "allow", place, "endpoints"), entry["endpoints"])
                rules.append(RelayRule(**{key: tuple(found) for key, found in entry.items()}))
        options["allow"] = tuple(rules)
        return options

    def _check_patterns(self, path: KeyPath, patterns: list[Any]) -> None:
        for place, text in enumerate(patterns):
            if isinstance(text, str) and not re.fullmatch(ENDPOINT_PATTERN, text):
                self.refuse(
                    (*path, place),
                    f"{dotted((*path, place))}: {text!r} is no endpoint's name; `*` stands for one whole field, as in "
                    "koji.*",
                )

    def _address(self, path: KeyPath, text: str | None) -> str:
        if text is None:
            return ""
        try:
            address = str(Address.parse(text, self._folder))
        except ConfigError as error:
            self.refuse(path, f"{dotted(path)}: {error}")
            return ""
        origin = self._document.origin(path)
        if address in self._addresses:
            key, first = self._addresses[address]
            self.refuse(path, f"{dotted(path)}: {address} is in use already: {key} ({first}); choose another port")
        self._addresses.setdefault(address, (dotted(path), origin))
        return address

    def _filter(self, path: KeyPath, text: Any, naming: Naming) -> bool:
        if not isinstance(text, str):
            return False
        faults = _faults(TopicFilter.parse, text, naming)
        for fault in faults:
            self.refuse(path, f"{dotted(path)}: {fault}")
        return not faults

    def _topics(self, path: KeyPath, values: Any, naming: Naming) -> tuple[str, ...]:
        return tuple(text for place, text in enumerate(values or ()) if self._filter((*path, place), text, naming))

    def _rules(self, values: list[Any], naming: Naming) -> tuple[Rule, ...]:
        rules = []
        for place, entry in enumerate(values):
            path: KeyPath = ("policy", place)
            if not isinstance(entry, dict) or "signer" not in entry:
                continue
            topics = self._topics((*path, "topics"), entry.get("topics"), naming)
            faults = _faults(Policy, naming, (Rule(signer=entry["signer"], topics=()),))
            for fault in faults:
                self.refuse((*path, "signer"), f"{dotted((*path, 'signer'))}: {fault}")
            if not faults:
                rules.append(Rule(signer=entry["signer"], topics=topics, origin=str(self._document.origin(path))))
        return tuple(rules)

    def _served(self, kind: Any, name: str, values: dict[str, Any]) -> Any:
        """Fill *kind*, which has the address of an HTTP port."""
        http = values.get("http")
        if http is not None and not 1 <= int(re.sub(r".*:", "", http)) <= 65535:
            self.refuse((name, "http"), f"{name}.http: the port of {http!r} must be between 1 and 65535")
        return self._options(kind, name, values)

    def _discovery(self, values: dict[str, Any]) -> DiscoveryOptions:
        dns = values.get("dns")
        if dns is None:
            named = self._document.values
            if "discovery" in named and named.get("endpoints") is None and self._document.whole:
                self.refuse((), "neither endpoints nor discovery.dns say who publishes; add one of them")
            return DiscoveryOptions(**values)
        path: KeyPath = ("discovery", "dns")
        found: DnsOptions | None = None
        try:
            found = DnsOptions(**{**dns, "servers": tuple(dns.get("servers") or ())})
        except (TypeError, ValueError) as error:
            if isinstance(error, ValueError):
                self.refuse(path, f"discovery.dns: {error}")
        return DiscoveryOptions(**{**values, "dns": found})

    def _consumers(self, values: dict[str, Any], naming: Naming) -> Iterator[tuple[str, ConsumerSettings]]:
        for name, entry in values.items():
            path: KeyPath = ("consumers", name)
            if not isinstance(entry, dict):
                continue
            chosen = {"use": name, **entry, "topics": self._topics((*path, "topics"), entry.get("topics"), naming)}
            if "batch" in entry:
                try:
                    chosen["batch"] = Batch(**entry["batch"])
                except ValueError as error:
                    self.refuse((*path, "batch"), f"{dotted((*path, 'batch'))}: {error}")
                    chosen["batch"] = None
            yield name, ConsumerSettings(name=name, origin=str(self._document.origin(path)), **chosen)
