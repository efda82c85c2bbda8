"""The small grammar of the support desk: fragments with conditions, decks to draw from, messages."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
TOPICS = ("delivery", "return", "repair", "billing", "parts", "hold", "account", "open", "plain")
MOST_WORDS = 46
MOST_CHARACTERS = 250
OWN_FAULT = ("unwanted", "wrong size", "part lost")
# A firm that writes through its officers has no aunt and no birthday.
PRIVATE = re.compile(
    r"\b(my (aunt|wife|husband|mother|son|sister|daughter|father|little|cat|grandson|exam|porch|steps|door)"
    r"|my phone|flatmate|wedding|birthday|baby is|holiday|flat|ex-husband|maiden|parents|christening|hospital"
    r"|landlord|bake sale|at home|moving|jubilee|guests|visitors|fond of)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fragment:
    """One hand-written piece of a message and where it may stand."""

    text: str
    label: str
    tag: str | None = None
    topics: frozenset[str] = frozenset(TOPICS)
    groups: frozenset[str] = frozenset()
    first: bool = False

    @property
    def private(self) -> bool:
        """Whether it speaks of private life."""
        return PRIVATE.search(self.text) is not None


@dataclass(frozen=True)
class Situation:
    """What happened, to which product."""

    fragment: Fragment
    product: str
    groups: frozenset[str]

    @property
    def topic(self) -> str:
        """The queue the situation belongs to, or "plain"."""
        return self.fragment.label

    @property
    def ordered(self) -> bool:
        """Whether there is an order to refer to."""
        return self.topic not in ("open", "account")

    @property
    def shop_at_fault(self) -> bool:
        """Whether a customer could well be furious about it."""
        return self.topic not in ("open", "hold") and self.fragment.tag not in OWN_FAULT

    def accepts(self, cue: Fragment) -> bool:
        """Whether a cue makes sense after this situation."""
        return self.topic in cue.topics and (not cue.groups or bool(cue.groups & self.groups))


def load(name: str) -> Any:
    """Read one of the YAML files next to this module."""
    return yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


def parse(line: str, label: str, topics: Iterable[str]) -> Fragment:
    """Read a fragment written as "tag @flag,flag | text"; flags are topics, product groups or "first"."""
    left, _, text = line.rpartition("|")
    tag, _, listed = left.strip().partition("@")
    flags = {flag.strip() for flag in listed.split(",") if flag.strip()}
    own_topics = flags.intersection(TOPICS)
    return Fragment(
        text=text.strip(),
        label=label,
        tag=tag.strip() or None,
        topics=frozenset(own_topics or topics),
        groups=frozenset(flags - own_topics - {"first"}),
        first="first" in flags,
    )


@dataclass
class Bank:
    """All fragments open to one side of the split: train and dev share theirs, test has its own."""

    side: str
    topics: dict[str, list[Fragment]] = field(default_factory=dict)
    urgency: dict[str, list[Fragment]] = field(default_factory=dict)
    wants: dict[str, list[Fragment]] = field(default_factory=dict)
    tones: dict[str, list[Fragment]] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)
    products: dict[str, list[str]] = field(default_factory=dict)
    common: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, side: str) -> Bank:
        """Read the fragments of `side` ("train" or "test")."""
        common = load("common")
        bank = cls(side=side)
        bank.products = dict(common["products"]["train"])
        if side == "test":
            bank.products.update(common["products"]["test"])
        bank.common = {key: value for key, value in common.items() if key != "products"}
        for topic, lists in load("topics").items():
            bank.topics[topic] = [parse(line, topic, TOPICS) for line in lists[side]]
        for label, lists in load("urgency").items():
            default = {"high": ("repair", "plain"), "review": set(TOPICS) - {"hold"}}.get(label, TOPICS)
            bank.urgency[label] = [parse(line, label, default) for line in lists[side]]
        for label, entry in load("wants").items():
            bank.subjects[label] = entry["subject"]
            bank.wants[label] = [parse(line, label, entry["topics"]) for line in entry[side]]
        tones = load("tones")
        bank.common["firms"] = tones.pop("firms")
        for label, lists in tones.items():
            # Lawyers' language does not go with a question before buying or with a lost password.
            suited = set(TOPICS) - {"open", "account"} if label == "closed" else TOPICS
            bank.tones[label] = [parse(line, label, suited) for line in lists[side]]
        return bank


class Deck:
    """Draws fragments so that each is used about equally often."""

    def __init__(self, rng: random.Random):
        self._rng = rng
        self._piles: dict[str, list[Fragment]] = {}

    def draw(self, name: str, cards: list[Fragment], fits: Callable[[Fragment], bool]) -> Fragment | None:
        """Take the next card of pile `name` that fits; a pile without one is filled up once."""
        for fresh in (False, True):
            pile = self._piles.setdefault(name, [])
            if fresh:
                added = list(cards)
                self._rng.shuffle(added)
                pile.extend(added)
            for place, card in enumerate(pile):
                if fits(card):
                    return pile.pop(place)
        return None


class Writer:
    """Fills in the details of fragments and joins them into one message."""

    def __init__(self, bank: Bank, rng: random.Random):
        self.bank = bank
        self.rng = rng

    def product_for(self, fragment: Fragment) -> tuple[str, frozenset[str]] | None:
        """Choose a product the fragment fits."""
        fitting = [
            p for p, own in self.bank.products.items() if not fragment.groups or fragment.groups & {*own}
        ]
        if not fitting:
            return None
        product = self.rng.choice(fitting)
        return product, frozenset(self.bank.products[product])

    def write(self, situation: Situation, cues: list[Fragment]) -> str | None:
        """Write the message, or None when it would be too long."""
        rng, common = self.rng, self.bank.common
        details = self._details(situation.product)
        head = [cue for cue in cues if cue.first]
        tail = [cue for cue in cues if not cue.first]
        body = [situation.fragment, *tail]
        pieces = [self._fill(fragment.text, details) for fragment in [*head, *body]]
        first = pieces[0]
        if not head and rng.random() < 0.35:
            if not first.startswith("I "):
                pieces[0] = first[0].lower() + first[1:]
            pieces.insert(0, rng.choice(common["greetings"]))
        elif not head and "{n}" not in situation.fragment.text and situation.ordered and rng.random() < 0.2:
            pieces.insert(0, self._fill(rng.choice(common["references"]), details))
        formal_end = any("Yours faithfully" in piece or "Signed for" in piece for piece in pieces)
        if not formal_end and rng.random() < 0.15:
            pieces.append(rng.choice(common["sign_offs"]))
        text = " ".join(pieces)
        if rng.random() < 0.1:
            text = text.lower().rstrip(".")
        return text if len(text.split()) <= MOST_WORDS and len(text) <= MOST_CHARACTERS else None

    def _details(self, product: str) -> dict[str, Any]:
        rng, common = self.rng, self.bank.common
        other = rng.choice([p for p in self.bank.products if p != product])
        days = rng.sample(common["days"], len(common["days"]))
        return {
            "p": product,
            "a_p": with_article(product),
            "a_q": with_article(other),
            "n": str(rng.randint(1000, 9999)),
            "days": days,
            "firm": rng.choice(common["firms"]),
        }

    def _fill(self, text: str, details: dict[str, Any]) -> str:
        rng, common = self.rng, self.bank.common
        # Each fragment takes new days, so that a parcel due on Friday is not also needed by Friday.
        days = details["days"]
        day = days.pop(0) if "{day}" in text else ""
        day2 = days.pop(0) if "{day2}" in text else ""
        number = rng.randint(2, 28)
        filled = text.format(
            **{key: value for key, value in details.items() if key != "days"},
            day=day,
            day2=day2,
            date=f"{rng.randint(1, 28)} {rng.choice(common['months'])}",
            month=rng.choice(common["months"]),
            nth=f"{number}{ordinal(number)}",
            money=rng.choice((19, 24, 29, 35, 39, 45, 49, 59, 65, 79, 89, 99)),
            place=rng.choice(common["places"]),
            colour=rng.choice(common["colours"]),
        )
        return filled[0].upper() + filled[1:]


def with_article(noun: str) -> str:
    """Put "a" or "an" before a product name."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def ordinal(number: int) -> str:
    """Return the ending of an ordinal below 30."""
    return "th" if 10 < number < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
