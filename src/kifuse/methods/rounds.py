"""The rounds of Recurrent-KIF within one task: the data that they collect, and the fusion of a round.

All data is held in rows of scalars: I_in, I_out, theta_b and, during memory steps, theta_b(Q). A round is
fused chunk by chunk, so that no other memory grows with the number of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kifuse.knowledge.chunks import Chunk, FlatCopy, Window, chunk_size, cut, split
from kifuse.knowledge.fusion import masked_sum
from kifuse.knowledge.importance import ImportanceTracker
from kifuse.methods.parameters import Parameters

Mask = Tensor | Callable[[Chunk], Tensor]
"""Factors of a task vector: one number for all scalars, or a function that gives the numbers of a chunk."""


def sums(row: Tensor, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """Sum a row of non-negative values over each parameter: `(parameters,)`."""
    return torch.stack(torch._foreach_norm(split(row, shapes), 1))


@dataclass
class Rounds:
    """The data collected over the rounds of one task.

    Attributes:
        inner: I_in of the current round.
        outer: I_out of the task.
        start: theta_b.
        task_start: The parameters before the task, in the host's memory.
        groups: For each parameter the group with which it shares a threshold; None for one threshold.
        rates: Learning rate of each Q-th inner step whose memory steps have not been taken yet.
        fused_at: Steps at which fusions happened.
        mask_means: Means of m_in, m_out and m_in m_out over each parameter, summed over the rounds.
        score_means: Means of I_in and I_out over each parameter, in the last round.
    """

    inner: ImportanceTracker
    outer: ImportanceTracker
    start: FlatCopy
    task_start: list[Tensor]
    groups: tuple[int, ...] | None
    rates: list[float] = field(default_factory=list)
    fused_at: list[int] = field(default_factory=list)
    mask_means: Tensor | None = None
    score_means: Tensor | None = None

    def __post_init__(self) -> None:
        counts = [view.numel() for view in self.start.views]
        self.shapes = [tuple(view.shape) for view in self.start.views]
        self.sizes = torch.tensor(counts, device=self.start.row.device)
        """Number of scalars of each parameter, `(parameters,)`."""
        self._chunks = cut(counts, chunk_size(sum(counts), self.start.row.device))

    def fuse(
        self,
        params: Parameters,
        inner_end: FlatCopy,
        mask_in: Mask,
        mask_out: Mask,
        *,
        share: bool,
        both: tuple[float, float],
        neither: tuple[float, float],
    ) -> None:
        """Close a round: theta_b + m_in tau_in + m_out tau_out (Eq. 2, 5, 9) becomes the model and theta_b.

        Args:
            params: theta_b(Q+M); overwritten.
            inner_end: theta_b(Q).
            mask_in: m_in.
            mask_out: m_out.
            share: Whether scalars where both masks are 1 take the inner change too.
            both: Factors of (tau_in, tau_out) where both masks are 1.
            neither: The same where neither mask is 1.
        """
        begin, end = self.start.row, inner_end.row
        scratch = torch.empty_like(begin[: max(c.high - c.low for c in self._chunks)])
        means = torch.zeros(3, len(self.shapes), dtype=torch.float32, device=begin.device)
        for chunk in self._chunks:
            part = slice(chunk.low, chunk.high)
            m_in, m_out = (mask if isinstance(mask, Tensor) else mask(chunk) for mask in (mask_in, mask_out))
            self._add_up(means, chunk, (m_in, m_out, m_in * m_out))
            if not share:
                m_in = m_in * (1.0 - m_out)
            now = Window(chunk, scratch, self.shapes).load(params.tensors)
            tau_in, tau_out = end[part] - begin[part], now - end[part]
            [fused] = masked_sum(
                [begin[part]], [tau_in], [tau_out], [m_in], [m_out], both=both, neither=neither
            )
            begin[part] = fused
        self._note(means)
        params.assign(self.start.views)
        self.start.take(params.tensors)  # rounded to the parameters' own precision

    def keep(self, params: Parameters) -> None:
        """Close a round without a fusion: the present model becomes theta_b."""
        self._note(torch.ones(3, len(self.shapes), dtype=torch.float32, device=self.start.row.device))
        self.start.take(params.tensors)

    def _add_up(self, means: Tensor, chunk: Chunk, masks: Sequence[Tensor]) -> None:
        """Add the chunk's part of each parameter's mean of each mask, without waiting for the device."""
        if masks[0].dim() == 0:
            means.copy_(torch.stack(list(masks))[:, None].expand_as(means))
            return
        owners = torch.tensor([index for index, _, _ in chunk.pieces], device=means.device)
        lengths = [stop - start for _, start, stop in chunk.pieces]
        for row, mask in zip(means, masks, strict=True):
            parts = torch.stack(torch._foreach_norm(list(mask.split(lengths)), 1))
            row.index_add_(0, owners, parts / self.sizes[owners])

    def _note(self, means: Tensor) -> None:
        rows = (self.inner.flat_scores(), self.outer.flat_scores())
        self.score_means = torch.stack([sums(row, self.shapes) for row in rows]) / self.sizes
        self.mask_means = means if self.mask_means is None else self.mask_means + means

    def state_dict(self) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs: tensors, and counts as JSON."""
        found: dict[str, Any] = {"rates": list(self.rates), "fused_at": list(self.fused_at)}
        for part in ("inner", "outer"):
            found |= {f"{part}.{name}": t for name, t in getattr(self, part).state_dict().items()}
        for part, tensors in (("start", self.start.views), ("task_start", self.task_start)):
            found |= {f"{part}.{place}": tensor.clone() for place, tensor in enumerate(tensors)}
        if self.mask_means is not None and self.score_means is not None:
            found |= {"mask_means": self.mask_means, "score_means": self.score_means}
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: The state belongs to other parameters.
        """
        for part in ("inner", "outer"):
            start = f"{part}."
            found = {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
            getattr(self, part).load_state_dict(found)
        places = range(len(self.shapes))
        self.start.take([state[f"start.{place}"] for place in places])
        self.task_start = [state[f"task_start.{place}"].cpu() for place in places]
        self.rates, self.fused_at = list(state["rates"]), list(state["fused_at"])
        if self.fused_at:
            self.mask_means = state["mask_means"].to(self.sizes.device)
            self.score_means = state["score_means"].to(self.sizes.device)


def above(row: Tensor, thresholds: Tensor) -> Callable[[Chunk], Tensor]:
    """Make the mask of the scalars above their threshold (Eq. 8): 1 there, else 0.

    Args:
        row: The importance of every scalar, `(scalars,)`.
        thresholds: 0-dim, or one threshold per parameter, `(parameters,)`.
    """

    def of(chunk: Chunk) -> Tensor:
        limit = thresholds.to(row.device)
        if limit.dim():
            owners = torch.tensor([index for index, _, _ in chunk.pieces], device=row.device)
            lengths = torch.tensor([stop - start for _, start, stop in chunk.pieces], device=row.device)
            limit = limit[owners].repeat_interleave(lengths, output_size=chunk.high - chunk.low)
        return (row[chunk.low : chunk.high] > limit).to(torch.float32)

    return of


def part_of(row: Tensor) -> Callable[[Chunk], Tensor]:
    """Make the mask whose factors are in a row, `(scalars,)`."""
    return lambda chunk: row[chunk.low : chunk.high]
