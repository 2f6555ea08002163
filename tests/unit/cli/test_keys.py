"""`tandem keys new`: a key is printed once, and only its digest is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem.cli.__main__ import app
from tandem.cli.keys import new
from tandem.core import api_keys
from tandem.core.errors import TandemError


def test_a_key_opens_and_only_its_digest_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# clients", encoding="utf-8")
    alice, bob = new("alice", file), new("bob", file)
    text = file.read_text(encoding="utf-8")
    assert text.splitlines() == ["# clients", alice.line, bob.line]
    assert api_keys.parse(text) == {"alice": api_keys.digest_of(alice.key), "bob": api_keys.digest_of(bob.key)}
    assert alice.key not in text
    assert alice.key not in repr(alice)


def test_keys_are_long_and_never_the_same() -> None:
    keys = {new("a", None).key for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("tk_") and len(key) == 3 + 43 for key in keys)


def test_a_name_has_one_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    new("alice", file)
    with pytest.raises(TandemError, match="alice has a key"):
        new("alice", file)


def test_a_bad_name_or_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match="1 to 64"):
        new("a:b", None)
    with pytest.raises(TandemError, match="can't be used"):
        new("alice", tmp_path / "none" / "keys")


def test_the_command_prints_the_key_alone_on_stdout(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    done = CliRunner().invoke(app, ["keys", "new", "alice", "--file", str(file)])
    assert done.exit_code == 0
    assert api_keys.line_of("alice", done.stdout.strip()) == file.read_text(encoding="utf-8").strip()
