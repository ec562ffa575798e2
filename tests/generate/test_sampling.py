import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from rlhf_jax.generate import sampling
from rlhf_jax.types import Sampling
from tests.jaxprs import equations, named

V = 50_257
JUST_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


def heavy_tail(seed=0):
    """Zipf-like logits over a real vocabulary, its likeliest tokens scattered, one of them of mass 0.056."""
    rng = np.random.default_rng(seed)
    logits = -1.05 * np.log(np.arange(1, V + 1)) + 0.3 * rng.standard_normal(V)
    return rng.permutation(logits)


def softmax(logits):
    weights = np.exp(np.float64(logits) - np.float64(logits).max())
    return weights / weights.sum()


@functools.partial(jax.jit, static_argnames=("count", "rule"))
def draws(logits, seed, count, rule):
    """`count` draws from one row of logits."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(lambda key: sampling.draw(logits, key, rule))(keys)


def chi_squared(tokens, probabilities):
    """p-value of the counts against the probabilities; tokens expected fewer than 5 times are thrown together, by the rank of
    their probability and, within it, by their place."""
    expected = probabilities * len(tokens)
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    rare = expected < 5
    places = np.arange(len(expected))
    groups = np.where(rare, -1 - places // 4096, places)
    names = np.unique(groups)
    found = np.array([counts[groups == name].sum() for name in names])
    wanted = np.array([expected[groups == name].sum() for name in names])
    kept = wanted > 0
    found, wanted = found[kept], wanted[kept]
    return chi2.sf(np.sum((found - wanted) ** 2 / wanted), len(wanted) - 1)


# Frequencies


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_invariant_01_frequencies_match_softmax(dtype, temperature):
    """20,000 draws, vocabulary 50,257. Logits that arrive in bf16 are drawn from exactly as they are, in f32."""
    logits = jnp.asarray(heavy_tail(), dtype)
    tokens, _ = draws(logits, 1, 20_000, Sampling(temperature=temperature))
    p = chi_squared(np.asarray(tokens), softmax(np.asarray(logits, np.float64) / temperature))
    assert 1e-3 < p < 1 - 1e-6


def test_invariant_01_the_chi_squared_test_sees_small_errors():
    probabilities = softmax(heavy_tail())
    rng = np.random.default_rng(0)
    wrong = softmax(np.log(probabilities) / 1.03)
    assert chi_squared(rng.choice(V, 20_000, p=wrong), probabilities) < 1e-3
    assert chi_squared(rng.choice(V, 20_000, p=probabilities), probabilities) > 1e-3


@pytest.mark.parametrize("rule", [Sampling(temperature=0.7), Sampling(top_k=5, top_p=0.9, min_p=0.1)])
def test_invariant_01_everything_is_computed_in_f32(rule):
    """In the traced program nothing but the logits that came in is bf16."""
    keys = jax.random.split(jax.random.key(0), 3)
    program = jax.make_jaxpr(lambda logits: sampling.draw(logits, keys, rule))(jnp.zeros((3, 300), jnp.bfloat16))
    made = [(e.primitive.name, v.aval.dtype) for e in equations(program) for v in e.outvars if hasattr(v.aval, "dtype")]
    assert "exp" in dict(made) and "cumsum" in dict(made)
    floats = [(name, dtype) for name, dtype in made if jnp.issubdtype(dtype, jnp.floating)]
    assert all(dtype == jnp.float32 for _, dtype in floats), floats
    casts = [e for e in named(program, "convert_element_type") if e.invars[0].aval.dtype == jnp.bfloat16]
    assert [e.params["new_dtype"] for e in casts] == [jnp.float32]


def test_one_key_a_row_and_rows_of_any_shape():
    logits = jnp.float32(np.random.default_rng(0).standard_normal((2, 3, 40)))
    keys = jax.random.split(jax.random.key(0), 6).reshape(2, 3)
    draw = jax.jit(functools.partial(sampling.draw, sampling=Sampling()))
    tokens, logprobs = draw(logits, keys)
    assert tokens.shape == logprobs.shape == (2, 3) and (tokens.dtype, logprobs.dtype) == (jnp.int32, jnp.float32)
    for at in np.ndindex(2, 3):
        token, logprob = draw(logits[at], keys[at])
        assert (int(token), float(logprob)) == (int(tokens[at]), pytest.approx(float(logprobs[at]), abs=1e-6))
    many, _ = draw(jnp.zeros((500, 97)), jax.random.split(keys[0, 0], 500))
    assert len(set(np.asarray(many).tolist())) > 90


# Truncation


def transformers_keeps(logits, rule):
    """Which tokens the warpers of transformers leave, in float64, and which are too close to a border to tell.

    Temperature, then TopKLogitsWarper, TopPLogitsWarper (ascending cumulative mass ≤ 1 − top_p is removed), MinPLogitsWarper;
    each reads a softmax over what the last one left. A token tied with the last one that top-p keeps is kept here too."""
    scores = np.float64(logits) / rule.temperature
    doubtful = np.zeros(len(scores), bool)
    if rule.top_k:
        scores = np.where(scores < np.sort(scores)[-min(rule.top_k, len(scores))], -np.inf, scores)
    if rule.top_p < 1:
        order = np.argsort(scores, kind="stable")
        mass = np.cumsum(softmax(scores)[order])
        removed = mass <= 1 - rule.top_p
        removed[-1] = False
        least = scores[order][~removed].min()
        border = np.isin(scores, scores[order][np.abs(mass - (1 - rule.top_p)) < 1e-5])
        doubtful |= border
        scores = np.where(scores < least, -np.inf, scores)
    if rule.min_p:
        probabilities = softmax(scores)
        doubtful |= np.abs(probabilities / (rule.min_p * probabilities.max()) - 1) < 1e-5
        scores = np.where(probabilities < rule.min_p * probabilities.max(), -np.inf, scores)
    return scores > -np.inf, doubtful


RULES = [
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_k=1000),
    Sampling(top_p=0.8),
    Sampling(top_p=0.999, temperature=1.3),
    Sampling(top_p=1e-3),
    Sampling(min_p=0.05),
    Sampling(min_p=0.9, temperature=0.5),
    Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02),
]
truncate = jax.jit(sampling.truncate, static_argnames="sampling")


@functools.cache
def thousand_logits():
    """1,000 rows of 60: every scale from flat to one-hot, ties, all equal, some tokens already ruled out, extreme values."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((1000, 60)) * np.repeat([0.0, 0.1, 1.0, 3.0, 30.0], 200)[:, None]
    logits[::4] = np.round(logits[::4])  # ties
    logits[1::10, :20] = -np.inf
    logits[2::10, 3] = 1e30
    logits[3::10, 5:9] = -1e30
    logits[5::10] += 1e4
    return np.float32(logits)


