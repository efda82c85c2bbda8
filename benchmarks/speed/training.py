"""Time a training step with and without a method, and with the loss on target positions or on all."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed.pairs import Ratio, in_turn, ratio
from transformers import Trainer, TrainingArguments

from kifuse.adapters.kinds import add_adapter
from kifuse.config import RunConfig
from kifuse.driving.batches import MemoryBatches, ModelCollator, OrderedExamples, collator_of
from kifuse.driving.callback import MethodCallback
from kifuse.driving.taps import Taps
from kifuse.driving.target_loss import TargetLoss
from kifuse.models.loading import Backbone, load_backbone
from kifuse.registry import build_method
from kifuse.tasks.collator import Collator
from kifuse.tasks.encoding import Encoded

ROWS, LENGTH, TARGET = 8, 128, 4


def examples(vocabulary: int, count: int) -> list[Encoded]:
    """Make examples of random token ids: 124 of a prompt, 4 of a target."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(10, vocabulary, (count, LENGTH), generator=draw).tolist()
    return [Encoded(row[:-TARGET], row[-TARGET:], cut=False) for row in rows]


def backbone(name: str) -> tuple[Backbone, Any]:
    """Load SmolLM2-135M (or another model of `kifuse ls models`) with the default adapter and no dropout."""
    found = load_backbone(name)
    adapter = RunConfig.model_validate(
        {
            "model": {"name": name, "adapter": {"dropout": 0.0}},
            "data": {"benchmark": "support-desk"},
            "method": {"name": "sequential"},
            "output": "unused",
        }
    ).model.adapter
    return found, add_adapter(found.model, adapter, encoder_decoder=found.encoder_decoder, seed=0)


def now() -> float:
    """Read the clock when the device has done all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clocked(MethodCallback):
    """Drives a method and measures the time of its hooks.

    Attributes:
        active: Whether the hooks are on in this step.
        inside: Seconds in hooks since `on_step_begin`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.active = True
        self.inside = 0.0
        self.began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.began, self.inside = now(), 0.0
        if self.active:
            super().on_step_begin(args, state, control, **kwargs)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Call the hook, if hooks are on."""
        self._timed(super().on_pre_optimizer_step, *args, **kwargs)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Call the hook, if hooks are on."""
        self._timed(super().on_optimizer_step, *args, **kwargs)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Call the hook, if hooks are on, and stop the clock."""
        self._timed(super().on_step_end, *args, **kwargs)
        self.stopped(now() - self.began)

    def stopped(self, seconds: float) -> None:
        """Take note of the seconds of a step."""
        raise NotImplementedError

    def _timed(self, hook: Any, *args: Any, **kwargs: Any) -> None:
        if self.active:
            began = time.perf_counter()
            hook(*args, **kwargs)
            self.inside += time.perf_counter() - began


class InTurn(Clocked):
    """Drives a method in every other step; the steps in between are plain training."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.times: list[tuple[bool, float]] = []
        self.hooks = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Turn the hooks off in every other step."""
        self.active = state.global_step % 2 == 0
        super().on_step_begin(args, state, control, **kwargs)
        if self.active:
            self._taps = self._taps or Taps(self.trainer)
            self.guard.watch(self._taps, self.running().params)
        elif self._taps is not None:
            self._taps.release()
            self._taps = None
            self.guard.clear()

    def stopped(self, seconds: float) -> None:
        """Also keep whether the hooks were on."""
        self.times.append((self.active, seconds))
        self.hooks += self.inside


class Rounds(Clocked):
    """Drives a method with memory steps, whose forward and backward passes do not count as hooks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.times: list[tuple[float, float]] = []
        """Pairs: the seconds of a step, and those of them in hooks, without forward and backward passes."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the passes of memory steps separately."""
        super().on_train_begin(args, state, control, **kwargs)
        context = self.running()
        backward = context._backward

        def counted(batch: Any) -> Any:
            began = now()
            found = backward(batch)
            self.inside -= now() - began
            return found

        context._backward = counted

    def stopped(self, seconds: float) -> None:
        """Also keep the time of the hooks."""
        self.times.append((seconds, self.inside))


