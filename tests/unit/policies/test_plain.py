"""Policies choose from what is kept ready as they would by looking at every worker: on random crews, whose rooms come
and go between the choices."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.core.affinity import key_of_text
from tandem.core.candidates import Candidate, Candidates
from tandem.core.ids import Incarnation, Role, WorkerId, WorkerLife
from tandem.core.kv_index import KvChange, KvIndex, PageHash
from tandem.core.policies import PolicyName, Turn, choose
from tests.support.policies.plain import plain_choice

PROMPT = tuple(map(PageHash, range(12)))
SEEDS = st.integers(0, 2**32 - 1)


def some_candidates(dice: random.Random) -> list[Candidate]:
    """In order of life; equal and different loads and places, also two lives of one worker."""
    kinds = dice.choice([(4,), (4, 8), range(1, 40)])
    rooms = dice.choice([1, 3, 40])
    found = []
    for number in range(dice.choice([1, 2, 5, 60])):
        for incarnation in range(1, 2 + (dice.random() < 0.1)):
            life = WorkerLife(WorkerId(f"w{number:02}"), Incarnation(incarnation))
            found.append(Candidate(life, dice.randrange(rooms), dice.choice(kinds)))
    return found


def some_index(candidates: list[Candidate], dice: random.Random) -> KvIndex:
    """Where some hold a part of the prompt, some of whom are not to choose from; in any order."""
    index, most = KvIndex(10**6), dice.choice([0, 3, len(PROMPT)])
    lives = [one.life for one in candidates if dice.random() < 0.8]
    lives += [WorkerLife(WorkerId(f"x{number}"), Incarnation(1)) for number in range(dice.randrange(4))]
    dice.shuffle(lives)
    for life in lives:
        index.apply(life, KvChange(0, stored=PROMPT[: dice.randint(0, most)], cleared=True))
    for life in dice.sample(lives, len(lives) // 5):
        index.forget(life)
    return index


def some_turn(dice: random.Random) -> Turn:
    session, prefix = (key_of_text(dice.choice(["", "a", "b", str(dice.random())])) for _ in range(2))
    return Turn(dice.randrange(1000), dice.getrandbits(32), session, prefix, dice.choice([1, 1.25, 1.5, 3]))


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_a_choice_is_that_of_the_plain_policy(seed: int) -> None:
    dice = random.Random(seed)
    plain = some_candidates(dice)
    ready, index = Candidates.of(plain), some_index(plain, dice)
    for _ in range(8):
        turn = some_turn(dice)
        for policy in PolicyName:
            now = (
                replace(turn, held=index.match([PROMPT[:5], PROMPT[5:]])) if policy is PolicyName.CACHE_AWARE else turn
            )
            assert choose(policy, ready, now, Role.DECODE) == plain_choice(policy, plain, now), policy
        place = dice.randrange(len(plain))
        plain[place] = plain[place]._replace(in_flight=dice.randrange(50))
        ready.note_rooms(plain[place].life, plain[place].in_flight)


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_some_of_the_candidates_are_as_if_there_were_no_others(seed: int) -> None:
    dice = random.Random(seed)
    plain = some_candidates(dice)
    ready, turn = Candidates.of(plain), some_turn(dice)
    gone = [one.life for one in plain if dice.random() < 0.3]
    left = [one for one in plain if one.life not in gone]
    fewer = ready.without([*gone, WorkerLife(WorkerId("nobody"), Incarnation(1))])
    assert list(fewer) == left
    for policy in PolicyName if left else ():
        assert choose(policy, fewer, turn, Role.DECODE) == plain_choice(policy, left, turn), policy
