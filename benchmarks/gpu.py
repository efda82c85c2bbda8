"""Measure on one GPU what this project claims of GPUs, in under ten minutes; write it to one JSON file.

    python benchmarks/gpu.py                             on the GPU: benchmarks/results/gpu-<its name>.json
    python benchmarks/gpu.py --device cpu --size tiny --out FILE     every part, on tiny models, to try it

The parts, which `--only` chooses from:

    methods     every method trains on the device and on the CPU; the adapters must agree to a tolerance
    steps       the time that identification and fusion add to a training step, and the peak of its memory
    answers     prompts a second: kifuse, plain `generate`, and transformers' continuous batching
    quantised   a step and answers with frozen weights in 8 and 4 bits, and the peak of memory
    waits       how often a method's hooks make the CPU wait for the device, and in which lines

All weights are random. A part that fails is on record with its error, and the script ends with 1.
"""

from __future__ import annotations

import argparse
import copy
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from benchmarks.memory_and_time import MODELS, llama, t5
from benchmarks.speed.training import LENGTH, ROWS, TARGET, Clocked, InTurn, Rounds, examples, now, train
from safetensors.torch import load_file
from tests.runs import METHODS, make_config, write_stream
from tests.tiny import build_llama, build_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

import kifuse
from kifuse.adapters.kinds import add_adapter, add_empty_adapter
from kifuse.answering.generation import greedy_generate
from kifuse.config import AdapterConfig
from kifuse.driving.batches import MemoryBatches
from kifuse.io.storage import write_json
from kifuse.models.loading import Backbone, load_backbone
from kifuse.models.memory import needs_of
from kifuse.registry import build_method

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-3
"""Largest difference of an adapter's weights, in float32, after about 18 steps with a rate of 1e-3."""
DRAWN = {"sdft", "on-policy-repair", "generated-replay", "lfpt5"}
"""Methods that draw answers, which come out otherwise on another device."""
SIZES: dict[str, dict[str, Any]] = {
    "real": {
        "models": {name: MODELS[name] for name in ("T5-large (0.7B)", "LLaMA-2-7B")},
        "answering": MODELS["LLaMA-2-7B"],
        "quantised": MODELS["LLaMA of 1.1B"],
        "pairs": 30,
        "rounds": 3,
        "prompts": 256,
    },
    "tiny": {
        "models": {"tiny T5": t5(32, 64, 2, 4, 8), "tiny LLaMA": llama(32, 64, 2, 4, 2, 640)},
        "answering": llama(32, 64, 2, 4, 2, 640),
        "quantised": llama(64, 128, 2, 4, 2, 640),
        "pairs": 2,
        "rounds": 1,
        "prompts": 8,
    },
}


class Stand:
    """What all parts share: the device, the sizes, and which methods are compared."""

    def __init__(self, device: str, size: str, methods: list[str]) -> None:
        self.device, self.methods = torch.device(device), methods
        self.size = SIZES[size]
        self.precision: Any = "bf16" if device == "cuda" else "fp32"

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def name(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "CPU"

    def clear(self) -> None:
        """Give memory back, and begin to measure its peak anew."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Peak of the device's memory since `clear`; None on a CPU, which counts other things too."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.on_gpu else None

    def backbone(self, config: Any) -> Backbone:
        """Make a model with random weights on the device, frozen ones as kifuse holds them."""
        config = copy.deepcopy(config)
        config.decoder_start_token_id = config.pad_token_id = 0
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        torch.manual_seed(0)
        with self.device:
            model = kind.from_config(config, dtype=dtype)
        seq2seq, accepts = config.is_encoder_decoder, frozenset(signature(model.forward).parameters)
        return Backbone(model, build_tokenizer(), seq2seq, accepts, self.precision, self.device, "random")


def adapted(base: Backbone) -> Any:
    """Put the default adapter on a model, without dropout."""
    settings = AdapterConfig(dropout=0.0)
    return add_adapter(base.model, settings, encoder_decoder=base.encoder_decoder, seed=0)


def methods(stand: Stand) -> dict[str, Any]:
    """Train with every method on the device and on the CPU, each in a process of its own, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = build_tokenizer()
        for part in (tokenizer, build_llama(len(tokenizer))):
            part.save_pretrained(root / "model")
        write_stream(root / "stream")
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--learn", str(root), place, "--methods", *stand.methods],
                env={**os.environ, **({} if visible else {"CUDA_VISIBLE_DEVICES": ""})},
            )
            for place, visible in (("device", stand.on_gpu), ("cpu", False))
        ]
        if any([process.wait() for process in started]):
            raise RuntimeError("a process that trains ended with an error; see above.")
        return {name: _compared(root, name) for name in stand.methods}