@pytest.mark.parametrize("rule", RULES)
def test_truncation_keeps_what_transformers_keeps(rule):
    logits = thousand_logits()
    found = np.asarray(truncate(logits, sampling=rule))
    told = 0
    for row, kept in zip(logits, found > -np.inf):
        wanted, doubtful = transformers_keeps(row, rule)
        assert kept[row.argmax()]
        if not doubtful.any():
            np.testing.assert_array_equal(kept, wanted)
            told += 1
    assert told > 750
    kept = found > -np.inf
    np.testing.assert_allclose(found[kept], (logits / np.float32(rule.temperature))[kept], rtol=3e-7)


def test_no_rule_keeps_every_token():
    logits = thousand_logits()
    np.testing.assert_array_equal(truncate(logits, sampling=Sampling()), logits)


@pytest.mark.parametrize("rule", [Sampling(top_p=0.8), Sampling(top_k=12, temperature=1.4), Sampling(min_p=0.05)])
def test_invariant_06_behaviour_is_renormalised_over_the_kept_set(rule):
    """log π_behaviour = log π(full vocabulary, same temperature) − log(kept mass): sums to one over what can be drawn."""
    logits = np.random.default_rng(6).standard_normal(300) * 2
    tokens, logprobs = (np.asarray(x) for x in draws(jnp.float32(logits), 2, 5000, rule))
    kept, doubtful = transformers_keeps(np.float32(logits), rule)
    assert not doubtful.any() and kept.sum() < 200
    full = softmax(np.float32(logits) / rule.temperature)
    behaviour = np.where(kept, full, 0) / full[kept].sum()
    np.testing.assert_allclose(logprobs, np.log(behaviour[tokens]), atol=1e-5)
    assert chi_squared(tokens, behaviour) > 1e-3
    seen = np.unique(tokens, return_index=True)[1]
    assert np.exp(np.float64(logprobs[seen])).sum() == pytest.approx(behaviour[tokens[seen]].sum(), abs=1e-5)
    ratio = np.mean(full[tokens] / np.exp(np.float64(logprobs)))
    assert ratio == pytest.approx(full[kept].sum(), abs=1e-5), "the mean ratio is the kept mass"
    if rule.top_p == 0.8:
        assert 0.8 <= ratio < 0.82


