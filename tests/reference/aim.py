"""AIMMerging as in its published code, on a small problem: one task (k >= 2) in one plain loop."""

import math
from fractions import Fraction

import torch

from tests.reference.recurrent import Optimizer


def next_interval(s, old, new, shortest=2, longest=128):
    """Return S after a merge, from the learning signals of the last one and of this one, exact fractions."""
    old, new = Fraction(old), Fraction(new)
    rho = new / old
    if rho >= 1:
        s = max(shortest, math.floor(Fraction(s) / rho))
        if s >= 64:
            s = max(shortest, s // 2)
        return s
    factor = 1 / rho + (1 if s < 64 else Fraction(1, 2))
    return min(longest, math.floor(s * factor))


def fusion_weights(s, flags):
    """Return (w_in, w_out)."""
    if flags >= 2:
        return (0.5, 0.5) if s <= 70 else (0.4, 0.6)
    return (0.6, 0.4) if s <= 70 else (0.5, 0.5)


def merges_of(losses, signals, *, interval=8, kappa=2.0):
    """Return (step, S, flags, forced) of each merge, from all h and from ||Delta_in||_1 of each merge."""
    s, due, last_merge, found, history = interval, interval, 0, [], []
    flags, forced_now = 0, False
    for step in range(1, len(losses) + 1):
        since = losses[last_merge:step]
        c = len(since) - 1
        forced_now = False
        if c > 2 * s // 3:
            first = since[: 2 * s // 3 + 1]
            if since[-1] >= kappa * sum(first) / len(first):
                flags += 1
            elif step >= due + s:
                flags += 1
                forced_now = True
        if (step >= due and flags >= 1) or flags >= 3:
            found.append((step, s, flags, forced_now))
            signal = Fraction(signals[len(found) - 1]) / s
            if len(history) > 3:
                s = next_interval(s, history[-1], signal)
            history.append(signal)
            due, last_merge, flags = step + s, step, 0
    return found


def aimmerging(theta, loss, steps, memory, probes, *, rate, interval, memory_steps, kappa, weight_decay=0.0):
    """Return the values after each step and its merge, and (step, flags) of the merges; S as at the start."""
    optimizer = Optimizer("adamw", weight_decay=weight_decay)
    memory = iter(memory)
    start = {n: w.clone() for n, w in theta.items()}
    due, flags, seen, reached, merges = interval, 0, [], [], []

    def gradient(batch):
        leaves = {n: w.clone().requires_grad_() for n, w in theta.items()}
        return dict(zip(leaves, torch.autograd.grad(loss(leaves, batch), list(leaves.values())), strict=True))

    for step, (batch, probe) in enumerate(zip(steps, probes, strict=True), start=1):
        theta = optimizer.step(theta, gradient(batch), rate)
        seen.append(float(loss(theta, probe)))
        first = seen[: 2 * interval // 3 + 1]
        alarm = seen[-1] >= kappa * sum(first) / len(first)
        if len(seen) > len(first) and (alarm or step >= due + interval):
            flags += 1
        if (step >= due and flags >= 1) or flags >= 3:
            inner_end = theta
            for _ in range(memory_steps):
                theta = optimizer.step(theta, gradient(next(memory)), rate)
            w_in, w_out = fusion_weights(interval, flags)
            theta = {
                n: start[n] + w_in * (inner_end[n] - start[n]) + w_out * (theta[n] - inner_end[n])
                for n in theta
            }
            merges.append((step, flags))
            start, due, flags, seen = theta, step + interval, 0, []
        reached.append(theta)
    return reached, merges
