"""The findings of a matrix as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.support.faults.cells import Cell, Fault, Moment, Victim
from tests.support.faults.findings import Finding
from tests.support.faults.load import Outcome


def tables(findings: Sequence[Finding]) -> str:
    """Sums, and one row per victim, fault and moment with what each provider brought."""
    return "\n\n".join([_sums(findings), _whole(findings), _matrix(findings)])


def _sums(findings: Sequence[Finding]) -> str:
    outcomes: Counter[Outcome] = Counter()
    reasons: Counter[str] = Counter()
    for finding in findings:
        outcomes.update(finding.outcomes)
        reasons.update(finding.reasons)
    errors = ", ".join(f"`{reason}` {count}" for reason, count in sorted(reasons.items()))
    rows = [
        ("cells", len(findings)),
        ("requests", sum(outcomes.values())),
        ("answered right", outcomes[Outcome.ANSWERED]),
        ("attempts that the gateway repeated for that", sum(finding.repeated for finding in findings)),
        ("of them gone on, on other workers, after a part was out", sum(finding.went_on for finding in findings)),
        ("ended with a clear error", f"{outcomes[Outcome.ERROR]}{f': {errors}' if errors else ''}"),
        ("wrong tokens", outcomes[Outcome.WRONG]),
        ("hung", outcomes[Outcome.HUNG]),
        ("leaked pages and rows", sum(finding.leaked for finding in findings)),
        ("stuck rooms", sum(finding.stuck for finding in findings)),
        ("longest time to an outcome", f"{max(finding.seconds for finding in findings):.2f} s"),
        ("longest silence of a stream", f"{max(finding.silence_s for finding in findings):.2f} s"),
        ("cells in which that took too long", sum(finding.late for finding in findings)),
    ]
    return table(["in all", ""], rows)


def _whole(findings: Sequence[Finding]) -> str:
    found: dict[tuple[str, str], list[float]] = {}
    for finding in findings:
        key = (finding.cell.victim.role, finding.cell.fault.value)
        found.setdefault(key, []).append(finding.whole_s)
    rows = [(*key, f"{min(times):.1f} s", f"{max(times):.1f} s") for key, times in found.items()]
    return table(["victim", "fault", "every worker serves again after, at least", "at most"], rows)


def _matrix(findings: Sequence[Finding]) -> str:
    providers = list(dict.fromkeys(finding.cell.provider for finding in findings))
    found = {(_row(finding.cell), finding.cell.provider): finding for finding in findings}
    rows = sorted({row for row, _ in found}, key=_order)
    cells = [
        (*row, *(_said(found[row, provider]) if (row, provider) in found else "" for provider in providers))
        for row in rows
    ]
    return table(["victim", "fault", "moment", *providers], cells)


Row = tuple[str, str, str]


def _row(cell: Cell) -> Row:
    return cell.victim.role, cell.fault.value, cell.moment.value


def _order(row: Row) -> list[int]:
    known = ([one.role for one in Victim], [one.value for one in Fault], [one.value for one in Moment])
    return [names.index(name) for names, name in zip(known, row, strict=True)]


def _said(finding: Finding) -> str:
    parts = [f"{count} {outcome.value}" for outcome, count in finding.outcomes.items() if outcome is not Outcome.ERROR]
    parts += [f"{count} `{reason}`" for reason, count in finding.reasons.items()]
    parts += [f"{finding.repeated} repeated"] if finding.repeated else []
    parts += [f"{finding.went_on} went on"] if finding.went_on else []
    problems = f" **{'; '.join(finding.problems)}**" if finding.problems else ""
    return f"{', '.join(parts)}; {finding.seconds:.2f} s{problems}"


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])
