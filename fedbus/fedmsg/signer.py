"""Who signs in the format of fedmsg: an RSA key, its certificate, and SHA-1, since that format knows nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from fedbus.clock import Clock, SystemClock
from fedbus.errors import KeysError, TrustError
from fedbus.fedmsg.authority import LEAST_BITS
from fedbus.fedmsg.codec import canonical, encode_base64
from fedbus.fedmsg.validator import common_name
from fedbus.trust.expiry import stamp
from fedbus.trust.files import read_private
from fedbus.trust.keyring import load_certificates
from fedbus.trust.leaf import PARSER_ERRORS

log = logging.getLogger(__name__)

_PADDING, _SHA1 = padding.PKCS1v15(), hashes.SHA1()
_SYSTEM_CLOCK = SystemClock()


class FedmsgSigner:
    """Signs as the common name of one certificate. The key is read once; may be used by several threads."""

    def __init__(self, key: rsa.RSAPrivateKey, certificate: x509.Certificate) -> None:
        self.name = common_name(certificate)
        self.expires_at = certificate.not_valid_after_utc.timestamp()
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.certificate = encode_base64(pem)  # as it stands in messages
        self._sign = key.sign

    @classmethod
    def load(cls, certificate: Path, key: Path, *, clock: Clock = _SYSTEM_CLOCK) -> FedmsgSigner:
        """Read a pair of PEM files.

        Raises:
            KeysError: They cannot be used, or do not belong together.
        """
        try:
            private = serialization.load_pem_private_key(read_private(key), password=None)
        except TypeError as error:
            raise KeysError(
                f"cannot use private key {key}: it is encrypted; store it in the clear, mode 600"
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeysError(f"cannot use private key {key}: it is no private key in PEM form ({error})") from error
        if not isinstance(private, rsa.RSAPrivateKey) or private.key_size < LEAST_BITS:
            raise KeysError(
                f"cannot use private key {key}: the fedmsg format needs RSA of {LEAST_BITS} bits or more; bring the "
                "pair that this service has had with fedmsg, or have its CA issue one"
            )
        found = load_certificates(certificate, "certificate")[0]
        try:
            if found.public_key() != private.public_key():
                raise KeysError(
                    f"certificate {certificate} does not belong to private key {key}; copy both of one pair"
                )
            signer = cls(private, found)
        except TrustError as error:
            raise KeysError(f"cannot use certificate {certificate}: {error}") from error
        except PARSER_ERRORS as error:
            raise KeysError(f"cannot use certificate {certificate}: {error}") from error
        if clock.wall() > signer.expires_at:
            raise KeysError(f"certificate {certificate} has expired at {stamp(signer.expires_at)}; bring a new one")
        if private.key_size < 2048:
            log.warning("the key %s has only %d bits; make a new pair", key, private.key_size)
        return signer

    def sign(self, fields: dict[str, Any]) -> bytes:
        """Return the second frame for *fields*, which hold all but ``crypto``, ``signature`` and ``certificate``."""
        whole = {**fields, "crypto": "x509"}
        signature = self._sign(canonical(whole), _PADDING, _SHA1)
        whole["signature"] = encode_base64(signature)
        whole["certificate"] = self.certificate
        return canonical(whole)
