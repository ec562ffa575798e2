"""Preference optimisation's sums, mixtures, labels and metrics against loops; its forward pass against a whole softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import offline
from rlhf_jax.algorithms.update import make_update
from rlhf_jax.errors import UserError
from rlhf_jax.model import heads, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives import preference
from rlhf_jax.types import Preferences, TrainState
from tests import oracles

B, T, R, V = 6, 12, 5, 16


def batch(rng, kind="pairs", reference=True):
    length = rng.integers(0, R + 1, (B, 2)).astype(np.int32)
    length[0], length[1] = (0, 3), (1, 1)
    label = rng.choice(np.array([1.0, 1.0, 0.5, 0.75, 0.0]), B)
    if kind == "verdicts":
        label = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.25])
    arrays = Preferences(
        rng.integers(0, V, (B, 2, T)).astype(np.int32),
        rng.integers(1, T - R, B).astype(np.int32),
        length,
        label.astype(np.float32),
        rng.uniform(0.5, 2.0, B).astype(np.float32),
        -rng.exponential(6.0, (B, 2)).astype(np.float32) if reference else None,
    )
    return jax.tree.map(jnp.asarray, arrays)


def table(params, tokens, prompt_length, response_length):
    """A forward pass whose log-probability of a token is a number of its own, NaN where there is none."""
    index = jnp.clip(prompt_length[:, None] + jnp.arange(R), 0, T - 1)
    values = params[jnp.take_along_axis(tokens, index, axis=1)]
    return jnp.where(jnp.arange(R) < response_length[:, None], values, jnp.nan)


def params(rng):
    return jnp.asarray(-rng.exponential(1.0, V), jnp.float32)


def sums(params, rows, alpha=1.0):
    """float64 [B, 2], by loops."""
    values, found = np.asarray(params, np.float64), np.zeros((B, 2))
    for b in range(B):
        shared = min(int(n) for n in rows.response_length[b])
        for k in range(2):
            for t in range(int(rows.response_length[b, k])):
                token = int(rows.tokens[b, k, int(rows.prompt_length[b]) + t])
                found[b, k] += values[token] * (1.0 if t < shared else alpha)
    return found


def test_sums_equal_a_loop_whatever_stands_behind_a_response():
    rng = np.random.default_rng(0)
    length = np.stack(
        [oracles.lengths(rng), oracles.lengths(rng)], axis=2
    )  # [cases, rows, 2], empty and single ones too
    logprobs = -rng.exponential(2.0, (*length.shape, oracles.WINDOW))
    logprobs = oracles.soiled(rng, logprobs, oracles.mask_of(length))

    def loop(alpha):
        def one(x, n):
            found = np.zeros(n.shape)
            for b, k in np.ndindex(n.shape):
                for t in range(n[b, k]):
                    found[b, k] += x[b, k, t] * (1.0 if t < min(n[b]) else alpha)
            return found

        return one

    for alpha in (1.0, 0.4, 0.0):
        oracles.agree(functools.partial(offline.summed, ld_alpha=alpha), loop(alpha), logprobs, length)


@pytest.mark.parametrize("per_token", [None, True, False])
def test_a_mixture_over_labels_equals_a_loop(per_token):
    rng = np.random.default_rng(1)
    rows, values = batch(rng), params(rng)
    losses = {"sigmoid": (preference.sigmoid, 0.8), "simpo": (preference.simpo, 0.3), "sft": (preference.sft, 2.0)}
    weights = offline.weigh(rows)
    loss = offline.build_loss("pairs", losses, forward=table, beta=0.1, per_token=per_token, ld_alpha=0.5)
    total, metrics = jax.jit(loss)(values, rows, weights)
    logprobs, reference = sums(values, rows, 0.5), np.asarray(rows.ref_logprobs, np.float64)
    tokens = np.maximum(np.asarray(rows.response_length), 1)
    share = np.asarray(rows.weight, np.float64) / float(rows.weight.sum())
    wanted, right, margin = dict.fromkeys(losses, 0.0), 0.0, 0.0
    for b in range(B):
        label = float(rows.label[b])
        for first, part in ((0, label), (1, 1 - label)):
            for name in losses:
                mean = name != "sigmoid" if per_token is None else per_token
                scale = tokens[b] if mean else np.ones(2)
                c, r = (logprobs[b] / scale)[[first, 1 - first]]
                rc, rr = (reference[b] / scale)[[first, 1 - first]]
                h = {"sigmoid": 0.1 * (c - rc - r + rr), "simpo": 2.0 * (c - r) - 0.5}.get(name)
                wanted[name] += share[b] * part * (-c if h is None else np.log1p(np.exp(-h)))
        scale = tokens[b] if per_token else np.ones(2)
        reward = 0.1 * (logprobs[b] - reference[b]) / scale
        margin += share[b] * (reward[0] - reward[1])
        right += share[b] * (0.5 if label == 0.5 else float((reward[0] > reward[1]) == (label > 0.5)))
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[f"preference/{name}"], value, rtol=1e-5)
    np.testing.assert_allclose(total, sum(losses[name][1] * value for name, value in wanted.items()), rtol=1e-5)
    np.testing.assert_allclose(metrics["preference/accuracy"], right, rtol=1e-6)
    np.testing.assert_allclose(metrics["preference/margin"], margin, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["preference/chosen_logprob"], share @ logprobs[:, 0], rtol=1e-5)


def test_verdicts_equal_a_loop_and_drift_is_measured_without_gradient():
    rng = np.random.default_rng(2)
    rows, values = batch(rng, "verdicts"), params(rng)
    weights = offline.weigh(rows)

    def total(values, rows):
        losses = {"kto": (functools.partial(preference.kto, undesirable_weight=0.7), 1.0)}
        return offline.verdict_loss(values, rows, weights, forward=table, objectives=losses, beta=0.1)

    rows = rows.replace(ref_logprobs=rows.ref_logprobs - 9)

    (found, metrics), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(values, rows)
    ratio = sums(values, rows) - np.asarray(rows.ref_logprobs, np.float64)
    z0, share = max(0.0, ratio[:, 1].mean()), np.asarray(weights, np.float64)
    assert z0 > 0
    wanted = 0.0
    for b in range(B):
        y, s = float(rows.label[b]), 1 / (1 + np.exp(-0.1 * (ratio[b, 0] - z0)))
        wanted += share[b] * (y * (1 - s) + (1 - y) * 0.7 * s)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    good = share @ (np.asarray(rows.label) * 0.1 * ratio[:, 0])
    np.testing.assert_allclose(metrics["preference/good_reward"], good, rtol=1e-4, atol=1e-6)
    first = {int(t) for b in range(B) for t in own(rows, b, 0)}
    only_second = {int(t) for b in range(B) for t in own(rows, b, 1)} - first
    assert only_second and all(slope[token] == 0 for token in only_second)
    assert any(slope[token] != 0 for token in first)


def own(rows, b, k):
    start = int(rows.prompt_length[b])
    return np.asarray(rows.tokens[b, k, start : start + int(rows.response_length[b, k])])


def test_micro_batches_add_up_and_losses_that_span_rows_refuse_them():
    rng = np.random.default_rng(3)
    rows, values = batch(rng), params(rng)
    steps = {}
    for pieces in (1, 3):
        loss = offline.build_loss("pairs", {"sigmoid": (preference.sigmoid, 1.0)}, forward=table)
        update = make_update(loss, optax.sgd(1.0), weigh=offline.weigh, microbatches=pieces)
        steps[pieces], _ = update(TrainState.create(values, optax.sgd(1.0)), rows, jax.random.key(0))
    np.testing.assert_allclose(steps[1].params, steps[3].params, rtol=1e-5, atol=1e-6)
    for name in ("aot", "bco_pair"):
        bound = functools.partial(getattr(preference, name), beta=0.2)
        loss = offline.build_loss("pairs", {"sigmoid": (preference.sigmoid, 1.0), name: (bound, 0.5)}, forward=table)
        with pytest.raises(UserError, match="microbatches"):
            make_update(loss, optax.sgd(1.0), weigh=offline.weigh, microbatches=3)


def test_no_gradient_passes_the_reference():
    rng = np.random.default_rng(4)
    rows = batch(rng, reference=False)
    slope = jax.grad(lambda x: jnp.sum(offline.reference_logprobs(x, rows, forward=table)))(params(rng))
    assert (np.asarray(slope) == 0).all()


def test_the_forward_pass_is_the_softmax_over_each_response():
    """Chosen and rejected go through in one; each is scored by itself, prompt and padding left out."""
    cfg = ModelConfig(
        family="llama", vocab_size=V, d_model=16, layers=1, heads=2, kv_heads=2, head_dim=8, d_ff=24, max_positions=T,
        norm="rms", norm_eps=1e-5, positions="rope", eos_ids=(1,), bos_id=0, pad_id=0,
    )  # fmt: skip
    weights = transformer.init(jax.random.key(0), cfg)
    rows = batch(np.random.default_rng(5))
    forward = lambda p, *row: heads.policy(p, *row, window=R, cfg=cfg, chunk=2)[0]  # noqa: E731
    found = jax.jit(functools.partial(offline.sequence_logprobs, forward=forward))(weights, rows)
    whole = jax.jit(
        lambda tokens, length: transformer.logits(
            weights, transformer.hidden(weights, tokens, length, cfg=cfg), cfg=cfg
        )
    )
    for b in range(B):
        for k in range(2):
            length = int(rows.prompt_length[b] + rows.response_length[b, k])
            logits = np.asarray(whole(rows.tokens[b, k][None], jnp.array([length]))[0], np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            wanted = sum(logprobs[t - 1, int(rows.tokens[b, k, t])] for t in range(int(rows.prompt_length[b]), length))
            np.testing.assert_allclose(found[b, k], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: 0, "no parameter"),
        (lambda good, bad: 0, "got good, bad"),
        (lambda chosen, rejected, ref_logprobs: 0, "got ref_logprobs"),
        (lambda logprobs, desirable, *, ref_chosen: 0, "got ref_chosen"),
    ],
)
def test_functions_that_are_no_loss_are_refused(function, words):
    with pytest.raises(UserError) as caught:
        offline.kind_of(function)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_every_named_loss_is_of_a_kind_and_says_whether_it_reads_a_reference():
    kinds = {name: offline.kind_of(getattr(preference, name)) for name in preference.LOSSES}
    assert {name for name, kind in kinds.items() if kind == "verdicts"} == {"kto", "bco", "apo_zero_unpaired"}
    free = {n for n in preference.LOSSES if not offline.needs_reference({n: (getattr(preference, n), 1.0)})}
    assert free == {"simpo", "orpo", "cpo", "alphapo", "sft"}


@pytest.mark.parametrize("kind", ["pairs", "verdicts"])
def test_a_step_down_the_gradient_of_every_named_loss_lowers_it(kind):
    """On log-probabilities of tokens themselves; one program for all losses of a kind, as parts of one mixture."""
    rng = np.random.default_rng(6)
    values, rows = params(rng), batch(rng, kind)
    rows = rows.replace(response_length=jnp.maximum(rows.response_length, 1), label=jnp.round(rows.label))
    rows = rows.replace(ref_logprobs=jnp.asarray(sums(values, rows), jnp.float32))
    names = [name for name in preference.LOSSES if offline.kind_of(getattr(preference, name)) == kind]
    mixture = {name: (getattr(preference, name), 1.0) for name in names}
    loss = offline.build_loss(kind, mixture, forward=table)

    def parts(values):
        total, metrics = loss(values, rows, offline.weigh(rows))
        return jnp.stack([metrics[f"preference/{name}"] for name in names]), total

    (first, total), slopes = jax.jit(parts)(values), jax.jit(jax.jacrev(lambda x: parts(x)[0]))(values)
    second = jax.jit(jax.vmap(lambda x: parts(x)[0]))(values[None] - 1e-3 * slopes)
    np.testing.assert_allclose(total, first.sum(), rtol=1e-6)
    for number, name in enumerate(names):
        assert np.isfinite(slopes[number]).all() and np.abs(slopes[number]).max() > 0, name
        if name != "discopop":  # equal policies are where it rises
            assert second[number, number] < first[number], name
