"""Knowledge fusion, one unit and one scalar at a time (KIF Eq. 14-17, Recurrent-KIF Eq. 8-9)."""

import math

from tests.reference.selection import threshold


def static_weights(p, c, gamma, quantile):
    limit_p, limit_c = threshold([p], 1 - quantile), threshold([c], 1 - quantile)
    weights = []
    for before, now in zip(p.tolist(), c.tolist(), strict=True):
        if before > limit_p and now > limit_c:
            weights.append(gamma)
        elif before > limit_p:
            weights.append(1.0)
        elif now > limit_c:
            weights.append(0.0)
        else:
            weights.append(0.5)
    return weights


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
