"""The one update: epochs, minibatches, micro-batches, donation, stopping, and what precision does to a small step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import ppo
from rlhf_jax.algorithms.update import make_update, summarise
from rlhf_jax.errors import UserError
from rlhf_jax.objectives import weights
from rlhf_jax.runs import settings
from rlhf_jax.types import TrainState
from tests import worlds

ROWS = 8
KEY = jax.random.key(0)


@functools.cache
def batch():
    return ppo.targets(worlds.facts())


def new_state(optimizer, params=None):
    return TrainState.create(worlds.moved(worlds.table()) if params is None else params, optimizer)


@functools.cache
def gradient(microbatches, weigh=weights.token_mean):
    """The gradient of PPO's loss on one minibatch, as the update computes it: the step of plain gradient descent."""
    update = make_update(
        functools.partial(ppo.loss, forward=worlds.look_up, entropy_coef=0.01),
        optax.sgd(1.0),
        weigh=lambda batch: weigh(batch.mask),
        microbatches=microbatches,
    )
    before = worlds.moved(worlds.table())
    after, metrics = update(new_state(optax.sgd(1.0)), batch(), KEY)
    return jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), before, after.params), jax.device_get(metrics)


@pytest.mark.parametrize(
    ("microbatches", "weigh"),
    [(2, weights.token_mean), (8, weights.token_mean), (4, weights.sequence_mean), (4, weights.fixed_length)],
)
def test_invariant_23_gradients_and_metrics_do_not_depend_on_the_number_of_micro_batches(microbatches, weigh):
    (whole, told), (cut, told_cut) = gradient(1, weigh), gradient(microbatches, weigh)
    for name in whole:
        assert np.linalg.norm(whole[name]) > 1e-3
        assert np.linalg.norm(cut[name] - whole[name]) <= 1e-6 * np.linalg.norm(whole[name])
    for name in told:
        np.testing.assert_allclose(told_cut[name], told[name], rtol=2e-6, atol=1e-7)
    length = np.sqrt(sum((x**2).sum() for x in whole.values()))
    assert float(told["update/grad_norm"][0]) == pytest.approx(length, rel=1e-5)


def test_invariant_23_a_mean_of_means_would_be_another_gradient():
    """The mistake that weights over the whole minibatch prevent, on the same ragged rows."""
    loss = functools.partial(ppo.loss, forward=worlds.look_up, entropy_coef=0.01)
    params = worlds.moved(worlds.table())
    parts = [jax.tree.map(lambda x, i=i: x[i * 2 : i * 2 + 2], batch()) for i in range(4)]
    slope = jax.jit(jax.grad(lambda p, b: loss(p, b, weights.token_mean(b.mask))[0]))
    means = np.mean([np.asarray(slope(params, part)["policy"]) for part in parts], axis=0)
    whole = gradient(1)[0]["policy"]
    assert np.linalg.norm(means - whole) > 0.05 * np.linalg.norm(whole)


def seen(params, batch, weights):
    """A loss whose metric tells which rows were in the minibatch: a count a row number."""
    counts = jnp.zeros(ROWS).at[batch["row"]].add(1.0)
    return jnp.sum(weights * params["x"]), {"seen": counts}


