"""One update for every stage: epochs × minibatches × micro-batches of any loss, in one compiled program."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rlhf_jax import sharding
from rlhf_jax.errors import UserError
from rlhf_jax.types import Metrics, TrainState, overlay

Loss = Callable[[Any, Any, Any], tuple[Array, Metrics]]


def count_rows(batch: Any) -> int:
    """B: how many rows every leaf of the batch leads with. UserError where they differ."""
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1:
        raise UserError(f"the leaves of a batch lead with {sorted(sizes)} rows; all must lead with the same number")
    return sizes.pop()


def check_division(rows: int, minibatches: int, microbatches: int) -> None:
    """UserError unless rows split evenly into minibatches, and those into micro-batches."""
    if rows % (minibatches * microbatches) or rows < minibatches * microbatches:
        raise UserError(
            f"{rows} rows do not divide into {minibatches} minibatches of {microbatches} micro-batches; "
            f"make the rows a multiple of {minibatches * microbatches}"
        )


def make_update(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    *,
    weigh: Callable[[Any], Any],
    epochs: int = 1,
    minibatches: int = 1,
    microbatches: int = 1,
    stop: Callable[[Metrics], Array] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A jitted `update(state, batch, key, frozen=None) -> (state, metrics)`; the state is donated.

    loss_fn   (params, batch, weights) -> (loss, metrics), both sums under the weights: never averaged again
    weigh     batch -> weights over a whole minibatch, leading with its rows (`objectives.weights`); they are cut into
              micro-batches with it, so gradients of micro-batches add up to that of the minibatch, exactly
    epochs    passes over the batch; each deals its rows anew into `minibatches`, one optimizer step each
    stop      metrics -> bool: that minibatch's step and all later ones are skipped (a target KL, for example)
    frozen    parameters that no gradient is taken of, such as the base of an adapter: an argument like any other, neither
              donated nor copied. The loss is given `overlay(frozen, state.params)`

    Metrics come back as f32 [epochs · minibatches], in order, with `update/grad_norm` and `update/applied` (1 where the
    step was taken); `summarise` makes numbers of them. A loss that compares rows with each other says so by an
    attribute `spans_rows = True`, and is refused more than one micro-batch.
    """
    if getattr(loss_fn, "spans_rows", False) and microbatches > 1:
        raise UserError("this loss compares rows of a minibatch with each other; set microbatches to 1")

    def gradients(params: Any, batch: Any, frozen: Any) -> tuple[Any, Metrics]:
        weights = weigh(batch)

        def whole(params: Any, *piece: Any) -> tuple[Array, Metrics]:
            return loss_fn(overlay(frozen, params), *piece)

        def one(piece: Any) -> tuple[Any, Metrics]:
            (_, metrics), grads = jax.value_and_grad(whole, has_aux=True)(params, *piece)
            return grads, metrics

        if microbatches == 1:
            return one((batch, weights))
        pieces = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), (batch, weights))
        shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], pieces))
        total = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(lambda total, piece: (jax.tree.map(jnp.add, total, one(piece)), None), total, pieces)[0]

    def take_step(state: TrainState, batch: Any, frozen: Any) -> tuple[TrainState, Metrics, Array]:
        grads, metrics = gradients(state.params, batch, frozen)
        share = jnp.sum(weigh(batch))  # below 1 where the loss counts slots that hold no token
        metrics = {name: x / jnp.where(share > 0, share, 1) for name, x in metrics.items()}
        stopped = jnp.zeros((), bool) if stop is None else stop(metrics)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        state = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), state, new) if stop else new
        metrics |= {"update/grad_norm": optax.tree.norm(grads), "update/applied": 1.0 - stopped}
        return state, jax.tree.map(jnp.float32, metrics), stopped

    def update(state: TrainState, batch: Any, key: Array, frozen: Any = None) -> tuple[TrainState, Metrics]:
        rows = count_rows(batch)
        check_division(rows, minibatches, microbatches)
        keys = jax.random.split(key, epochs)
        order = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys).reshape(epochs * minibatches, -1)

        def minibatch(carry: tuple[TrainState, Array], index: Array) -> tuple[tuple[TrainState, Array], Metrics]:
            state, stopped = carry
            picked = jax.tree.map(lambda x: sharding.constrain(x[index], "rows", *(None,) * (x.ndim - 1)), batch)
            if stop is None:
                state, metrics, _ = take_step(state, picked, frozen)
                return (state, stopped), metrics
            shapes = jax.eval_shape(take_step, state, picked, frozen)[1]
            empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            go_on = functools.partial(take_step, frozen=frozen)
            state, metrics, stopped = jax.lax.cond(stopped, lambda s, b: (s, empty, stopped), go_on, state, picked)
            return (state, stopped), metrics

        (state, _), metrics = jax.lax.scan(minibatch, (state, jnp.zeros((), bool)), order)
        return state, metrics

    return jax.jit(update, donate_argnums=0)


def summarise(metrics: Metrics) -> dict[str, float]:
    """Means over the steps taken, as Python numbers; the share of steps taken stays `update/applied`. UserError where a
    gradient was not finite: what comes after it is lost, the last checkpoint is not."""
    host = {name: jax.device_get(values) for name, values in metrics.items()}
    if not math.isfinite(float(host.get("update/grad_norm", host["update/applied"]).sum())):
        raise UserError("a gradient is not finite; go on from the last checkpoint with a lower learning rate")
    applied = host["update/applied"]
    taken = max(float(applied.sum()), 1.0)
    means = {name: float((values * applied).sum() / taken) for name, values in host.items()}
    return means | {"update/applied": float(applied.mean())}
