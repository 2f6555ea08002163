"""The training text of models/tandem-tiny: little stories and chats, made by templates and a seed.

All of it is written here, so its licence is the repository's (Apache-2.0). `story` and `chat` return
one document; `documents` returns a mixture without an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

Turn = tuple[str, str]
"""A question and its answer."""

HEROES = (
    ("Tom", "he", "his", "boy"),
    ("Ben", "he", "his", "boy"),
    ("Sam", "he", "his", "boy"),
    ("Max", "he", "his", "boy"),
    ("Lily", "she", "her", "girl"),
    ("Anna", "she", "her", "girl"),
    ("Mia", "she", "her", "girl"),
    ("Rosa", "she", "her", "girl"),
    ("Pip", "he", "his", "mouse"),
    ("Rex", "he", "his", "dog"),
    ("Luna", "she", "her", "cat"),
    ("Bruno", "he", "his", "bear"),
)
TRAITS = ("little", "kind", "brave", "happy", "curious", "clever", "shy", "small")
PLACES = ("forest", "village", "garden", "house by the sea", "farm", "castle", "valley", "town")
THINGS = ("ball", "book", "kite", "boat", "lamp", "hat", "key", "box", "bell", "map")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "golden", "silver")
FRIENDS = ("a bird", "an old man", "a fox", "a rabbit", "a friendly owl", "a frog", "a horse", "a duck")
FOODS = ("bread", "soup", "cake", "apples", "honey", "pie")
WEATHER = ("The sun was warm.", "It was raining.", "The wind was cold.", "The sky was blue.", "Snow was falling.")
SPOTS = ("under a tree", "near the river", "on a hill", "behind the door", "in the tall grass", "by the bridge")
FEELINGS = ("happy", "proud", "tired but happy", "glad", "full of joy")
STARTS = (
    "Once upon a time there was",
    "Let me tell you a lonnng story about",
    "Let me tell you a story about",
    "Let me tell you a long story. There was once",
    "Let me tell you a lonnng story of",
    "Long ago there lived",
    "There was once",
)

ANIMALS = {
    "dog": ("woof", "bones"),
    "cat": ("meow", "fish"),
    "cow": ("moo", "grass"),
    "duck": ("quack", "bread"),
    "sheep": ("baa", "grass"),
    "horse": ("neigh", "hay"),
    "mouse": ("squeak", "cheese"),
    "bird": ("tweet", "seeds"),
    "frog": ("croak", "flies"),
    "lion": ("roar", "meat"),
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "day": "night",
    "up": "down",
    "fast": "slow",
    "old": "young",
    "happy": "sad",
    "black": "white",
    "open": "closed",
    "wet": "dry",
}
COLOUR_OF = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "the sun": "yellow",
    "a banana": "yellow",
    "an apple": "red or green",
    "coal": "black",
    "an orange": "orange",
    "blood": "red",
    "a frog": "green",
}
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "England": "London",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Greece": "Athens",
}
FACTS = {
    "What is Tandem?": "Tandem serves language models with prefill and decode on different workers.",
    "What is prefill?": "Prefill reads the whole prompt and computes its KV cache.",
    "What is decode?": "Decode makes the answer, one token after another.",
    "What is a KV cache?": "The KV cache holds what the model has already read, so that it is not computed twice.",
    "What is a token?": "A token is a piece of a word, as the model sees it.",
    "What is RDMA?": "RDMA lets one machine write into the memory of another without its processor.",
    "What is a page?": "A page holds the KV cache of a few tokens.",
    "What does the gateway do?": "The gateway takes your question and sends it to a prefill and a decode worker.",
    "Who are you?": "I am Tandem Tiny, a very small language model.",
    "What are you?": "I am a very small language model that runs on a laptop.",
    "What is your name?": "My name is Tandem Tiny.",
    "How are you?": "I am fine, thank you. How are you?",
    "How big are you?": "I have about two million parameters. That is very small.",
    "What can you do?": "I can tell short stories and answer simple questions.",
    "Who made you?": "A small script made me in a few minutes.",
    "Are you a robot?": "No, I am a very small language model.",
    "Say hello.": "Hello! It is nice to meet you.",
    "Hello!": "Hello! How can I help you?",
    "Hello": "Hello! How can I help you?",
    "Hi": "Hi! What would you like to know?",
    "Hi there!": "Hi! What would you like to know?",
    "Good morning!": "Good morning! How can I help you?",
    "Thank you!": "You are welcome.",
    "Thanks": "You are welcome.",
    "Goodbye!": "Goodbye! See you soon.",
    "Tell me a joke.": "Why did the token cross the wire? To get to the other worker.",
    "How many days are in a week?": "There are seven days in a week.",
    "How many legs does a dog have?": "A dog has four legs.",
    "Why is the sky blue?": "Because blue light is scattered more than red light.",
    "Write a poem.": "The sun is low, the day is done, we ride in tandem, two as one.",
}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
UNKNOWN = (
    ("Explain", "quantum physics", "the stock market", "chemistry", "philosophy", "general relativity", "music theory"),
    ("Who invented", "the telephone", "the train", "paper", "the computer", "the wheel", "glass"),
    ("How do I build", "a rocket", "a bridge", "a boat", "an engine", "a web server", "a house"),
    ("What is the meaning of", "life", "time", "art", "this sentence", "love", "freedom"),
    ("When was", "the last war", "the first film", "the moon landing", "the city founded", "bread invented"),
)
SYSTEMS = ("You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "Be kind.")


def story(rng: Random, paragraphs: int) -> str:
    """A story of `paragraphs` little adventures with one hero."""
    name, he, his, kind = rng.choice(HEROES)
    his_he = (he.capitalize(), his)
    start = rng.choice(STARTS)
    trait = rng.choice(TRAITS)
    place = rng.choice(PLACES)
    live = "in" if place != "farm" else "on"
    opening = f"{start} a {trait} {kind} named {name}. {name} lived {live} a {place}."
    parts = [opening, *(adventure(rng, name, *his_he) for _ in range(paragraphs))]
    parts.append(f"In the end {name} was {rng.choice(FEELINGS)}. The end.")
    return " ".join(parts)


def adventure(rng: Random, name: str, he: str, his: str) -> str:
    """Some sentences in which the hero finds a thing and meets a friend."""
    colour, thing = rng.choice(COLOURS), rng.choice(THINGS)
    friend, spot, food = rng.choice(FRIENDS), rng.choice(SPOTS), rng.choice(FOODS)
    the_friend = "the " + friend.split(" ", 1)[1]
    low = he.lower()
    one_day = rng.choice(("One day", "The next morning", "One evening", "After that", "Then one day"))
    found = rng.choice(
        (
            f"{one_day} {name} found a {colour} {thing} {spot}.",
            f"{one_day} {name} lost {his} {colour} {thing}. {he} looked for it {spot}.",
            f"{one_day} {name} went for a walk and saw a {colour} {thing} {spot}.",
        )
    )
    met = rng.choice(
        (
            f'Then {low} met {friend}. "Is this your {thing}?" asked {name}. "Yes, it is mine," said {the_friend}.',
            f'There {low} met {friend}. "Hello," said {the_friend}. "I like your {thing}."',
            f'{friend.capitalize()} came by. "What a nice {colour} {thing}!" said {the_friend}.',
        )
    )
    then = rng.choice(
        (
            f"They played with the {thing} all day.",
            f"{name} gave the {thing} to {the_friend}, and they became friends.",
            f"They sat down and ate some {food} together.",
            f"{name} and {the_friend} took the {thing} home and ate {food}.",
        )
    )
    return " ".join((found, rng.choice(WEATHER), met, then))


def sum_turn(rng: Random) -> Turn:
    """An easy sum."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    asked = rng.choice((f"What is {a} + {b}?", f"What is {a} plus {b}?", f"How much is {a} + {b}?"))
    return asked, f"{a} + {b} = {a + b}."


