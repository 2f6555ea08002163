"""What the garbage collector of a service that has started still looks at."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: what is spared is so for good.
SCRIPT = """
import gc, weakref
from tandem.rpc.collecting import spare_what_is_there

class Node:
    pass

def ring():
    node = Node()
    node.self = node
    return weakref.ref(node)

kept = [Node() for _ in range(1000)]
spare_what_is_there()
looked_at = len(gc.get_objects())
later = ring()
gc.collect()
print(looked_at < 1000, later() is None, len(kept))
"""


def test_what_was_there_is_spared_and_later_rings_are_not() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True", "1000"]
