"""Every choice of PPO, flipped: one named test a detail, each with the change that the formula predicts.

`SETTINGS` at the end says which test belongs to which field of `runs.ppo_settings.PPO`.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import ppo as script
import ppo_parts
import pytest

from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.algorithms.update import make_update, summarise
from rlhf_jax.errors import UserError
from rlhf_jax.model import heads, hf, transformer
from rlhf_jax.objectives import kl, policy, weights
from rlhf_jax.playground import tokenizer as words
from rlhf_jax.runs import settings
from rlhf_jax.runs.ppo_settings import PPO, Reward
from rlhf_jax.types import STOP_LENGTH, Sampling, TrainState
from tests import oracles, worlds

KEY = jax.random.key(0)


@functools.cache
def found():
    """Eight ragged responses of the table policy."""
    return worlds.facts(bootstrap=True)


@functools.cache
def lengths():
    return np.asarray(found().response_length)


@functools.cache
def mask():
    return np.asarray(found().mask)


def targets(**changes):
    """Targets with everything off that is not asked for."""
    off = {"kl_coef": 0.0, "whiten_advantages": False, "missing_eos_penalty": None}
    given = found().replace(bootstrap=None) if not changes.pop("bootstrap", False) else found()
    return ppo.targets(given.replace(**changes.pop("facts", {})), **{**off, **changes})


def token_rewards(scores, penalty=0.0):
    """The reward upon every token, [8, R] float64."""
    rewards = np.where(mask(), -np.broadcast_to(penalty, mask().shape), 0.0)
    rewards[np.arange(8), lengths() - 1] += np.asarray(scores, np.float64)
    return rewards


def expected(rewards, *, gamma=1.0, lam=0.95, bootstrap=None):
    """(advantages, returns) by the loop over each row."""
    lams = np.broadcast_to(lam, 8)
    after = np.zeros(8) if bootstrap is None else np.asarray(bootstrap, np.float64)
    return oracles.gae(rewards, np.asarray(found().values, np.float64), lengths(), gamma, lams, after)


def same(batch, wanted, atol=2e-5):
    """Whether advantages and returns are these."""
    np.testing.assert_allclose(batch.advantages, wanted[0], atol=atol)
    np.testing.assert_allclose(batch.returns, wanted[1], atol=atol)


def differ(left, right):
    assert np.abs(np.asarray(left) - np.asarray(right)).max() > 1e-3, "the setting changed nothing"


@functools.cache
def evaluate(**settings):
    """(params, batch, weights) -> ((loss, metrics), gradient). Op by op: each op is compiled once for all settings."""
    return jax.value_and_grad(functools.partial(ppo.loss, forward=worlds.look_up, **settings), has_aux=True)


def measured(batch=None, weigh=weights.token_mean, params=None, **settings):
    """((loss, metrics), gradient) of the table policy after it moved."""
    batch = whitened() if batch is None else batch
    params = worlds.moved(worlds.table()) if params is None else params
    return evaluate(**settings)(params, batch, weigh(batch.mask))


@functools.cache
def whitened():
    return ppo.targets(found())


def mean(x, of=None):
    of = whitened() if of is None else of
    kept = np.asarray(of.mask)
    return float(np.asarray(x, np.float64)[kept].mean())


@functools.cache
def now():
    """log-probabilities, entropy and values of the moved policy, float64."""
    outputs = worlds.looked_up(worlds.moved(worlds.table()), whitened())
    return tuple(np.asarray(x, np.float64) for x in outputs)


# --- advantages and returns ---------------------------------------------------------------------------------------------


def test_gae():
    """λ = 0 looks one step ahead, λ = 1 to the end; γ discounts."""
    rewards = token_rewards(found().scores)
    for gamma, lam in ((1.0, 0.0), (1.0, 1.0), (0.9, 0.95)):
        same(targets(gamma=gamma, lam=lam), expected(rewards, gamma=gamma, lam=lam))
    differ(targets(lam=0.0).advantages, targets(lam=1.0).advantages)
    differ(targets(gamma=0.9).returns, targets(gamma=1.0).returns)


def test_value_lam():
    """The value targets take their own λ; the advantages keep theirs."""
    rewards = token_rewards(found().scores)
    batch = targets(lam=0.3, value_lam=1.0)
    same(batch, (expected(rewards, lam=0.3)[0], expected(rewards, lam=1.0)[1]))
    differ(batch.returns, targets(lam=0.3).returns)


def test_length_adaptive_lambda():
    """λ = 1 − 1 / (α · length) a row, for the advantages; of the value targets too unless `value_lam` is given."""
    rewards = token_rewards(found().scores)
    lam = [max(1 - 1 / (0.5 * length), 0) for length in lengths()]
    same(targets(length_adaptive_alpha=0.5), expected(rewards, lam=lam))
    batch = targets(length_adaptive_alpha=0.5, value_lam=1.0)
    same(batch, (expected(rewards, lam=lam)[0], expected(rewards, lam=1.0)[1]))
    differ(batch.advantages, targets().advantages)


def test_bootstrap_truncated():
    """A response cut at the window goes on with the value after it; one that ended does not."""
    rewards = token_rewards(found().scores)
    batch = targets(bootstrap=True, gamma=0.9)
    same(batch, expected(rewards, gamma=0.9, bootstrap=found().bootstrap))
    cut = np.asarray(found().stop) == STOP_LENGTH
    plain = targets(gamma=0.9)
    np.testing.assert_array_equal(np.asarray(batch.returns)[~cut], np.asarray(plain.returns)[~cut])
    differ(np.asarray(batch.returns)[cut], np.asarray(plain.returns)[cut])
    kept = worlds.collect(bootstrap_truncated=True)
    after = np.asarray(worlds.value_forward()(worlds.actor_critic()["value"], *worlds.row_of(kept)))
    ends = after[np.arange(worlds.B), np.asarray(kept.response_length)]
    np.testing.assert_array_equal(kept.bootstrap, np.where(np.asarray(kept.stop) == STOP_LENGTH, ends, 0))
    assert worlds.experience().bootstrap is None


def test_masked_global_whitening_of_advantages():
    """One mean and one deviation over every token of the batch, none of them a padded slot."""
    raw = targets()
    white = targets(whiten_advantages=True)
    np.testing.assert_allclose(
        white.advantages, oracles.whiten(np.asarray(raw.advantages, np.float64), mask()), atol=1e-5
    )
    kept = np.asarray(white.advantages, np.float64)[mask()]
    assert kept.mean() == pytest.approx(0, abs=1e-6) and kept.std(ddof=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(np.asarray(white.advantages).sum(axis=1)).max() > 0.5, "whitened row by row"
    np.testing.assert_array_equal(white.returns, raw.returns)
    differ(raw.advantages, white.advantages)


def test_reward_whitening_without_a_mean_shift():
    """Token rewards are divided by their deviation and keep their mean, as in lm-human-preferences."""
    gap = np.asarray(found().logprobs, np.float64) - np.asarray(found().ref_logprobs, np.float64)
    rewards = token_rewards(found().scores, 0.3 * gap)
    kept = rewards[mask()]
    scaled = np.where(mask(), (rewards - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8) + kept.mean(), 0)
    same(targets(kl_coef=0.3, whiten_rewards=True), expected(scaled))
    assert scaled[mask()].mean() == pytest.approx(kept.mean()) and abs(kept.mean()) > 1e-2
    differ(targets(kl_coef=0.3).returns, targets(kl_coef=0.3, whiten_rewards=True).returns)


# --- scores -------------------------------------------------------------------------------------------------------------


def test_missing_eos_penalty():
    """A response cut at the window scores −1, whatever its score was."""
    cut = np.asarray(found().stop) == STOP_LENGTH
    wanted = np.where(cut, -1.0, np.asarray(found().scores))
    same(targets(missing_eos_penalty=-1.0), expected(token_rewards(wanted)))
    same(targets(), expected(token_rewards(found().scores)))
    assert cut.any() and not cut.all()


def test_reward_clip():
    """Scores are bounded on both sides before anything else."""
    scores = np.array([-12.0, -0.5, 0.2, 0.5, 0.6, 3.0, 9.0, -0.1])
    facts = {"scores": jnp.asarray(scores, jnp.float32)}
    same(targets(reward_clip=0.5, facts=facts), expected(token_rewards(np.clip(scores, -0.5, 0.5))))
    same(targets(facts=facts), expected(token_rewards(scores)))
    cut = np.asarray(found().stop) == STOP_LENGTH
    both = targets(reward_clip=0.5, missing_eos_penalty=-3.0, facts=facts)
    same(both, expected(token_rewards(np.where(cut, -3.0, np.clip(scores, -0.5, 0.5)))))


def test_overlong_penalty():
    """Over the last `overlong_buffer` tokens of the window a penalty grows evenly to 1."""
    penalty = np.array([min(max((worlds.R - 3 - length) / 3, -1), 0) for length in lengths()])
    assert set(penalty.round(3)) == {0.0, -0.333, -0.667, -1.0}
    same(targets(overlong_buffer=3), expected(token_rewards(np.asarray(found().scores) + penalty)))


def test_reward_model_normalisation_reaches_the_scores():
    """(score − mean) / std of the model's configuration, as fitted and saved."""
    cfg = dataclasses.replace(worlds.LM, axes=1)
    params = worlds.draw(cfg, 4)
    row = found().tokens, found().prompt_length + found().response_length
    raw = heads.reward(params, *row, cfg=cfg)
    normalised = heads.reward(params, *row, cfg=dataclasses.replace(cfg, reward_mean=(0.3,), reward_std=(2.5,)))
    np.testing.assert_allclose(normalised, (raw - 0.3) / 2.5, rtol=1e-5)