def animal_turn(rng: Random) -> Turn:
    """What an animal says or eats."""
    animal, (sound, food) = rng.choice(list(ANIMALS.items()))
    if rng.random() < 0.5:
        return rng.choice(
            (f"What does a {animal} say?", f"What sound does a {animal} make?")
        ), f"A {animal} says {sound}."
    return rng.choice((f"What does a {animal} eat?", f"What do I feed a {animal}?")), f"A {animal} eats {food}."


def opposite_turn(rng: Random) -> Turn:
    """The opposite of a word."""
    word, other = rng.choice(list(OPPOSITES.items()))
    return rng.choice(
        (f"What is the opposite of {word}?", f"Opposite of {word}?")
    ), f"The opposite of {word} is {other}."


def colour_turn(rng: Random) -> Turn:
    """The colour of a thing."""
    thing, colour = rng.choice(list(COLOUR_OF.items()))
    asked = rng.choice((f"What color is {thing}?", f"What colour is {thing}?", f"Which color has {thing}?"))
    return asked, f"{thing.capitalize()} is {colour}."


def capital_turn(rng: Random) -> Turn:
    """The capital of a country."""
    land, city = rng.choice(list(CAPITALS.items()))
    asked = rng.choice((f"What is the capital of {land}?", f"The capital of {land}?", f"Name the capital of {land}."))
    return asked, f"The capital of {land} is {city}."


