"""An authority of a test's own, by the command openssl, and certificates that it signs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tandem.rpc.credentials import TlsSettings

TIMEOUT_S: Final = 30
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca_file = folder / "ca.pem"
        self._request("-x509", *_KEY, "-subj", "/CN=test authority", files="ca")

    def issue(self, name: str, alternative: Sequence[str] = (), **settings: object) -> TlsSettings:
        """A certificate with a common name and alternative ones, e.g. "DNS:x"; settings: further ones."""
        stem = f"{name}-{len(list(self._folder.iterdir()))}"
        names = ("-addext", f"subjectAltName={','.join(alternative)}") if alternative else ()
        signed = ("-CA", str(self.ca_file), "-CAkey", str(self._folder / "ca.key"))
        self._request("-x509", *signed, *_KEY, "-subj", f"/CN={name}", *names, files=stem)
        paths = {"cert_file": self._folder / f"{stem}.pem", "key_file": self._folder / f"{stem}.key"}
        return TlsSettings(**paths, ca_file=self.ca_file, **settings)  # type: ignore[arg-type]

    def _request(self, *options: str, files: str) -> None:
        out = ("-out", str(self._folder / f"{files}.pem"), "-keyout", str(self._folder / f"{files}.key"))
        subprocess.run(("openssl", "req", *options, *out), capture_output=True, check=True, timeout=TIMEOUT_S)
