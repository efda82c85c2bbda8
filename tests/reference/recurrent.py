"""Algorithm 1 of Recurrent-KIF on a small problem: one task (k >= 2) in one plain loop.

The parameters are a dict of tensors, and the loss is any function of (parameters, batch). The caller decides
which batches every inner and outer loop sees. So an implementation with the hooks of a training loop can get
the same batches, and must reach the same parameters after every round.
"""

import math
from dataclasses import dataclass, field

import torch

from tests.reference.selection import carriers


@dataclass
class Optimizer:
    """SGD or AdamW, written out. Its moments are a dict that the caller may clear."""

    kind: str = "sgd"
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    t: int = 0
    m: dict = field(default_factory=dict)
    v: dict = field(default_factory=dict)

    def step(self, theta, grads, rate):
        self.t += 1
        moved = {}
        for name, w in theta.items():
            g = grads[name]
            w = w * (1 - rate * self.weight_decay)
            if self.kind == "sgd":
                moved[name] = w - rate * g
                continue
            self.m[name] = self.betas[0] * self.m.get(name, torch.zeros_like(w)) + (1 - self.betas[0]) * g
            self.v[name] = self.betas[1] * self.v.get(name, torch.zeros_like(w)) + (1 - self.betas[1]) * g**2
            m_hat = self.m[name] / (1 - self.betas[0] ** self.t)
            v_hat = self.v[name] / (1 - self.betas[1] ** self.t)
            moved[name] = w - rate * m_hat / (v_hat.sqrt() + self.eps)
        return moved

    def forget(self):
        self.t, self.m, self.v = 0, {}, {}


@dataclass
class Round:
    """The values of one round."""

    theta_start: dict
    theta_q: dict
    theta_m: dict
    importance_in: dict
    importance_out: dict
    mask_in: dict
    mask_out: dict
    theta_next: dict


def recurrent_kif(
    theta,
    loss,
    inner_batches,
    outer_batches,
    *,
    rate_in,
    rate_out,
    optimizer="sgd",
    weight_decay=0.0,
    share_optimizer=False,
    forget_moments=False,
    alpha1=0.55,
    alpha2=0.55,
    fraction=0.2,
    importance="smoothed",
    alpha_uncertainty=0.85,
    both=(1.0, 1.0),
    only_in=1.0,
    only_out=1.0,
    neither=(0.0, 0.0),
    static_outer=False,
    masks="hard",
    tau=0.15,
    share=True,
    carry=None,
    group_of=lambda name: 0,
):
    """Run one round for every element of inner_batches, and return the rounds.

    Args:
        theta: Parameters at the start of the task, dict of tensors.
        loss: Function of (dict of tensors that require gradients, batch) to a scalar tensor.
        inner_batches: For each round, its Q batches of the current task.
        outer_batches: For each round, its M batches from memory.
        rate_in: Learning rate of the inner loop.
        rate_out: Learning rate of the outer loop; or a list, one for each of its steps in every round.
        optimizer: "sgd" or "adamw".
        weight_decay: Decoupled weight decay of both optimizers.
        share_optimizer: Whether the outer steps use the inner optimizer, at the inner rate.
        forget_moments: Whether to clear the moments of the optimizers after every fusion, or keep them.
        alpha1: Weight of the past in the inner importance (Eq. 4).
        alpha2: Weight of the new value in the outer importance (Eq. 7).
        fraction: Share of all scalars that a mask keeps.
        importance: "smoothed" (the paper: Ibar of |w g|), "gradient", "second" or "magnitude" (|g|,
            |w g - (w g)^2 / 2| or |w| instead of |w g|), "last" (no average) or "uncertainty" (published
            code: Ibar * Ubar, all four averages with alpha_uncertainty).
        alpha_uncertainty: Weight of the past for importance="uncertainty".
        both: Factors of (tau_in, tau_out) where both masks are 1.
        only_in: Factor of tau_in where only the inner mask is 1.
        only_out: Factor of tau_out where only the outer mask is 1.
        neither: Factors of (tau_in, tau_out) where no mask is 1.
        static_outer: Whether to measure the outer importance only in the first round.
        masks: "hard"; "soft" (a softmax over the two importances, each scaled to [0, 1] over the model);
            "global" (one weight each from their sums); or "none" (go on from theta_m).
        tau: Temperature of the soft masks.
        share: Whether tau_in is added where both masks are 1.
        carry: Mask the fewest scalars that carry this share of the importance, instead of a fraction.
        group_of: A function from a name to its group of parameters; each group is masked on its own.
    """
    inner_optimizer = Optimizer(optimizer, weight_decay=weight_decay)
    outer_optimizer = inner_optimizer if share_optimizer else Optimizer(optimizer, weight_decay=weight_decay)
    zeros = {name: torch.zeros_like(w) for name, w in theta.items()}
    past_in, past_out = alpha1, 1 - alpha2
    if importance == "uncertainty":
        past_in = past_out = alpha_uncertainty
    if importance == "last":
        past_in = past_out = 0.0

    i_out, u_out = dict(zeros), dict(zeros)  # is kept during the whole task
    rounds = []
    for inner, outer in zip(inner_batches, outer_batches, strict=True):
        theta_start = dict(theta)
        i_in, u_in = dict(zeros), dict(zeros)  # starts anew in each round
        for batch in inner:
            grads = _gradients(loss, theta, batch)
            i_in, u_in = _importance(i_in, u_in, theta, grads, importance, past_in, alpha_uncertainty)
            theta = inner_optimizer.step(theta, grads, rate_in)
        theta_q = dict(theta)
        for step, batch in enumerate(outer):
            grads = _gradients(loss, theta, batch)
            if not (static_outer and rounds):
                i_out, u_out = _importance(
                    i_out, u_out, theta, grads, importance, past_out, alpha_uncertainty
                )
            rate = rate_in if share_optimizer else rate_out
            theta = outer_optimizer.step(theta, grads, rate_out[step] if isinstance(rate_out, list) else rate)
        theta_m = dict(theta)

        score_in, score_out = i_in, i_out
        if importance == "uncertainty":
            score_in = {name: i_in[name] * u_in[name] for name in theta}
            score_out = {name: i_out[name] * u_out[name] for name in theta}
        mask_in = _masks(score_in, fraction, carry, group_of)
        mask_out = _masks(score_out, fraction, carry, group_of)
        weights = _weights(score_in, score_out, masks, tau)
        theta = {}
        for name in theta_start:
            tau_in, tau_out = theta_q[name] - theta_start[name], theta_m[name] - theta_q[name]
            if masks == "none":
                theta[name] = theta_m[name]
                continue
            if masks in ("soft", "global"):
                theta[name] = theta_start[name] + weights[name][0] * tau_in + weights[name][1] * tau_out
                continue
            in_, out = mask_in[name], mask_out[name]
            if not share:
                in_ = in_ & ~out
            value = theta_start[name] + neither[0] * tau_in + neither[1] * tau_out
            value = torch.where(in_ & ~out, theta_start[name] + only_in * tau_in, value)
            value = torch.where(~in_ & out, theta_start[name] + only_out * tau_out, value)
            value = torch.where(in_ & out, theta_start[name] + both[0] * tau_in + both[1] * tau_out, value)
            theta[name] = value
        if forget_moments:
            inner_optimizer.forget()
            outer_optimizer.forget()
        rounds.append(
            Round(theta_start, theta_q, theta_m, score_in, score_out, mask_in, mask_out, dict(theta))
        )
    return rounds


