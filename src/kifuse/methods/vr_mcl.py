"""VR-MCL (ICLR 2024, "Meta Continual Learning Revisited"): meta-gradients with reduced variance.

From the second task on, the method replaces the optimizer's gradient. The step's batch B_t is cut into
minibatches b_1..b_K, and there is a memory batch M_t:

1. inner steps from phi_0 = theta: phi_k = phi_{k-1} - alpha * grad L(phi_{k-1}; b_k), with one learned alpha
   per tensor.
2. outer gradient: g_t(theta) = d/dtheta sum_{k=1..K} L(phi_k; B_t and M_t). First order, the default, treats
   the inner gradients as constants: sum_k grad L(phi_k). Second order differentiates them as well.
3. variance reduction: m_t = g_t(theta_t) + c (m_{t-1} - g_t(theta_{t-1})), both on the same batches with the
   same dropout. m_t goes to the optimizer, clipped as the Trainer clips its own gradients.
4. alpha <- max(0, alpha - eta_alpha h), where h is the derivative of the sum in 2 by alpha: in first order
   h_i = -sum_k <grad_i L(phi_k), sum_{j<=k} grad_i L(phi_{j-1}; b_j)> for tensor i.

| symbol | setting |
| --- | --- |
| size of b_k | `inner_size` (examples over all processes) |
| start of alpha | `alpha` |
| eta_alpha | `alpha_lr` |
| c (1 - a in the paper) | `momentum` |
| bound on entries of inner gradients, norms of g_t and h, as in the code | `clip` (None: no bound) |
| first or second order | `second_order` |

The default values are those of the paper's vision experiments; no code for language models is known. The
inner rates are different. With the paper's (0.1, and 0.25 to learn it), and with a hundredth of both, an
adapter's loss grew in the bench regime, because the trained weights become good one inner step further on,
not where they are. So alpha starts at a hundredth of the paper's value, and is learned so slowly that it
keeps that size over a hundred steps. In the paper the outer step is plain SGD and the buffer is filled
online. Here, as for every method, the Trainer's optimizer takes the step, and the memory holds the finished
tasks. So the first task is plain training, m restarts with each task, and alpha is kept. The authors' code
also differs in these points: it takes the mean over k instead of the sum, has an alpha for each entry, which
may become negative, gives memory examples half the weight, adds h at both points, and takes several
meta-steps on a batch.

Cost: g_t takes one pass over the batch in minibatches, and K passes over batch and memory batch together:
1 + 2K passes over a batch of the step's size. m_t needs g_t at two points: 2 (1 + 2K) passes per step in
addition to the Trainer's own, whose gradient is used only for its log and the check for non-finite numbers.
Second order doubles the inner passes and keeps the graphs of all K. Copies of the trained parameters: two
from step to step, and up to ten more during a step; between tasks one number per tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, final

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kifuse.methods.base import (
    SETTINGS,
    Context,
    Method,
    Need,
    NotNegative,
    OldData,
    Past,
    Positive,
    TaskInfo,
)
from kifuse.methods.context import Batch
from kifuse.methods.kept import Kept, OfTask

Tensors = list[Tensor]


@final
@dataclass(kw_only=True, config=SETTINGS)
class VRMCL(Method):
    """Meta-gradients over inner steps, with reduced variance from step to step; first order by default."""

    second_order: bool = False
    inner_size: Annotated[int, Field(ge=1)] = 8
    alpha: NotNegative = 0.001
    alpha_lr: NotNegative = 2.5e-5
    momentum: Past = 0.15
    clip: Positive | None = 1.0

    _rates: Kept[Tensor]
    _momentum: OfTask[list[Tensor] | None] = None
    _before: OfTask[list[Tensor] | None] = None

    plain_first_task = True

    @property
    def old_data(self) -> OldData:
        """Memory batches, in the method's own kind of step."""
        return "steps"

    @property
    def needs(self) -> frozenset[Need]:
        """The step's batch, for gradients at other weights; second order differentiates twice."""
        return frozenset({"batch", "curvature"}) if self.second_order else frozenset({"batch"})

    def extra_passes(self, task: TaskInfo, memory_batches: int) -> int:
        """At each of two points: K inner minibatches, and K times batch and memory batch."""
        if task.first:
            return 0
        points = 2 if self.momentum else 1
        inner = -(-task.batch_size // self.inner_size)
        return task.steps * points * ((2 if self.second_order else 1) + 2 * inner)

    def begin_task(self, ctx: Context) -> None:
        """Keep alpha from the task before, and restart the variance reduction.

        Raises:
            ValueError: alpha was learned for other parameters.
        """
        first, count = ctx.params.tensors[0], len(ctx.params.tensors)
        if self._rates is not None and len(self._rates) != count:
            raise ValueError(
                f"the method's state has inner rates of {len(self._rates)} tensors, the model {count}. They "
                "can be used further only with the same trainable parameters."
            )
        if self._rates is None and not ctx.task.first:
            self._rates = torch.full((count,), self.alpha, dtype=_wide(first), device=first.device)

    def on_gradients(self, ctx: Context) -> None:
        """Replace the gradient by m_t, and update alpha."""
        if ctx.task.first or not ctx.memory_size or self._rates is None:
            return
        batch, memory = ctx.step_batch(), ctx.draw_memory()
        now = ctx.params.clone()
        gradient, rates = self._hypergradient(ctx, now, batch, memory)
        with torch.no_grad():
            if self._momentum is not None and self._before is not None:
                old, _ = self._hypergradient(ctx, self._before, batch, memory)
                # m_t = g_t(theta_t) + c (m_{t-1} - g_t(theta_{t-1}))
                drift = torch._foreach_sub(self._momentum, old)
                gradient = list(torch._foreach_add(gradient, drift, alpha=self.momentum))
            for p, g in zip(ctx.params.tensors, gradient, strict=True):
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                p.grad.copy_(g)
            # numbers that are not finite stay in the gradient, so that the step counts as a bad one
            if not bool(torch.isfinite(torch.stack(torch._foreach_norm(gradient))).all()):
                return
            if self.momentum:
                self._momentum, self._before = gradient, now
            self._rates = (self._rates - self.alpha_lr * rates).clamp_(min=0.0)
        ctx.clip()

    def _hypergradient(
        self, ctx: Context, theta: Sequence[Tensor], batch: Batch, memory: Batch
    ) -> tuple[Tensors, Tensor]:
        """Compute g_t(theta), and h: the derivative by alpha, `(tensors,)`."""
        order = self._second if self.second_order else self._first
        gradient, rates = order(ctx, theta, batch, memory)
        return self._bounded(gradient), self._bounded([rates])[0]

    @torch.no_grad()
    def _first(
        self, ctx: Context, theta: Sequence[Tensor], batch: Batch, memory: Batch
    ) -> tuple[Tensors, Tensor]:
        """Compute both in first order: the inner gradients are constants."""
        phi, gone = list(theta), [torch.zeros_like(each) for each in theta]
        total, rates = [torch.zeros_like(each) for each in theta], torch.zeros_like(self._rates)
        for k, part in enumerate(batch.split(self.inner_size)):
            inner = self._clamped(ctx.gradient(part, at=phi, noise=2 * k))
            gone = [a + b for a, b in zip(gone, inner, strict=True)]
            phi = self._moved(phi, inner, self._rates)
            outer = ctx.gradient(batch + memory, at=phi, noise=2 * k + 1)
            torch._foreach_add_(total, outer)
            rates -= torch.stack([(a * b).sum().to(rates) for a, b in zip(outer, gone, strict=True)])
        return total, rates

    @torch.enable_grad()
    def _second(
        self, ctx: Context, theta: Sequence[Tensor], batch: Batch, memory: Batch
    ) -> tuple[Tensors, Tensor]:
        """Compute both in second order: differentiate through the inner gradients."""
        leaves = [each.detach().requires_grad_() for each in theta]
        rates = self._rates.detach().requires_grad_()
        phi: Tensors = list(leaves)
        losses = []
        for k, part in enumerate(batch.split(self.inner_size)):
            inner = self._clamped(ctx.gradient(part, at=phi, noise=2 * k, create_graph=True))
            phi = self._moved(phi, inner, rates)
            losses.append(ctx.batch_loss(batch + memory, at=phi, noise=2 * k + 1))
        grads = torch.autograd.grad(torch.stack(losses).sum(), [*leaves, rates])
        return list(grads[:-1]), grads[-1]

    def _moved(self, phi: Tensors, inner: Tensors, rates: Tensor) -> Tensors:
        """Compute the weights after an inner step: phi - alpha * g."""
        return [p - r.to(p.dtype) * g for p, r, g in zip(phi, rates.unbind(), inner, strict=True)]

    def _clamped(self, gradient: Tensors) -> Tensors:
        """Limit the entries of an inner gradient to `clip`."""
        return gradient if self.clip is None else [g.clamp(-self.clip, self.clip) for g in gradient]

    @torch.no_grad()
    def _bounded(self, values: Tensors) -> Tensors:
        """Scale the values down to a total norm of at most `clip`."""
        if self.clip is None:
            return values
        norm = torch.stack([v.to(_wide(v)).square().sum() for v in values]).sum().sqrt()
        # a norm of 0 gives infinity, and so a factor of 1
        factor = (self.clip / norm).clamp(max=1.0)
        return [v * factor.to(v.dtype) for v in values]

    def end_task(self, ctx: Context) -> None:
        """Record the final alpha."""
        if not ctx.task.first and self._rates is not None:
            order = "second" if self.second_order else "first"
            low, high = torch.aminmax(self._rates)
            ctx.event(
                "inner rates", order=order, mean=float(self._rates.mean()), min=float(low), max=float(high)
            )
            ctx.measure(inner_rate=self._rates)


def _wide(tensor: Tensor) -> torch.dtype:
    """The precision in which a tensor's squares are summed."""
    return torch.promote_types(tensor.dtype, torch.float32)
