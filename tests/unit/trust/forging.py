"""What tests of trust sign, and the shapes that they forge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

STATEMENT = b"fedbus seal 1\0 what is signed"

Forge = Callable[..., tuple[bytes, Any]]


def usage(**flags: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: flags.get(name, False) for name in names})


SIGNING = usage(digital_signature=True)
SHA256 = hashes.SHA256()
