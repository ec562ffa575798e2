"""What grpo.py builds before its loop and ppo.py does not: advantage, targets, greedy baseline. `cfg` is its Experiment."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from generate import decoder
from ppo_parts import Roles, bound, named, pick

from rlhf_jax.algorithms import group, ppo, rewards
from rlhf_jax.algorithms.rollout import response_ids
from rlhf_jax.generate import engine
from rlhf_jax.model import heads
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives import group_advantages
from rlhf_jax.runs.grpo_settings import GRPO
from rlhf_jax.types import Batch, Params, Prompts


def build_advantage(cfg: Any) -> Callable[..., Any]:
    """The function that `grpo.advantage` names, with `k` bound if it takes one. UserError where it asks for what there is
    not."""
    function = named(cfg.grpo.advantage, "grpo.advantage", group_advantages, group_advantages.ADVANTAGES)
    advantage: Callable[..., Any] = bound(function, cfg.grpo, ("k",))
    group.takes(advantage)
    return advantage


def build_forward(cfg: Any, model: ModelConfig) -> tuple[ppo.Forward, Any]:
    """(forward, policy): what the loss differentiates, forward(params, batch) -> log-probabilities, entropy, None; and what a
    rollout asks for, policy(params["policy"], *row)."""
    sizes: dict[str, Any] = {"window": cfg.response_window, "cfg": model, "chunk": cfg.compute.chunk}
    policy_row: Any = functools.partial(heads.policy, temperature=cfg.sampling.temperature, **sizes)

    def forward(params: Roles, batch: Batch) -> tuple[jax.Array, jax.Array, None]:
        row = batch.tokens, batch.prompt_length, batch.response_length
        return *policy_row(params["policy"], *row), None

    return forward, policy_row


def build_targets(cfg: GRPO, advantage: Callable[..., Any], estimator: Any) -> Any:
    """`group.targets` with these settings, compiled."""
    names = ["reward_clip", "missing_eos_penalty", "overlong_buffer", "length_coef", "mask_truncated", "drop_flat"]
    chosen = {name: getattr(cfg, name) for name in names}
    beta = cfg.kl_coef if cfg.kl_in == "reward" else 0.0
    made = functools.partial(group.targets, advantage=advantage, kl_coef=beta, kl_estimator=estimator, **chosen)
    return jax.jit(made)


def build_greedy(cfg: Any, prompts: Prompts, model: ModelConfig, tokenizer: Any, score: rewards.Score) -> Any:
    """greedy(params, iteration, key) -> f32 [B]: for each response of the iteration, the score of the likeliest response to
    its prompt, token by token, as it is: nothing is clipped or taken from it."""
    decode, sampling = decoder(tokenizer), replace(cfg.sampling, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)

    def greedy(params: Params, iteration: int, key: jax.Array) -> jax.Array:
        picked = pick(cfg, prompts, iteration)
        uids = np.arange(cfg.prompts_per_iteration, dtype=np.int32)[:, None]
        found = engine.generate(
            params,
            jnp.asarray(picked.tokens),
            jnp.asarray(picked.length),
            jnp.asarray(uids),
            key,
            window=cfg.response_window,
            cfg=model,
            sampling=sampling,
        )
        texts = [decode(ids) for ids in response_ids(np.asarray(found.responses), np.asarray(found.length))]
        scores, _ = rewards.checked("score", score)(list(picked.texts), texts, list(picked.meta))
        return jnp.repeat(jnp.asarray(scores, jnp.float32), cfg.samples_per_prompt)

    return greedy
