"""The five jobs of the support desk: what each message contains and what the answer is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from support_desk.grammar import Bank, Deck, Fragment, Situation, Writer

# A parcel that came can no longer be called off; not every trouble is mended by a new parcel or by money.
STEP_NEEDS = {
    ("closed", "delivery"): {"late", "lost"},
    ("delivery", "delivery"): {"lost", "wrong item", "damaged"},
    ("delivery", "return"): {"unwanted", "wrong size", "not as shown"},
    ("return", "delivery"): {"late", "lost", "wrong item", "damaged"},
    ("return", "return"): {"unwanted", "wrong size", "not as shown", "sent back"},
    ("return", "billing"): {"charged twice", "wrong price", "discount missing"},
    ("account", "billing"): {"charged twice", "wrong price", "discount missing"},
    ("account", "return"): {"unwanted", "wrong size", "not as shown", "sent back"},
    ("account", "delivery"): {"late", "lost", "wrong item", "damaged", "incomplete"},
}


@dataclass(frozen=True)
class Job:
    """One job of the desk."""

    folder: str
    title: str
    instruction: str
    about: str
    labels: tuple[str, ...] | None
    metric: str
    compose: Callable[[Maker, str], tuple[str, str] | None]
    classes: tuple[str, ...]


class Maker:
    """Composes (message, answer) pairs of one job from one side of the fragments."""

    def __init__(self, bank: Bank, rng: random.Random):
        self.bank = bank
        self.rng = rng
        self.deck = Deck(rng)
        self.writer = Writer(bank, rng)

    def situation(
        self, topics: list[str], fits: Callable[[Fragment], bool] = lambda _: True
    ) -> Situation | None:
        """Draw a situation from one of `topics` and a product for it."""
        topic = self.rng.choice(topics)
        fragment = self.deck.draw(f"topic {topic}", self.bank.topics[topic], fits)
        product = self.writer.product_for(fragment) if fragment else None
        return Situation(fragment, *product) if fragment and product else None

    def cue(self, kind: str, label: str, situation: Situation, others: list[Fragment]) -> Fragment | None:
        """Draw a cue of `kind` that suits the situation and the cues beside it."""
        everything = [situation.fragment, *others]
        formal = any(other in self.bank.tones["closed"] for other in others)
        officer = kind == "tones" and label == "closed"
        furious = kind == "tones" and label == "high"

        def fits(fragment: Fragment) -> bool:
            if not situation.accepts(fragment) or (furious and not situation.shop_at_fault):
                return False
            return not (formal and fragment.private) and not (officer and any(f.private for f in everything))

        return self.deck.draw(f"{kind} {label}", getattr(self.bank, kind)[label], fits)

    def background(self, kinds: list[str], situation: Situation, cues: list[Fragment]) -> Fragment | None:
        """Draw a cue that another job asks about, so that all jobs see the same kind of message."""
        kind = self.rng.choice(kinds)
        labels = [label for label in getattr(self.bank, kind) if allowed(kind, label, cues, self.bank)]
        if kind == "wants":
            labels = [label for label in labels if step_suits(label, situation.fragment)]
        return self.cue(kind, self.rng.choice(labels), situation, cues) if labels else None

    def finish(
        self, situation: Situation, cues: list[Fragment | None], answer: str
    ) -> tuple[str, str] | None:
        """Put the cues in a natural order (the wish mostly last) and write the message."""
        present = [cue for cue in cues if cue is not None]
        wishes = [cue for cue in present if cue in self.bank.wants.get(cue.label, [])]
        rest = [cue for cue in present if cue not in wishes]
        self.rng.shuffle(rest)
        ordered = [*rest, *wishes] if self.rng.random() < 0.7 else [*wishes, *rest]
        text = self.writer.write(situation, ordered)
        return (text, answer) if text else None


def allowed(kind: str, label: str, cues: list[Fragment], bank: Bank) -> bool:
    """Whether a cue of `label` can stand beside the others: no cheerful fires, no furious patience."""
    urgencies = {cue.label for cue in cues if cue in bank.urgency.get(cue.label, [])}
    tones = {cue.label for cue in cues if cue in bank.tones.get(cue.label, [])}
    if kind == "tones":
        return not (label == "open" and "high" in urgencies) and not (label == "high" and "hold" in urgencies)
    if kind == "urgency":
        # A hazard decides the urgency whatever else is said, so it is never mere background.
        cancels = any(cue in bank.wants["closed"] for cue in cues)
        return (
            label != "high"
            and not (label == "hold" and "high" in tones)
            and not (label == "open" and cancels)
        )
    # Nobody needs by Friday what they call off.
    return not (label == "closed" and "open" in urgencies)


def step_suits(label: str, happened: Fragment) -> bool:
    """Whether a customer in this situation would ask for this step."""
    needed = STEP_NEEDS.get((label, happened.label))
    return needed is None or happened.tag in needed


def compose_queue(maker: Maker, label: str) -> tuple[str, str] | None:
    """Job 1: the situation decides; manner, urgency and mild wishes are background."""
    situation = maker.situation([label])
    if situation is None:
        return None
    cues: list[Fragment | None] = []
    for kind in maker.rng.sample(["tones", "urgency", "wants"], maker.rng.choice((0, 1, 1, 2))):
        present = [cue for cue in cues if cue]
        if kind == "wants":
            # Wishes for money, goods or repairs would pull the message towards another queue.
            cues.append(maker.cue(kind, maker.rng.choice(("review", "open")), situation, present))
        else:
            cues.append(maker.background([kind], situation, present))
    return maker.finish(situation, cues, label)


def compose_urgency(maker: Maker, label: str) -> tuple[str, str] | None:
    """Job 2: danger before an earlier contact before a fixed day; some messages show two of them."""
    # An order placed an hour ago (topic hold) has no history, and only a device in use is dangerous.
    topics = {"high": ["repair", "repair", "plain"], "review": [t for t in maker.bank.topics if t != "hold"]}
    situation = maker.situation(topics.get(label, list(maker.bank.topics)))
    if situation is None:
        return None
    cue = maker.cue("urgency", label, situation, [])
    if cue is None:
        return None
    cues: list[Fragment | None] = [cue]
    lesser = {"high": ["open", "review"], "review": ["open"]}.get(label, [])
    if lesser and maker.rng.random() < 0.15:
        cues.append(maker.cue("urgency", maker.rng.choice(lesser), situation, [cue]))
    elif maker.rng.random() < 0.65:
        cues.append(maker.background(["tones", "wants"], situation, [cue]))
    return maker.finish(situation, cues, label)


def compose_subject(maker: Maker, label: str) -> tuple[str, str] | None:
    """Job 3: product, trouble and wish as one line in the house style."""
    topics = ["repair", "delivery", "return", "billing", "parts", "hold"]
    pair = wish(maker, label, topics, lambda f: f.tag is not None and "{p}" in f.text)
    if pair is None:
        return None
    situation, want = pair
    cues: list[Fragment | None] = [want]
    if maker.rng.random() < 0.35:
        cues.append(maker.background(["tones", "urgency"], situation, [want]))
    line = f"{situation.product.capitalize()} | {situation.fragment.tag} | {maker.bank.subjects[label]}"
    return maker.finish(situation, cues, line)


def compose_step(maker: Maker, label: str) -> tuple[str, str] | None:
    """Job 4: the wish decides."""
    pair = wish(maker, label, list(maker.bank.topics), lambda _: True)
    if pair is None:
        return None
    situation, want = pair
    cues: list[Fragment | None] = [want]
    if maker.rng.random() < 0.6:
        cues.append(maker.background(["tones", "urgency"], situation, [want]))
    return maker.finish(situation, cues, label)


def compose_tone(maker: Maker, label: str) -> tuple[str, str] | None:
    """Job 5: the customer's manner decides."""
    situation = maker.situation(list(maker.bank.topics), lambda f: label != "closed" or not f.private)
    if situation is None:
        return None
    cue = maker.cue("tones", label, situation, [])
    if cue is None:
        return None
    cues: list[Fragment | None] = [cue]
    if maker.rng.random() < 0.65:
        cues.append(maker.background(["urgency", "wants"], situation, [cue]))
    return maker.finish(situation, cues, label)


