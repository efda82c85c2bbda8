"""FOREVER on a small problem: one task (k >= 2) in one plain loop; events come from the list of all sizes."""

import math

import torch

from tests.reference.recurrent import Optimizer


def event_steps_of(sizes, day_steps, marks):
    """Return the steps (from 1) after which a replay event comes, from the sizes of all updates."""
    day = math.fsum(sizes[:day_steps])
    found = set()
    for mark in marks:
        for t in range(day_steps, len(sizes) + 1):
            if math.fsum(sizes[:t]) >= mark * day * (1 - 1e-12):
                found.add(t)
                break
    return sorted(found)


def strength_at(sizes, day_steps, *, base, gamma, smoothing, low, high):
    """Return beta_t after all these updates."""
    start = math.fsum(sizes[:day_steps]) / day_steps
    pace = start
    for size in sizes[day_steps:]:
        pace = (1 - smoothing) * pace + smoothing * size
    return base * min(max(1 + gamma * (pace / start - 1), low), high)


def forever(theta, loss, steps, memory, *, rate, day_steps, marks, event_steps, weight_decay=0.0, **pull):
    """Return the values after each step and its event, and (step, beta) of the events."""
    optimizer = Optimizer("adamw", weight_decay=weight_decay)
    memory = iter(memory)
    anchor = {n: w.clone() for n, w in theta.items()}
    sizes, reached, events = [], [], []

    def gradient(batch):
        leaves = {n: w.clone().requires_grad_() for n, w in theta.items()}
        return dict(zip(leaves, torch.autograd.grad(loss(leaves, batch), list(leaves.values())), strict=True))

    for t, batch in enumerate(steps, start=1):
        before = theta
        theta = optimizer.step(theta, gradient(batch), rate)
        sizes.append(math.sqrt(sum(float(((theta[n] - before[n]) ** 2).sum()) for n in theta)))
        if t >= day_steps and t in event_steps_of(sizes, day_steps, marks):
            beta = strength_at(sizes, day_steps, **pull)
            for _ in range(event_steps):
                grads = gradient(next(memory))
                grads = {n: g + 2 * beta * (theta[n] - anchor[n]) for n, g in grads.items()}
                theta = optimizer.step(theta, grads, rate)
            events.append((t, beta))
        reached.append(theta)
    return reached, events
