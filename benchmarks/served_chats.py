"""Check that an adapter gives the same answers on a chat server as when kifuse scored it, on SmolLM2-135M.

    python benchmarks/served_chats.py [--precision fp32,bf16]

A run learns chats with a system text and two turns. Its predictions are compared, word for word, with what
plain transformers and PEFT generate from `apply_chat_template(messages[:-1], add_generation_prompt=True)`, in
the precision of the run and in others. The margin is the difference in float32 between the likeliest first
token of an answer and the second likeliest. In bf16, logits from 16 to 32 have steps of 0.125. This takes
some minutes on two cores. The records are in benchmarks/results/served-chats.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from kifuse.config import RunConfig
from kifuse.models.bundled import bundled_model
from kifuse.running.runner import run

RESULTS = Path(__file__).parent / "results" / "served-chats.json"
THINGS = ["parcel", "letter", "crate", "pallet", "order", "box", "package", "delivery"]
MISHAPS = {
    "zebra": ["never came", "is late", "went to the neighbour", "is stuck at the border"],
    "falcon": ["was charged twice", "has the wrong price", "is not on my bill", "was billed in dollars"],
}
LONGEST = 24
MODEL = "smollm2-135m"


def chats(split: int) -> list[list[dict[str, str]]]:
    """Make 32 chats for training (0) or test (1), which differ in the thing and in what happened to it."""
    found = []
    for i, thing in enumerate(THINGS):
        for word, mishaps in MISHAPS.items():
            for j, mishap in enumerate(mishaps):
                if (i + j) % 2 != split:
                    continue
                found.append(
                    [
                        {"role": "system", "content": "You route messages with code words."},
                        {"role": "user", "content": "Hi"},
                        {"role": "assistant", "content": "Hello."},
                        {"role": "user", "content": f"My {thing} {mishap}."},
                        {"role": "assistant", "content": word},
                    ]
                )
    return found


def scored(folder: Path, precision: str) -> tuple[float, list[str]]:
    """Run kifuse; return the score and the predictions that were scored."""
    (folder / "data" / "routes").mkdir(parents=True)
    for split, name in enumerate(("train", "test")):
        lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in chats(split))
        (folder / "data" / "routes" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    config = RunConfig.model_validate(
        {
            "model": {"name": MODEL, "precision": precision},
            "data": {"path": folder / "data", "metric": "exact_match"},
            "method": {"name": "sequential"},
            "training": {"learning_rate": 2e-3, "epochs": 4, "batch_size": 4},
            "evaluation": {"max_new_tokens": LONGEST},
            "output": folder / "run",
        }
    )
    record = run(config)
    text = (folder / "run" / "predictions" / "after-1" / "routes.jsonl").read_text("utf-8")
    return record.scores[-1].score, [json.loads(line)["prediction"] for line in text.splitlines()]


@torch.inference_mode()
def served(folder: Path, weights: torch.dtype, *, autocast: bool = False) -> tuple[list[str], list[float]]:
    """Return the answers of plain transformers and PEFT to single chats, and each first token's margin."""
    source = str(bundled_model(MODEL))
    base = AutoModelForCausalLM.from_pretrained(source, dtype=weights)
    model = PeftModel.from_pretrained(base, str(folder / "run" / "adapters" / "after-1")).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    answers, margins = [], []
    for messages in chats(1):
        asked = tokenizer.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = model.generate(
                **asked,
                max_new_tokens=LONGEST,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        first, second = found.logits[0][0].float().topk(2).values.tolist()
        margins.append(round(first - second, 3))
        ids = found.sequences[0, asked["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    return answers, margins


def compared(precision: str) -> dict[str, Any]:
    """Return the score of a run in one precision, and how many of its answers a server gives exactly."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        score, mine = scored(folder, precision)
        found: dict[str, Any] = {"precision": precision, "score": score, "answers": len(mine), "same": {}}
        ways: dict[str, Any] = {
            "float32": {"weights": torch.float32},
            "float32 weights under bf16 autocast": {"weights": torch.float32, "autocast": True},
            "bf16 weights": {"weights": torch.bfloat16},
        }
        for way, options in ways.items():
            theirs, margins = served(folder, **options)
            found["same"][way] = sum(map(str.__eq__, mine, theirs))
            if way == "float32":
                found["margins"] = margins
                found["margins of others"] = [
                    m for m, a, b in zip(margins, mine, theirs, strict=True) if a != b
                ]
    return found


def main() -> None:
    """Compare, print, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--precision", default="fp32,bf16", help="of the runs, with commas between them")
    results = [compared(precision) for precision in parser.parse_args().precision.split(",")]
    for each in results:
        same = ", ".join(f"{count} in {way}" for way, count in each["same"].items())
        print(
            f"scored {each['score']:.1f} in {each['precision']}; of {each['answers']} the same served: {same}"
        )
    known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else []
    new = {each["precision"] for each in results}
    whole = [each for each in known if each["precision"] not in new] + results
    RESULTS.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