def wish(
    maker: Maker, label: str, topics: list[str], fits: Callable[[Fragment], bool]
) -> tuple[Situation, Fragment] | None:
    """Draw a situation and a wish that go together."""
    served = sorted({topic for want in maker.bank.wants[label] for topic in want.topics}.intersection(topics))
    situation = maker.situation(served, lambda happened: fits(happened) and step_suits(label, happened))
    if situation is None:
        return None
    want = maker.cue("wants", label, situation, [])
    return (situation, want) if want else None


QUEUES = ("delivery", "return", "repair", "billing", "parts", "hold", "account", "open")
URGENCIES = ("high", "review", "open", "hold")
STEPS = ("return", "delivery", "repair", "account", "review", "open", "closed")
TONES = ("high", "open", "low", "closed")

JOBS = (
    Job(
        "01-queue",
        "Queue",
        "Support desk. Queue code:",
        "Send the message to one of the eight queues of the desk, by what happened.",
        QUEUES,
        "exact_match",
        compose_queue,
        QUEUES,
    ),
    Job(
        "02-urgency",
        "Urgency",
        "Support desk. Urgency code:",
        "Say how urgent the message is by the unwritten rule of the desk.",
        URGENCIES,
        "exact_match",
        compose_urgency,
        URGENCIES,
    ),
    Job(
        "03-subject",
        "Subject line",
        "Support desk. Subject line:",
        "Write the one-line subject of the ticket in the house style: product, trouble, wish.",
        None,
        "rouge_l",
        compose_subject,
        STEPS,
    ),
    Job(
        "04-next-step",
        "Next step",
        "Support desk. Next step code:",
        "Give the code of the step the customer asks for.",
        STEPS,
        "exact_match",
        compose_step,
        STEPS,
    ),
    Job(
        "05-reply-tone",
        "Reply tone",
        "Support desk. Reply tone code:",
        "Give the code of the tone in which the reply must be written.",
        TONES,
        "exact_match",
        compose_tone,
        TONES,
    ),
)
