"""Style that no linter checks: sizes, docstrings, and things that are allowed only in named places."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COVERED = ("libs", "services", "cli", "tools", "tests", "benchmarks", "examples")
GENERATED = "libs/protos/src/"
MAX_FUNCTION_LINES = 70
MAX_MODULE_LINES = 500
BROAD_EXCEPT_ALLOWED = ("tandem/rpc/interceptors.py", "tandem/rpc/tasks.py")
SETTINGS_MODULES = ("/settings.py", "/sglang/environment.py")
BAD_TEXT = {
    "a path of one machine": re.compile(
        r"(?<![\w.$}-])/(?:work/(?:main|shared)|tmp/dev|opt/(?:wheels|pypi)|root|home/\w+)(?:/|\b)"
    ),
    "a package index": re.compile(
        r"--(?:extra-)?index-url[ =]+\S*(?:https?|file)://|PIP_(?:EXTRA_)?INDEX_URL\s*=\s*\S*://"
    ),
    "a private host": re.compile(
        r"https?://[\w.-]+\.(?:internal|corp|lan|local)\b|https?://(?:artifactory|nexus|pypi-proxy)\b"
    ),
}
TEXT_EXEMPT = ("tests/unit/test_tidy.py", "LICENSE")


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file of the repository."""

    name: str
    """Path from the root, with slashes."""
    text: str
    tree: ast.Module


Finding = str
"""`path:line: what is wrong`."""


def read_modules() -> tuple[Module, ...]:
    """Every Python file that the rules cover."""
    found = []
    for folder in COVERED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(GENERATED) and "/build/" not in name:
                text = path.read_text(encoding="utf-8")
                found.append(Module(name, text, ast.parse(text, name)))
    return tuple(found)


MODULES = read_modules()


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a module, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dotted(node: ast.expr | None) -> str:
    """`a.b.c` of a name or an attribute, or an empty text."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def long_functions(module: Module) -> Iterator[Finding]:
    """Functions over the limit."""
    for node in functions(module.tree):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"{module.name}:{node.lineno}: {node.name} has {lines} lines, {MAX_FUNCTION_LINES} are allowed"


def long_module(module: Module) -> Iterator[Finding]:
    """A module over the limit."""
    lines = len(module.text.splitlines())
    if lines > MAX_MODULE_LINES:
        yield f"{module.name}:1: {lines} lines, {MAX_MODULE_LINES} are allowed"


def no_docstring(module: Module) -> Iterator[Finding]:
    """A module that does not say what it is for; an empty one need not."""
    if module.tree.body and not ast.get_docstring(module.tree):
        yield f"{module.name}:1: no module docstring"


def environment_reads(module: Module) -> Iterator[Finding]:
    """The environment, outside settings modules."""
    if module.name.endswith(SETTINGS_MODULES):
        return
    for node in ast.walk(module.tree):
        direct = isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv", "os.environb")
        imported = isinstance(node, ast.ImportFrom) and node.module == "os"
        if direct or (imported and {name.name for name in node.names} & {"environ", "getenv", "environb"}):
            yield f"{module.name}:{node.lineno}: the environment is read only in settings modules {SETTINGS_MODULES}"


def sleeps(module: Module) -> Iterator[Finding]:
    """time.sleep: wait for an event instead."""
    for node in ast.walk(module.tree):
        called = isinstance(node, ast.Attribute) and dotted(node) == "time.sleep"
        imported = isinstance(node, ast.ImportFrom) and node.module == "time"
        if called or (imported and "sleep" in {name.name for name in node.names}):
            yield f"{module.name}:{node.lineno}: time.sleep; wait for an event"


def broad_excepts(module: Module) -> Iterator[Finding]:
    """`except:`, `except Exception` and `except BaseException` outside the named places.

    A handler that cleans up and ends with a bare `raise` hides nothing, so it may catch everything.
    """
    if module.name.endswith(BROAD_EXCEPT_ALLOWED):
        return
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is None or dotted(kind).split(".")[-1] in ("Exception", "BaseException") for kind in caught)
        last = node.body[-1]
        if broad and not (isinstance(last, ast.Raise) and last.exc is None):
            yield f"{module.name}:{node.lineno}: catches everything; only {BROAD_EXCEPT_ALLOWED} may"


def vague_names(module: Module) -> Iterator[Finding]:
    """Modules called utils and classes called mixins."""
    if Path(module.name).stem in ("util", "utils", "helpers", "misc", "common"):
        yield f"{module.name}:1: name the module after what is in it"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef) and "mixin" in node.name.lower():
            yield f"{module.name}:{node.lineno}: {node.name}: no mixins; hold an object instead"


def impure_core(module: Module) -> Iterator[Finding]:
    """tandem.core imports more than numpy, itself and the standard library (import-linter says which of that)."""
    if "/tandem/core/" not in module.name:
        return
    allowed = {*sys.stdlib_module_names, "numpy"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.partition(".")[0] not in allowed and not f"{name}.".startswith("tandem.core."):
                yield f"{module.name}:{node.lineno}: core imports {name}"


RULES: tuple[Callable[[Module], Iterator[Finding]], ...] = (
    long_functions,
    long_module,
    no_docstring,
    environment_reads,
    sleeps,
    broad_excepts,
    vague_names,
    impure_core,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps(rule: Callable[[Module], Iterator[Finding]]) -> None:
    found = [finding for module in MODULES for finding in rule(module)]
    assert not found, "\n" + "\n".join(found)


BAD_MODULES = {
    long_functions: "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES,
    long_module: "\n" * (MAX_MODULE_LINES + 1),
    no_docstring: "x = 1\n",
    environment_reads: "import os\nx = os.environ['HOME']\n",
    sleeps: "from time import sleep\n",
    broad_excepts: "try:\n    pass\nexcept (ValueError, Exception):\n    pass\n",
    vague_names: "class LogMixin: ...\n",
    impure_core: "from tandem.rpc import server\n",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_a_violation(rule: Callable[[Module], Iterator[Finding]]) -> None:
    text = BAD_MODULES[rule]
    assert list(rule(Module("libs/core/src/tandem/core/x.py", text, ast.parse(text))))


def repository_texts() -> Iterator[tuple[str, str]]:
    """Name and text of every file that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so which files are tracked is not known")
    for name in sorted(filter(None, listed.stdout.decode().split("\0"))):
        path = ROOT / name
        if name in TEXT_EXEMPT or not path.is_file():
            continue
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # no text


def test_no_text_names_one_machine_or_a_private_host() -> None:
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match.group()} is {what}"
        for name, text in repository_texts()
        for what, pattern in BAD_TEXT.items()
        for match in pattern.finditer(text)
    ]
    assert not found, "\n" + "\n".join(found)
