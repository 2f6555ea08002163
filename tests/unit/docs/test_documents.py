"""The documents say what the code says: links lead somewhere, files exist, tables and drawings are up to date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tandem.core.errors import CATALOGUE, ErrorReason
from tandem.rpc.exits import ExitCode
from tools import api_doc, metrics_doc, room_diagram, settings_doc

ROOT = Path(__file__).resolve().parents[3]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+|[\w-]+\.(?:py|proto|md|toml)")
VARIABLE = re.compile(r"TANDEM_[A-Z_]+[A-Z]")
TERMS = (
    *("room", "ticket", "page", "metadata row", "KV pool", "grant", "chunk", "transfer", "lane", "link"),
    *("incarnation", "link epoch", "provider", "worker", "rank"),
    *("MR", "MW", "rkey", "QP", "WR", "WC", "CQ", "PSN", "TTFT", "ITL", "TPOT", "goodput"),
)
NOT_OF_SETTINGS = {"TANDEM_REQUIRE", "TANDEM_DOCKER_ENGINE_DIR", "TANDEM_RDMA_VM_DIR", "TANDEM_RDMA_VM_RESULTS"}


def documents() -> list[Path]:
    """Every page for people, but for what is not ours."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "libs").glob("*/*.md"))]


def text_of(name: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", (ROOT / name).read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """What a link into a page may name."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(path: Path) -> Iterator[str]:
    """Links of a page that lead nowhere in this repository."""
    for target in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            yield target
        elif anchor and anchor not in anchors(file):
            yield f"{target} (no such title)"


def mentioned_files(text: str) -> list[str]:
    """File and folder names in code spans."""
    return [span for span in CODE.findall(text) if FILE.fullmatch(span)]


def exists(name: str) -> bool:
    """Whether a name is a path from the root, or the short path of a Python file."""
    return (ROOT / name).exists() or any(
        (source / "tandem" / name).exists() for pattern in ("*/*/src", "cli/src") for source in ROOT.glob(pattern)
    )


def rows(text: str) -> list[list[str]]:
    """Cells of every table row of a page."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    assert not list(broken(path))


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "docs/adr"])
def test_files_that_are_mentioned_exist(name: str) -> None:
    pages = [ROOT / name] if name.endswith(".md") else sorted((ROOT / name).glob("*.md"))
    found = [file for page in pages for file in mentioned_files(page.read_text(encoding="utf-8"))]
    assert found, "the test sees no files at all"
    assert not [file for file in found if not exists(file)]


def test_room_machines_are_drawn_from_their_tables() -> None:
    text = room_diagram.DOCUMENT.read_text(encoding="utf-8")
    assert text == room_diagram.filled(text), "run: python -m tools.room_diagram"


def test_settings_are_those_of_the_classes() -> None:
    assert settings_doc.DOCUMENT.read_text(encoding="utf-8") == settings_doc.document(), (
        "run: python -m tools.settings_doc"
    )


def test_metrics_are_those_of_the_services() -> None:
    assert metrics_doc.DOCUMENT.read_text(encoding="utf-8") == metrics_doc.document(), (
        "run: python -m tools.metrics_doc"
    )


def test_the_api_is_that_of_the_schemas() -> None:
    assert api_doc.DOCUMENT.read_text(encoding="utf-8") == api_doc.document(), "run: python -m tools.api_doc"


def test_every_metric_is_in_one_section_and_every_label_is_explained() -> None:
    held = metrics_doc.holders(metrics_doc.families())
    assert set(held.values()) <= set(metrics_doc.SECTIONS)
    names = [family.name for family in held]
    assert len(names) == len(set(names)), "one name, one meaning"
    assert {label for family in held for label in family.labels} == metrics_doc.LABELS.keys()
    assert list(metrics_doc.LABELS) == sorted(metrics_doc.LABELS)


def test_every_setting_has_a_meaning_told_once() -> None:
    told = {}
    for settings in settings_doc.classes():
        for name, info in settings.model_fields.items():
            told[settings.env_name(name)] = info.description
    assert not [variable for variable in told if not (told[variable] or settings_doc.MEANINGS.get(variable))]
    assert not [variable for variable in settings_doc.MEANINGS if variable not in told or told[variable]]


def test_every_service_has_its_settings_listed() -> None:
    prefixes = [settings_doc.prefix(settings) for settings in settings_doc.classes()]
    assert prefixes == list(settings_doc.SECTIONS)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_variables_that_are_mentioned_exist(path: Path) -> None:
    known = {row.variable for settings in settings_doc.classes() for row in settings_doc.rows(settings)}
    prefixes = {f"TANDEM_{settings_doc.prefix(settings)}" for settings in settings_doc.classes()}
    found = set(VARIABLE.findall(path.read_text(encoding="utf-8")))
    assert not found - known - prefixes - NOT_OF_SETTINGS


def test_times_of_reliability_are_the_defaults() -> None:
    defaults = {row.variable: row.default for settings in settings_doc.classes() for row in settings_doc.rows(settings)}
    told = [row for row in rows(text_of("docs/reliability.md")) if VARIABLE.search(row[1]) and row[-1].isdigit()]
    assert len(told) > 5, "the test sees no times at all"
    for _, variables, value in told:
        assert {defaults[name].strip("`") for name in VARIABLE.findall(variables)} == {value}, variables


def test_errors_are_those_of_the_catalogue() -> None:
    listed = [row[:4] for row in rows(text_of("docs/errors.md")) if row[0] in ErrorReason.__members__]
    wanted = [
        [reason.value, spec.grpc_code, str(spec.http_status), "yes" if spec.retryable else "no"]
        for reason, spec in CATALOGUE.items()
    ]
    assert listed == wanted


def test_errors_say_when_and_what_to_do() -> None:
    for row in rows(text_of("docs/errors.md")):
        if row[0] in ErrorReason.__members__:
            assert len(row) == 6, row[0]
            assert all(row), row[0]


def test_exit_codes_are_listed() -> None:
    listed = [int(row[0]) for row in rows(text_of("docs/errors.md")) if row[0].isdigit()]
    assert listed == [code.value for code in ExitCode]


def test_glossary_holds_every_term() -> None:
    words = [row[0] for row in rows(text_of("docs/glossary.md"))]
    assert not set(TERMS) - set(words)
    doubled = {word for word in words if words.count(word) > 1} - {"word"}
    assert not doubled


def test_decisions_are_numbered_dated_and_indexed() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    index = text_of("docs/adr/README.md")
    for number, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        title = text.splitlines()[0].removeprefix(f"# {number}. ")
        assert f"| {number} | [{title}]({page.name}) |" in index
        assert re.search(r"^Status: \w+, \d{4}-\d{2}-\d{2}$", text, re.MULTILINE), page.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[good](#a-title) [bad](#another) [gone](gone.md) [web](https://example.org)\n")
    assert list(broken(page)) == ["#another (no such title)", "gone.md"]


def test_a_missing_file_is_seen() -> None:
    assert mentioned_files("`core/room/sender.py` and `a b` and `Quiet`") == ["core/room/sender.py"]
    assert exists("core/room/sender.py")
    assert not exists("core/room/nobody.py")


def test_a_changed_table_changes_the_drawing() -> None:
    table = dict(list(room_diagram.sender.TRANSITIONS.items())[1:])
    assert room_diagram.matrix(table) not in room_diagram.drawings()["sender"]