def _compared(root: Path, name: str) -> dict[str, Any]:
    errors = [(root / place / name / "error.txt") for place in ("device", "cpu")]
    if any(file.is_file() for file in errors):
        return {"agrees": False, "error": "".join(f.read_text("utf-8") for f in errors if f.is_file())}
    folders = [root / place / name / "adapters" / "after-3" for place in ("device", "cpu")]
    files = [sorted(folder.glob("*.safetensors")) for folder in folders]
    largest = 0.0
    for one, other in zip(*files, strict=True):
        found, expected = load_file(one), load_file(other)
        differences = [(found[key] - expected[key]).abs().max() for key in expected]
        largest = max([largest, *map(float, differences)])
    drawn = METHODS[name]["name"] in DRAWN
    return {"difference": largest, "agrees": None if drawn else largest <= TOLERANCE}


def learn(root: Path, place: str, names: list[str]) -> None:
    """Train with methods where this process is; called in a process of its own."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for name in names:
        output = root / place / name
        config = make_config(
            root / "model",
            root / "stream",
            output,
            METHODS[name],
            model={"precision": "fp32", "adapter": {"rank": 2, "dropout": 0.0}},
            training={"learning_rate": 1e-3},
        )
        try:
            kifuse.run(config)
        except Exception:
            output.mkdir(parents=True, exist_ok=True)
            (output / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")


def steps(stand: Stand) -> dict[str, Any]:
    """Time steps with and without a method in turn, and rounds of memory steps and fusions."""
    return {name: _steps_of(stand, config) for name, config in stand.size["models"].items()}


def _steps_of(stand: Stand, config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    stand.clear()
    base = stand.backbone(config)
    model = adapted(base)
    encoded = examples(int(config.vocab_size), ROWS * 2)
    for method in ("sequential", "kif", "kiflora"):
        driver = InTurn(build_method(method, {}), index=1, name="b")
        train(driver, base, model, encoded, 2 * stand.size["pairs"] + 4)
        on, off = ([t for active, t in driver.times[4:] if active is turn] for turn in (True, False))
        ratio = statistics.median(a / b for a, b in zip(on, off, strict=True))
        found[method] = {"step_seconds": statistics.median(off), "added_percent": 100 * (ratio - 1)}
    found["peak_gib"] = stand.peak_gib()
    method = build_method("recurrent-kif", {})
    length = method.settings()["inner_steps"]
    rounds = Rounds(method, index=1, name="b", memory=MemoryBatches(encoded, ROWS, seed=0))
    train(rounds, base, model, encoded, length * (stand.size["rounds"] + 1))
    timed = rounds.times[length:]  # the first round warms up
    hooks, whole = sum(inside for _, inside in timed), sum(seconds for seconds, _ in timed)
    found["recurrent-kif"] = {"round_seconds": whole / stand.size["rounds"]}
    found["recurrent-kif"]["added_percent"] = 100 * hooks / (whole - hooks)
    del model, base, driver, rounds
    stand.clear()
    found["counted_gib"] = counted_gib(config, stand)
    return found


def counted_gib(config: Any, stand: Stand) -> float:
    """What `kifuse show memory` counts for the same training."""
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
    needs = needs_of(
        add_empty_adapter(model, AdapterConfig(dropout=0.0), encoder_decoder=config.is_encoder_decoder),
        config.is_encoder_decoder,
        rows=ROWS,
        tokens=LENGTH - TARGET if config.is_encoder_decoder else LENGTH,
        target=TARGET,
        precision=stand.precision,
    )
    return needs.total() / 2**30


def answers(stand: Stand) -> dict[str, Any]:
    """Answer the same prompts in three ways, 16 new tokens each."""
    stand.clear()
    base = stand.backbone(stand.size["answering"])
    model = adapted(base).eval()
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 200, (stand.size["prompts"],), generator=draw).tolist()
    prompts = [torch.randint(10, 600, (n,), generator=draw).tolist() for n in lengths]
    ways = {"kifuse": _ours, "generate, batches of 8": _plain}
    found: dict[str, Any] = {}
    if stand.on_gpu:
        ways["continuous batching"] = _continuous
    else:
        reason = "transformers makes its cache as large as a CPU's whole memory"
        found["continuous batching"] = {"not_measured": reason}
    for name, way in ways.items():
        with torch.inference_mode(), base.autocast():
            way(model, base.tokenizer, prompts[:8])
            began = now()
            way(model, base.tokenizer, prompts)
        found[name] = {"prompts_per_second": len(prompts) / (now() - began)}
    found["peak_gib"] = stand.peak_gib()
    return found


def _ours(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    greedy_generate(model, tokenizer, prompts, encoder_decoder=False, max_new_tokens=16)


def _plain(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    for start in range(0, len(prompts), 8):
        rows = prompts[start : start + 8]
        longest = max(map(len, rows))
        padded = [[0] * (longest - len(row)) + row for row in rows]
        ids = torch.tensor(padded, device=model.device)
        mask = (ids > 0).long()
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=16, do_sample=False, pad_token_id=0)


def _continuous(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    settings = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=2, pad_token_id=0)
    found = model.base_model.model.generate_batch(inputs=prompts, generation_config=settings)
    if len(found) != len(prompts):
        raise RuntimeError(f"{len(found)} of {len(prompts)} prompts were answered.")


def quantised(stand: Stand) -> dict[str, Any]:
    """Train and answer with frozen weights in 8 and 4 bits."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = stand.backbone(stand.size["quantised"])
        for part in (made.model, made.tokenizer):
            part.save_pretrained(folder)
        del made
        for bits in ("none", "8bit", "4bit"):
            stand.clear()
            base = load_backbone(folder, precision=stand.precision, quantization=bits, device=stand.device)
            model = adapted(base)
            driver = InTurn(build_method("kif", {}), index=1, name="b")
            train(driver, base, model, examples(600, ROWS * 2), 8)
            began = now()
            with base.autocast():
                _ours(model, base.tokenizer, [list(range(10, 60))] * 8)
            found[bits] = {
                "step_seconds": statistics.median(t for _, t in driver.times[2:]),
                "answers_seconds": now() - began,
                "peak_gib": stand.peak_gib(),
            }
            del base, model, driver
    return found


