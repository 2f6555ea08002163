"""What the shell offers for names. Reads the state file of the system run here, asks nobody, and fails for nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tandem.cli.board import read_state
from tandem.cli.plan import WORKERS, Kind
from tandem.core.errors import TandemError
from tandem.core.policy_names import PolicyName

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def worker_ids(incomplete: str) -> list[str]:
    """Workers of the system run here."""
    return _names(incomplete, [kind.value for kind in WORKERS])


def service_names(incomplete: str) -> list[str]:
    """Every service of the system run here."""
    return _names(incomplete, [kind.value for kind in Kind])


def policy_names(incomplete: str) -> list[str]:
    """Policies that exist."""
    return _matching(incomplete, (policy.value for policy in PolicyName))


def log_levels(incomplete: str) -> list[str]:
    """Log levels that exist."""
    return _matching(incomplete.upper(), LEVELS)


def _names(incomplete: str, kinds: Iterable[str]) -> list[str]:
    from tandem.cli.settings import CliSettings

    try:
        rows = read_state(CliSettings.load().state_file).processes
    except TandemError:
        return []
    return _matching(incomplete, (row.name for row in rows if row.kind in kinds))


def _matching(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
