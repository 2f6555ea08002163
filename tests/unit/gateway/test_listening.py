"""Bad certificates of the HTTP port are told by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.core.errors import TandemError
from tandem.gateway.settings import GatewaySettings
from tandem.gateway.web.listening import server_of


async def nothing(*_: object) -> None:
    """An application."""


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"http_cert_file": "cert.pem"}, r"setting http_key_file \(TANDEM_GATEWAY_HTTP_KEY_FILE\) is missing"),
        ({"http_key_file": "key.pem"}, r"setting http_cert_file \(TANDEM_GATEWAY_HTTP_CERT_FILE\) is missing"),
        ({"http_cert_file": "none.pem", "http_key_file": "none.key"}, "none.pem .* can't be used: .*No such file"),
        ({"http_cert_file": "bad.pem", "http_key_file": "bad.pem"}, "bad.pem .* can't be used"),
    ],
)
def test_a_bad_certificate_is_named(tmp_path: Path, files: dict[str, str], told: str) -> None:
    (tmp_path / "bad.pem").write_text("nonsense", encoding="utf-8")
    settings = GatewaySettings.load(model_path="m", **{name: tmp_path / file for name, file in files.items()})
    with pytest.raises(TandemError, match=told):
        server_of(nothing, settings)