def _gradients(loss, theta, batch):
    leaves = {name: w.detach().clone().requires_grad_() for name, w in theta.items()}
    loss(leaves, batch).backward()
    return {name: leaf.grad.detach() for name, leaf in leaves.items()}


def _importance(i, u, theta, grads, kind, past, past_u):
    i_new, u_new = {}, {}
    for name, w in theta.items():
        latest = (w * grads[name]).abs()
        if kind == "gradient":
            latest = grads[name].abs()
        if kind == "second":
            latest = (w * grads[name] - 0.5 * grads[name] ** 2 * w**2).abs()
        if kind == "magnitude":
            latest = w.abs()
        i_new[name] = past * i[name] + (1 - past) * latest
        u_new[name] = past_u * u[name] + (1 - past_u) * (latest - i_new[name]).abs()
    return i_new, u_new


def _top(scores, fraction):
    values = sorted((v for score in scores.values() for v in score.flatten().tolist()), reverse=True)
    k = math.floor(fraction * len(values) + 1e-9)
    limit = values[k] if k < len(values) else -math.inf
    if fraction == 0:
        limit = math.inf
    return {name: score > limit for name, score in scores.items()}


def _masks(scores, fraction, carry, group_of):
    masks = {}
    for group in {group_of(name) for name in scores}:
        own = {name: score for name, score in scores.items() if group_of(name) == group}
        if carry is None:
            masks.update(_top(own, fraction))
        else:
            chosen = carriers(list(own.values()), carry)
            for name, rows in zip(own, chosen, strict=True):
                masks[name] = torch.tensor(rows).view(own[name].shape)
    return masks


def _weights(score_in, score_out, kind, tau):
    """Return for each parameter the weights of tau_in and tau_out."""
    if kind == "global":
        s_in = sum(score.sum().item() for score in score_in.values())
        s_out = sum(score.sum().item() for score in score_out.values())
        one = (s_in / (s_in + s_out), s_out / (s_in + s_out)) if s_in + s_out else (0.5, 0.5)
        return dict.fromkeys(score_in, one)
    p_in, p_out = _norm(score_in), _norm(score_out)
    weights = {}
    for name in p_in:
        e_in, e_out = torch.exp(p_in[name] / tau), torch.exp(p_out[name] / tau)
        weights[name] = (e_in / (e_in + e_out), e_out / (e_in + e_out))
    return weights


def _norm(scores):
    low = min(score.min().item() for score in scores.values())
    high = max(score.max().item() for score in scores.values())
    if low == high:
        return {name: torch.zeros_like(score) for name, score in scores.items()}
    return {name: (score - low) / (high - low) for name, score in scores.items()}