@pytest.mark.parametrize("microbatches", [1, 2])
def test_every_epoch_sees_every_row_once_in_freshly_dealt_minibatches(microbatches):
    update = make_update(
        seen,
        optax.sgd(0.0),
        weigh=lambda b: jnp.ones(b["row"].shape) / b["row"].shape[0],
        epochs=4,
        minibatches=2,
        microbatches=microbatches,
    )
    rows = {"row": jnp.arange(ROWS)}

    def dealt(key):
        _, metrics = update(TrainState.create({"x": jnp.zeros(())}, optax.sgd(0.0)), rows, key)
        return np.asarray(metrics["seen"]).reshape(4, 2, ROWS)

    found = dealt(KEY)
    assert (found.sum(axis=2) == ROWS // 2).all(), "a minibatch of another size"
    assert (found.sum(axis=1) == 1).all(), "a row lost or seen twice in an epoch"
    assert len({epoch.tobytes() for epoch in found[:, 0]}) > 1, "the same minibatches in every epoch"
    assert (dealt(KEY) == found).all()
    assert (dealt(jax.random.key(1)) != found).any()


def test_metrics_have_one_entry_a_step_and_the_state_counts_the_steps():
    optimizer = optax.adam(1e-2)
    loss = functools.partial(ppo.loss, forward=worlds.look_up)
    update = make_update(loss, optimizer, weigh=worlds.token_mean, epochs=3, minibatches=2, microbatches=2)
    state, metrics = update(new_state(optimizer), batch(), KEY)
    assert int(state.step) == 6
    assert all(x.shape == (6,) and x.dtype == jnp.float32 for x in metrics.values())
    assert metrics["update/applied"].tolist() == [1] * 6
    state, _ = update(state, batch(), jax.random.key(1))
    assert int(state.step) == 12
    assert update._cache_size() == 1


def test_summarise_is_the_mean_over_the_steps_taken():
    metrics = {"a": jnp.array([1.0, 3.0, 0.0, 0.0]), "update/applied": jnp.array([1.0, 1.0, 0.0, 0.0])}
    assert summarise(metrics) == {"a": 2.0, "update/applied": 0.5}
    nothing = {"a": jnp.array([5.0]), "update/applied": jnp.array([0.0])}
    assert summarise(nothing) == {"a": 0.0, "update/applied": 0.0}


def test_invariant_45_the_schedule_counts_optimizer_steps_not_micro_batches():
    rate = settings.schedule(settings.Optimizer(lr=1.0, warmup=0.5, schedule="constant"), 8)
    optimizer = optax.sgd(rate)

    def loss(params, batch, weights):
        return params["x"] * jnp.sum(weights), {}

    def weigh(batch):
        return jnp.full(ROWS // 2, 2 / ROWS)

    update = make_update(loss, optimizer, weigh=weigh, epochs=2, minibatches=2, microbatches=4)
    state, _ = update(TrainState.create({"x": jnp.zeros(())}, optimizer), jnp.arange(ROWS), KEY)
    assert float(state.params["x"]) == -(0 + 0.25 + 0.5 + 0.75)


@pytest.mark.parametrize(
    ("rows", "minibatches", "microbatches", "told"),
    [(8, 3, 1, "8 rows do not divide into 3 minibatches"), (8, 2, 8, "multiple of 16"), (0, 1, 1, "0 rows")],
)
def test_rows_that_do_not_divide_are_refused(rows, minibatches, microbatches, told):
    update = make_update(
        seen, optax.sgd(0.0), weigh=lambda b: b["row"], minibatches=minibatches, microbatches=microbatches
    )
    with pytest.raises(UserError, match=told):
        update(TrainState.create({"x": jnp.zeros(())}, optax.sgd(0.0)), {"row": jnp.arange(rows)}, KEY)


def test_leaves_with_different_numbers_of_rows_are_refused():
    update = make_update(seen, optax.sgd(0.0), weigh=lambda b: b["row"])
    rows = {"row": jnp.arange(8), "other": jnp.arange(4)}
    with pytest.raises(UserError, match=r"lead with \[4, 8\] rows"):
        update(TrainState.create({"x": jnp.zeros(())}, optax.sgd(0.0)), rows, KEY)


def test_a_loss_that_spans_rows_is_refused_micro_batches():
    def loss(params, batch, weights):
        return jnp.zeros(()), {}

    loss.spans_rows = True
    make_update(loss, optax.sgd(0.0), weigh=lambda b: b, minibatches=4)
    with pytest.raises(UserError, match="set microbatches to 1"):
        make_update(loss, optax.sgd(0.0), weigh=lambda b: b, microbatches=2)


def test_stop_skips_the_step_that_trips_it_and_all_later_ones():
    """The metric is the parameter itself, which each step raises by 1: the third step would make it 3."""

    def loss(params, batch, weights):
        return -params["x"] * jnp.sum(weights), {"x": params["x"]}

    update = make_update(
        loss,
        optax.sgd(1.0),
        weigh=lambda b: jnp.ones(b.shape) / b.shape[0],
        epochs=3,
        minibatches=2,
        stop=lambda metrics: metrics["x"] > 1.5,
    )
    state, metrics = update(TrainState.create({"x": jnp.zeros(())}, optax.sgd(1.0)), jnp.arange(ROWS), KEY)
    assert float(state.params["x"]) == 2 and int(state.step) == 2
    assert metrics["update/applied"].tolist() == [1, 1, 0, 0, 0, 0]
    assert summarise(metrics)["x"] == 0.5
    assert metrics["x"].tolist() == [0, 1, 2, 0, 0, 0]


def test_invariant_28_donated_state_never_aliases_what_was_passed():
    """The reference policy is the array that training began with: the first update must not free or change it."""
    params = worlds.moved(worlds.table())
    kept = jax.tree.map(np.array, params)
    optimizer = optax.adam(1e-2)
    state = TrainState.create(params, optimizer)
    loss = functools.partial(ppo.loss, forward=worlds.look_up)
    update = make_update(loss, optimizer, weigh=worlds.token_mean, epochs=2)
    new, _ = update(state, batch(), KEY)
    assert state.params["policy"].is_deleted(), "the state is donated, so its memory is reused"
    assert worlds.same_bits(params, kept)
    assert not worlds.same_bits(new.params, kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_invariant_38_a_step_of_3e_6_changes_f32_masters_and_no_bf16_parameter(dtype):
    rng = np.random.default_rng(0)
    size = rng.uniform(0.001, 0.1, 20_000) * rng.choice([-1, 1], 20_000)
    optimizer = settings.optimizer(settings.Optimizer(lr=3e-6, schedule="constant", clip_norm=0.0), 1)
    slopes = jnp.asarray(rng.normal(size=20_000), jnp.float32)

    def loss(params, batch, weights):
        return jnp.sum(params["x"].astype(jnp.float32) * slopes) * jnp.sum(weights), {}

    update = make_update(loss, optimizer, weigh=lambda b: jnp.ones(b.shape))
    start = jnp.asarray(size, dtype)
    state, _ = update(TrainState.create({"x": start}, optimizer), jnp.zeros(1), KEY)
    changed = float(np.mean(np.asarray(state.params["x"], np.float32) != np.asarray(start, np.float32)))
    assert state.params["x"].dtype == dtype
    assert changed > 0.99 if dtype == "float32" else changed == 0


def test_invariant_38_masters_and_optimizer_state_stay_f32():
    optimizer = settings.optimizer(settings.Optimizer(), 10)
    state = new_state(optimizer)
    floats = [x for x in jax.tree.leaves((state.params, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats and all(x.dtype == jnp.float32 for x in floats)


def test_what_is_frozen_is_an_argument_seen_by_the_loss_and_left_alone():
    """Gradients and Adam's moments are of the trained part; another frozen part is another result of the same program; its
    buffers are the caller's, before and after."""

    def loss(params, batch, weights):
        total = jnp.sum(weights * (batch["x"] @ (params["role"]["w"] * params["role"]["v"]) - 1.0) ** 2)
        return total, {"loss": total}

    batch = {"x": jnp.asarray(np.random.default_rng(0).normal(0, 1, (ROWS, 3)), jnp.float32)}
    w, v = jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 2.0, 3.0])
    frozen = {"role": {"w": w}}
    place = w.unsafe_buffer_pointer()
    optimizer = optax.sgd(0.1)
    update = make_update(loss, optimizer, weigh=lambda batch: jnp.full(ROWS, 1 / ROWS), microbatches=2)

    def stepped(frozen):
        state = TrainState.create({"role": {"v": v}}, optimizer)
        return update(state, batch, KEY, frozen)[0].params

    after = stepped(frozen)
    x = np.asarray(batch["x"], np.float64)
    for given, found in ((w, after), (2 * w, stepped({"role": {"w": 2 * w}}))):
        base, moving = np.asarray(given, np.float64), np.asarray(v, np.float64)
        gradient = (2 / ROWS) * base * (x.T @ (x @ (base * moving) - 1))
        assert found.keys() == {"role"} and found["role"].keys() == {"v"}
        np.testing.assert_allclose(found["role"]["v"], moving - 0.1 * gradient, rtol=2e-5)
    assert update._cache_size() == 1
    assert frozen["role"]["w"] is w and w.unsafe_buffer_pointer() == place
    assert np.array_equal(w, [0.5, -1.0, 2.0])
    state = TrainState.create({"role": {"v": v}}, optax.adam(0.1))
    assert sum(x.size for x in jax.tree.leaves(state)) == 1 + 3 + 1 + 2 * 3