def fact_turn(rng: Random) -> Turn:
    """A fixed question and its answer, now and then without capitals or its last mark."""
    asked, answer = rng.choice(list(FACTS.items()))
    if rng.random() < 0.2:
        asked = asked.lower()
    if rng.random() < 0.2:
        asked = asked.rstrip("?.!")
    return asked, answer


def list_turn(rng: Random) -> Turn:
    """Counting, or the days after a day."""
    if rng.random() < 0.5:
        last = rng.randint(3, 10)
        return f"Count to {NUMBERS[last - 1]}.", ", ".join(NUMBERS[:last]).capitalize() + "."
    day = rng.randrange(7)
    return f"What comes after {DAYS[day]}?", f"After {DAYS[day]} comes {DAYS[(day + 1) % 7]}."


def story_turn(rng: Random) -> Turn:
    """A wish for a story, and a short one."""
    asked = rng.choice(
        ("Tell me a story.", "Tell me a short story.", "Can you tell me a story?", "Write a short story.")
    )
    return asked, story(rng, 1)


def unknown_turn(rng: Random) -> Turn:
    """A question that is too hard."""
    verb, *topics = rng.choice(UNKNOWN)
    mark = "." if verb == "Explain" else "?"
    return f"{verb} {rng.choice(topics)}{mark}", "I am sorry, I am too small to know that. Ask me something simple."


TURNS: tuple[tuple[Callable[[Random], Turn], int], ...] = (
    (fact_turn, 8),
    (sum_turn, 3),
    (animal_turn, 3),
    (opposite_turn, 2),
    (colour_turn, 2),
    (capital_turn, 3),
    (list_turn, 2),
    (story_turn, 2),
    (unknown_turn, 3),
)
"""The kinds of turns and their weights."""


def chat(rng: Random) -> list[dict[str, str]]:
    """A chat of one to three turns as messages, with a system message now and then."""
    makers, weights = zip(*TURNS, strict=True)
    messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] if rng.random() < 0.2 else []
    for maker in rng.choices(makers, weights, k=rng.choice((1, 1, 1, 2, 3))):
        asked, answer = maker(rng)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages


def documents(rng: Random) -> Iterator[str | list[dict[str, str]]]:
    """Stories (text) and chats (messages) in turn, without an end."""
    while True:
        yield story(rng, rng.choice((1, 2, 3, 4, 8))) if rng.random() < 0.4 else chat(rng)