# --- KL -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators_in_the_reward(name):
    """β · k of every token is taken from the reward upon it."""
    gap = np.asarray(found().logprobs, np.float64) - np.asarray(found().ref_logprobs, np.float64)
    penalty = {"k1": gap, "k2": gap**2 / 2, "k3": np.exp(-gap) - 1 + gap}[name]
    batch = targets(kl_coef=0.3, kl_estimator=getattr(kl, name))
    same(batch, expected(token_rewards(found().scores, 0.3 * penalty)))
    differ(batch.returns, targets().returns)


def test_kl_in_the_reward_is_detached_and_zero_without_a_reference():
    """It changes what the policy is told to do, not the loss as a function of the policy."""
    alone = targets(kl_coef=0.3, facts={"ref_logprobs": None})
    same(alone, expected(token_rewards(found().scores)))
    slope = jax.grad(lambda x: jnp.sum(targets(kl_coef=0.3, facts={"logprobs": x}).advantages))
    assert (np.asarray(slope(found().logprobs)) == 0).all()


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_in_the_loss(name):
    """The loss grows by β times the mean estimate, through which the gradient flows."""
    estimator = getattr(kl, name)
    gap = now()[0] - np.asarray(whitened().ref_logprobs, np.float64)
    penalty = {"k1": gap, "k2": gap**2 / 2, "k3": np.exp(-gap) - 1 + gap}[name]
    (with_kl, _), slope = measured(kl_coef=0.3, kl_estimator=estimator)
    (without, _), plain = measured()
    assert float(with_kl - without) == pytest.approx(0.3 * mean(penalty), rel=1e-3, abs=1e-5)
    differ(slope["policy"], plain["policy"])


