"""Every preference loss against a loop in float64 on a thousand cases; what it promises of its gradients; extreme log-ratios."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.objectives import preference
from tests import oracles

ROWS = 6
NAMES = ("chosen", "rejected", "ref_chosen", "ref_rejected", "desirable")


def sigma(x):
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x):
    """−log σ(−x)."""
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def logit(p_log):
    return p_log - math.log(-math.expm1(p_log))


# What each loss of one pair should be, from u = log π/π_ref of the chosen response, v of the rejected one, and c, r themselves.
PAIR = {
    "sigmoid": lambda u, v, c, r, b=0.1, e=0.0: (1 - e) * softplus(b * (v - u)) + e * softplus(b * (u - v)),
    "robust": lambda u, v, c, r, b=0.1, e=0.1: (
        ((1 - e) * softplus(b * (v - u)) - e * softplus(b * (u - v))) / (1 - 2 * e)
    ),
    "hinge": lambda u, v, c, r, b=0.1: max(0.0, 1 - b * (u - v)),
    "ipo": lambda u, v, c, r, b=0.1: (u - v - 0.5 / b) ** 2,
    "exo": lambda u, v, c, r, b=0.1, e=1e-3: sum(
        sigma(x) * (-softplus(-x) - math.log(p)) for x, p in ((b * (u - v), 1 - e), (b * (v - u), e))
    ),
    "nca": lambda u, v, c, r, b=0.1: softplus(-b * u) + 0.5 * softplus(b * u) + 0.5 * softplus(b * v),
    "sppo_hard": lambda u, v, c, r, b=0.1: (u - 1 / (2 * b)) ** 2 + (v + 1 / (2 * b)) ** 2,
    "apo_zero": lambda u, v, c, r, b=0.1: 1 - sigma(b * u) + sigma(b * v),
    "apo_down": lambda u, v, c, r, b=0.1: sigma(b * u) + 1 - sigma(b * (u - v)),
    "discopop": lambda u, v, c, r, b=0.05, t=0.05: (
        (1 - sigma(b * (u - v) / t)) * softplus(-b * (u - v))
        + sigma(b * (u - v) / t) * oracles.bounded_exp(-b * (u - v))
    ),
    "simpo": lambda u, v, c, r, b=2.0, g=0.5, e=0.0: (
        (1 - e) * softplus(g - b * (c - r)) + e * softplus(b * (c - r) - g)
    ),
    "cpo": lambda u, v, c, r, b=0.1, e=0.0: (1 - e) * softplus(-b * (c - r)) + e * softplus(b * (c - r)),
    "orpo": lambda u, v, c, r, b=0.1: -c + b * softplus(logit(r) - logit(c)),
    "alphapo": lambda u, v, c, r, b=2.0, g=0.5, a=0.25: softplus(
        g - b * (oracles.bounded_exp(-a * r) - oracles.bounded_exp(-a * c)) / a
    ),
    "sft": lambda u, v, c, r: -c,
}
SHORT = {"b": "beta", "e": "label_smoothing", "g": "gamma", "t": "tau", "a": "alpha"}
OTHER = {"b": 0.7, "e": 0.23, "g": 0.9, "t": 1.3, "a": 0.6}
"""The settings of the second round."""


def pairwise(name, case, told):
    c, r, rc, rr, _ = case
    found = [PAIR[name](*(float(x) for x in row), **told) for row in zip(c - rc, r - rr, c, r)]
    return np.array(found)


def smooth(h, e):
    return (1 - e) * softplus(-h) + e * softplus(h)


def ranked(left, right, b, e):
    """Each of `left` with the one of `right` that has as many smaller ones."""
    order = sorted(range(len(left)), key=lambda i: (left[i], i))
    found = [0.0] * len(left)
    for place, i in enumerate(order):
        found[i] = smooth(b * (left[i] - sorted(right)[place]), e)
    return np.array(found)


def aot(case, b=0.1, e=0.0):
    c, r, rc, rr, _ = case
    return ranked(list(c - r), list(rc - rr), b, e)


def aot_unpaired(case, b=0.1, e=0.0):
    c, r, rc, rr, _ = case
    return ranked(list(c - rc), list(r - rr), b, e)


def bco_pair(case, b=0.1):
    c, r, rc, rr, _ = case
    rewards = [b * x for x in [*(c - rc), *(r - rr)]]
    delta = sum(rewards) / len(rewards)
    return np.array([softplus(delta - b * u) + softplus(b * v - delta) for u, v in zip(c - rc, r - rr)])


def kto(case, b=0.1, d=1.0, w=1.0):
    c, r, rc, rr, desirable = case
    z0 = max(0.0, sum(r - rr) / len(r))
    each = zip(c - rc, desirable)
    return np.array([y * d * (1 - sigma(b * (u - z0))) + (1 - y) * w * (1 - sigma(b * (z0 - u))) for u, y in each])


def bco(case, b=0.1):
    c, _, rc, _, desirable = case
    means = []
    for weight in (desirable, 1 - desirable):
        if sum(weight):
            means.append(sum(w * b * u for w, u in zip(weight, c - rc)) / sum(weight))
    delta = sum(means) / len(means)
    each = zip(c - rc, desirable)
    return np.array([y * softplus(delta - b * u) + (1 - y) * softplus(b * u - delta) for u, y in each])


def apo_zero_unpaired(case, b=0.1):
    c, _, rc, _, desirable = case
    return np.array([y * (1 - sigma(b * u)) + (1 - y) * sigma(b * u) for u, y in zip(c - rc, desirable)])


BATCH = {f.__name__: f for f in (aot, aot_unpaired, bco_pair, kto, bco, apo_zero_unpaired)}
SHORT |= {"d": "desirable_weight", "w": "undesirable_weight"}
OTHER |= {"d": 1.4, "w": 0.3}


def oracle(name):
    return BATCH.get(name) or (lambda case, **told: pairwise(name, case, told))


def taken(name):
    """Which of the short names the oracle takes."""
    function = BATCH.get(name) or PAIR[name]
    return [key for key in inspect.signature(function).parameters if key in SHORT and len(key) == 1]


def ask(name, other, c, r, rc, rr, desirable):
    function = getattr(preference, name)
    told = {SHORT[key]: OTHER[key] for key in taken(name)} if other else {}
    offered = {"ref_chosen": rc, "ref_rejected": rr, "ref_logprobs": rc, "mismatched": r, "ref_mismatched": rr}
    names = inspect.signature(function).parameters
    told |= {key: x for key, x in offered.items() if key in names}
    return function(c, desirable if "desirable" in names else r, **told)


@pytest.fixture(scope="module")
def cases():
    """Log-probabilities below 0 and labels [1000, 6]: from equal ones to ratios of some hundred nats."""
    rng = np.random.default_rng(3)
    shape = (oracles.CASES, ROWS)
    scale = rng.choice(np.array([0.0, 0.01, 1.0, 20.0, 300.0]), (oracles.CASES, 1))
    reference = -rng.exponential(4.0, (2, *shape)) - 1e-3
    policy = np.minimum(reference + scale * rng.normal(size=(2, *shape)), -1e-3)
    alike = rng.random((oracles.CASES, 1)) < 0.1  # all rows of a batch the same
    policy, reference = (np.where(alike, x[:, :, :1], x) for x in (policy, reference))
    desirable = rng.choice(np.array([0.0, 1.0, 1.0, 0.0, 0.3]), shape)
    desirable[:50], desirable[50:100] = 0.0, 1.0
    return (*policy, *reference, desirable)


@pytest.fixture(scope="module")
def answers(cases):
    """All losses, at their defaults and at other settings, from two compiled programs: one in float64, one in float32."""

    def everything(*case):
        return {(name, other): ask(name, other, *case) for name in preference.LOSSES for other in (False, True)}

    return oracles.ask(lambda *case: {f"{n}/{o}": x for (n, o), x in everything(*case).items()}, *cases)


@pytest.mark.parametrize("other", [False, True], ids=["defaults", "others"])
@pytest.mark.parametrize("name", preference.LOSSES)
def test_a_loss_equals_a_loop(cases, answers, name, other):
    found64, found32, rounded = answers
    told = {key: OTHER[key] for key in taken(name)} if other else {}
    for found, given, limits in (
        (found64, cases, {"rtol": 1e-10, "atol": 1e-10}),
        (found32, rounded, {"rtol": 2e-4, "atol": 2e-4}),
    ):
        wanted = [oracle(name)([x[case] for x in given], **told) for case in range(oracles.CASES)]
        np.testing.assert_allclose(found[f"{name}/{other}"], np.stack(wanted), **limits)


def slopes(name, c, r, rc, rr, desirable):
    """Gradients of the sum with respect to the policy's two log-probabilities."""
    return jax.grad(lambda c, r: jnp.sum(ask(name, False, c, r, rc, rr, desirable)), (0, 1))(c, r)