def rounds(name: str, count: int) -> Ratio:
    """Time rounds of Recurrent-KIF with memory steps and fusions, against their passes alone."""
    base, model = backbone(name)
    encoded = examples(base.model.config.vocab_size, ROWS * 2)
    method = build_method("recurrent-kif", {})
    length = method.settings()["inner_steps"]
    memory = MemoryBatches(encoded, ROWS, seed=0)
    driver = Rounds(method, index=1, name="b", memory=memory)
    train(driver, base, model, encoded, length * (count + 1))
    steps = driver.times[length:]  # the first round warms up
    each = [steps[at : at + length] for at in range(0, len(steps), length)]
    whole = [(sum(a for a, _ in one), sum(a - b for a, b in one)) for one in each]
    share = 100 * sum(b for _, b in steps) / sum(a for a, _ in steps)
    return ratio(
        "a round of recurrent-kif",
        f"{length} steps, memory step, fusion",
        "the same passes and steps without what its hooks do beside them",
        whole,
        f"{ROWS} x {LENGTH} tokens, {base.precision}; {share:.2f}% of it in hooks beside passes",
    )


def overhead(name: str, method: str, pairs: int) -> Ratio:
    """Time plain steps of PEFT and Trainer and steps with a method, in turn, in one training."""
    base, model = backbone(name)
    encoded = examples(base.model.config.vocab_size, ROWS * 2)
    driver = InTurn(build_method(method, {}), index=1, name="b")
    train(driver, base, model, encoded, 2 * pairs + 4)
    on = [t for active, t in driver.times[4:] if active]
    off = [t for active, t in driver.times[4:] if not active]
    share = 100 * driver.hooks / sum(t for active, t in driver.times if active)
    return ratio(
        f"a step with {method}",
        f"kifuse, {method}",
        "PEFT and Trainer alone",
        list(zip(on, off, strict=True)),
        f"{ROWS} x {LENGTH} tokens, {base.precision}; {share:.2f}% of the step inside the method's hooks",
    )


def train(driver: MethodCallback, base: Backbone, model: Any, encoded: list[Encoded], steps: int) -> None:
    """Train with a callback that measures time."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=arguments(Path(folder), base, steps),
            train_dataset=OrderedExamples(encoded, [i % len(encoded) for i in range(ROWS * steps)]),
            data_collator=collator_of(base),
            compute_loss_func=TargetLoss(shift=not base.encoder_decoder),
            callbacks=[driver],
        )
        driver.attach(trainer)
        trainer.train()


def arguments(folder: Path, base: Backbone, steps: int) -> TrainingArguments:
    """Return the arguments with which a user would train."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        learning_rate=3e-4,
        bf16=base.precision == "bf16",
        use_cpu=base.device.type == "cpu",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=steps,
        report_to=[],
        disable_tqdm=True,
    )


def target_positions(name: str, pairs: int) -> Ratio:
    """Time both passes with the loss on target positions only, against the model's own loss on all."""
    base, model = backbone(name)
    encoded = examples(base.model.config.vocab_size, ROWS)
    short = ModelCollator(Collator(0, base.encoder_decoder, set(base.accepts)), None, {"use_cache": False})
    batch = short(encoded)
    labels = batch.pop("labels")
    full = {k: v for k, v in batch.items() if k != "logits_to_keep"}
    wide = torch.full((ROWS, LENGTH), -100)
    wide[:, -TARGET:] = labels[:, -TARGET:]
    loss_of = TargetLoss(shift=not base.encoder_decoder)
    found: dict[str, float] = {}

    def ours() -> None:
        with base.autocast():
            loss = loss_of(model(**batch), labels)
        loss.backward()
        found["ours"] = float(loss)

    def theirs() -> None:
        with base.autocast():
            loss = model(**full, labels=wide).loss
        loss.backward()
        found["theirs"] = float(loss)

    times = in_turn(ours, theirs, pairs)
    torch.testing.assert_close(found["ours"], found["theirs"], rtol=2e-2, atol=1e-3)
    return ratio(
        "forward and backward",
        "loss on target positions",
        "the model's own loss on all positions",
        times,
        f"{ROWS} x {LENGTH} tokens, {TARGET} of a target; losses {found['ours']:.4f} and "
        f"{found['theirs']:.4f}",
    )


def compare(quick: bool, name: str = "smollm2-135m") -> list[Ratio]:
    """Time all of it."""
    pairs = 3 if quick else 30
    found = [overhead(name, method, pairs) for method in ("sequential", "kif", "kiflora")]
    found.append(rounds(name, 1 if quick else 6))
    return [*found, target_positions(name, max(3, pairs // 3))]
