"""Draws the state machines of a room in ARCHITECTURE.md from the tables that the machines run on.

python -m tools.room_diagram          writes the drawings between their markers
python -m tools.room_diagram --check  fails if they are not what the tables say
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TypeVar

from tandem.core.room import receiver, sender

DOCUMENT = Path(__file__).resolve().parents[1] / "ARCHITECTURE.md"

State = TypeVar("State", bound=Enum)
Table = Mapping[tuple[State, type], frozenset[State]]


def diagram(transitions: Table[State], terminal: Iterable[State]) -> str:
    """A mermaid diagram of the moves that change the state; one arrow per pair of states, with its inputs."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, kind), targets in transitions.items():
        for target in sorted(targets - {state}, key=_order):
            arrows.setdefault((state.name, target.name), []).append(kind.__name__)
    first = next(iter(transitions))[0].name
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {state} --> {target}: {', '.join(kinds)}" for (state, target), kinds in arrows.items()]
    lines += [f"    {state.name} --> [*]" for state in sorted(terminal, key=_order)]
    return "\n".join([*lines, "```"])


def matrix(transitions: Table[State]) -> str:
    """A table of inputs by states: where each may lead. Empty = refused and counted."""
    states = list(dict.fromkeys(state for state, _ in transitions))
    kinds = list(dict.fromkeys(kind for _, kind in transitions))
    lines = [
        "| input | " + " | ".join(state.name for state in states) + " |",
        "|---" * (len(states) + 1) + "|",
    ]
    for kind in kinds:
        cells = [", ".join(_named(state, transitions.get((state, kind), frozenset()))) for state in states]
        lines.append(f"| {kind.__name__} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(state: State, targets: frozenset[State]) -> list[str]:
    return ["stays" if target is state else target.name for target in sorted(targets, key=_order)]


def _order(state: Enum) -> int:
    return list(type(state)).index(state)


def drawings() -> dict[str, str]:
    """What belongs between the markers, by their name."""
    return {
        "sender": f"{diagram(sender.TRANSITIONS, sender.TERMINAL)}\n\n{matrix(sender.TRANSITIONS)}",
        "receiver": f"{diagram(receiver.TRANSITIONS, receiver.TERMINAL)}\n\n{matrix(receiver.TRANSITIONS)}",
    }


def filled(text: str) -> str:
    """A document with its drawings. Raises ValueError if a marker is missing."""
    for name, drawing in drawings().items():
        begin, end = f"<!-- {name}: made by tools/room_diagram.py -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the document has no markers {begin} and {end}")
        body = f"{begin}\n{drawing}\n{end}"
        text = pattern.sub(lambda _, body=body: body, text)  # type: ignore[misc]
    return text


def main() -> int:
    """Entry point."""
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = filled(text)
    if "--check" in sys.argv[1:]:
        if text != wanted:
            print("ARCHITECTURE.md is not what the tables say; run: python -m tools.room_diagram", file=sys.stderr)
        return int(text != wanted)
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
