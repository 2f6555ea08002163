"""Watch Tandem's routing policies at work: `.venv/bin/python examples/routing.py`; needs no engine and no model.

Chats come to a few prefill workers, by the gateway's own policies (tandem.core.policies). A turn of a chat is its
prompt so far and a bit more; a worker that has computed that prompt before only computes what is new. So there are two
wishes that pull apart: send a chat where its pages are, and send it where nobody waits. Everything else here is a toy.

Keys: 1 to 7 choose the policy, + and - the load, s makes the first worker slow (or fast again), q quits.
With --compare each policy gets the very same chats, and a table says what came of it.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import sys
import termios
import tty
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tandem.core.affinity import key_of_text
from tandem.core.candidates import Candidate
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.kv_index import KvChange, KvIndex, PageHash
from tandem.core.policies import PolicyName, Turn, choose

POLICIES = [policy for policy in PolicyName if policy is not PolicyName.LEAST_COST]
"""All that choose one worker at a time."""
STEP_S = 0.1
"""Virtual seconds of a step; as many real ones where somebody watches."""
PAGES_PER_S = 40.0
"""What a worker computes."""
SLOWER = 5
"""Times that a slow worker takes."""
CHATS, TURN_PAGES, MAX_TURNS = 60, 3, 12
CACHE_PAGES = 360
"""What a worker keeps of past prompts: a quarter of all, where four workers keep different ones."""
MAX_RUNNING = 4
"""Requests that count as one worker's share, for the policies."""
SEEN = 400
"""Requests that the numbers below the picture are about."""


@dataclass(eq=False)
class Request:
    """One turn of a chat."""

    chat: int
    pages: int
    """Of its prompt."""
    came_s: float
    held: int = 0
    """Pages that its worker had when it came there."""
    left: float = 0.0
    """Pages to compute."""


@dataclass(eq=False)
class Worker:
    """Computes prompts, one after the other, and keeps the pages of the last ones."""

    life: WorkerLife
    slow: bool = False
    waiting: deque[Request] = field(default_factory=deque)
    kept: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Pages by chat, the longest unused first."""
    said: int = 0
    """Changes that the index was told."""

    def take(self, request: Request) -> None:
        """A request comes."""
        self.waiting.append(request)

    def work(self, seconds: float) -> Iterator[Request]:
        """Yields those whose prompt is done by then."""
        budget = seconds * PAGES_PER_S / (SLOWER if self.slow else 1)
        while self.waiting and budget > 0:
            request = self.waiting[0]
            if not request.left:
                request.held = min(self.kept.get(request.chat, 0), request.pages - 1)
                request.left = request.pages - request.held
            done = min(budget, request.left)
            budget, request.left = budget - done, request.left - done
            if request.left <= 0:
                yield self.waiting.popleft()

    def keep(self, request: Request) -> KvChange:
        """Keeps what was computed, and what it says of that, as a worker does."""
        before = self.kept.get(request.chat, 0)
        self.kept[request.chat] = max(before, request.pages)
        self.kept.move_to_end(request.chat)
        removed: list[PageHash] = []
        while sum(self.kept.values()) > CACHE_PAGES:
            chat, pages = self.kept.popitem(last=False)
            removed += pages_of(chat, 0, pages)
        stored = pages_of(request.chat, before, request.pages)
        self.said += 1
        return KvChange(self.said - 1, tuple(removed), tuple(stored), cleared=self.said == 1)


def pages_of(chat: int, start: int, end: int) -> list[PageHash]:
    """Names of a chat's pages; in Tandem they are hashes of the tokens."""
    return [PageHash(chat * 1000 + number) for number in range(start, end)]


