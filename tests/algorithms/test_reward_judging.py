"""Reward models' losses beyond pairs: rows of rankings and ratings, axes, numbers about the judging, ensembles; against loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms.reward_model import JUDGING
from rlhf_jax.algorithms.update import make_update
from rlhf_jax.errors import UserError
from rlhf_jax.objectives import reward
from rlhf_jax.runs import settings
from rlhf_jax.types import Pairs, Rankings, Ratings, TrainState
from tests import worlds

A = 2


def bag(params, tokens, length):
    """Two axes, each a table: the sum of a text's numbers."""
    inside = jnp.arange(tokens.shape[1]) < length[:, None]
    return jnp.sum(jnp.where(inside[..., None], params["value"][tokens], 0.0), axis=1)


def tables(**judging):
    value = np.random.default_rng(5).normal(size=(worlds.V, A))
    found = {JUDGING + name: jnp.asarray(x, jnp.float32) for name, x in judging.items()}
    return {"value": jnp.asarray(value, jnp.float32)} | found


def texts(*shape, window=6):
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, worlds.V, (*shape, window)), jnp.int32)
    return tokens, jnp.asarray(rng.integers(1, window + 1, shape), jnp.int32)


@functools.cache
def pairs(rows=8):
    tokens, length = texts(2, rows)
    label = jnp.asarray(np.resize([1.0, 1.0, 0.5, 0.75, 0.0], rows), jnp.float32)
    judge, axis = jnp.arange(rows) % 3, jnp.arange(rows) % A
    columns = label, jnp.zeros(rows), jnp.ones(rows), jnp.where(label == 0.5, 1.0, 0.25), judge, axis
    return Pairs(tokens[0], length[0], tokens[1], length[1], *columns)


@functools.cache
def rankings(rows=6, K=4):
    tokens, length = texts(rows, K)
    ranks = np.resize([[0, 1, 2, 3], [1, 0, 0, -1], [2, 0, 1, 1]], (rows, K)).astype(np.int32)
    return Rankings(
        tokens, length, jnp.asarray(ranks), jnp.asarray(np.resize([1.0, 2.0], rows), jnp.float32), jnp.arange(rows) % A
    )


@functools.cache
def ratings(rows=8):
    tokens, length = texts(rows)
    rating = jnp.asarray(np.resize([0.0, 0.0, 2.0, 1.0, 2.0], rows), jnp.float32)
    return Ratings(tokens, length, rating, jnp.ones(rows), jnp.arange(rows) % A)


def score(params, tokens, length, axis):
    value = np.asarray(params["value"], np.float64)
    return sum(value[int(t), int(axis)] for t in np.asarray(tokens)[: int(length)])


def asked(function, params, batch, **given):
    return function(params, batch, reward_model.weigh(batch), forward=bag, **given)


def test_each_pair_is_of_its_own_axis_judge_and_tie():
    params, batch = tables(reliability=[2.0, 0.0, -1.0]), pairs()
    found, told = asked(reward_model.loss, params, batch, objective=reward.crowd_bt)
    total = right = 0.0
    for row in range(8):
        axis, tie = int(batch.axis[row]), float(batch.tie[row])
        label = (1 - tie) * float(batch.label[row]) + tie / 2  # the loss takes no ties: each is half a vote for either
        d = score(params, batch.chosen[row], batch.chosen_length[row], axis)
        d -= score(params, batch.rejected[row], batch.rejected_length[row], axis)
        eta = 1 / (1 + math.exp(-[2.0, 0.0, -1.0][row % 3]))
        p = eta / (1 + math.exp(-d)) + (1 - eta) / (1 + math.exp(d))
        total += -(label * math.log(p) + (1 - label) * math.log(1 - p)) / 8
        right += (0.5 if label == 0.5 else float((d > 0) == (label > 0.5))) / 8
    assert float(found) == pytest.approx(total, rel=1e-5) and float(told["reward/accuracy"]) == pytest.approx(right)