@pytest.fixture(scope="module")
def gradients(cases):
    with jax.enable_x64(True):
        every = jax.jit(jax.vmap(lambda *case: {name: slopes(name, *case) for name in preference.LOSSES}))
        return jax.device_get(every(*cases))


def always(u, v, h):
    return np.ones(u.shape, bool)


# Where the gradient must push the chosen response up (None: the method does not promise it), and the rejected one down.
PROMISES = {
    "sigmoid": (always, always),
    "robust": (always, always),
    "hinge": (lambda u, v, h: h < 10, lambda u, v, h: h < 10),
    "ipo": (lambda u, v, h: h < 5, lambda u, v, h: h < 5),
    "exo": (lambda u, v, h: h < 69, lambda u, v, h: h < 69),
    "nca": (lambda u, v, h: 0.1 * u < math.log(2), always),
    "sppo_hard": (lambda u, v, h: u < 5, lambda u, v, h: v > -5),
    "aot": (always, always),
    "aot_unpaired": (always, always),
    "apo_zero": (always, always),
    "apo_down": (None, always),
    "discopop": (lambda u, v, h: abs(0.05 * h) > 0.5, lambda u, v, h: abs(0.05 * h) > 0.5),
    "bco_pair": (always, always),
    "simpo": (always, always),
    "orpo": (always, always),
    "cpo": (always, always),
    "alphapo": (always, always),
    "sft": (always, None),
}


