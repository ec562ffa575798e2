"""Preference losses and their gradients beside torch: the formulas of TRL's trainers, written anew.

What TRL averages is compared before the mean. Where a loss differs from TRL's on purpose, its docstring says so, and the
difference is undone here.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.objectives import preference

pytestmark = pytest.mark.parity

SETTINGS = {"beta": 0.3, "label_smoothing": 0.15, "gamma": 0.4, "alpha": 0.2, "tau": 0.05}
SETTINGS |= {"desirable_weight": 1.2, "undesirable_weight": 0.8}


def oracles(torch):
    """name -> f(c, r, u, v, y): the loss of each row; u and v are log-ratios to the reference, y says which rows are good."""
    F = torch.nn.functional
    b, e, g, a, tau = (SETTINGS[name] for name in ("beta", "label_smoothing", "gamma", "alpha", "tau"))
    ls, sig = F.logsigmoid, torch.sigmoid

    def smooth(x):
        return -ls(x) * (1 - e) - ls(-x) * e

    def exo(c, r, u, v, y):
        q = F.log_softmax(torch.stack([b * u, b * v]), dim=0)
        p = torch.log(torch.tensor([[1 - e], [e]], dtype=q.dtype))
        return F.kl_div(p.expand_as(q), q, log_target=True, reduction="none").sum(0)

    def aot(c, r, u, v, y):
        margins, places = torch.sort(c - r)
        reference, _ = torch.sort((c - u) - (r - v))
        return smooth(b * (margins - reference))[torch.argsort(places)]

    def aot_unpaired(c, r, u, v, y):
        high, places = torch.sort(u)
        return smooth(b * (high - torch.sort(v)[0]))[torch.argsort(places)]

    def discopop(c, r, u, v, y):
        x = b * (u - v)
        blend = sig(x / tau)
        return -ls(x) * (1 - blend) + torch.exp(-x) * blend

    def bco_pair(c, r, u, v, y):
        delta = torch.cat([b * u, b * v]).mean().detach()
        return -ls(b * u - delta) - ls(-(b * v - delta))

    def orpo(c, r, u, v, y):
        odds = (c - r) - (torch.log1p(-torch.exp(c)) - torch.log1p(-torch.exp(r)))
        return -c - b * ls(odds)

    def alphapo(c, r, u, v, y):
        high, low = ((1 - torch.exp(x).pow(-a)) / a for x in (c, r))
        return -ls(b * (high - low - g / b))

    def kto(c, r, u, v, y):
        kl = v.mean().detach().clamp(min=0)
        good, bad = 1 - sig(b * (u - kl)), 1 - sig(b * (kl - u))
        return torch.where(y, SETTINGS["desirable_weight"] * good, SETTINGS["undesirable_weight"] * bad)

    def bco(c, r, u, v, y):
        delta = ((b * u)[y].mean() + (b * u)[~y].mean()).detach() / 2
        return torch.where(y, -ls(b * u - delta), -ls(-(b * u - delta)))

    return {
        "sigmoid": lambda c, r, u, v, y: smooth(b * (u - v)),
        "robust": lambda c, r, u, v, y: (-(1 - e) * ls(b * (u - v)) + e * ls(-b * (u - v))) / (1 - 2 * e),
        "hinge": lambda c, r, u, v, y: torch.relu(1 - b * (u - v)),
        "ipo": lambda c, r, u, v, y: (u - v - 1 / (2 * b)) ** 2,
        "exo": exo,
        "nca": lambda c, r, u, v, y: -ls(b * u) - 0.5 * ls(-b * u) - 0.5 * ls(-b * v),
        "sppo_hard": lambda c, r, u, v, y: (u - 0.5 / b) ** 2 + (v + 0.5 / b) ** 2,
        "aot": aot,
        "aot_unpaired": aot_unpaired,
        "apo_zero": lambda c, r, u, v, y: (1 - sig(b * u)) + sig(b * v),
        "apo_down": lambda c, r, u, v, y: sig(b * u) + (1 - sig(b * (u - v))),
        "discopop": discopop,
        "bco_pair": bco_pair,
        "simpo": lambda c, r, u, v, y: smooth(b * (c - r - g / b)),
        "orpo": orpo,
        "cpo": lambda c, r, u, v, y: smooth(b * (c - r)),
        "alphapo": alphapo,
        "sft": lambda c, r, u, v, y: -c,
        "kto": kto,
        "bco": bco,
        "apo_zero_unpaired": lambda c, r, u, v, y: torch.where(y, 1 - sig(b * u), sig(b * u)),
    }


@pytest.mark.parametrize("name", preference.LOSSES)
def test_a_loss_and_its_gradient_are_those_of_torch(name):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(7)
    function = getattr(preference, name)
    names = list(inspect.signature(function).parameters)
    told = {key: x for key, x in SETTINGS.items() if key in names}
    for scale in (0.1, 3.0):
        reference = -rng.exponential(3.0, (2, 64)) - 0.2
        policy = np.minimum(reference + scale * rng.normal(size=(2, 64)), -0.01)
        good = rng.random(64) < 0.6

        def ours(c, r, reference=reference, good=good):
            rc, rr = reference
            offered = {"ref_chosen": rc, "ref_rejected": rr, "ref_logprobs": rc, "mismatched": r, "ref_mismatched": rr}
            second = jnp.asarray(good, jnp.float64) if "desirable" in names else r
            return function(c, second, **told, **{k: jnp.asarray(x) for k, x in offered.items() if k in names})

        with jax.enable_x64(True):
            pair = [jnp.asarray(x) for x in policy]
            found = ours(*pair)
            slopes = jax.grad(lambda c, r, ours=ours: jnp.sum(ours(c, r)), (0, 1))(*pair)
        c, r = (torch.tensor(x, requires_grad=True) for x in policy)
        rc, rr = (torch.tensor(x) for x in reference)
        wanted = oracles(torch)[name](c, r, c - rc, r - rr, torch.tensor(good))
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad(wanted.sum(), (c, r), allow_unused=True)
        for ours_, theirs in zip(slopes, gradients):
            theirs = np.zeros(64) if theirs is None else theirs.numpy()
            np.testing.assert_allclose(ours_, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_length_desensitised_sums_are_those_of_torch(alpha):
    """Shared tokens in full, the longer response's tail at α: chosen rows first, then rejected ones, as TRL stacks them."""
    torch = pytest.importorskip("torch")
    from rlhf_jax.algorithms import offline

    rng = np.random.default_rng(8)
    logprobs, length = -rng.exponential(2.0, (10, 2, 9)), rng.integers(1, 10, (10, 2)).astype(np.int32)
    stacked = torch.tensor(np.concatenate([logprobs[:, 0], logprobs[:, 1]]))
    lengths = torch.tensor(np.concatenate([length[:, 0], length[:, 1]]))
    shared = torch.minimum(lengths[:10], lengths[10:]).repeat(2)
    place = torch.arange(1, 10)[None]
    mask = place <= lengths[:, None]
    head = (stacked * (mask & (place <= shared[:, None]))).sum(1)
    tail = (stacked * (mask & (place > shared[:, None]))).sum(1)
    wanted = (head + alpha * tail).numpy().reshape(2, 10).T
    with jax.enable_x64(True):
        found = offline.summed(jnp.asarray(logprobs), jnp.asarray(length), ld_alpha=alpha)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
