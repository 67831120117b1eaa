"""The name in a certificate: which endpoint it speaks for."""

from __future__ import annotations

import re

# As an endpoint is named in the configuration: `koji.build01`, the service first. ASCII only, so no homoglyphs, no
# wildcard and no NUL can pass.
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(?:\.[a-z0-9][a-z0-9_-]*)*", re.ASCII)

MAX_NAME_BYTES = 64  # ub-common-name of RFC 5280, appendix A.1

URI_PREFIX = "fedbus:"  # the name stands in the certificate as the URI `fedbus:NAME`, as in an envelope's `source`


def is_name(text: str) -> bool:
    """Whether *text* can be the name of an endpoint in a certificate: lower case fields, at most 64 bytes in all."""
    return len(text) <= MAX_NAME_BYTES and _NAME.fullmatch(text) is not None
