"""What can be set about trusted keys; apart from them, so that `config` loads no cryptography."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyringOptions:
    """Where the trusted CA certificates and their revocation lists are."""

    ca: Path  # PEM; several certificates while one CA takes over from another
    crl: Path | None  # PEM, one list for each CA; None: revocation is not checked, which is logged
    crl_grace: float = 0.0  # seconds that a list may be out of date, or missing after a start, and still count
