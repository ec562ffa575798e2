"""What online_dpo.py and nash_md.py build before their loops: the forward pass, and rollouts of two responses. `cfg` is the
Experiment of either."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from generate import decoder
from ppo_parts import pick

from rlhf_jax.algorithms import offline, rewards, rollout
from rlhf_jax.generate import engine
from rlhf_jax.model import heads
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.types import Params, Prompts, Rollout, Samples

Two = Callable[..., Samples]
"""two(policy's parameters, the reference's, tokens, length, uids [G, 2], key) -> two responses a prompt, side by side."""


def build_forward(cfg: Any, model: ModelConfig) -> tuple[offline.Forward, Any]:
    """(forward, policy): log-probabilities at the sampling temperature, for the loss; and with their entropy, for a rollout."""
    sizes: dict[str, Any] = {"window": cfg.response_window, "cfg": model, "chunk": cfg.compute.chunk}
    policy: Any = functools.partial(heads.policy, temperature=cfg.sampling.temperature, **sizes)

    def forward(params: Any, *row: jax.Array) -> jax.Array:
        logprobs: jax.Array = policy(params, *row)[0]
        return logprobs

    return forward, policy


def build_two(cfg: Any, model: ModelConfig) -> Two:
    """Of online_dpo.py: both are the policy's, or with `exploration` the second one the reference's."""
    generate = functools.partial(engine.generate, window=cfg.response_window, cfg=model, sampling=cfg.sampling)

    def two(params: Params, reference: Params, tokens: Any, length: Any, uids: Any, key: jax.Array) -> Samples:
        if not cfg.exploration:
            return generate(params, tokens, length, uids, key)
        each = [generate(who, tokens, length, uids[:, i : i + 1], key) for i, who in enumerate((params, reference))]
        return side_by_side(*each)

    return two


def build_contest(cfg: Any, model: ModelConfig) -> Two:
    """Of nash_md.py: the first is the policy's, the second its mixture's with the reference."""
    how: Any = {"window": cfg.response_window, "cfg": model, "sampling": cfg.sampling}

    def two(params: Params, reference: Params, tokens: Any, length: Any, uids: Any, key: jax.Array) -> Samples:
        own = engine.generate(params, tokens, length, uids[:, :1], key, **how)
        rest = tokens, length, uids[:, 1:], key
        return side_by_side(own, engine.generate_mixture(params, reference, *rest, share=cfg.mixture, **how))

    return two


def side_by_side(*each: Samples) -> Samples:
    """Samples of one response a prompt as one batch in which those of a prompt stand together."""
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *each)


def build_collect(
    cfg: Any,
    prompts: Prompts,
    model: ModelConfig,
    tokenizer: Any,
    score: rewards.Score,
    policy: Any,
    build: Callable[[Any, ModelConfig], Two] = build_two,
) -> Callable[..., Rollout]:
    """collect(policy's parameters, the reference's, iteration, key) -> Rollout of two responses a prompt, as `build` has them
    written."""
    two = build(cfg, model)

    def collect(params: Params, reference: Params, iteration: int, key: jax.Array) -> Rollout:
        uids = iteration * cfg.rows + np.arange(cfg.rows, dtype=np.int32).reshape(-1, 2)
        return rollout.collect(
            params,
            pick(cfg, prompts, iteration),
            uids,
            jax.random.fold_in(key, 0),
            sampling=cfg.sampling,
            version=iteration,
            sample=lambda params, *rest: two(params, reference, *rest),
            policy=policy,
            reference=lambda *row: policy(reference, *row)[0],
            decode=decoder(tokenizer),
            score=score,
        )

    return collect