def test_greedy_takes_the_likeliest_token_for_sure():
    logits = thousand_logits()
    keys = jax.random.split(jax.random.key(0), 1000)
    tokens, logprobs = jax.jit(sampling.draw, static_argnums=2)(logits, keys, Sampling(temperature=0))
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))
    np.testing.assert_array_equal(logprobs, 0)


# The draw itself


categorical = jax.jit(sampling.categorical)


def edges():
    return np.float32([0.0, 1e-45, 1e-30, 2**-24, 0.25, 0.5, 1 - 2**-10, 1 - 2**-23, JUST_BELOW_ONE, 1.0])


@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 1000])
def test_a_token_without_probability_is_never_drawn(size):
    """At both ends of the uniform numbers (1 itself included, which rounding could make of the ones below), for ruled-out
    tokens in all places, whole blocks of them, weights that underflow, and padding up to the block."""
    rng = np.random.default_rng(size)
    rows = [np.zeros(size)]
    for hot in {0, size // 2, size - 1}:
        rows += [np.where(np.arange(size) == hot, 0.0, -np.inf), np.where(np.arange(size) == hot, 500.0, 0.0)]
    for _ in range(20):
        row = rng.standard_normal(size) * rng.choice([1, 20])
        row[rng.random(size) < rng.random()] = -np.inf
        row[rng.integers(size)] = 0.0
        rows.append(row)
    for start in range(0, size - 1, 128):
        row = rng.standard_normal(size)
        row[start : start + 128] = -np.inf
        row[[0, -1]] = row[[0, -1]] if size <= 128 else [-np.inf, -np.inf]
        rows.append(row if np.any(row > -np.inf) else np.zeros(size))
    logits = np.repeat(np.float32(rows), len(edges()), axis=0)
    uniform = np.tile(edges(), len(rows))
    tokens = np.asarray(categorical(logits, uniform))
    assert tokens.dtype == np.int32 and tokens.min() >= 0 and tokens.max() < size
    assert np.all(np.exp(logits - logits.max(axis=1, keepdims=True))[np.arange(len(tokens)), tokens] > 0)


def test_a_target_that_rounding_put_below_zero_draws_no_token_without_probability():
    """What is left of the number after the blocks before can be a little below 0."""
    mass = jnp.float32([[0.0, 0.0, 1.0, 0.0]])
    assert sampling.first_beyond(mass, jnp.float32([[-1e-9]])).item() == 2


@pytest.mark.parametrize("size", [5, 128, 300, 1000])
def test_the_draw_inverts_the_distribution_function(size):
    rng = np.random.default_rng(7)
    logits = np.float32(rng.standard_normal((4000, size)) * 3 + rng.choice([-300, 0, 300], (4000, 1)))
    logits[:, :: rng.integers(2, 5)] = -np.inf
    uniform = np.float32(rng.random(4000))
    tokens = np.asarray(categorical(logits, uniform))
    above = np.cumsum(softmax_rows(logits), axis=1)
    exact = (above <= uniform[:, None].astype(np.float64)).sum(axis=1)
    near = np.abs(above - uniform[:, None]).min(axis=1) < 2e-6
    assert near.mean() < 0.02
    np.testing.assert_array_equal(tokens[~near], exact[~near])


def softmax_rows(logits):
    weights = np.exp(np.float64(logits) - np.float64(logits).max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_evenly_spaced_numbers_give_each_token_its_share():
    """No noise at all: k/n through the inverse must give every token its probability to within a step or two."""
    logits = np.float32(np.random.default_rng(8).standard_normal(700))
    steps = 1 << 16
    uniform = (np.arange(steps, dtype=np.float32) + 0.5) / steps
    tokens = jax.jit(jax.vmap(sampling.categorical, (None, 0)))(logits, uniform)
    share = np.bincount(np.asarray(tokens), minlength=700) / steps
    np.testing.assert_allclose(share, softmax(logits), atol=2 / steps)


def test_a_uniform_number_of_exactly_0_draws_no_token_without_probability(monkeypatch):
    """It comes once in 2²³ draws; the first token would follow, whatever its probability."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    logits = jnp.zeros((2, 300)).at[:, 0].set(-80.0)
    token, logprob = sampling.draw(logits, jax.random.split(jax.random.key(0), 2), Sampling())
    assert token.tolist() == [1, 1]
    np.testing.assert_allclose(logprob, -np.log(299), atol=1e-5)
