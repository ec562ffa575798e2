"""Policy gradients without a critic: targets from the scores of several responses to a prompt (GRPO and its kin).

The loss is `ppo.loss` with a forward that has no values; the advantages are those of `objectives.group_advantages` and the
policy losses those of `objectives.policy_zoo`. Any of one goes with any of the other.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.algorithms import ppo
from rlhf_jax.errors import UserError
from rlhf_jax.masks import blank
from rlhf_jax.objectives import group_advantages, kl
from rlhf_jax.types import STOP_LENGTH, Batch, Metrics, Rollout

OFFERED = ("scores", "groups", "valid", "length", "returns", "mask", "greedy")
"""What an advantage function may take by name; `objectives.group_advantages` says what each is."""


def takes(advantage: Callable[..., Array]) -> set[str]:
    """The names of what an advantage function asks for. UserError where it needs something that there is not."""
    parameters = inspect.signature(advantage).parameters.values()
    for parameter in parameters:
        wanted = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if wanted and parameter.name not in OFFERED:
            raise UserError(f"an advantage function may ask for {', '.join(OFFERED)}; got {parameter.name}")
    return {parameter.name for parameter in parameters} & set(OFFERED)


def targets(
    rollout: Rollout,
    *,
    advantage: Callable[..., Array] = group_advantages.grpo,
    greedy: Float[Array, " B"] | None = None,
    kl_coef: float | Array = 0.0,
    kl_estimator: Callable[..., Array] = kl.k1,
    reward_clip: float | None = None,
    missing_eos_penalty: float | None = None,
    overlong_buffer: int = 0,
    length_coef: float = 0.0,
    mask_truncated: bool = False,
    drop_flat: bool = False,
) -> Batch:
    """What the loss aims at. Nothing is sampled or differentiated here: every choice can be ablated on a saved rollout.

    advantage              one of `objectives.group_advantages`, or yours: takes by name what it needs of `OFFERED` and
                           gives [B] or [B, R]; bind settings with functools.partial, as in partial(grpo, eps=1e-6)
    greedy                 scores of the greedy responses, for `remax`: as many as rows
    kl_coef, kl_estimator  β of the penalty β · KL put, detached, in the reward; 0 where it belongs in the loss. Functions
                           of `scores` see its sum over the response (as TRL's RLOO), those of `returns` that of each token
    reward_clip, missing_eos_penalty, overlong_buffer   as in `ppo.shaped_scores`
    length_coef            taken from the score for each token, before any of these (L1, arXiv 2503.04697, with 0 tokens
                           as its target)
    mask_truncated         responses cut at the window take no part in the loss (DAPO, arXiv 2503.14476, §3.4); their
                           scores still count in their groups, as in TRL
    drop_flat              groups whose responses all score the same take no part in the loss: not in the count of tokens,
                           nor in a KL or an entropy bonus. DAPO (§3.2) samples other prompts until a batch is full; here
                           shapes stay, and the batch is smaller
    """
    facts = replace(rollout, values=None, bootstrap=None, scores=rollout.scores - length_coef * rollout.response_length)
    shape: dict[str, Any] = {
        "reward_clip": reward_clip,
        "missing_eos_penalty": missing_eos_penalty,
        "overlong_buffer": overlong_buffer,
    }
    # without a critic and with γ = λ = 1 the returns, detached, are the rewards from each token on
    batch = ppo.targets(facts, kl_coef=kl_coef, kl_estimator=kl_estimator, lam=1.0, whiten_advantages=False, **shape)
    groups, valid, mask = rollout.prompt_id, rollout.response_length > 0, batch.mask
    if mask_truncated:
        mask = mask & (rollout.stop != STOP_LENGTH)[:, None]
    if drop_flat:
        mask = mask & group_advantages.varies(ppo.shaped_scores(facts, **shape), groups, valid)[:, None]
    offered = {
        "scores": batch.returns[:, 0],
        "groups": groups,
        "valid": valid,
        "length": rollout.response_length,
        "returns": batch.returns,
        "mask": mask,
        "greedy": greedy,
    }
    asked = {name: offered[name] for name in takes(advantage)}
    if "greedy" in asked and greedy is None:
        raise UserError("this advantage needs the scores of greedy responses: pass greedy, one number a row")
    found = advantage(**asked)
    if jnp.shape(found) not in (mask.shape, mask.shape[:1]):
        raise UserError(
            f"the advantage has shape {jnp.shape(found)}; it must be one number a response, {mask.shape[:1]}, or one a "
            f"token, {mask.shape}"
        )
    advantages = jnp.broadcast_to(found if jnp.ndim(found) == 2 else found[:, None], mask.shape)
    return replace(
        batch,
        mask=mask,
        advantages=blank(advantages, mask),
        returns=blank(batch.returns, mask),
    )


def metrics(rollout: Rollout, batch: Batch) -> Metrics:
    """What groups say: the share of responses in groups that all score the same, the mean deviation of scores within groups,
    and the share of responses that the loss counts."""
    valid = rollout.response_length > 0
    groups = rollout.scores, rollout.prompt_id, valid
    flat = valid & ~group_advantages.varies(*groups)
    return {
        "group/flat": jnp.sum(flat) / jnp.maximum(jnp.sum(valid), 1),
        "group/score_std": group_advantages.spread(*groups),
        "group/learnt": jnp.mean(jnp.any(batch.mask, axis=1)),
    }
