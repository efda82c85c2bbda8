"""Pulls the weights back towards those before a task that cost earlier tasks too much.

This is verify and repair, after `avr-cl`. While an earlier task j is worse on its probe than it may be,

    PPL_j(theta) > 1.15 best_j,   theta <- theta + 0.1 (theta_before - theta),

where PPL_j is the perplexity of its probe examples' answers, best_j the lowest one that is on record or was
measured right before the task, and theta all trained weights. A probe is made of dev or training examples,
never of test examples: the limits are checked again on the test examples afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kifuse.answering.perplexity import perplexity
from kifuse.driving.zero import whole_weights
from kifuse.learning.open_learner import OpenLearner
from kifuse.tasks.learned_task import kept_probe
from kifuse.tasks.sampling import visiting_order
from kifuse.tasks.task import Example, Task

PULL = 0.1
"""Each step goes this share of the way back to the weights before the task."""

WORST = 1.15
"""The highest perplexity that an earlier task may have, as a multiple of its best."""

MOST_STEPS = 20
"""After this many steps, 12% of the task's change is left; more would no longer be a repair."""

_MOST = 1e300
"""Stands for an infinite perplexity."""

PROBE = 16
"""Most examples of a task that are kept as its probe."""


def probe_of(task: Task, seed: int) -> tuple[Example, ...]:
    """Choose the probe of a task: dev examples, or training examples if there are no dev examples.

    Args:
        task: The task with all its data.
        seed: The seed of the draw.
    """
    examples = task.dev or task.train
    order = visiting_order(examples, task.labels, (seed, task.name, "probe"))
    return tuple(examples[place] for place in sorted(order[:PROBE]))


def repair(opened: OpenLearner) -> dict[str, Any] | None:
    """Repair the state after the last task, and keep it in place of the trained state.

    If the process is killed meanwhile, the task is trained again, as after a kill during its training.

    Args:
        opened: The learner. Its last task is not settled yet, and its folder is held.

    Returns:
        What was done, for the record; None if nothing was done, and then a line says why.
    """
    engine, k = opened.engine, opened.learned
    probes, without = _probes(opened, k - 1)
    say = engine.progress.say
    if without:
        say(f"repair: no probe examples were kept of {', '.join(without)}, so these tasks do not count")
    if not probes:
        return None
    trained = _weights(opened)
    engine.restore(k - 1)
    before, best = _weights(opened), _perplexities(opened, probes)
    engine.restore(k)
    for name in probes:
        best[name] = min([best[name], *_on_record(opened, name)])
    if {n: p.shape for n, p in before.items()} != {n: p.shape for n, p in trained.items()}:
        say(
            "repair: this method adds new weights with each task, so there are no earlier values to pull "
            "them back to"
        )
        return None
    steps = [_perplexities(opened, probes)]
    while _too_high(steps[-1], best) and len(steps) <= MOST_STEPS:
        trained = pulled(trained, before)
        with whole_weights(engine.model):
            engine.adapter.set_learned(trained)
        steps.append(_perplexities(opened, probes))
    taken = len(steps) - 1
    if not taken:
        say(f"repair: earlier tasks' perplexities are within {WORST} of their best; nothing is pulled back")
        return None
    facts = {"steps": taken, "pull": PULL, "worst": WORST, "best": best, "perplexity": steps}
    facts["without"] = without
    if _too_high(steps[-1], best):
        facts["stopped"] = f"after {MOST_STEPS} steps, with {', '.join(_too_high(steps[-1], best))} too high"
    say(f"repair: the weights were pulled back {taken} times by {PULL:.0%} towards those before the task")
    _keep(opened, facts)
    return facts


def pulled(weights: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take one step: theta + 0.1 (theta_before - theta), tensor by tensor."""
    return {name: weight + PULL * (before[name] - weight) for name, weight in weights.items()}


def _weights(opened: OpenLearner) -> dict[str, Tensor]:
    engine = opened.engine
    with whole_weights(engine.model):
        return {name: p.detach().clone() for name, p in engine.adapter.learned().items()}


def _too_high(found: Mapping[str, float], best: Mapping[str, float]) -> list[str]:
    return [name for name, value in found.items() if value > WORST * best[name]]


def _probes(opened: OpenLearner, count: int) -> tuple[dict[str, Sequence[Example]], list[str]]:
    """Collect the probe examples of the first tasks, from files or the memory; and the tasks without any."""
    found: dict[str, Sequence[Example]] = {}
    without = []
    memory = opened.engine.memory
    for i, entry in enumerate(opened.record.tasks[:count]):
        kept = [] if entry.forgotten else kept_probe(opened.place.kept_task(i))
        real = entry.name in memory.tasks and opened.record.method.data_class == "real replay"
        kept = kept or (memory.examples(entry.name)[:PROBE] if real else [])
        if kept:
            found[entry.name] = kept
        else:
            without.append(entry.name)
    return found, without


@torch.no_grad()
def _perplexities(opened: OpenLearner, probes: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """The perplexity of each probe's answers with the weights as they are, by task."""
    engine = opened.engine
    found = {}
    for name, examples in probes.items():
        encoded = engine.encoder.encode_pieces(examples)
        with engine.evaluator.told(name):
            parts = engine.evaluator.losses(encoded)
        value = perplexity(parts)
        found[name] = value if value < _MOST else _MOST  # a record can hold neither infinity nor NaN
    return found


def _on_record(opened: OpenLearner, name: str) -> list[float]:
    """Perplexities of a task's probe that earlier repairs have measured."""
    repairs = [entry.repaired for entry in opened.record.tasks if entry.repaired]
    return [row[name] for each in repairs for row in [each["best"], *each["perplexity"]] if name in row]


def _keep(opened: OpenLearner, facts: dict[str, Any]) -> None:
    """Write the repaired state in place of the trained one."""
    engine, record, k = opened.engine, opened.record, opened.learned
    entry = record.tasks[k - 1]
    record.scores = [s for s in record.scores if s.after != k]
    record.watch_scores = [s for s in record.watch_scores if s.after != k]
    trained = entry.train_steps
    # on disk the task is not learned until its repaired state is whole
    entry.train_steps = None
    engine.save()
    entry.train_steps, entry.repaired = trained, facts
    saved = partial(engine.snapshots.save, k, engine.adapter, engine.method, engine.memory)
    with whole_weights(engine.model):
        entry.seal = engine.processes.of_first(saved)
    engine.save()
