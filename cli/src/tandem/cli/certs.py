"""Certificates for development: an authority, and one certificate for each service: `tandem certs`.

The authority's key signs them and is forgotten: nobody can make another member of this cluster later, and new
certificates mean all of them anew.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tandem.core.errors import ErrorReason, TandemError

WORKER: Final = "worker"
"""A name of every worker's certificate: workers are dialled by addresses that nobody knows before they start."""
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
MEMBERS: Final[dict[str, tuple[str, ...]]] = {
    "bootstrap": ("bootstrap", *_LOCAL),
    "gateway": ("gateway", *_LOCAL),
    "prefill": ("prefill", WORKER, *_LOCAL),
    "decode": ("decode", WORKER, *_LOCAL),
    "unified": ("unified", WORKER, *_LOCAL),
    "client": (),
}
"""Who gets a certificate, and its names. `client` serves nothing: it is for the command `tandem`, an operator's."""
OPERATOR: Final = "tandem-admin"
"""The common name of the client's certificate: see TANDEM_TLS_ADMIN_IDENTITIES."""
CA_FILE: Final = "ca.pem"
CERT_FILE: Final = "cert.pem"
KEY_FILE: Final = "key.pem"
RENEW_BEFORE: Final = timedelta(days=30)
_CLOCKS_DIFFER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class _Member:
    """What goes into the folder of one member."""

    name: str
    cert: bytes
    key: bytes


def make(folder: Path, names: Sequence[str], days: int, *, force: bool = False) -> None:
    """Writes ca.pem, cert.pem and key.pem for each member into a folder of its name below `folder`.

    names: more host names or IP addresses for every server's certificate. Raises INVALID_ARGUMENT if one of the files
    is there already and not `force`, if a name is no name, or if nothing can be written there.
    """
    there = [path for path in _files(folder) if path.exists()]
    if there and not force:
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"{there[0]} is there already; --force replaces all, --keep leaves them",
        )
    authority, members = _issue(names, days)
    try:
        for member in members:
            own = folder / member.name
            own.mkdir(parents=True, exist_ok=True)
            _write(own / KEY_FILE, member.key, 0o600)
            _write(own / CERT_FILE, member.cert, 0o644)
            _write(own / CA_FILE, authority, 0o644)
    except OSError as error:
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"cannot write {error.filename}: {error.strerror}") from error


def usable(folder: Path, now: datetime | None = None) -> bool:
    """Whether every file is there, all of one authority, and good for RENEW_BEFORE at least."""
    until = (now or datetime.now(UTC)) + RENEW_BEFORE
    try:
        authorities = {(folder / name / CA_FILE).read_bytes() for name in MEMBERS}
        certs = [x509.load_pem_x509_certificate((folder / name / CERT_FILE).read_bytes()) for name in MEMBERS]
        (authority,) = authorities
        for cert in certs:
            cert.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        keys = all((folder / name / KEY_FILE).is_file() for name in MEMBERS)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    return keys and all(cert.not_valid_after_utc > until for cert in certs)


def _files(folder: Path) -> Iterable[Path]:
    return (folder / name / file for name in MEMBERS for file in (CA_FILE, CERT_FILE, KEY_FILE))


def _issue(names: Sequence[str], days: int) -> tuple[bytes, list[_Member]]:
    """The authority's certificate, and the members' with their keys; all in PEM."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), _subject("Tandem development authority")
    public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    authority = (
        _draft(subject, subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(public, critical=False)
        .sign(key, hashes.SHA256())
    )
    members = []
    for name, own_names in MEMBERS.items():
        own = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if own_names else [])]
        draft = (
            _draft(_subject(f"tandem {name}" if own_names else OPERATOR), subject, own.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(public), critical=False)
        )
        if own_names:
            known = [_general_name(one) for one in dict.fromkeys((*own_names, *names))]
            draft = draft.add_extension(x509.SubjectAlternativeName(known), critical=False)
        members.append(_Member(name, _pem(draft.sign(key, hashes.SHA256())), _key_pem(own)))
    return _pem(authority), members


def _draft(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _CLOCKS_DIFFER,
        not_valid_after=now + timedelta(days=days),
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name.isascii() or not name or any(letter.isspace() for letter in name):
        raise TandemError(ErrorReason.INVALID_ARGUMENT, f"{name!r} is neither a host name nor an address", field="name")
    return x509.DNSName(name)


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Writes a file whole, readable by nobody else at any moment if that is its mode."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        out.write(data)
    part.replace(path)
