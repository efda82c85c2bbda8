"""The support-desk stream that ships with the package: what a user of it relies on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT / "src" / "kifuse" / "benchmarks" / "data" / "support_desk"
SCRIPT = ROOT / "scripts" / "make_support_desk.py"
JOBS = ("01-queue", "02-urgency", "03-subject", "04-next-step", "05-reply-tone")
SPLITS = {"train": 192, "dev": 32, "test": 80}
LABELLED = tuple(job for job in JOBS if job != "03-subject")


def card(job: str) -> dict:
    return json.loads((DATA / job / "task.json").read_text(encoding="utf-8"))


def rows(job: str, split: str) -> list[dict]:
    lines = (DATA / job / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def test_the_folder_holds_exactly_the_five_jobs() -> None:
    assert sorted(path.name for path in DATA.iterdir() if path.is_dir()) == list(JOBS)


def test_the_script_writes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(tmp_path)], check=True, timeout=120)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    shipped = {path.relative_to(DATA): path.read_bytes() for path in DATA.rglob("*.json*") if path.is_file()}
    assert len(made) == len(JOBS) * 4
    assert made == shipped


@pytest.mark.parametrize("job", JOBS)
def test_each_job_has_its_counts_fields_and_unique_ids(job: str) -> None:
    ids: list[str] = []
    for split, count in SPLITS.items():
        examples = rows(job, split)
        assert len(examples) == count
        assert all(set(example) == {"id", "input", "output"} for example in examples)
        ids += [example["id"] for example in examples]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("job", LABELLED)
def test_labels_are_the_declared_ones_and_balanced_in_every_split(job: str) -> None:
    settings = card(job)
    assert settings["metric"] == "exact_match"
    assert 3 <= len(settings["labels"]) <= 10
    for split in SPLITS:
        counts = Counter(example["output"] for example in rows(job, split))
        assert set(counts) == set(settings["labels"])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_subject_lines_keep_the_house_style_and_use_trained_words() -> None:
    settings = card("03-subject")
    assert settings["labels"] is None
    assert settings["metric"] == "rouge_l"
    seen = [
        {example["output"].split(" | ")[place] for example in rows("03-subject", "train")} for place in (1, 2)
    ]
    for split in SPLITS:
        for example in rows("03-subject", split):
            product, trouble, wish = example["output"].split(" | ")
            assert product.lower() in example["input"].lower()
            assert product[0].isupper()
            assert trouble in seen[0]
            assert wish in seen[1]


def test_no_message_occurs_twice_anywhere_in_the_stream() -> None:
    counts = Counter(
        " ".join(words(e["input"])) for job in JOBS for split in SPLITS for e in rows(job, split)
    )
    # Numbers and punctuation aside, so that a changed order number does not make a message new.
    assert [text for text, count in counts.items() if count > 1] == []


def test_test_messages_share_no_clause_with_training_messages() -> None:
    # Products, dates, greetings and sign-offs are common to both sides; beside them no clause of four words
    # and no six words in a row inside a clause are.
    products = sorted(
        {e["output"].split(" | ")[0].lower() for split in SPLITS for e in rows("03-subject", split)}
    )
    details = re.compile("|".join([*products, r"\d+ [a-z]+"]))

    def pieces(text: str) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for clause in re.split(r"[.!?:;,]", details.sub(" x ", text.lower())):
            said = words(clause)
            found.update(tuple(said[start : start + 6]) for start in range(max(1, len(said) - 5)))
        return {piece for piece in found if len(piece) >= 4}

    learned: set[tuple[str, ...]] = set()
    for job in JOBS:
        learned.update(*(pieces(e["input"]) for split in ("train", "dev") for e in rows(job, split)))
    for job in JOBS:
        for example in rows(job, "test"):
            assert not pieces(example["input"]) & learned, example["id"]


def test_the_same_words_answer_different_jobs() -> None:
    labels = {job: set(card(job)["labels"]) for job in LABELLED}
    assert "open" in set.intersection(*labels.values())
    for first, second in combinations(LABELLED, 2):
        assert labels[first] & labels[second], (first, second)
    shared = [label for label, n in Counter(x for names in labels.values() for x in names).items() if n > 1]
    assert len(shared) >= 8


def test_a_shared_word_does_not_mean_the_same_in_two_jobs() -> None:
    # The words that mark a label in one job are not those that mark it in another.
    def marks(job: str, label: str) -> set[str]:
        inside: Counter[str] = Counter()
        outside: Counter[str] = Counter()
        for example in rows(job, "train"):
            (inside if example["output"] == label else outside).update(set(words(example["input"])))
        lift = {word: count / (outside[word] + 1) for word, count in inside.items() if count >= 3}
        return set(sorted(lift, key=lambda word: (-lift[word], word))[:10])

    for first, second in combinations(LABELLED, 2):
        for label in set(card(first)["labels"]) & set(card(second)["labels"]):
            assert len(marks(first, label) & marks(second, label)) <= 4, (first, second, label)


def test_instructions_are_terse_distinct_and_do_not_list_the_options() -> None:
    instructions = [card(job)["instruction"] for job in JOBS]
    assert len(set(instructions)) == len(JOBS)
    for job, instruction in zip(JOBS, instructions, strict=True):
        assert len(instruction.split()) <= 6
        assert not set(words(instruction)) & set(card(job)["labels"] or ())


@pytest.mark.parametrize("job", JOBS)
def test_messages_and_answers_are_short(job: str) -> None:
    lengths = []
    for split in SPLITS:
        for example in rows(job, split):
            lengths.append(len(example["input"].split()))
            assert len(example["output"].split()) <= 8
    assert min(lengths) >= 5
    assert max(lengths) <= 46
    assert 18 <= sum(lengths) / len(lengths) <= 40
