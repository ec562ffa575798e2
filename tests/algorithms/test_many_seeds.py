"""Seeds side by side: a whole iteration of PPO is a function of arrays, so that seeds may share one program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.generate import engine
from rlhf_jax.types import TrainState
from tests import worlds

ITERATIONS, SEEDS = 3, (0, 4)


def run(seed):
    """`worlds.train` with every step of it, the score too, on arrays: the mean score of each iteration, and the end."""
    update, adam = worlds.trainer()
    prompts, forwards, start = worlds.prompts(), worlds.policy_forward(), worlds.actor_critic()

    def iteration(state, number):
        found = rollout.gather(
            state.params,
            *(jnp.asarray(x) for x in (prompts.tokens, prompts.length, prompts.ids)),
            number * worlds.B + jnp.arange(worlds.B, dtype=jnp.int32).reshape(worlds.G, worlds.N),
            jax.random.fold_in(jax.random.key(seed), number),
            sampling=worlds.SAMPLING,
            version=number,
            sample=lambda params, *rest: engine.generate(
                params["policy"], *rest, window=worlds.R, cfg=worlds.LM, sampling=worlds.SAMPLING
            ),
            policy=lambda params, *row: forwards(params["policy"], *row),
            reference=lambda *row: forwards(start["policy"], *row)[0],
            value=lambda params, *row: worlds.value_forward()(params["value"], *row),
        )
        sampled = rollout.rows_at(found.tokens, found.prompt_length, worlds.R)
        scores = jnp.sum((sampled == 3) & found.mask, axis=1) / worlds.R
        batch = ppo.targets(dataclasses.replace(found, scores=scores))
        state, _ = update(state, batch, jax.random.fold_in(jax.random.key(seed + 1), number))
        return state, scores.mean()

    first = worlds.with_rate(TrainState.create(start, adam), 3e-3)
    state, scores = jax.lax.scan(iteration, first, jnp.arange(ITERATIONS))
    return state.params["policy"], scores


@pytest.mark.long
def test_seeds_under_vmap_do_what_each_does_in_the_ordinary_loop():
    """`collect` decodes texts and scores them on the host, one seed at a time; `gather` in a scan under vmap does not."""
    params, scores = jax.vmap(run)(jnp.asarray(SEEDS))
    for i, seed in enumerate(SEEDS):
        state, collected, _ = worlds.train(ITERATIONS, seed=seed)
        np.testing.assert_allclose(scores[i], [told["rollout/score"] for told in collected], rtol=0, atol=1e-6)
        for path, wanted in state.params["policy"].items():
            np.testing.assert_allclose(params[path][i], wanted, rtol=0, atol=2e-4, err_msg=path)
    assert not np.allclose(scores[0], scores[1])