class Watched(Clocked):
    """Drives a method and counts how often its hooks wait for the device, by line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lines: Counter[str] = Counter()

    def stopped(self, seconds: float) -> None:
        """Time is not what is looked at."""

    def _timed(self, hook: Any, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                hook(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self.lines.update(
            f"{Path(each.filename).name}:{each.lineno}" for each in told if "synchroniz" in str(each.message)
        )


def waits(stand: Stand) -> dict[str, Any]:
    """Count the waits of a method's hooks; a step reads two numbers to judge whether it is finite."""
    if not stand.on_gpu:
        return {"not_measured": "a CPU has no device to wait for"}
    found: dict[str, Any] = {}
    taken = 20
    for method in ("sequential", "kif", "kiflora", "recurrent-kif"):
        base = stand.backbone(SIZES["tiny"]["answering"])
        encoded = examples(600, ROWS * 2)
        memory = MemoryBatches(encoded, ROWS, seed=0) if method == "recurrent-kif" else None
        driver = Watched(build_method(method, {}), index=1, name="b", memory=memory)
        train(driver, base, adapted(base), encoded, taken)
        found[method] = {"per_step": driver.lines.total() / taken, "lines": dict(driver.lines)}
    return found


PARTS: dict[str, Callable[[Stand], dict[str, Any]]] = {
    "methods": methods,
    "steps": steps,
    "answers": answers,
    "quantised": quantised,
    "waits": waits,
}


def measure(stand: Stand, only: list[str]) -> dict[str, Any]:
    """Run the parts; one that fails is on record with its error."""
    found: dict[str, Any] = {"device": stand.name(), "torch": torch.__version__, "parts": {}, "seconds": {}}
    for name in only:
        print(f"{name} ...", flush=True)
        began = now()
        try:
            found["parts"][name] = PARTS[name](stand)
        except Exception:
            found["parts"][name] = {"error": traceback.format_exc()}
            print(found["parts"][name]["error"], flush=True)
        found["seconds"][name] = round(now() - began, 1)
    return found


def main() -> int:
    """Measure and write; 1 if a part failed or a method does not agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(SIZES), default="real")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument(
        "--methods", nargs="+", choices=tuple(METHODS), metavar="NAME", help="default: each once"
    )
    parser.add_argument("--out", type=Path, help="the file; default: by the device's name")
    parser.add_argument("--learn", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    first = {settings["name"]: name for name, settings in reversed(METHODS.items())}
    chosen = args.methods or list(first.values())
    if args.learn:
        learn(Path(args.learn[0]), args.learn[1], chosen)
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is here; --device cpu --size tiny tries every part without one.")
    stand = Stand(args.device, args.size, chosen)
    found = {**measure(stand, args.only), "size": args.size}
    out = args.out or RESULTS / f"gpu-{stand.name().lower().replace(' ', '-')}.json"
    write_json(out, found)
    print(f"written: {out}")
    failed = [name for name, part in found["parts"].items() if "error" in part]
    compared = {} if "methods" in failed else found["parts"].get("methods", {})
    apart = [name for name, each in compared.items() if each["agrees"] is False]
    print(f"failed: {', '.join(failed) or 'none'}; methods that do not agree: {', '.join(apart) or 'none'}")
    return 1 if failed or apart else 0


if __name__ == "__main__":
    sys.exit(main())
