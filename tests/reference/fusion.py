"""Knowledge fusion, computed for one unit and one scalar at a time (KIF Eq. 14-17, Recurrent-KIF Eq. 8-9)."""

import math

import torch

from tests.reference.selection import carriers, selected


def static_weights(p, c, gamma, quantile):
    return case_weights(important(p, 1 - quantile), important(c, 1 - quantile), gamma)


def case_weights(before, now, gamma):
    """Return the weights of Eq. 15, from the units that mattered before and those that matter now."""
    weights = []
    for mattered, matters in zip(before, now, strict=True):
        if mattered and matters:
            weights.append(gamma)
        elif mattered:
            weights.append(1.0)
        elif matters:
            weights.append(0.0)
        else:
            weights.append(0.5)
    return weights


def important(values, fraction=None, share=None, groups=None):
    """Return which units matter: in each group the top fraction, or the units that carry a share."""
    groups = [0] * len(values) if groups is None else groups
    found = [None] * len(values)
    for group in set(groups):
        units = [u for u, its in enumerate(groups) if its == group]
        own = torch.tensor([float(values[u]) for u in units])
        marks = selected([own], fraction)[0] if share is None else carriers([own], share)[0]
        for u, mark in zip(units, marks, strict=True):
            found[u] = mark
    return found


def running_average(start, steps, decay):
    """Return one parameter's scalars after v_t = d v_{t-1} + (1 - d) u_t from v_0 = start."""
    average = [float(v) for v in start.flatten()]
    for values in steps:
        average = [
            decay * v + (1 - decay) * u for v, u in zip(average, values.flatten().tolist(), strict=True)
        ]
    return average


def adaptive_weights(p, c, tau):
    weights = []
    for before, now in zip(p.tolist(), c.tolist(), strict=True):
        e_before, e_now = math.exp(before / tau), math.exp(now / tau)
        weights.append(e_before / (e_before + e_now))
    return weights


def blend(previous, current, weight):
    """Return one parameter's fused scalars; weight has the parameter's full shape."""
    triples = zip(
        previous.flatten().tolist(), current.flatten().tolist(), weight.flatten().tolist(), strict=True
    )
    return [w * u_hat + (1 - w) * u for u_hat, u, w in triples]


def masked_sum(base, tau_in, tau_out, in_mask, out_mask, both, only_in, only_out, neither):
    """Return one parameter's fused scalars, by the four cases of the two masks."""
    fused = []
    flat = [t.flatten().tolist() for t in (base, tau_in, tau_out, in_mask, out_mask)]
    for theta, t_in, t_out, m_in, m_out in zip(*flat, strict=True):
        if m_in and m_out:
            fused.append(theta + both[0] * t_in + both[1] * t_out)
        elif m_in:
            fused.append(theta + only_in * t_in)
        elif m_out:
            fused.append(theta + only_out * t_out)
        else:
            fused.append(theta + neither[0] * t_in + neither[1] * t_out)
    return fused
