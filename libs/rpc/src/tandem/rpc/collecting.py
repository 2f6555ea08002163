"""Python's garbage collector, kept from what a service made while it started."""

from __future__ import annotations

import gc


def spare_what_is_there() -> None:
    """What exists now is never looked at again by the garbage collector. Call it once, when a service has started.

    Libraries make hundreds of thousands of objects that live as long as the process. A full collection that looks at
    all of them stops the event loop for a tenth of a second and more, in the middle of answers.
    """
    gc.freeze()
