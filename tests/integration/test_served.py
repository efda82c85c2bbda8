"""An adapter answers a chat server (here plain transformers and PEFT) as it answered when it was scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from kifuse.page_refresh import run
from kifuse.record.run_record import RunRecord
from tests.chat_families import FAMILIES
from tests.runs import make_config
from tests.tiny import build_llama

pytestmark = pytest.mark.usefixtures("quick")
QUEUES = ("delta", "town", "ships", "Good")
TALK = ["Hi", "A late parcel, again!", "A wrong bill", "Danke, 東京 😀!"]
LONGEST = 48


def chat(number: int) -> list[dict[str, str]]:
    """A chat of one to three turns, with a system text or without; each answer follows from its question."""
    turns = []
    for turn in range(number % 3 + 1):
        asked = TALK[(number + turn) % len(TALK)]
        answer = QUEUES[(number + turn) % len(QUEUES)]
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    system = [{"role": "system", "content": "Name the queue."}] if number % 2 else []
    return [*system, *turns]


def trained(
    name: str, folder: Path, *, ends_known: bool, epochs: int, train_on: str = "last"
) -> tuple[Path, RunRecord]:
    """A run on chats, with a tiny model of a family."""
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    model = build_llama(len(tokenizer), eos=int(str(tokenizer.convert_tokens_to_ids(family.eos))))
    # as the chat models of these families: at the end of a text and at the end of a turn
    known = [family.eos, family.end] if ends_known else [family.eos]
    assert model.generation_config is not None
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(known)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "data" / "chats").mkdir(parents=True)
    for split, numbers in (("train", range(24)), ("test", range(8))):
        lines = "".join(json.dumps({"messages": chat(n)}) + "\n" for n in numbers)
        (folder / "data" / "chats" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    sections = {
        "model": {
            "adapter": {
                "rank": 32,
                "alpha": 64,
                "dropout": 0.0,
                "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"],
            }
        },
        "data": {"max_input": 512, "max_target": 64, "train_on": train_on, "metric": "exact_match"},
        "training": {"epochs": epochs, "learning_rate": 1e-2, "batch_size": 8},
        "evaluation": {"max_new_tokens": LONGEST},
    }
    config = make_config(
        folder / "model", folder / "data", folder / "run", {"name": "sequential"}, **sections
    )
    return folder / "run", run(config)


def scored(folder: Path) -> list[str]:
    """What kifuse's own scoring got for an answer."""
    text = (folder / "predictions" / "after-1" / "chats.jsonl").read_text("utf-8")
    return [json.loads(line)["prediction"] for line in text.splitlines()]


def served(folder: Path, chats: Sequence[list[dict[str, str]]], **options: Any) -> list[str]:
    """Whole outputs as a server has them: one chat at a time, special tokens kept."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model = PeftModel.from_pretrained(model, folder / "run" / "adapters" / "after-1").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = []
    for messages in chats:
        asked = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(**asked, max_new_tokens=LONGEST, do_sample=False, **options)
        found.append(tokenizer.decode(ids[0, asked["input_ids"].shape[1] :]))
    return found


@pytest.mark.parametrize(
    ("name", "train_on", "epochs"), [("llama3", "all", 12), ("qwen3", "last", 30), ("mistral3", "last", 20)]
)
def test_a_chat_server_gives_the_answers_that_were_scored(
    name: str, train_on: str, epochs: int, tmp_path: Path
):
    folder, record = trained(name, tmp_path, ends_known=True, train_on=train_on, epochs=epochs)
    family = FAMILIES[name]
    assert record.rendering["form"] == "chat template"
    answers = served(tmp_path, [chat(n) for n in range(8)])
    assert all(answer.endswith(family.end) for answer in answers)
    mine = scored(folder)
    # a server parts a thought from the answer
    texts = [answer.removesuffix(family.end).rpartition("</think>")[2].strip() for answer in answers]
    assert texts == mine
    assert len(set(mine)) > 1, "a model that always says the same shows nothing"
    right = [answer == chat(n)[-1]["content"] for n, answer in enumerate(mine)]
    assert record.scores[-1].score == 100.0 * sum(right) / len(right) >= 25.0


def test_an_end_of_turn_that_a_server_does_not_know_stops_here_and_is_said(tmp_path: Path):
    folder, record = trained("gemma", tmp_path, ends_known=False, epochs=15)
    end = FAMILIES["gemma"].end
    assert any(f"ends with '{end}'" in note and "Set it as a stop" in note for note in record.notes)
    for mine, answer in zip(scored(folder), served(tmp_path, [chat(n) for n in range(8)]), strict=True):
        before, _, after = answer.partition(end)
        assert mine == before.strip()
        assert after, "a server that does not know the end goes on after it"