def test_kl_in_the_loss_needs_a_reference():
    with pytest.raises(UserError, match="collect the rollout with a reference"):
        measured(whitened().replace(ref_logprobs=None), kl_coef=0.3)


def test_kl_placement_follows_the_settings():
    """kl_in: loss leaves the reward alone; the estimators default to k1 there and k2 here."""
    with pytest.raises(UserError, match="adaptive_kl_target needs kl_in: reward"):
        PPO(kl_in="loss", adaptive_kl_target=6.0)
    update = functools.partial(script.build_update, forward=worlds.look_up, adam=optax.sgd(1.0))
    ends = []
    for where in ("loss", "reward"):
        step = update(PPO(kl_in=where, kl_coef=0.5, epochs=1), estimator=kl.k2)
        state = TrainState.create(worlds.moved(worlds.table()), optax.sgd(1.0))
        ends.append(step(state, whitened(), KEY)[0].params["policy"])
    wanted = [measured(kl_coef=0.5, kl_estimator=kl.k2)[1]["policy"], measured()[1]["policy"]]
    for end, slope in zip(ends, wanted):
        np.testing.assert_allclose(worlds.moved(worlds.table())["policy"] - end, slope, atol=1e-5)


def test_fixed_kl():
    """The same β makes the same targets, twice β twice the penalty."""
    base, one, two = (np.asarray(targets(kl_coef=beta, lam=1.0).returns) for beta in (0.0, 0.1, 0.2))
    np.testing.assert_allclose(two - base, 2 * (one - base), atol=1e-5)
    differ(base, one)


def test_adaptive_kl():
    """β rises while the KL is above its target and falls below it, by at most a fifth of samples / horizon."""
    coefficient = 0.1
    for observed, factor in ((12.0, 1 + 0.2 * 32 / 100), (6.3, 1 + 0.05 * 32 / 100), (0.0, 1 - 0.2 * 32 / 100)):
        after = kl.adapt(coefficient, observed, target=6.0, horizon=100.0, samples=32)
        assert after == pytest.approx(coefficient * factor)
        coefficient = after


# --- the loss -----------------------------------------------------------------------------------------------------------


@functools.cache
def ratios():
    return np.exp(now()[0] - np.asarray(whitened().logprobs, np.float64))


def surrogate(low, high, dual=None):
    """The mean policy loss by the loop."""
    terms = oracles.each(
        lambda a, b, c: oracles.clipped(a, b, c, low, high, dual),
        now()[0],
        np.asarray(whitened().logprobs, np.float64),
        np.asarray(whitened().advantages, np.float64),
    )
    return mean(terms)


@pytest.mark.parametrize(("clip", "high"), [(0.2, None), (0.05, None), (0.2, 0.6), (1e9, None)])
def test_policy_clip_and_asymmetric_clip(clip, high):
    """A token's ratio stops paying beyond 1 ± clip, or beyond its own upper bound."""
    loss = functools.partial(policy.clipped, clip=clip, clip_high=high)
    (_, metrics), _ = measured(policy_loss=loss)
    upper = clip if high is None else high
    assert float(metrics["policy/loss"]) == pytest.approx(surrogate(clip, upper), rel=1e-4)
    good = np.asarray(whitened().advantages) > 0
    beyond = np.where(good, ratios() > 1 + upper, ratios() < 1 - clip)
    assert float(metrics["policy/clip_fraction"]) == pytest.approx(mean(beyond), abs=1e-6)
    assert (mean(beyond) > 0) == (clip < 1)


