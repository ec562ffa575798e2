"""Proximal policy optimisation (arXiv 1707.06347) for language models: targets from facts, and the loss.

This file and five of objectives/ (policy, value, kl, advantages, weights) are the whole algorithm. It knows no
model: `forward` is an argument. The constants are those of the TL;DR reproduction (arXiv 2403.17031,
https://github.com/vwxyzjn/summarize_from_feedback_details) unless another source is named.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.errors import UserError
from rlhf_jax.masks import blank, masked_mean, response_mask, weighted_sum, whiten
from rlhf_jax.objectives import advantages as advantage
from rlhf_jax.objectives import kl, policy, reward, value
from rlhf_jax.types import STOP_LENGTH, Batch, Metrics, Rollout

Forward = Callable[[Any, Batch], tuple[Array, Array, Array | None]]


def shaped_scores(
    rollout: Rollout,
    *,
    missing_eos_penalty: float | None = -1.0,
    reward_clip: float | None = None,
    overlong_buffer: int = 0,
) -> Float[Array, " B"]:
    """Scores as PPO uses them: clipped to ±reward_clip (OpenRLHF clips at 10), less a penalty that grows over the last
    `overlong_buffer` tokens of the window (DAPO, arXiv 2503.14476, eq. 13), and, for a response cut at the window,
    replaced by missing_eos_penalty (the "EOS trick", arXiv 2403.17031). None and 0 leave them out."""
    scores = rollout.scores
    if reward_clip is not None:
        scores = jnp.clip(scores, -reward_clip, reward_clip)
    if overlong_buffer:
        window = rollout.logprobs.shape[1]
        scores = scores + reward.overlong(rollout.response_length, limit=window, buffer=overlong_buffer)
    if missing_eos_penalty is not None:
        scores = jnp.where(rollout.stop == STOP_LENGTH, missing_eos_penalty, scores)
    return scores


def token_rewards(rollout: Rollout, scores: Float[Array, " B"], penalty: Float[Array, "B R"]) -> Float[Array, "B R"]:
    """−penalty at every token, and the score upon the last one. Sums to score − Σ penalty over each response."""
    last = jnp.arange(penalty.shape[1])[None] == rollout.response_length[:, None] - 1
    return jnp.where(last, scores[:, None], 0.0) - penalty


def targets(
    rollout: Rollout,
    *,
    kl_coef: float | Array = 0.05,
    kl_estimator: Callable[..., Array] = kl.k1,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_lam: float | None = None,
    length_adaptive_alpha: float | None = None,
    whiten_advantages: bool = True,
    whiten_rewards: bool = False,
    missing_eos_penalty: float | None = -1.0,
    reward_clip: float | None = None,
    overlong_buffer: int = 0,
    mask_truncated: bool = False,
) -> Batch:
    """What the loss aims at. Nothing is sampled or differentiated here: every choice can be ablated on a saved rollout.

    kl_coef, kl_estimator  β of the penalty β · KL put, detached, in the reward; 0 where it belongs in the loss
    gamma, lam             of GAE; `value_lam`, if given, makes the value targets with another λ (arXiv 2503.01491)
    length_adaptive_alpha  λ of the advantages by response length instead (VAPO, arXiv 2504.05118)
    whiten_rewards         divide token rewards by their deviation, mean kept (lm-human-preferences)
    mask_truncated         responses cut at the window take no part in the loss (DAPO, arXiv 2503.14476 §3.4)
    """
    mask = response_mask(rollout.response_length, rollout.logprobs.shape[1])
    clean = {name: blank(getattr(rollout, name), mask) for name in ("logprobs", "behaviour_logprobs")}
    values = jnp.zeros_like(rollout.logprobs) if rollout.values is None else blank(rollout.values, mask)
    reference = None if rollout.ref_logprobs is None else blank(rollout.ref_logprobs, mask)

    scores = shaped_scores(
        rollout, missing_eos_penalty=missing_eos_penalty, reward_clip=reward_clip, overlong_buffer=overlong_buffer
    )
    penalty = jnp.zeros_like(values) if reference is None else kl_coef * kl_estimator(clean["logprobs"], reference)
    rewards = token_rewards(rollout, scores, blank(penalty, mask))
    if whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)

    policy_lam: float | Array = lam
    if length_adaptive_alpha is not None:
        policy_lam = advantage.length_adaptive_lambda(rollout.response_length, alpha=length_adaptive_alpha)
    advantages, returns = advantage.gae(rewards, values, mask, gamma=gamma, lam=policy_lam, bootstrap=rollout.bootstrap)
    if value_lam is not None:
        _, returns = advantage.gae(rewards, values, mask, gamma=gamma, lam=value_lam, bootstrap=rollout.bootstrap)
    if mask_truncated:
        mask = mask & (rollout.stop != STOP_LENGTH)[:, None]
    if whiten_advantages:
        advantages = whiten(advantages, mask)
    return Batch(
        tokens=rollout.tokens,
        prompt_length=rollout.prompt_length,
        response_length=rollout.response_length,
        mask=mask,
        ref_logprobs=reference,
        values=values,
        advantages=blank(jax.lax.stop_gradient(advantages), mask),
        returns=blank(jax.lax.stop_gradient(returns), mask),
        **clean,
    )


def loss(
    params: Any,
    batch: Batch,
    weights: Float[Array, "B R"],
    *,
    forward: Forward,
    policy_loss: Callable[..., Array] = policy.clipped,
    value_clip: float | None = 0.2,
    value_coef: float = 0.1,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
    kl_estimator: Callable[..., Array] = kl.k2,
    importance_cap: float | None = None,
    importance_floor: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """policy loss + value_coef · value loss − entropy_coef · entropy + kl_coef · KL, summed under the weights.

    forward(params, batch)  -> log-probabilities, entropy, values, all f32 [B, R], at the sampling temperature; with None
                            for values there is no critic and no value loss (`algorithms.group`)
    policy_loss             one of `objectives.policy_zoo`, or yours: (logprobs, old_logprobs, advantages) -> [B, R], with a
                            parameter `mask` if it needs one; bind settings with functools.partial, as in
                            partial(policy.clipped, clip=0.1, dual_clip=3.0)
    kl_coef, kl_estimator   a KL to the reference in the loss; k2 is the one whose gradient is right (arXiv 2510.01555)
    importance_cap          multiply the policy loss by truncated importance weights against the sampler's distribution;
                            with `importance_floor` by masked ones, 0 outside [floor, cap]
    """
    mask = batch.mask
    logprobs, entropy, values = forward(params, batch)
    logprobs, entropy = blank(logprobs, mask), blank(entropy, mask)
    old, advantages = blank(batch.logprobs, mask), blank(batch.advantages, mask)

    policy_loss = policy.with_mask(policy_loss, mask)
    policy_terms = policy_loss(logprobs, old, advantages)
    if jnp.shape(policy_terms) != mask.shape:
        raise UserError(
            f"the policy loss returned shape {jnp.shape(policy_terms)}; it must return one number a token, {mask.shape}"
        )
    if importance_cap is not None:
        behaviour = blank(batch.behaviour_logprobs, mask)
        if importance_floor is None:
            importance = policy.truncated_importance(old, behaviour, cap=importance_cap)
        else:
            importance = policy.masked_importance(old, behaviour, floor=importance_floor, cap=importance_cap)
        policy_terms = policy_terms * importance
    total, spread = policy_terms, dict[str, Array]()
    if values is not None:
        values, old_values, returns = (blank(x, mask) for x in (values, batch.values, batch.returns))
        value_terms = value.clipped(values, old_values, returns, clip=value_clip)
        total, spread = total + value_coef * value_terms, {"value/loss": value_terms, "value/mean": values}
    total = total - entropy_coef * entropy
    if kl_coef:
        if batch.ref_logprobs is None:
            raise UserError(
                "a KL in the loss needs the reference's log-probabilities; collect the rollout with a reference"
            )
        total = total + kl_coef * kl_estimator(logprobs, blank(batch.ref_logprobs, mask))

    ratios = policy.ratio(logprobs, old)
    pull = jax.grad(lambda x: jnp.sum(policy_loss(x, old, advantages)))(logprobs)
    spread |= {
        "policy/loss": policy_terms,
        "policy/entropy": entropy,
        "policy/ratio": ratios,
        "policy/approx_kl": kl.k3(old, logprobs),
        "policy/clip_fraction": ((pull == 0) & (advantages != 0)).astype(jnp.float32),
    }
    metrics = {name: weighted_sum(x, weights) for name, x in spread.items()}
    metrics["policy/ratio_deviation"] = weighted_sum(jnp.abs(ratios - 1.0), weights)
    return weighted_sum(total, weights), jax.lax.stop_gradient(metrics)


def explained_variance(values: Float[Array, "B R"], returns: Float[Array, "B R"], mask: Bool[Array, "B R"]) -> Array:
    """1 − Var(return − V) / Var(return) over the masked slots; 1 is a perfect critic, 0 one that knows only the
    mean."""
    error = returns - values

    def variance(x: Array) -> Array:
        return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)

    return 1.0 - variance(error) / jnp.maximum(variance(returns), 1e-8)


def target_kl(limit: float) -> Callable[[Metrics], Array]:
    """For `make_update(stop=…)`: skip a step, and the rest of the update, once the policy has moved by more than
    `limit` nats a token from the one that sampled (Stable-Baselines3 does so at 1.5 times its target_kl)."""
    return lambda metrics: metrics["policy/approx_kl"] > limit
