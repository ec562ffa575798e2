"""Sampling from the geometric mixture of two models: whose tokens it draws, what it reports of them, and its ends."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine, sampling
from rlhf_jax.types import Sampling
from tests.model import decoder_oracle as oracle

KEY, RULE, SHARE = jax.random.key(11), Sampling(temperature=0.9), 0.3
CFG = replace(oracle.LLAMA, layers=1, eos_ids=(3, 60))
LENGTHS = np.array([6, 1, 4, 3], np.int32)
PROMPTS = np.random.default_rng(0).integers(0, CFG.vocab_size, (4, 6), dtype=np.int32)
UIDS = np.arange(12, dtype=np.int32).reshape(4, 3)


@functools.cache
def models():
    """Two of one configuration that have nothing else in common."""
    return oracle.parameters(CFG), oracle.parameters(CFG, seed=1)


def mixture(prompts=PROMPTS, lengths=LENGTHS, uids=UIDS, *, share=SHARE, window=10, rule=RULE):
    found = engine.generate_mixture(
        *models(), prompts, lengths, uids, KEY, share=share, window=window, cfg=CFG, sampling=rule
    )
    return jax.device_get(found)


def plain(params, rule=RULE):
    return jax.device_get(engine.generate(params, PROMPTS, LENGTHS, UIDS, KEY, window=10, cfg=CFG, sampling=rule))


def exact(row, temperature, share=SHARE):
    """log of p^(1 − share) q^share, normalised, [tokens, V]: of the models' own probabilities at that temperature."""
    own, other = (oracle.log_softmax(oracle.logits(params, row, CFG) / temperature) for params in models())
    return oracle.log_softmax((1 - share) * own + share * other)


def reported(found, temperature, share=SHARE):
    """(row's log-probabilities of all tokens, token drawn, what was reported of it) of every token sampled."""
    for b, (response, size) in enumerate(zip(found.responses, found.length)):
        prompt = PROMPTS[b // 3, : LENGTHS[b // 3]]
        rows = exact(np.r_[prompt, response[:size]], temperature, share)[len(prompt) - 1 : -1]
        yield from zip(rows, response[:size], found.behaviour_logprobs[b, :size], strict=True)


def test_what_is_reported_of_a_token_is_its_probability_in_the_mixture():
    """Of the first as of later ones, which both models must have read."""
    found = mixture()
    rows, tokens, logprobs = zip(*reported(found, 0.9))
    assert len(tokens) > 60 and len(set(found.length.tolist())) > 1
    wanted = [row[token] for row, token in zip(rows, tokens)]
    np.testing.assert_allclose(logprobs, wanted, atol=1e-4)
    for share in (0.0, 1 - SHARE, 1.0):
        others = [row[token] for row, token, _ in reported(found, 0.9, share)]
        assert np.abs(np.subtract(others, wanted)).max() > 0.3, "this seed could not tell shares apart"


def test_tokens_have_the_frequencies_of_the_mixture():
    """One prompt, 6,000 samples of one token: chi-squared against the distribution by NumPy."""
    found = mixture(PROMPTS[:1], LENGTHS[:1], np.arange(6000, dtype=np.int32)[None], window=1)
    chance = np.exp(exact(PROMPTS[0, :6], 0.9)[-1])
    counts = np.bincount(found.responses[:, 0], minlength=CFG.vocab_size)
    wanted = chance * 6000
    assert wanted.min() > 5
    assert chi2.sf(np.sum((counts - wanted) ** 2 / wanted), CFG.vocab_size - 1) > 1e-3
    for params in models():  # and not those of either model
        alone = np.exp(oracle.log_softmax(oracle.logits(params, PROMPTS[0, :6], CFG) / 0.9))[-1] * 6000
        assert np.sum((counts - alone) ** 2 / alone) > 500


@pytest.mark.parametrize("share", [0, 1])
def test_at_its_ends_it_is_one_of_the_models_bit_for_bit(share):
    found, wanted = mixture(share=float(share)), plain(models()[share])
    for name, x in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), x, err_msg=name)
    assert (plain(models()[1 - share]).responses != wanted.responses).any()
    own, other = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50)) * 100, jnp.float32)
    np.testing.assert_array_equal(sampling.mixed(own, other, float(share)), (own, other)[share])


def test_at_temperature_0_it_takes_the_mixtures_likeliest_token():
    found = mixture(rule=Sampling(temperature=0))
    rows, tokens, logprobs = zip(*reported(found, 1.0))
    top = np.sort(rows, axis=1)
    assert (top[:, -1] - top[:, -2]).min() > 1e-4, "this seed has a near tie, which proves nothing"
    np.testing.assert_array_equal(np.argmax(rows, axis=1), tokens)
    assert not np.any(logprobs)


def test_top_k_cuts_the_mixture():
    found = mixture(rule=Sampling(temperature=1.3, top_k=3))
    rows, tokens, logprobs = zip(*reported(found, 1.3))
    kept = np.sort(rows, axis=1)[:, -3:]
    drawn = np.array([row[token] for row, token in zip(rows, tokens)])
    assert (drawn >= kept[:, 0]).all() and (drawn < kept[:, 2]).any()
    np.testing.assert_allclose(logprobs, drawn - np.log(np.exp(kept).sum(axis=1)), atol=1e-4)


def test_a_share_is_between_0_and_1():
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="share of a mixture must be between 0 and 1, got"):
            mixture(share=share)


def test_other_weights_need_no_other_program():
    mixture()
    compiled = engine.generate_mixture._cache_size()
    own, other = (jax.tree.map(lambda x: x * 1.01, params) for params in models())
    how = {"share": SHARE, "window": 10, "cfg": replace(CFG), "sampling": replace(RULE)}
    engine.generate_mixture(own, other, PROMPTS, LENGTHS, UIDS + 7, jax.random.key(3), **how)
    assert engine.generate_mixture._cache_size() == compiled