def test_dual_clip():
    """A bad token whose ratio exploded costs at most c · |A|, and is left alone from there."""
    bad = mask() & (np.asarray(whitened().advantages) < 0)
    assert (ratios()[bad] > 1.3).any()
    (_, metrics), slope = measured(policy_loss=functools.partial(policy.clipped, dual_clip=1.3))
    assert float(metrics["policy/loss"]) == pytest.approx(surrogate(0.2, 0.2, 1.3), rel=1e-4)
    assert surrogate(0.2, 0.2, 1.3) < surrogate(0.2, 0.2) - 1e-3
    differ(slope["policy"], measured()[1]["policy"])


def test_value_clip():
    """The value loss is the larger of the plain one and that of a value within ± clip of the rollout's."""
    old, target = (np.asarray(x, np.float64) for x in (whitened().values, whitened().returns))
    for clip in (0.2, 0.5, None):
        terms = oracles.each(lambda v, o, t, c=clip: oracles.value_loss(v, o, t, c), now()[2], old, target)
        (_, metrics), _ = measured(value_clip=clip)
        assert float(metrics["value/loss"]) == pytest.approx(mean(terms), rel=1e-4)
    shifted = whitened().replace(values=whitened().values + 0.4)
    differ(measured(shifted)[0][1]["value/loss"], measured()[0][1]["value/loss"])


def test_value_coef():
    """The value loss counts value_coef times; the policy's gradient does not see it."""
    (half, told), slope = measured(value_coef=0.5)
    (none, _), alone = measured(value_coef=0.0)
    assert float(half - none) == pytest.approx(0.5 * float(told["value/loss"]), rel=1e-4)
    np.testing.assert_array_equal(slope["policy"], alone["policy"])
    assert (np.asarray(alone["value"]) == 0).all() and (np.asarray(slope["value"]) != 0).any()


def test_entropy_bonus():
    """The loss falls by the coefficient times the mean entropy, and a step along it raises the entropy."""
    (with_bonus, told), _ = measured(entropy_coef=0.7)
    (without, _), _ = measured()
    assert float(without - with_bonus) == pytest.approx(0.7 * mean(now()[1]), rel=1e-4)
    assert float(told["policy/entropy"]) == pytest.approx(mean(now()[1]), rel=1e-5)
    calm = whitened().replace(advantages=jnp.zeros_like(whitened().advantages))
    (_, told), slope = measured(calm, entropy_coef=1.0)
    assert float(told["policy/clip_fraction"]) == 0, "a token without an advantage is not a clipped one"
    params = jax.tree.map(lambda x, g: x - 0.1 * g, worlds.moved(worlds.table()), slope)
    assert mean(worlds.looked_up(params, calm)[1]) > mean(now()[1])


def test_importance_cap():
    """Each token's policy loss is multiplied by π_old / π_behaviour, at most the cap; the values are not."""
    shift = np.random.default_rng(0).normal(size=mask().shape)
    stale = whitened().replace(behaviour_logprobs=jnp.asarray(whitened().logprobs - shift, jnp.float32))
    (_, told), _ = measured(stale, importance_cap=2.0)
    terms = oracles.each(
        lambda a, b, c, d: oracles.clipped(a, b, c, 0.2, 0.2) * min(np.exp(d), 2.0),
        now()[0],
        np.asarray(stale.logprobs, np.float64),
        np.asarray(stale.advantages, np.float64),
        shift,
    )
    assert float(told["policy/loss"]) == pytest.approx(mean(terms), rel=1e-4)
    (_, plain), _ = measured(stale)
    differ(plain["policy/loss"], told["policy/loss"])
    np.testing.assert_array_equal(plain["value/loss"], told["value/loss"])


def test_importance_floor():
    """With a floor, tokens whose π_old / π_behaviour lies outside [floor, cap] are left out, and none is capped."""
    shift = np.random.default_rng(0).normal(size=mask().shape)
    stale = whitened().replace(behaviour_logprobs=jnp.asarray(whitened().logprobs - shift, jnp.float32))
    (_, told), slope = measured(stale, importance_cap=1.8, importance_floor=0.6)
    terms = oracles.each(
        lambda a, b, c, d: oracles.clipped(a, b, c, 0.2, 0.2) * (np.exp(d) if 0.6 <= np.exp(d) <= 1.8 else 0.0),
        now()[0],
        np.asarray(stale.logprobs, np.float64),
        np.asarray(stale.advantages, np.float64),
        shift,
    )
    assert float(told["policy/loss"]) == pytest.approx(mean(terms), rel=1e-4)
    (_, capped), other = measured(stale, importance_cap=1.8)
    differ(capped["policy/loss"], told["policy/loss"])
    differ(slope["policy"], other["policy"])
    with pytest.raises(UserError, match="importance_floor must be below importance_cap"):
        PPO(importance_floor=0.5)


