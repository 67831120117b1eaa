"""What a certificate must be to sign on the bus: a leaf for exactly one endpoint, with a key of an allowed kind."""

from __future__ import annotations

from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from fedbus.errors import Reason, TrustError
from fedbus.trust.names import URI_PREFIX, is_name

ED25519_SIGNATURE_BYTES = 64
MAX_P256_SIGNATURE_BYTES = 72  # DER of two integers of 33 bytes at most

# What the parser of certificates and revocation lists raises, apart from a lack of memory.
PARSER_ERRORS = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)

_ECDSA = ec.ECDSA(hashes.SHA256())
_KNOWN_EXTENSIONS = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)


def _refuse(fingerprint: str, problem: str) -> TrustError:
    return TrustError(
        Reason.CERTIFICATE,
        f"certificate {fingerprint[:16]} {problem}; issue one for an endpoint: fedbus keys issue NAME",
    )


def leaf_name(certificate: x509.Certificate, fingerprint: str) -> str:
    """The one endpoint that *certificate* is for.

    Raises:
        TrustError: ``Reason.CERTIFICATE``: it is a CA, is not for signing on the bus, or names none, several or an
            ill-formed endpoint.
    """
    names: list[str] = []
    client = False
    signs = False
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            if value.ca:
                raise _refuse(fingerprint, "is of a CA and may not sign messages")
        elif isinstance(value, x509.KeyUsage):
            if value.key_cert_sign or value.crl_sign:
                raise _refuse(fingerprint, "may sign certificates and so may not sign messages")
            signs = value.digital_signature
        elif isinstance(value, x509.ExtendedKeyUsage):
            client = ExtendedKeyUsageOID.CLIENT_AUTH in value
        elif isinstance(value, x509.SubjectAlternativeName):
            names = _endpoints(value)
        elif extension.critical and extension.oid not in _KNOWN_EXTENSIONS:
            raise _refuse(fingerprint, f"has the unknown critical extension {extension.oid.dotted_string}")
    if not signs:
        raise _refuse(fingerprint, "lacks the key usage digitalSignature")
    if not client:
        raise _refuse(fingerprint, "lacks the extended key usage clientAuth")
    if len(names) != 1:
        raise _refuse(fingerprint, f"names {len(names)} endpoints ({URI_PREFIX}NAME), and not exactly one")
    name = names[0]
    if not is_name(name):
        raise _refuse(fingerprint, f"names {name[:80]!a}, which is no endpoint's name")
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(common) > 1 or any(one.value != name for one in common):
        raise _refuse(fingerprint, f"names {name} and, as its common name, something else")
    return name


def verify_with(certificate: x509.Certificate, name: str) -> Callable[[bytes, bytes], bool]:
    """The function that verifies signatures of *certificate*'s key, which decides the algorithm.

    Raises:
        TrustError: ``Reason.ALGORITHM``: a key that is neither P-256 nor Ed25519.
    """
    key = certificate.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        verify_ed25519 = key.verify

        def verify(signature: bytes, statement: bytes) -> bool:
            if len(signature) != ED25519_SIGNATURE_BYTES:
                return False
            try:
                verify_ed25519(signature, statement)
            except InvalidSignature:
                return False
            return True

        return verify
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        verify_ecdsa = key.verify

        def verify(signature: bytes, statement: bytes) -> bool:
            if len(signature) > MAX_P256_SIGNATURE_BYTES:
                return False
            try:
                verify_ecdsa(signature, statement, _ECDSA)
            except InvalidSignature:
                return False
            return True

        return verify
    raise TrustError(
        Reason.ALGORITHM,
        f"the certificate of {name} has a key that is neither ECDSA P-256 nor Ed25519; issue one that has: "
        f"fedbus keys rotate {name}",
    )


def certificate_names(certificate: x509.Certificate) -> list[str]:
    """The endpoints that *certificate* names, well-formed or not, for people; empty when it cannot be parsed."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return _endpoints(names)
    except (x509.ExtensionNotFound, *PARSER_ERRORS):
        return []


def _endpoints(names: x509.SubjectAlternativeName) -> list[str]:
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return [uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX)]
