"""Whom the commands believe that speak HTTPS to a gateway or another server: generate, bench serve, calibrate."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Final

import typer

from tandem.core.errors import ErrorReason, TandemError

NAMES: Final = "--ca (TANDEM_CLI_CA_FILE)"

_UNKNOWN_AUTHORITY: Final = (18, 19, 20, 21)
"""X509_V_ERR_ of OpenSSL: self-signed, by itself or in the chain; its issuer is not there; no chain."""

CaFile = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="PEM file of the authorities to trust; default: those of this machine."),
]


def trust(url: str, ca_file: Path | None) -> ssl.SSLContext | None:
    """What to believe of the server at a URL; None where it does not speak TLS. Raises INVALID_ARGUMENT.

    ca_file: of the authorities; None = those of this machine.
    """
    if not url.lower().startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # of ssl too: a file without certificates
        raise TandemError(
            ErrorReason.INVALID_ARGUMENT,
            f"{NAMES} {ca_file} can't be used, it has to be a PEM file with certificates: {error.strerror or error}",
            field="ca",
        ) from error


def untrusted(error: BaseException) -> str:
    """What to do about it, where an error comes from a certificate of an unknown authority; else nothing."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLCertVerificationError):
        seen = seen.__cause__ or seen.__context__
    if seen is None or seen.verify_code not in _UNKNOWN_AUTHORITY:
        return ""
    return f". {NAMES} names the PEM file of the authorities to trust"