@pytest.mark.parametrize("name", PROMISES)
def test_the_gradient_pushes_where_the_method_promises(cases, gradients, name):
    c, r, rc, rr, _ = cases
    u, v = c - rc, r - rr
    mild = (np.abs(u) < 60) & (np.abs(v) < 60) & (c > -60) & (r > -60)  # far out a slope may round to 0
    if name == "alphapo":  # whose rewards fall like a power of the probability
        mild &= (c > -8) & (r > -8)
    up, down = gradients[name]
    for promise, slope in zip(PROMISES[name], (-up, down)):
        if promise is not None:
            where = mild & promise(u, v, u - v)
            assert where.sum() > 500 and (slope[where] > 0).all()
    beyond = {"hinge": 10, "ipo": 5, "exo": 10 * math.log(999)}.get(name)
    if beyond:
        past = u - v > beyond + 1e-6
        assert past.any() and (up[past] >= 0).all(), "past the margin that is wanted it pulls back, or rests"


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_good_responses_are_pushed_up_and_bad_ones_down(cases, gradients, name):
    c, _, rc, _, desirable = cases
    slope, through_others = gradients[name]
    mild = np.abs(c - rc) < 60
    assert (slope[mild & (desirable == 1)] < 0).all() and (slope[mild & (desirable == 0)] > 0).all()
    assert (through_others == 0).all(), "what a loss is compared with is detached"


