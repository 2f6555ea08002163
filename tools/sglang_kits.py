"""Points SGLang's own server tests at a running system: `python -m tools.sglang_kits --url http://127.0.0.1:8000`.

The kits are those of the installed SGLang (`sglang.test.kits`). With `--from`, test files of a checkout of SGLang are
run too, such as its test/registered/openai_server; what they start is this system instead, which is said with the
options that they would start it with, and whatever model they name is the one that is served. Files that start no
server are left out. Nothing of theirs is kept. The model should be served under its path (`tandem up --model X
--model-name X`): the tests take one for the other.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import signal
import sys
import unittest
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

KITS: Final = {
    "basic_api_contract_kit": ("BasicAPIContractMixin",),
    "basic_decode_correctness_kit": ("BasicDecodeCorrectnessMixin",),
    "basic_scheduler_stress_kit": ("BasicSchedulerStressMixin",),
    "matched_stop_kit": ("MatchedStopMixin",),
    "json_mode_kit": ("JSONModeMixin",),
    "json_constrained_kit": ("JSONConstrainedMixin",),
    "regex_constrained_kit": ("RegexConstrainedMixin",),
    "ebnf_constrained_kit": ("EBNFConstrainedMixin",),
    "anthropic_messages_kit": ("AnthropicMessagesMixin",),
    "abort_timeout_kit": ("AbortAllMixin",),
}
"""Modules of sglang.test.kits that need no more than a server, and their classes."""
SHOWN_CHARACTERS: Final = 160
STARTED: Final = ("popen_launch_server", "popen_launch_pd_server")
"""Functions of sglang.test.test_utils that start a server."""


class Running:
    """What tests take for the process that they have started."""

    pid = 0

    def poll(self) -> None:
        """It runs."""

    def wait(self, timeout: float | None = None) -> int:
        """It has ended well, as far as they can see."""
        return 0


class Outcomes(unittest.TestResult):
    """What came of each case, and the last line of why."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, tuple[str, str]] = {}

    def _note(self, test: unittest.TestCase, outcome: str, why: str = "") -> None:
        name = test.id().rpartition(".")[0].rpartition(".")[2] + "." + test.id().rpartition(".")[2]
        self.found[name] = (outcome, why[:SHOWN_CHARACTERS])
        print(f"{outcome:8}{name}  {why[:SHOWN_CHARACTERS]}", flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        """It passed."""
        self._note(test, "pass")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        """An assertion failed."""
        self._note(test, "fail", _line(err[1]))

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        """It, or the set-up of its class, broke."""
        self._note(test, "error", _line(err[1]))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        """It was not to be run."""
        self._note(test, "skip", reason)


def _line(error: BaseException) -> str:
    """What went wrong. SGLang tries cases again, and where it gives up, its own error hides theirs."""
    if type(error) is Exception and error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def kit_cases(url: str, model: str) -> Iterator[type[unittest.TestCase]]:
    """A case of each kit, with what kits ask of their host."""
    import openai

    given = {
        "base_url": url,
        "model": model,
        "served_model_name": model,
        "api_key": "none",
        "process": Running(),
        "client": openai.Client(base_url=f"{url}/v1", api_key="none", max_retries=0),
    }
    for module, names in KITS.items():
        try:
            kit = importlib.import_module(f"sglang.test.kits.{module}")
        except ImportError as error:
            print(f"missing {module}: {error}", flush=True)
            continue
        for name in names:
            yield type(name.removesuffix("Mixin"), (getattr(kit, name), unittest.TestCase), given)


def file_cases(path: Path, url: str, model: str) -> Iterator[type[unittest.TestCase]]:
    """The cases of test files of SGLang's repository, whose servers are this system."""
    try:
        from sglang.test import test_utils
    except ImportError as error:
        print(f"missing all of {path}: {error}", flush=True)
        return
    for name in dir(test_utils):
        if name.startswith("DEFAULT_") and "MODEL_NAME" in name:
            setattr(test_utils, name, model)
    test_utils.DEFAULT_URL_FOR_TEST = url
    for name in STARTED:
        setattr(test_utils, name, _start_nothing)
    for file in sorted(path.rglob("test_*.py")) if path.is_dir() else [path]:
        module = _module_of(file, model)
        if module is None:
            continue
        for found in list(vars(module).values()):  # cases may add to their module
            if isinstance(found, type) and issubclass(found, unittest.TestCase) and found.__module__ == module.__name__:
                yield _asks_for(found, model)


def _start_nothing(*_: Any, other_args: Sequence[str] | None = None, **__: Any) -> Running:
    if other_args:
        print(f"starts    with {' '.join(map(str, other_args))}", flush=True)
    return Running()


def _module_of(file: Path, model: str) -> ModuleType | None:
    """A test file, of which nothing is started or ended; None if it can't be imported or asks no server."""
    spec = importlib.util.spec_from_file_location(f"kits_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        print(f"missing {file.name}: {error}", flush=True)
        return None
    if not any(hasattr(module, name) for name in STARTED):
        print(f"left out {file.name}: it starts no server", flush=True)
        return None
    module.kill_process_tree = lambda *_, **__: None  # type: ignore[attr-defined]
    tokenizer_of = vars(module).get("get_tokenizer")
    if tokenizer_of is not None:
        module.get_tokenizer = lambda *_, **__: tokenizer_of(model)  # type: ignore[attr-defined]
    return module


def _asks_for(case: type[unittest.TestCase], model: str) -> type[unittest.TestCase]:
    """A case that asks for this model, whichever it names."""

    def set_up(cls: Any) -> None:
        super(cls, cls).setUpClass()
        if isinstance(getattr(cls, "model", None), str):
            cls.model = model

    return type(case.__name__, (case,), {"setUpClass": classmethod(set_up)})


@contextmanager
def within(limit_s: int) -> Iterator[None]:
    """Raises TimeoutError in the main thread after so many seconds."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"not over after {limit_s} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(cases: Iterator[type[unittest.TestCase]], only: Sequence[str], limit_s: int) -> Outcomes:
    """Runs cases in turn. only: parts of their names, empty = all. limit_s: of each case."""
    outcomes = Outcomes()
    for case in cases:
        for name in unittest.TestLoader().getTestCaseNames(case):
            if not only or any(part in f"{case.__name__}.{name}" for part in only):
                try:
                    with within(limit_s):
                        unittest.TestSuite([case(name)]).run(outcomes)
                except TimeoutError as error:  # where it was not in the case itself
                    outcomes.addError(case(name), (type(error), error, None))
    return outcomes


def main(arguments: list[str] | None = None) -> int:
    """Prints each case and a count. Exit code 0: all passed or were skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the gateway")
    parser.add_argument("--model", default="models/tandem-tiny", help="name that the model is served under")
    parser.add_argument("--from", dest="files", type=Path, action="append", default=[], help="test files of SGLang")
    parser.add_argument("--no-kits", action="store_true", help="only the files")
    parser.add_argument("--only", action="append", default=[], help="only cases with this in their name; repeatable")
    parser.add_argument("--limit-s", type=int, default=120, help="seconds that one case may take")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    given = parser.parse_args(arguments)
    found: dict[str, tuple[str, str]] = {}
    if not given.no_kits:
        found |= run(kit_cases(given.url, given.model), given.only, given.limit_s).found
    for path in given.files:
        found |= run(file_cases(path, given.url, given.model), given.only, given.limit_s).found
    counts = Counter(outcome for outcome, _ in found.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))
    return int(bool(counts["fail"] or counts["error"]))


if __name__ == "__main__":
    sys.exit(main())
