"""The pieces of Recurrent-KIF, driven by torch's optimizers, against Algorithm 1 written out."""

import pytest
import torch

from kifuse.knowledge import ImportanceTracker, above, masked_sum, top_fraction_threshold
from tests.reference.recurrent import recurrent_kif

RATES = {"rate_in": 0.05, "rate_out": 0.02}


def _problem(rounds=3, q=4, m=2):
    torch.manual_seed(0)
    theta = {name: torch.randn(shape, dtype=torch.float64) for name, shape in (("a", (2, 4)), ("b", (3, 2)))}

    def batch():
        x = torch.randn(5, 4, dtype=torch.float64)
        return x, torch.randn(5, 3, dtype=torch.float64)

    inner = [[batch() for _ in range(q)] for _ in range(rounds)]
    outer = [[batch() for _ in range(m)] for _ in range(rounds)]
    return theta, inner, outer


def _loss(theta, batch):
    x, y = batch
    return ((x @ theta["a"].mT @ theta["b"].mT - y) ** 2).mean()


def _optimizer(params, kind, rate):
    if kind == "sgd":
        return torch.optim.SGD(params, lr=rate)
    return torch.optim.AdamW(params, lr=rate, weight_decay=0.01)


def _driven(theta, inner, outer, kind, share, forget, uncertainty, rate_in, rate_out, **shares):
    """Run the rounds the way a training loop does: step hooks, trackers, in-place fusion."""
    names = list(theta)
    params = [theta[name].clone().requires_grad_() for name in names]
    inside = _optimizer(params, kind, rate_in)
    outside = inside if share else _optimizer(params, kind, rate_out)
    alphas = (0.85, 0.85) if uncertainty else (0.55, 1 - 0.55)
    track_in, track_out = (ImportanceTracker(params, alpha1=a, uncertainty=uncertainty) for a in alphas)

    def train(batches, optimizer, tracker):
        before = [p.detach().clone() for p in params]
        for batch in batches:
            optimizer.zero_grad()
            _loss(dict(zip(names, params, strict=True)), batch).backward()
            tracker.update(params, [p.grad for p in params])
            optimizer.step()
        return before, [p.detach() - b for p, b in zip(params, before, strict=True)]

    for near, far in zip(inner, outer, strict=True):
        track_in.reset()
        base, tau_in = train(near, inside, track_in)
        _, tau_out = train(far, outside, track_out)
        masks = [above(s, top_fraction_threshold(s, 0.2)) for s in (track_in.scores(), track_out.scores())]
        for param, value in zip(params, masked_sum(base, tau_in, tau_out, *masks, **shares), strict=True):
            param.data.copy_(value)
        if forget:
            inside.state.clear()
            outside.state.clear()
        yield dict(zip(names, (p.detach().clone() for p in params), strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("published", [False, True])
def test_every_round_ends_where_the_algorithm_ends(kind, share, forget, published):
    theta, inner, outer = _problem()
    shares = {"both": (0.4, 0.6), "neither": (0.5, 0.5)} if published else {}
    expected = recurrent_kif(
        theta,
        _loss,
        inner,
        outer,
        optimizer=kind,
        weight_decay=0.01 if kind == "adamw" else 0.0,
        share_optimizer=share,
        forget_moments=forget,
        importance="uncertainty" if published else "smoothed",
        **RATES,
        **shares,
    )
    found = _driven(theta, inner, outer, kind, share, forget, published, **RATES, **shares)
    for round_, reached in zip(expected, found, strict=True):
        for name in theta:
            torch.testing.assert_close(reached[name], round_.theta_next[name], rtol=1e-9, atol=1e-12)


def test_the_papers_rule_moves_only_the_selected_scalars():
    theta, inner, outer = _problem(rounds=1)
    (round_,) = recurrent_kif(theta, _loss, inner, outer, **RATES)
    for name, start in theta.items():
        kept = ~(round_.mask_in[name] | round_.mask_out[name])
        assert kept.any() and torch.equal(round_.theta_next[name][kept], start[kept])
    selected = sum(int(mask.sum()) for mask in round_.mask_in.values())
    assert selected == 2  # a fifth of 14 scalars, rounded down


def test_selecting_everything_keeps_both_task_vectors_whole():
    theta, inner, outer = _problem(rounds=1)
    (round_,) = recurrent_kif(theta, _loss, inner, outer, fraction=1.0, **RATES)
    for name in theta:
        torch.testing.assert_close(round_.theta_next[name], round_.theta_m[name])