def test_davidson_reads_ties_and_the_axis_own_nu():
    params, batch = tables(log_nu=[-2.0, 1.0]), pairs()
    found, _ = asked(reward_model.loss, params, batch, objective=reward.davidson)
    total = 0.0
    for row in range(8):
        axis, label, tie = row % A, float(batch.label[row]), float(batch.tie[row])
        half = score(params, batch.chosen[row], batch.chosen_length[row], axis) / 2
        half -= score(params, batch.rejected[row], batch.rejected_length[row], axis) / 2
        odds = [math.exp(half), math.exp([-2.0, 1.0][axis]), math.exp(-half)]
        p = [x / sum(odds) for x in odds]
        total -= ((1 - tie) * (label * math.log(p[0]) + (1 - label) * math.log(p[2])) + tie * math.log(p[1])) / 8
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_a_tie_is_half_a_vote_for_either_where_a_loss_knows_no_ties():
    """Bradley-Terry of 2 for, none against and 3 equal is that of seven for and three against; Davidson's is another."""
    batch = pairs().replace(label=jnp.ones(8), tie=jnp.full(8, 0.6))
    other = batch.replace(label=jnp.full(8, 0.7), tie=jnp.zeros(8))
    found, expected = (
        asked(reward_model.loss, tables(), rows, objective=reward.bradley_terry)[0] for rows in (batch, other)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(asked(reward_model.loss, tables(), batch.replace(tie=None))[0]) != pytest.approx(
        float(expected), rel=1e-3
    )
    davidson = {"objective": reward.davidson}
    one, two = (asked(reward_model.loss, tables(log_nu=[1.0, 1.0]), rows, **davidson)[0] for rows in (batch, other))
    assert float(one) != pytest.approx(float(two), rel=1e-3)
    untold = asked(reward_model.loss, tables(log_nu=[1.0, 1.0]), batch.replace(tie=None), **davidson)[0]
    none = asked(reward_model.loss, tables(log_nu=[1.0, 1.0]), batch.replace(tie=jnp.zeros(8)), **davidson)[0]
    assert float(untold) == pytest.approx(float(none), rel=1e-6)


def test_an_axis_is_taught_by_its_own_rows_alone():
    batch = pairs()
    only = batch.replace(weight=jnp.where(batch.axis == 1, 1.0, 0.0))
    slope = jax.grad(lambda p: asked(reward_model.loss, p, only)[0])(tables())["value"]
    assert float(jnp.abs(slope[:, 0]).max()) == 0 < float(jnp.abs(slope[:, 1]).max())


def test_rankings_are_scored_text_by_text():
    params, batch = tables(log_delta=[[-1.0], [0.5]]), rankings()
    found, told = asked(reward_model.ranking_loss, params, batch, centring_coef=0.1)
    share = np.asarray(batch.weight, np.float64) / float(batch.weight.sum())
    total = right = 0.0
    for row in range(6):
        axis, ranks = row % A, np.asarray(batch.ranks[row])
        here = [i for i in range(4) if ranks[i] >= 0]
        scores = np.array([score(params, batch.tokens[row, i], batch.length[row, i], axis) for i in range(4)])
        delta = jnp.array([[[-1.0], [0.5]][axis]])
        term = reward.plackett_luce(jnp.asarray(scores[None], jnp.float32), batch.ranks[row][None], log_delta=delta)
        total += share[row] * (float(term[0]) + 0.1 * (2 * scores[here].mean()) ** 2)
        ahead = [(i, j) for i in here for j in here if ranks[i] < ranks[j]]
        right += share[row] * np.mean([scores[i] > scores[j] for i, j in ahead])
    assert float(found) == pytest.approx(total, rel=1e-4) and float(told["reward/accuracy"]) == pytest.approx(
        right, rel=1e-5
    )


def test_ratings_and_the_distance_of_what_is_predicted():
    params, batch = tables(cuts=[[-1.0, 0.5], [0.0, 2.0]]), ratings()
    found, told = asked(reward_model.rating_loss, params, batch, objective=reward.ordinal)
    edges = np.asarray(reward.thresholds(params[JUDGING + "cuts"]))
    total = error = plain = 0.0
    for row in range(8):
        s, rating = score(params, batch.tokens[row], batch.length[row], row % A), int(batch.rating[row])
        ends = [-math.inf, *edges[row % A], math.inf]
        below = [0.0 if e == -math.inf else 1.0 if e == math.inf else 1 / (1 + math.exp(s - e)) for e in ends]
        total -= math.log(below[rating + 1] - below[rating]) / 8
        error += abs(sum(edge < s for edge in edges[row % A]) - rating) / 8
        plain += (s - rating) ** 2 / 8
    assert float(found) == pytest.approx(total, rel=1e-4) and float(told["reward/error"]) == pytest.approx(error)
    squared, _ = asked(reward_model.rating_loss, params, batch)
    assert float(squared) == pytest.approx(plain, rel=1e-5)


CASES = [
    (reward_model.loss, pairs, {"objective": reward.crowd_bt}, {"reliability": [1.0, 0.5, -1.0]}),
    (reward_model.ranking_loss, lambda: rankings(8), {}, {"log_delta": [[-1.0], [0.5]]}),
    (reward_model.rating_loss, ratings, {"objective": reward.ordinal}, {"cuts": [[-1.0, 0.5], [0.0, 2.0]]}),
]


@pytest.mark.parametrize(("function", "batch", "given", "judging"), CASES, ids=["pairs", "rankings", "ratings"])
def test_micro_batches_change_no_gradient_of_the_model_or_of_the_judging(function, batch, given, judging):
    def penalty(params):
        return sum(jnp.sum(jnp.square(x)) for path, x in params.items() if path.startswith(JUDGING))

    optimizer = settings.optimizer(settings.Optimizer(lr=1.0, schedule="constant", eps=1.0, clip_norm=0.0), 1)
    ends = []
    for microbatches in (1, 4):
        loss = functools.partial(function, forward=bag, penalty=penalty, **given)
        update = make_update(loss, optimizer, weigh=reward_model.weigh, microbatches=microbatches)
        ends.append(update(TrainState.create(tables(**judging), optimizer), batch(), jax.random.key(0))[0].params)
    for path, begun in tables(**judging).items():
        np.testing.assert_allclose(ends[0][path], ends[1][path], atol=1e-5)
        assert np.abs(np.asarray(ends[0][path] - begun)).max() > 1e-3, path


def test_knowing_the_judges_repairs_a_quarter_of_flipped_labels():
    """Token i is worth i. Two judges of eight turn everything round: a quarter of all labels is wrong."""
    (weighed, eta), (plain, _) = trained_on_flips("crowd_bt"), trained_on_flips("bradley_terry")
    assert weighed < 0.1 < 0.3 < plain, "nats a pair that is told rightly"
    assert eta[:2].max() < 0.3 and eta[2:].min() > 0.7


def trained_on_flips(loss):
    """(nats a true pair, each judge's reliability) of a table trained on the flips."""
    rng = np.random.default_rng(0)
    every = np.array([(a, b) for a in range(worlds.V) for b in range(a)], np.int32)
    told = np.concatenate([every[rng.permutation(len(every))[:40]] for _ in range(8)])
    judge = np.repeat(np.arange(8), 40).astype(np.int32)
    flipped = judge < 2
    one, zero = jnp.ones(320, jnp.int32), jnp.zeros(320)
    sides = [jnp.asarray(np.where(flipped, told[:, 1 - side], told[:, side])[:, None]) for side in (0, 1)]
    batch = Pairs(
        sides[0], one, sides[1], one, zero + 1, zero, zero + 1, zero, jnp.asarray(judge), zero.astype(jnp.int32)
    )

    def forward(params, tokens, length):
        return params["value"][tokens[:, 0]]

    given = {"penalty": None, "objective": getattr(reward, loss)}
    start = {"value": jnp.zeros(worlds.V)}
    if loss == "crowd_bt":
        start[JUDGING + "reliability"] = jnp.full(8, math.log(2))
        given["penalty"] = lambda p: jnp.sum(reward.reliability_prior(p[JUDGING + "reliability"])) / 320
    optimizer = settings.optimizer(settings.Optimizer(lr=0.1, schedule="constant"), 1)
    objective = functools.partial(reward_model.loss, forward=forward, **given)
    update = make_update(objective, optimizer, weigh=reward_model.weigh, epochs=200)
    state, _ = update(TrainState.create(start, optimizer), batch, jax.random.key(0))
    value = np.asarray(state.params["value"])
    eta = 1 / (1 + np.exp(-np.asarray(state.params.get(JUDGING + "reliability", ()))))
    return np.logaddexp(0, -(value[every[:, 0]] - value[every[:, 1]])).mean(), eta


def test_what_a_loss_is():
    assert {name: reward_model.kind_of(getattr(reward, name)) for name in reward.LOSSES} == {
        "bradley_terry": "pairs",
        "davidson": "pairs",
        "crowd_bt": "pairs",
        "plackett_luce": "rankings",
        "ordinal": "ratings",
        "regression": "ratings",
    }
    with pytest.raises(UserError, match="begins with chosen and rejected for pairs; .*got a, b"):
        reward_model.kind_of(lambda a, b: a)
    with pytest.raises(UserError, match="a loss of ratings may ask for cuts; got margin"):
        reward_model.kind_of(lambda score, rating, margin: score)
    assert reward_model.kind_of(lambda chosen, rejected, label, mine=1.0: chosen) == "pairs"


def test_the_judging_is_no_part_of_the_model():
    params = tables(log_nu=[0.0, 1.0])
    model, judging = reward_model.without_judging(params)
    assert set(model) == {"value"} and set(judging) == {"log_nu"}


def test_an_ensemble_reads_all_members_at_once():
    members = [{"value": tables()["value"] + m} for m in range(3)]
    tokens, length = texts(5)
    found = reward_model.ensemble(bag)(reward_model.stack(members), tokens, length)
    assert found.shape == (3, 5, A)
    np.testing.assert_allclose(found, [bag(member, tokens, length) for member in members], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="one shape"):
        reward_model.stack([members[0], {"value": jnp.zeros((3, A))}])
    with pytest.raises(UserError, match="needs a member"):
        reward_model.stack([])
