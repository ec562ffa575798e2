"""PPO of several seeds as one program under `jax.vmap`, against the same seeds one after another. Prints one line of JSON.

python benchmarks/seeds_at_once.py --seeds 5 --width 64 --iterations 10

Sampling, scoring (a function of arrays), targets and update of a small transformer are one compiled iteration; both ways run
the same one, compiled before the clock starts. The ratio is how many times faster the seeds are together.
"""

import argparse
import dataclasses
import functools
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.algorithms.update import make_update
from rlhf_jax.generate import engine
from rlhf_jax.model import heads, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives.weights import token_mean
from rlhf_jax.types import Sampling, TrainState

PROMPT, RESPONSE, WORDS = 24, 32, 200


def make_iteration(cfg: ModelConfig, prompts: int, samples: int, adam: optax.GradientTransformation) -> Any:
    """iteration(state, seed, number) -> (state, mean score): all of PPO's step on arrays."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(2, WORDS, (prompts, PROMPT)), jnp.int32)
    lengths, ids = jnp.full(prompts, PROMPT, jnp.int32), jnp.arange(prompts, dtype=jnp.int32)
    sampling = Sampling(temperature=0.7)

    def forward(params: Any, batch: Any) -> Any:
        row = batch.tokens, batch.prompt_length, batch.response_length
        values = heads.value(params["value"], *row, window=RESPONSE, cfg=cfg)
        return *heads.policy(params["policy"], *row, window=RESPONSE, cfg=cfg, temperature=0.7), values

    def policy(params: Any, *row: Any) -> Any:
        return heads.policy(params["policy"], *row, window=RESPONSE, cfg=cfg, temperature=0.7)

    loss = functools.partial(ppo.loss, forward=forward)
    update = make_update(loss, adam, weigh=lambda batch: token_mean(batch.mask), epochs=2, minibatches=4)

    def iteration(state: TrainState, seed: jax.Array, number: jax.Array) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        found = rollout.gather(
            state.params, tokens, lengths, ids, ids[:, None] * samples + jnp.arange(samples), key,
            sampling=sampling, version=number, policy=policy,
            sample=lambda params, *rest: engine.generate(
                params["policy"], *rest, window=RESPONSE, cfg=cfg, sampling=sampling
            ),
            value=lambda params, *row: heads.value(params["value"], *row, window=RESPONSE + 1, cfg=cfg),
        )  # fmt: skip
        sampled = rollout.rows_at(found.tokens, found.prompt_length, RESPONSE)
        scores = jnp.sum((sampled < WORDS // 4) & found.mask, axis=1) / RESPONSE
        batch = ppo.targets(dataclasses.replace(found, scores=scores), missing_eos_penalty=None)
        return *update(state, batch, key)[:1], scores.mean()

    return iteration


def main() -> None:
    """Time both ways."""
    parser = argparse.ArgumentParser()
    for name, default in {"seeds": 5, "width": 64, "layers": 2, "prompts": 32, "samples": 2, "iterations": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    heads_count, width = args.width // 16, args.width
    cfg = ModelConfig(
        **dict(family="llama", vocab_size=WORDS, d_model=width, layers=args.layers, heads=heads_count, head_dim=16),
        **dict(kv_heads=heads_count, d_ff=4 * width, max_positions=64, norm="rms", norm_eps=1e-5, positions="rope"),
    )
    adam = optax.adam(7e-4, eps=1e-5)
    iteration = make_iteration(cfg, args.prompts, args.samples, adam)

    def start(seed: jax.Array) -> TrainState:
        params = transformer.init(jax.random.key(seed), cfg)
        return TrainState.create({"policy": params, "value": heads.add_value_head(params, cfg)}, adam)

    def run(step: Any, state: Any, seeds: jax.Array) -> tuple[float, jax.Array]:
        state, _ = step(state, seeds, jnp.int32(0))  # compiled
        jax.block_until_ready(state)
        began, scores = time.perf_counter(), jnp.zeros(())
        for number in range(1, args.iterations + 1):
            state, scores = step(state, seeds, jnp.int32(number))
        jax.block_until_ready(state)
        return time.perf_counter() - began, scores

    seeds = jnp.arange(args.seeds)
    together, all_scores = run(
        jax.jit(jax.vmap(iteration, in_axes=(0, 0, None))), jax.jit(jax.vmap(start))(seeds), seeds
    )
    step, begin = jax.jit(iteration), jax.jit(start)
    alone = [run(step, begin(seed), seed) for seed in seeds]
    np.testing.assert_allclose(all_scores, [score for _, score in alone], atol=0.02)
    apart = sum(seconds for seconds, _ in alone)
    told = {"together_s": round(together, 2), "apart_s": round(apart, 2), "ratio": round(apart / together, 2)}
    print(json.dumps(vars(args) | told | {"device": jax.devices()[0].device_kind}))


if __name__ == "__main__":
    main()
