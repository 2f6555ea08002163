"""What the runner of SGLang's own tests says of a case."""

from __future__ import annotations

import unittest

from tools.sglang_kits import Outcomes


def test_it_says_what_went_wrong_within() -> None:
    class Tried(unittest.TestCase):
        """As SGLang's cases, of which it hides the error where it gives up."""

        def test_one(self) -> None:
            try:
                raise AssertionError("of ours")
            except AssertionError:
                raise Exception("tried often enough")  # noqa: B904

        def test_two(self) -> None:
            raise ValueError("plain")

    outcomes = Outcomes()
    unittest.defaultTestLoader.loadTestsFromTestCase(Tried).run(outcomes)
    assert outcomes.found == {
        "Tried.test_one": ("error", "AssertionError: of ours"),
        "Tried.test_two": ("error", "ValueError: plain"),
    }