class Cluster:
    """Workers, a gateway that chooses among them, and chats that go on and on."""

    def __init__(self, workers: int, policy: PolicyName, load: float, seed: int, seen: int | None = SEEN) -> None:
        """load: requests that come, as a share of what the workers could do without what they keep. seen: requests
        that the numbers are about, the last ones; None = all."""
        lives = (WorkerLife(WorkerId(f"prefill-{number}"), Incarnation(1)) for number in range(workers))
        self.workers = {life: Worker(life) for life in lives}
        self.policy, self.load = policy, load
        self.now_s = 0.0
        self.done: deque[tuple[float, int, int]] = deque(maxlen=seen)
        """Seconds that each took, pages that were held, pages."""
        self._index = KvIndex(max_entries=1 << 20)
        self._arrivals, self._dice = random.Random(seed), random.Random(seed + 1)
        self._turns: dict[int, int] = {}
        self._count = 0

    def step(self) -> None:
        """STEP_S later; some requests came, and some were done."""
        mean_pages = TURN_PAGES * (MAX_TURNS + 1) / 2
        per_s = self.load * len(self.workers) * PAGES_PER_S / mean_pages
        at = self._arrivals.expovariate(per_s)
        while at < STEP_S:
            self._send()
            at += self._arrivals.expovariate(per_s)
        self._work()

    def finish(self) -> None:
        """No more come; all that wait are done."""
        while any(worker.waiting for worker in self.workers.values()):
            self._work()

    def _work(self) -> None:
        self.now_s += STEP_S
        for worker in self.workers.values():
            for request in worker.work(STEP_S):
                self._index.apply(worker.life, worker.keep(request))
                self.done.append((self.now_s - request.came_s, request.held, request.pages))

    def _send(self) -> None:
        """The next turn of some chat comes; one that is long enough begins anew, as another."""
        chat = self._arrivals.randrange(CHATS)
        turn = self._turns[chat] = self._turns.get(chat, 0) + 1
        name, pages = chat + CHATS * (turn // MAX_TURNS), TURN_PAGES * (turn % MAX_TURNS + 1)
        key = key_of_text(f"chat {name}")
        candidates = [Candidate(one.life, len(one.waiting), MAX_RUNNING) for one in self.workers.values()]
        held = self._index.match([pages_of(name, 0, pages)])
        turn_of_policy = Turn(self._count, self._dice.getrandbits(32), session=key, prefix=key, held=held)
        self._count += 1
        chosen = choose(self.policy, candidates, turn_of_policy, Role.PREFILL)
        self.workers[chosen.life].take(Request(name, pages, self.now_s))

    @property
    def held_share(self) -> float:
        """Of the pages of late, those that had not to be computed."""
        return sum(held for _, held, _ in self.done) / max(1, sum(pages for _, _, pages in self.done))

    def wait_s(self, share: float) -> float:
        """So many of the requests of late were done within this."""
        waits = sorted(seconds for seconds, _, _ in self.done)
        return waits[min(len(waits) - 1, int(share * len(waits)))] if waits else 0.0


# ---------------------------------------------------------------- what is seen


def picture(cluster: Cluster) -> Group:
    """The cluster now."""
    table = Table(box=None, pad_edge=False)
    for title in ("worker", "waiting", "", "pages kept"):
        table.add_column(title, no_wrap=True)
    for worker in cluster.workers.values():
        count, kept = len(worker.waiting), sum(worker.kept.values())
        bar = Text("█" * min(count, 50), style="red" if count > 2 * MAX_RUNNING else "green")
        name = worker.life.worker_id + (" (slow)" if worker.slow else "")
        table.add_row(name, str(count), bar, "▒" * (kept * 20 // CACHE_PAGES))
    title = f"{cluster.policy.value}   load {cluster.load:.1f}   {cluster.now_s:.0f} s"
    below = (
        f"of the last {len(cluster.done)}: {cluster.held_share:.0%} of the pages were there;"
        f" half were done in {cluster.wait_s(0.5):.1f} s, 90 % in {cluster.wait_s(0.9):.1f} s"
    )
    choices = "  ".join(f"{number} {policy.value}" for number, policy in enumerate(POLICIES, 1))
    keys = Text(f"\n{choices}\n+ - load   s slow worker   q quit", style="dim")
    return Group(Text(title, style="bold"), table, Text(below), keys)


def press(cluster: Cluster, key: str) -> bool:
    """What a key does. False for the one that quits."""
    if key.isdigit() and 1 <= int(key) <= len(POLICIES):
        cluster.policy = POLICIES[int(key) - 1]
        cluster.done.clear()
    elif key in "+-":
        cluster.load = min(3.0, max(0.1, cluster.load + (0.1 if key == "+" else -0.1)))
    elif key == "s":
        first = next(iter(cluster.workers.values()))
        first.slow = not first.slow
    return key not in "qQ\x03\x04"


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """Waits so long for a key, and returns it, or nothing; the terminal is as it was afterwards."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield lambda seconds: os.read(terminal, 1).decode(errors="replace") if _ready(terminal, seconds) else ""
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _ready(terminal: int, seconds: float) -> bool:
    return bool(select.select([terminal], [], [], seconds)[0])


def watch(cluster: Cluster, console: Console) -> None:
    """Until q is pressed."""
    with keys() as key_within, Live(console=console, screen=True, auto_refresh=False) as live:
        going = True
        while going:
            cluster.step()
            live.update(picture(cluster), refresh=True)
            key = key_within(STEP_S)
            going = not key or press(cluster, key)


def compare(console: Console, steps: int, workers: int, load: float, seed: int, *, slow: bool) -> None:
    """The same chats for each policy."""
    table = Table("policy", "pages that were there", "half done within", "90 % done within", box=None)
    for policy in POLICIES:
        cluster = Cluster(workers, policy, load, seed, seen=None)
        next(iter(cluster.workers.values())).slow = slow
        for _ in range(steps):
            cluster.step()
        cluster.finish()
        half, most = cluster.wait_s(0.5), cluster.wait_s(0.9)
        table.add_row(policy.value, f"{cluster.held_share:.0%}", f"{half:.1f} s", f"{most:.1f} s")
    console.print(table)


def main() -> None:
    """Reads the options, and shows what they ask for."""
    parser = argparse.ArgumentParser(description="Tandem's routing policies at work, on a toy.")
    parser.add_argument("--policy", choices=[policy.value for policy in POLICIES], default="round_robin")
    parser.add_argument("--workers", type=int, default=4, choices=range(1, 17), metavar="1..16")
    parser.add_argument("--load", type=float, default=1.2, help="as a share of what the workers compute (1.2)")
    parser.add_argument("--steps", type=int, default=0, help="end after so many tenths of a second, and show the last")
    parser.add_argument("--compare", action="store_true", help="all policies, the same chats, as a table")
    parser.add_argument("--slow", action="store_true", help="the first worker is slow from the start")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    console = Console(highlight=False)
    if given.compare:
        compare(console, given.steps or 1200, given.workers, given.load, given.seed, slow=given.slow)
        return
    cluster = Cluster(given.workers, PolicyName(given.policy), given.load, given.seed)
    next(iter(cluster.workers.values())).slow = given.slow
    if given.steps or not (sys.stdin.isatty() and console.is_terminal):
        for _ in range(given.steps or 300):
            cluster.step()
        console.print(picture(cluster))
        return
    watch(cluster, console)


if __name__ == "__main__":
    main()
