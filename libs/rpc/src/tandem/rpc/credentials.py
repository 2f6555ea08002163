"""mTLS between services: who has no certificates speaks plain text, and listens on loopback and unix sockets only."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

import grpc
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from tandem.core.errors import ErrorReason, TandemError
from tandem.rpc.settings import Settings


class TlsMode(Enum):
    """Whether certificates count."""

    AUTO = "auto"
    OFF = "off"
    REQUIRED = "required"


class TlsSettings(Settings):
    """Certificates of this process. All three files, or none."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_TLS_", populate_by_name=True, loc_by_alias=False)

    mode: TlsMode = Field(
        default=TlsMode.AUTO,
        validation_alias="TANDEM_TLS",
        description="auto: mTLS where certificates are given, else plain text; off: plain text whatever is given, from "
        "and to loopback and unix sockets only; required: without certificates the process does not start",
    )
    cert_file: Path | None = Field(default=None, description="PEM file of this process's certificate chain")
    key_file: Path | None = Field(default=None, description="PEM file of its private key")
    ca_file: Path | None = Field(default=None, description="PEM file of the authority that signs every peer")
    server_name: str = Field(
        default="",
        description="name to expect in the certificate of a server that is dialled by its IP address; "
        "empty = that address",
    )
    allow_insecure: bool = Field(
        default=False,
        description="true: listen in plain text beyond loopback, for networks that are safe by themselves",
    )
    admin_identities: tuple[str, ...] = Field(
        default=("tandem-admin",),
        description="names in a client's certificate (common or alternative name) that make it an operator's",
    )

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        given = [path is not None for path in (self.cert_file, self.key_file, self.ca_file)]
        if self.mode is TlsMode.REQUIRED and not all(given):
            raise ValueError("TANDEM_TLS=required needs TANDEM_TLS_CERT_FILE, _KEY_FILE and _CA_FILE: set all of them")
        if self.mode is TlsMode.AUTO and any(given) and not all(given):
            raise ValueError("TANDEM_TLS_CERT_FILE, _KEY_FILE and _CA_FILE belong together: set all of them, or none")
        return self


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a server and its channels need, and where they may go; without certificates both speak plain text."""

    cert_chain: bytes = b""
    private_key: bytes = b""
    ca: bytes = b""
    server_name: str = ""
    allow_insecure: bool = False
    loopback_only: bool = False
    """Neither listens nor dials beyond loopback."""
    admin_identities: frozenset[str] = frozenset()
    """Names of operators; see tandem.rpc.operators."""

    @classmethod
    def from_settings(cls, settings: TlsSettings) -> Credentials:
        """Reads the files, unless TLS is off. Raises INVALID_ARGUMENT, which names the file and its setting."""
        admins = frozenset(settings.admin_identities)
        if settings.mode is TlsMode.OFF:
            return cls(loopback_only=True, admin_identities=admins)
        cert, key, ca = (_read(settings, name) for name in ("cert_file", "key_file", "ca_file"))
        return cls(cert, key, ca, settings.server_name, settings.allow_insecure, admin_identities=admins)

    def __repr__(self) -> str:
        limits = f"allow_insecure={self.allow_insecure}, loopback_only={self.loopback_only}"
        return f"Credentials(secure={self.secure}, {limits})"

    @property
    def secure(self) -> bool:
        """Whether there are certificates."""
        return bool(self.cert_chain)

    def check_bind(self, address: str) -> None:
        """Raises INVALID_ARGUMENT where a server must not listen at host:port or unix:path."""
        self.check_dial(address)
        if not self.secure and not self.allow_insecure and not is_local(address):
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"{address} is not on loopback: set TANDEM_TLS_CERT_FILE, _KEY_FILE and _CA_FILE, "
                "or TANDEM_TLS_ALLOW_INSECURE=true on a network that is safe by itself",
                field="address",
            )

    def check_dial(self, address: str) -> None:
        """Raises INVALID_ARGUMENT where a channel must not go to host:port or unix:path."""
        if self.loopback_only and not is_local(address):
            raise TandemError(
                ErrorReason.INVALID_ARGUMENT,
                f"address {address!r} is not on loopback, and TANDEM_TLS=off allows only localhost, 127.0.0.0/8, ::1 "
                "and unix sockets: set TANDEM_TLS=auto and certificates to go beyond",
                field="address",
            )

    def server(self) -> grpc.ServerCredentials | None:
        """For a server, which then takes clients of the same authority only."""
        if not self.secure:
            return None
        return grpc.ssl_server_credentials(
            [(self.private_key, self.cert_chain)], root_certificates=self.ca, require_client_auth=True
        )

    def name_of(self, address: str) -> str:
        """The name to expect in the certificate of a server at host:port; empty = its host."""
        return self.server_name if _ip_of(address) is not None else ""

    def channel(self) -> grpc.ChannelCredentials | None:
        """For a channel."""
        if not self.secure:
            return None
        return grpc.ssl_channel_credentials(self.ca, self.private_key, self.cert_chain)


def _read(settings: TlsSettings, name: str) -> bytes:
    path: Path | None = getattr(settings, name)
    try:
        return path.read_bytes() if path else b""
    except OSError as error:
        text = f"cannot read {path} ({settings.env_name(name)}): {error.strerror}"
        raise TandemError(ErrorReason.INVALID_ARGUMENT, text, field=name) from error


PLAIN = Credentials()


def is_local(address: str) -> bool:
    """Whether only this machine can reach a gRPC address: a unix socket, or a host of loopback."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    if address.rpartition(":")[0] == "localhost":
        return True
    found = _ip_of(address)
    return found is not None and found.is_loopback


def _ip_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in host:port; None if the host is a name."""
    try:
        return ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return None
