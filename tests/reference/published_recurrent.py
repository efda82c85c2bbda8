"""One task (k >= 2) of Recurrent-KIF as its published code does it, in one plain torch loop.

It was written from a description of what that code does and in which order. It copies nothing from that code
and nothing from kifuse.
"""

from collections.abc import Iterator

import torch
from torch.optim.lr_scheduler import LambdaLR


class Importance:
    """|w g| of the present weights and gradients, smoothed, times its smoothed deviation."""

    def __init__(self, beta):
        self.beta, self.mean, self.deviation = beta, {}, {}

    def update(self, params):
        beta = self.beta
        for name, p in params.items():
            latest = (p.detach() * p.grad).abs()
            zero = torch.zeros_like(latest)
            self.mean[name] = beta * self.mean.get(name, zero) + (1 - beta) * latest
            apart = (latest - self.mean[name]).abs()
            self.deviation[name] = beta * self.deviation.get(name, zero) + (1 - beta) * apart

    def masks(self, quantile):
        scores = {name: self.mean[name] * self.deviation[name] for name in self.mean}
        limit = torch.quantile(torch.cat([score.flatten() for score in scores.values()]), quantile)
        return {name: score > limit for name, score in scores.items()}


def published_task(
    theta,
    loss,
    steps,
    memory: Iterator,
    *,
    rate,
    warmup,
    accumulation,
    inner_steps,
    outer_steps,
    half=False,
    max_norm=1.0,
    weight_decay=0.0,
    quantile=0.8,
    beta=0.85,
):
    """Train one task, and return the parameters after every step, fusions done.

    Args:
        theta: Parameters at the start of the task, dict of tensors.
        loss: Function of (dict of tensors, batch) to a scalar: the mean over the batch's target tokens.
        steps: For each optimizer step its `accumulation` parts, each of which is a batch.
        memory: The batches of the memory, one for each outer step.
        rate: Peak learning rate of the inner optimizer; it falls to 0 after the warm-up.
        warmup: Steps of the warm-up.
        accumulation: Parts of a step.
        inner_steps: Q.
        outer_steps: M.
        half: Whether to do as in fp16: outer steps use another optimizer, whose schedule is not stepped.
        max_norm: The norm to which gradients are clipped, those of outer steps too.
        weight_decay: The weight decay of both optimizers.
        quantile: A parameter above this quantile is important.
        beta: Weight of the past in all four averages.
    """
    params = {name: value.clone().requires_grad_() for name, value in theta.items()}
    tensors = list(params.values())

    def height(step):
        if step < warmup:
            return step / max(1, warmup)
        return max(0.0, (len(steps) - step) / max(1, len(steps) - warmup))

    optimizer, outer_optimizer = (
        torch.optim.AdamW(tensors, lr=lr, weight_decay=weight_decay) for lr in (rate, 1e-3)
    )
    schedule = LambdaLR(optimizer, height)
    LambdaLR(outer_optimizer, height)  # sets its rate to that of step 0, where it stays

    def now():
        return {name: p.detach().clone() for name, p in params.items()}

    def backward(batch):
        (loss(params, batch) / accumulation).backward()

    def move(stepper):
        torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        stepper.step()

    inner, outer = Importance(beta), Importance(beta)
    start, reached = now(), []
    for number, parts in enumerate(steps, start=1):
        for part in parts:
            backward(part)
        move(optimizer)
        schedule.step()
        inner.update(params)
        optimizer.zero_grad()
        if number % inner_steps == 0:
            middle = now()
            for _ in range(outer_steps):
                backward(next(memory))
                move(outer_optimizer if half else optimizer)
                outer.update(params)
                optimizer.zero_grad()
            end = now()
            in_, out = inner.masks(quantile), outer.masks(quantile)
            with torch.no_grad():
                for name, p in params.items():
                    one, other = in_[name].to(p.dtype), out[name].to(p.dtype)
                    both, neither = in_[name] & out[name], ~(in_[name] | out[name])
                    one[both], other[both] = 0.4, 0.6
                    one[neither], other[neither] = 0.5, 0.5
                    p.copy_(
                        start[name] + one * (middle[name] - start[name]) + other * (end[name] - middle[name])
                    )
            start, inner = now(), Importance(beta)
        reached.append(now())
    return reached