def test_truncated_sampling_needs_the_importance_cap():
    """top-k, top-p and min-p sample another distribution than PPO trains: refused unless corrected for."""
    make = functools.partial(script.Experiment, policy="p", prompts="q", rewards={"r": Reward(function="f.py:g")})
    for rule in ({"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        with pytest.raises(UserError, match="importance_cap"):
            make(sampling=Sampling(**rule))
        make(sampling=Sampling(**rule), ppo=PPO(importance_cap=2.0))
    with pytest.raises(UserError, match="temperature must be > 0"):
        make(sampling=Sampling(temperature=0.0))


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean", "fixed_length"])
def test_weights_modes(name):
    """token_mean: every token the same; sequence_mean: every response; fixed_length: one over the whole window."""
    values = np.where(mask(), now()[2], 0)
    wanted = {
        "token_mean": values.sum() / mask().sum(),
        "sequence_mean": (values.sum(axis=1) / lengths()).mean(),
        "fixed_length": values.sum() / mask().size,
    }
    (_, told), _ = measured(weigh=getattr(weights, name))
    assert float(told["value/mean"]) == pytest.approx(float(wanted[name]), rel=1e-4)
    assert len({round(float(x), 4) for x in wanted.values()}) == 3


def test_mask_truncated():
    """Responses cut at the window leave the loss, the whitening and the count of tokens; the others keep their returns."""
    cut = np.asarray(found().stop) == STOP_LENGTH
    batch = targets(mask_truncated=True, whiten_advantages=True)
    np.testing.assert_array_equal(batch.mask, mask() & ~cut[:, None])
    np.testing.assert_array_equal(np.asarray(batch.returns)[~cut], np.asarray(targets().returns)[~cut])
    assert (np.asarray(batch.advantages)[cut] == 0).all() and (np.asarray(batch.returns)[cut] == 0).all()
    raw = np.asarray(targets().advantages, np.float64)
    np.testing.assert_allclose(batch.advantages, oracles.whiten(raw, mask() & ~cut[:, None]), atol=1e-5)
    (_, told), slope = measured(batch)
    assert float(told["value/mean"]) == pytest.approx(mean(now()[2], batch), rel=1e-4)
    changed = batch.replace(tokens=jnp.where(jnp.asarray(cut)[:, None], 7, batch.tokens))
    assert worlds.same_bits(measured(changed)[1], slope)


def test_a_policy_loss_of_ones_own_is_named_in_the_settings(tmp_path):
    """ "file.py:function", with those of the clip settings bound that it takes."""
    path = tmp_path / "mine.py"
    path.write_text("def mine(logprobs, old, advantages, *, clip):\n    return -advantages * logprobs * clip\n")
    mine = ppo_parts.policy_loss(PPO(policy_loss=f"{path}:mine", clip=0.5))
    np.testing.assert_allclose(mine(jnp.full((1, 1), -2.0), jnp.zeros((1, 1)), jnp.full((1, 1), 3.0)), 3.0)
    ours = ppo_parts.policy_loss(PPO(clip=0.1, clip_high=0.4, dual_clip=3.0))
    assert ours.func is policy.clipped and ours.keywords == {"clip": 0.1, "clip_high": 0.4, "dual_clip": 3.0}
    with pytest.raises(UserError, match="clipped"):
        ppo_parts.policy_loss(PPO(policy_loss="cliped"))


# --- the update ---------------------------------------------------------------------------------------------------------


@functools.cache
def updated(epochs=1, minibatches=1, microbatches=1, rate=0.05, target_kl=None):
    """(state, metrics) after one update of the table policy that sampled the rollout."""
    cfg = PPO(epochs=epochs, minibatches=minibatches, microbatches=microbatches, target_kl=target_kl)
    update = script.build_update(cfg, worlds.look_up, kl.k1, optax.adam(rate))
    return update(TrainState.create(worlds.table(), optax.adam(rate)), whitened(), KEY)


def test_epochs_times_minibatches_of_re_dealt_samples():
    """One step on the whole batch is on-policy and clips nothing; several passes in minibatches move far enough to clip."""
    _, once = updated()
    assert once["policy/clip_fraction"].tolist() == [0]
    state, metrics = updated(epochs=4, minibatches=2)
    assert int(state.step) == 8 and metrics["policy/clip_fraction"].shape == (8,)
    assert metrics["policy/clip_fraction"][0] == 0 and metrics["policy/clip_fraction"][-1] > 0
    first = [float(metrics["value/mean"][i]) for i in (0, 2, 4, 6)]
    assert len(set(first)) == 4, "the same rows in every epoch"


def test_microbatches_change_nothing():
    whole, cut = updated(), updated(microbatches=4)
    for a, b in zip(jax.tree.leaves(whole[0].params), jax.tree.leaves(cut[0].params)):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_target_kl_stops_the_update():
    """Steps from the first one past the limit on are skipped, and the policy stays where it was."""
    _, free = updated(epochs=4, minibatches=2)
    limit = float(np.median(np.asarray(free["policy/approx_kl"])))
    state, metrics = updated(epochs=4, minibatches=2, target_kl=limit)
    over = int(np.argmax(np.asarray(free["policy/approx_kl"]) > limit))
    assert 0 < over < 8
    assert metrics["update/applied"].tolist() == [1.0] * over + [0.0] * (8 - over)
    assert int(state.step) == over
    assert summarise(metrics)["update/applied"] == over / 8
    wide, metrics = updated(epochs=4, minibatches=2, target_kl=1e9)
    assert metrics["update/applied"].tolist() == [1.0] * 8
    assert worlds.same_bits(wide.params, updated(epochs=4, minibatches=2)[0].params)


def step_of(cfg, count):
    """What each of `count` optimizer steps with gradient 1 changes, for a policy and a value of one number each."""
    optimizer = script.build_optimizer(cfg)
    params = {"policy": {"x": jnp.zeros(())}, "value": {"x": jnp.zeros(())}}
    state, changes = optimizer.init(params), []
    for _ in range(count):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        changes.append((float(updates["policy"]["x"]), float(updates["value"]["x"])))
    return np.array(changes)


def experiment(**changes):
    defaults = {"policy": "p", "prompts": "q", "rewards": {"r": Reward(function="f.py:g")}, "iterations": 4}
    flat = settings.Optimizer(lr=1e-3, schedule="constant")
    return script.Experiment(**{**defaults, "optimizer": flat, **changes})


def test_critic_warmup():
    """For so many iterations, of epochs × minibatches steps each, only the value model learns."""
    changes = step_of(experiment(ppo=PPO(critic_warmup=2, epochs=1, minibatches=2)), 8)
    assert (changes[:4, 0] == 0).all() and (changes[:4, 1] != 0).all()
    np.testing.assert_allclose(changes[4:, 0], -1e-3, rtol=1e-3)
    assert (step_of(experiment(ppo=PPO(critic_warmup=0, epochs=1, minibatches=2)), 1) != 0).all()


def test_separate_learning_rate_of_the_value_model():
    np.testing.assert_allclose(step_of(experiment(ppo=PPO(value_lr=5e-2)), 1), [[-1e-3, -5e-2]], rtol=1e-3)
    np.testing.assert_allclose(step_of(experiment(), 1), [[-1e-3, -1e-3]], rtol=1e-3)


def test_gradient_clip():
    """Gradients longer than clip_norm are shortened to it, policy and value each by its own length; 0 clips nothing."""
    for limit, wanted in ((0.5, 0.5 / 5), (100.0, 1.0), (0.0, 1.0)):
        optimizer = settings.optimizer(settings.Optimizer(lr=1.0, clip_norm=limit, beta1=0.0), 1)
        first = optimizer.init({"x": jnp.zeros(2)})
        _, after = optimizer.update({"x": jnp.array([3.0, 4.0])}, first, {"x": jnp.zeros(2)})
        moments = [np.asarray(x) for x in jax.tree.leaves(after) if x.shape == (2,)]
        np.testing.assert_allclose(moments[0], wanted * np.array([3.0, 4.0]), rtol=1e-5)


def test_adam_epsilon_is_that_of_ppo():
    """A gradient of 1e-7 moves a parameter by lr · 1e-7 / (1e-7 + 1e-5), not by lr."""
    optimizer = script.build_optimizer(experiment())
    params = {"policy": {"x": jnp.zeros(())}, "value": {"x": jnp.zeros(())}}
    small = jax.tree.map(lambda x: jnp.full_like(x, 1e-7), params)
    updates, _ = optimizer.update(small, optimizer.init(params), params)
    assert float(updates["policy"]["x"]) == pytest.approx(-1e-3 * 1e-7 / (1e-7 + 1e-5), rel=1e-3)


# --- models -------------------------------------------------------------------------------------------------------------


def test_value_from_the_reward_model():
    """The first value of a finished text is its normalised reward; from a language model all values are 0."""
    cfg = dataclasses.replace(worlds.LM, axes=2, reward_mean=(0.4, 9.0), reward_std=(1.7, 9.0))
    params = worlds.draw(cfg, 5)
    start, end = found().prompt_length, found().response_length
    rewards = heads.reward(params, found().tokens, start + end, cfg=cfg)[:, 0]
    value = heads.add_value_head(params, cfg)
    after = heads.value(value, found().tokens, start, end, window=worlds.R + 1, cfg=cfg)
    np.testing.assert_allclose(after[np.arange(8), end], rewards, atol=1e-5)
    zero = heads.add_value_head(worlds.actor_critic()["policy"], worlds.LM)
    assert (np.asarray(heads.value(zero, found().tokens, start, end, window=worlds.R, cfg=worlds.LM)) == 0).all()


def test_no_dropout(tmp_path):
    """A configuration that asks for dropout changes nothing: forward passes take no key, and repeat to the last bit."""
    cfg = dataclasses.replace(
        worlds.LM, family="gpt2", kv_heads=4, norm="layer", positions="learned", activation="gelu_tanh", gated_mlp=False
    )
    cfg = dataclasses.replace(cfg, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True)
    params = worlds.draw(cfg, 0)
    hf.save(tmp_path, cfg, params)
    path = tmp_path / "config.json"
    asks = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"), 0.5)
    path.write_text(json.dumps(json.loads(path.read_text()) | asks))
    loaded, weights_of = hf.load(tmp_path)
    row = found().tokens, found().prompt_length + found().response_length
    run = jax.jit(transformer.hidden, static_argnames="cfg")
    wanted = run(params, *row, cfg=cfg)
    for _ in range(2):
        assert worlds.same_bits(run(weights_of, *row, cfg=loaded), wanted)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three iterations of the script itself: the critic alone, then both, then after the reference followed."""
    folder = tmp_path_factory.mktemp("ppo")
    names = [f"w{i}" for i in range(9)]
    tokenizer = words.train_tokenizer([" ".join(names)] * 3, vocab_size=32)
    cfg = dataclasses.replace(worlds.LM, vocab_size=32, eos_ids=(tokenizer.eos_token_id,), max_positions=128)
    hf.save(folder / "model", cfg, worlds.draw(cfg, 0), tokenizer)
    lines = [json.dumps({"prompt": f"w{i} w{i + 1}"}) for i in range(8)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "score.py").write_text(
        "def score(prompts, responses, rows):\n    return [len(r) / 10 for r in responses]\n"
    )
    told = script.main(
        script.Experiment(
            policy=str(folder / "model"),
            prompts=str(folder / "prompts.jsonl"),
            rewards={"length": Reward(function=f"{folder / 'score.py'}:score")},
            out=str(folder / "run"),
            value="policy",
            iterations=3,
            prompts_per_iteration=4,
            samples_per_prompt=2,
            prompt_window=8,
            response_window=5,
            ppo=PPO(
                epochs=2,
                minibatches=2,
                critic_warmup=1,
                reference_every=2,
                reference_share=1.0,
                adaptive_kl_target=1.0,
                adaptive_kl_horizon=100.0,
            ),
            optimizer=settings.Optimizer(lr=1e-2, schedule="constant"),
            save_every=0,
            show=0,
        )
    )
    return told, [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_script_critic_warmup_leaves_the_policy_alone(run):
    _, (first, second, _) = run
    assert first["policy/ratio_deviation"] == 0 and first["rollout/kl"] == 0
    assert second["policy/ratio_deviation"] > 0, "the policy learns once the critic is warm"
    assert second["rollout/kl"] == 0, "after the warm-up the policy is still the reference"


def test_script_reference_follows_the_policy(run):
    """After two iterations it copies the policy that has just moved: the KL of the third is exactly 0 again."""
    _, (_, second, third) = run
    assert second["policy/ratio_deviation"] > 0
    assert third["rollout/kl"] == 0 and third["rollout/kl_k3"] == 0


def test_script_adapts_the_kl_coefficient(run):
    """No KL at all, far below its target: β falls by a fifth of 8 responses over the horizon of 100, each time."""
    _, lines = run
    coefficients = [line["kl/coef"] for line in lines]
    np.testing.assert_allclose(coefficients, 0.05 * (1 - 0.2 * 8 / 100) ** np.arange(3), rtol=1e-6)
    assert [float(np.float32(x)) for x in coefficients] == coefficients, "a checkpoint would round it"


def test_script_first_ratio_is_exactly_one_and_nothing_is_compiled_twice(run):
    told, lines = run
    assert [line["policy/first_ratio_deviation"] for line in lines] == [0, 0, 0]
    assert max(line["mismatch/max"] for line in lines) <= 1e-4
    assert told["compilations"] == {"update": 1, "policy": 1, "generate": 1}


def test_reference_moves_by_its_share():
    """TR-DPO's soft update, as the script calls it: share · policy + (1 − share) · reference."""
    policy_now, reference = jnp.array([1.0, 3.0]), jnp.array([0.0, -1.0])
    np.testing.assert_allclose(optax.incremental_update(policy_now, reference, 0.25), [0.25, 0.0])


def test_settings_of_one_loss_alone():
    """SAPO's temperatures and the coefficient of the KL penalty reach them, and none of the others."""
    for name, given in {
        "sapo": {"tau_pos": 0.7, "tau_neg": 1.2},
        "kl_penalty": {"penalty": 3.0},
        "clipped": {},
    }.items():
        chosen = PPO(policy_loss=name, tau_pos=0.7, tau_neg=1.2, penalty=3.0)
        assert ppo_parts.policy_loss(chosen).keywords == given


SETTINGS = {
    "epochs": test_epochs_times_minibatches_of_re_dealt_samples,
    "minibatches": test_epochs_times_minibatches_of_re_dealt_samples,
    "microbatches": test_microbatches_change_nothing,
    "gamma": test_gae,
    "lam": test_gae,
    "value_lam": test_value_lam,
    "length_adaptive_alpha": test_length_adaptive_lambda,
    "kl_coef": test_fixed_kl,
    "kl_in": test_kl_placement_follows_the_settings,
    "kl_estimator": test_kl_estimators_in_the_reward,
    "adaptive_kl_target": test_script_adapts_the_kl_coefficient,
    "adaptive_kl_horizon": test_adaptive_kl,
    "target_kl": test_target_kl_stops_the_update,
    "policy_loss": test_a_policy_loss_of_ones_own_is_named_in_the_settings,
    "clip": test_policy_clip_and_asymmetric_clip,
    "clip_high": test_policy_clip_and_asymmetric_clip,
    "dual_clip": test_dual_clip,
    "tau_pos": test_settings_of_one_loss_alone,
    "tau_neg": test_settings_of_one_loss_alone,
    "penalty": test_settings_of_one_loss_alone,
    "value_clip": test_value_clip,
    "value_coef": test_value_coef,
    "entropy_coef": test_entropy_bonus,
    "weights": test_weights_modes,
    "whiten_advantages": test_masked_global_whitening_of_advantages,
    "whiten_rewards": test_reward_whitening_without_a_mean_shift,
    "reward_clip": test_reward_clip,
    "missing_eos_penalty": test_missing_eos_penalty,
    "mask_truncated": test_mask_truncated,
    "bootstrap_truncated": test_bootstrap_truncated,
    "overlong_buffer": test_overlong_penalty,
    "importance_cap": test_importance_cap,
    "importance_floor": test_importance_floor,
    "critic_warmup": test_critic_warmup,
    "value_lr": test_separate_learning_rate_of_the_value_model,
    "reference_every": test_script_reference_follows_the_policy,
    "reference_share": test_reference_moves_by_its_share,
}


def test_every_setting_has_its_test():
    assert {field.name for field in dataclasses.fields(PPO)} == set(SETTINGS)


def test_settings_reach_the_targets_and_the_loss():
    """The script hands every setting on: its targets and its loss are those made by hand with the same numbers."""
    cfg = PPO(
        gamma=0.9,
        lam=0.5,
        value_lam=0.8,
        length_adaptive_alpha=0.3,
        whiten_advantages=False,
        whiten_rewards=True,
        missing_eos_penalty=-2.0,
        reward_clip=0.4,
        overlong_buffer=2,
        mask_truncated=True,
    )
    by_hand = {name: getattr(cfg, name) for name in ("gamma", "lam", "value_lam", "length_adaptive_alpha")}
    by_hand |= {"whiten_advantages": False, "whiten_rewards": True, "missing_eos_penalty": -2.0, "reward_clip": 0.4}
    wanted = ppo.targets(found(), kl_coef=0.3, overlong_buffer=2, mask_truncated=True, **by_hand)
    made = script.build_targets(cfg, kl.k1)(found(), kl_coef=0.3)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    loss = {"value_clip": 0.3, "value_coef": 0.4, "entropy_coef": 0.05, "importance_cap": 1.5}
    update = script.build_update(
        PPO(epochs=1, clip=0.1, dual_clip=2.0, weights="sequence_mean", **loss), worlds.look_up, kl.k2, optax.sgd(1.0)
    )
    state, _ = update(TrainState.create(worlds.moved(worlds.table()), optax.sgd(1.0)), whitened(), KEY)
    bound = functools.partial(policy.clipped, clip=0.1, dual_clip=2.0)
    _, slope = measured(weigh=weights.sequence_mean, policy_loss=bound, **loss)
    for name in ("policy", "value"):
        np.testing.assert_allclose(worlds.moved(worlds.table())[name] - state.params[name], slope[name], atol=1e-5)


def test_the_update_stops_nothing_it_was_not_asked_to():
    """Without a target KL a huge step is still taken."""
    update = make_update(
        functools.partial(ppo.loss, forward=worlds.look_up), optax.sgd(50.0), weigh=worlds.token_mean, epochs=2
    )
    _, metrics = update(TrainState.create(worlds.table(), optax.sgd(50.0)), whitened(), KEY)
    assert metrics["update/applied"].tolist() == [1, 1] and metrics["policy/approx_kl"][1] > 0.1


def test_rollout_metrics_of_the_details():
    """The share of responses cut at the window is told, so that none of these choices works unseen."""
    told = rollout.metrics(found())
    assert told["rollout/truncated"] == np.mean(np.asarray(found().stop) == STOP_LENGTH) > 0
