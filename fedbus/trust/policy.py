"""Who may say what: default deny, each service on its own topics, and rules that grant more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fedbus.errors import ConfigError, MessageError, Reason, TrustError
from fedbus.model.topic import Naming, TopicFilter, check_topic, service_of_endpoint
from fedbus.trust.cache import GenerationCache

_SIGNER_PATTERN = re.compile(r"(?:\*|[a-z0-9][a-z0-9_-]*)(?:\.(?:\*|[a-z0-9][a-z0-9_-]*))*", re.ASCII)

_CACHED_DECISIONS = 8192  # pairs of signer and topic; twice as many at most


@dataclass(frozen=True, slots=True)
class Rule:
    """Grants *signer* the topics that one of *topics* matches."""

    signer: str  # the name in a certificate; `*` stands for one whole field: `koji.*`
    topics: tuple[str, ...]  # topic filters; without the configured prefix they are taken within PREFIX.ENV
    origin: str = ""  # file and line, for people


class Policy:
    """The rules, computed once; thread-safe.

    A signer may say a topic within PREFIX.ENV when the SERVICE field of the topic is its own service (its name up to
    the first dot), or when a rule grants it. All else is denied, and no rule reaches beyond PREFIX.ENV.

    Raises:
        ConfigError: Rules that cannot be read, all of them at once.
    """

    def __init__(self, naming: Naming, rules: Iterable[Rule] = ()) -> None:
        self.naming = naming
        self.rules = tuple(rules)
        problems = []
        self._exact: dict[str, list[TopicFilter]] = {}
        self._patterns: list[tuple[list[str], list[TopicFilter]]] = []
        for rule in self.rules:
            where = f"{rule.origin}: " if rule.origin else ""
            if not _SIGNER_PATTERN.fullmatch(rule.signer):
                problems.append(
                    f"{where}signer {rule.signer!r} is no endpoint's name; write lower case fields, and `*` only for a "
                    "whole field, as in koji.*"
                )
                continue
            filters = []
            for text in rule.topics:
                try:
                    filters.append(TopicFilter.parse(text, naming))
                except MessageError as error:
                    problems.append(f"{where}topic filter {text!r} of signer {rule.signer}: {error}")
            fields = rule.signer.split(".")
            if "*" in fields:
                self._patterns.append((fields, filters))
            else:
                self._exact.setdefault(rule.signer, []).extend(filters)
        if problems:
            raise ConfigError(problems)
        # A decision is the reason of a refusal, or the empty text where there is none.
        self._decisions: GenerationCache[tuple[str, str], Reason | str] = GenerationCache(_CACHED_DECISIONS)

    def permits(self, signer: str, topic: str) -> bool:
        """Whether *signer* (the name in its certificate) may say the full *topic*."""
        return not self._decision(signer, topic)

    def check(self, signer: str, topic: str) -> None:
        """Raise unless *signer* may say the full *topic*.

        Raises:
            TrustError: ``Reason.ENVIRONMENT`` outside PREFIX.ENV, ``Reason.POLICY`` when nothing grants it.
        """
        decision = self._decision(signer, topic)
        if not decision:
            return
        # The topic may be anything at all until it was granted, so it is shown escaped and cut.
        shown = topic if len(topic) <= 255 else topic[:255] + "…"
        if decision is Reason.ENVIRONMENT:
            raise TrustError(
                Reason.ENVIRONMENT,
                f"{signer} may not say {shown!r}: this bus carries {self.naming.root}.* only; check topic_prefix and "
                "environment on both sides",
            )
        raise TrustError(
            Reason.POLICY,
            f"{signer} may not say {shown!r}: it is not of the service {service_of_endpoint(signer)}, and no rule "
            "grants it; add a policy rule if it should",
        )

    def _decision(self, signer: str, topic: str) -> Reason | str:
        key = (signer, topic)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(signer, topic)
            self._decisions.put(key, decision)
        return decision

    def _decide(self, signer: str, topic: str) -> Reason | str:
        service = self.naming.service_of(topic)
        if service is None:
            return Reason.ENVIRONMENT
        try:
            check_topic(topic)
        except MessageError:
            return Reason.POLICY
        if service == service_of_endpoint(signer):
            return ""
        if any(one.matches(topic) for one in self._exact.get(signer, ())):
            return ""
        fields = signer.split(".")
        for pattern, filters in self._patterns:
            if len(pattern) != len(fields):
                continue
            named = all(want in ("*", have) for want, have in zip(pattern, fields, strict=True))
            if named and any(one.matches(topic) for one in filters):
                return ""
        return Reason.POLICY