def test_the_shift_of_bco_is_detached(cases, gradients):
    """Its rows' slopes are those of a logistic loss with the shift held, which depend on no other row's slope."""
    for name in ("bco", "bco_pair"):
        c, r, rc, rr, desirable = (x[:20] for x in cases)
        rewards = 0.1 * (c - rc), 0.1 * (r - rr)
        found = gradients[name][0][:20]
        for case in range(20):
            if name == "bco_pair":
                shift = (rewards[0][case].mean() + rewards[1][case].mean()) / 2
                wanted = [-0.1 * sigma(shift - x) for x in rewards[0][case]]
            else:
                shift = rewards[0][case].mean()  # the first cases hold bad responses alone
                wanted = [0.1 * sigma(x - shift) for x in rewards[0][case]]
            np.testing.assert_allclose(found[case], wanted, rtol=1e-9, atol=1e-12)


def test_extreme_log_ratios_give_finite_losses_and_gradients():
    """Sums up to a hundred thousand nats apart, probabilities of 1 and of 0, in float32."""
    edge = np.array([0.0, -1e-12, -1e-7, -0.69314718, -20.0, -90.0, -1e3, -1e5], np.float32)
    c, r, rc = (x.ravel() for x in np.meshgrid(edge, edge, edge))
    rr, desirable = rc[::-1].copy(), (np.arange(c.size) % 2).astype(np.float32)
    every = jax.jit(lambda *case: {name: (ask(name, False, *case), slopes(name, *case)) for name in preference.LOSSES})
    for name, found in jax.device_get(every(c, r, rc, rr, desirable)).items():
        for array in jax.tree.leaves(found):
            assert np.isfinite(array).all(), name


def test_mistaken_settings_are_refused():
    x = jnp.zeros(2)
    both = {"ref_chosen": x, "ref_rejected": x}
    for name, share in (("exo", 0.0), ("exo", 1.0), ("robust", 0.5), ("robust", -0.1)):
        with pytest.raises(UserError, match="label_smoothing of"):
            getattr(preference, name)(x, x, **both, label_smoothing=share)


def test_equal_policies_give_the_values_known_by_hand():
    x = jnp.array([-3.0, -7.0])
    both = {"ref_chosen": x, "ref_rejected": x}
    wanted = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0, "nca": 2 * math.log(2), "sppo_hard": 50.0}
    wanted |= {"apo_zero": 1.0, "apo_down": 1.0, "discopop": 0.5 * math.log(2) + 0.5, "bco_pair": 2 * math.log(2)}
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(preference, name)(x, x, **both), value, rtol=1e-6)


def test_small_alpha_is_simpo():
    rng = np.random.default_rng(0)
    c, r = (jnp.asarray(-rng.exponential(1.0, 50), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(preference.alphapo(c, r, alpha=1e-4), preference.simpo(c, r), rtol=2e-3)
    np.testing.assert_array_equal(preference.alphapo(c, r, alpha=0.0), preference.simpo(c, r))


def test_what_a_loss_says_of_itself():
    spanning = {name for name in preference.LOSSES if getattr(getattr(preference, name), "spans_rows", False)}
    means = {name for name in preference.LOSSES if getattr(getattr(preference, name), "per_token", False)}
    assert spanning == {"aot", "aot_unpaired", "bco_pair", "kto", "bco"}
    assert means == {"ipo", "simpo", "orpo", "alphapo", "sft"}


@pytest.mark.parametrize("name", preference.LOSSES)
def test_rows_depend_on_each_other_only_where_it_is_said(name):
    rng = np.random.default_rng(1)
    c, r, rc, rr = (jnp.asarray(-rng.exponential(5.0, 8), jnp.float32) for _ in range(4))
    desirable = jnp.asarray([1.0, 0.0] * 4)
    whole = ask(name, False, c, r, rc, rr, desirable)
    halves = [ask(name, False, *(x[part] for x in (c, r, rc, rr, desirable))) for part in (slice(4), slice(4, 8))]
    same = np.allclose(whole, np.concatenate(halves), rtol=1e-6)
    assert same != getattr(getattr(preference, name), "spans_rows", False)
