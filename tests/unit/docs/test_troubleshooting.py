"""docs/troubleshooting.md: what it quotes exists word for word, and what operators ask about is on it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import typer

from tandem.cli.__main__ import app
from tandem.cli.doctor.rules import examine
from tandem.core.errors import CATALOGUE, ErrorReason
from tandem.core.refusals import Refusal
from tests.support.lines import parse
from tests.support.tracing import page as tracing
from tests.unit.doctor.test_rules import HEALTHY
from tools import metrics_doc

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`\n]+)`")
PLACEHOLDER = re.compile(r"%(?:\.\d+)?[a-z]")
OTHERS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:apt|curl|docker|dmesg|ibv_\w+|ip|ls|make|mount|nvidia-smi|pip|python|ss|sysctl|timedatectl|"
    r"ulimit)\b|GET /"
)
"""Commands that are not ours, and requests."""
LEAST = 8
"""Characters of a message without what varies."""


def spans(text: str = PAGE) -> list[str]:
    """Everything between backticks."""
    return CODE.findall(text)


def table(head: str) -> list[list[str]]:
    """Cells of the rows of every table whose first column is called so."""
    found, inside = [], False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[0] == head)
        if inside and cells[0] != head and set(cells[0]) != {"-"}:
            found.append(cells)
    return found


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text of a module but its docstrings, with `…` for what is filled in."""
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield PLACEHOLDER.sub("…", node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


@cache
def said() -> str:
    """All texts of our sources, a line each."""
    sources = [path for place in ("libs/*/src", "services/*/src", "cli/src") for path in ROOT.glob(f"{place}/**/*.py")]
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in sources if not path.name.endswith("_pb2.py")]
    return "\n".join(text.replace("\n", " ") for module in modules for text in texts(module))


def is_said(message: str) -> bool:
    """Whether our code says so somewhere, with anything where the message has `…`."""
    words = message.strip("… ")
    return len(words.replace("…", "")) >= LEAST and words in said()


def is_message(span: str) -> bool:
    """What has several words, and is no command, is something that Tandem says."""
    return " " in span and not span.startswith(("tandem ", "--")) and not OTHERS.match(span)


@pytest.mark.parametrize("message", sorted({span for span in spans() if is_message(span)}))
def test_messages_are_those_of_the_code(message: str) -> None:
    assert is_said(message)


def test_a_message_that_nobody_says_is_found() -> None:
    assert is_said("there is no trace of …: no such request")
    assert not is_said("there is no trace of …: it was eaten")
    assert not is_said("… of …"), "too little to tell"
    assert not is_said("Every failure in Tandem is one of these reasons"), "a docstring is not said to anybody"
    assert len([span for span in spans() if is_message(span)]) > 70


@pytest.mark.parametrize(
    "line",
    sorted({span for span in spans() if span.startswith("tandem ")})
    + [line.split("#")[0].strip() for line in PAGE.splitlines() if line.startswith("    tandem ")],
)
def test_commands_are_those_of_the_parser(line: str) -> None:
    parse(line)


def test_a_command_that_is_not_there_is_found() -> None:
    for line in ("tandem mend", "tandem rooms mend 5", "tandem rooms --every", "tandem bench"):
        with pytest.raises(Exception, match=r"(?i)no such (command|option)"):
            parse(line)


def options(command: click.Command) -> Iterator[str]:
    """All options of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


def test_options_are_those_of_some_command() -> None:
    named = {span.split()[0].rstrip(":") for span in spans() if span.startswith("--")}
    assert named
    assert named <= set(options(typer.main.get_command(app)))


def test_metrics_are_those_of_the_services() -> None:
    known = {family.exposed for family in metrics_doc.holders(metrics_doc.families())}
    named = {span for span in spans() if re.fullmatch(r"tandem_\w+", span)}
    assert len(named) > 10
    assert named <= known


def test_codes_have_the_status_that_is_said() -> None:
    told = re.findall(r"\b([45]\d\d) ((?:`\w+`(?:, )?)+)", PAGE)
    pairs = [(int(status), ErrorReason[name.upper()]) for status, codes in told for name in spans(codes)]
    assert len(pairs) > 10
    assert [(status, reason) for status, reason in pairs if CATALOGUE[reason].http_status != status] == []


def test_every_reason_to_come_back_later_is_on_the_page() -> None:
    listed = {name for cells in table("`limit` or code") for name in spans(cells[0])}
    waiting = {reason for reason, spec in CATALOGUE.items() if spec.http_status == 503}
    named = {refusal.value for refusal in Refusal} | {reason.value.lower() for reason in waiting}
    assert named - {"no_tokenizer"} == listed
    assert {reason.value.lower() for reason, spec in CATALOGUE.items() if spec.http_status in (429, 503)} <= set(
        spans()
    )


def test_everything_that_doctor_looks_at_is_on_the_page() -> None:
    listed = [name for cells in table("`tandem doctor` says of") for name in spans(cells[0])]
    assert listed == [finding.name for finding in examine(HEALTHY)]


def test_spans_are_those_of_traces() -> None:
    listed = {name for cells in table("longest span") for name in spans(cells[0])}
    assert len(listed) > 10
    assert listed <= tracing.spans()
