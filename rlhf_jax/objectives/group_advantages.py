"""Advantages without a critic: responses to one prompt are compared with each other, or with the whole batch.

A function here takes, by name, what it needs of

    scores    f32 [B]     score of a response, less β · KL where the KL is in the reward
    groups    int [B]     rows with the same number answer the same prompt, in any order and of any count a prompt
    valid     bool [B]    rows that hold a response; no other takes part in anything
    length    int [B]     tokens of a response
    returns   f32 [B, R]  reward from a token on: the score upon the last one less β · KL of each
    mask      bool [B, R] tokens that the loss counts
    greedy    f32 [B]     score of the greedy response to the same prompt

and gives f32 [B], or [B, R] where tokens differ; 0 where not valid. `algorithms.group.targets` offers them, to a function
of your own too. Where all of a group score the same the advantage is exactly 0, in f32 too: scores enter as differences
to the group's lowest. A group of one has nothing to compare with: 0. Groups are found by comparing all pairs of rows:
B² booleans.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.errors import UserError
from rlhf_jax.masks import blank, masked_mean, whiten

ADVANTAGES = (
    "grpo",
    "grpo_batch_std",
    "dr_grpo",
    "rloo",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "remax",
    "opo",
    "pass_at_k",
)
"""What a configuration may name as its advantage."""


def members(groups: Int[Array, " B"], valid: Bool[Array, " B"]) -> Bool[Array, "B B"]:
    """[i, j]: whether j is a valid row of the group of i."""
    return (groups[:, None] == groups[None, :]) & valid[None, :]


def above_lowest(
    scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"]
) -> tuple[Float[Array, " B"], Bool[Array, "B B"]]:
    """(score less the lowest of the row's group, 0 where not valid; `members`)."""
    same = members(groups, valid)
    lowest = jnp.min(jnp.where(same, scores[None, :], jnp.inf), axis=1)
    return jnp.where(valid, scores - lowest, 0.0), same


def total(x: Float[Array, " B"], same: Bool[Array, "B B"]) -> Float[Array, " B"]:
    """Σ of x over the row's group."""
    return jnp.sum(jnp.where(same, x[None, :], 0.0), axis=1)


def count(same: Bool[Array, "B B"]) -> Int[Array, " B"]:
    """Rows of the group, at least 1."""
    return jnp.maximum(jnp.sum(same, axis=1), 1)


def varies(scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"]) -> Bool[Array, " B"]:
    """Whether the row's group has two different scores: the groups that dynamic sampling keeps (DAPO, arXiv 2503.14476,
    §3.2)."""
    above, same = above_lowest(scores, groups, valid)
    return jnp.any(same & (above[None, :] > 0), axis=1) & valid


def dr_grpo(scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"]) -> Float[Array, " B"]:
    """score − mean of the group: GRPO without the deviation, which favours prompts whose scores lie close together (Dr.
    GRPO, arXiv 2503.20783). Its loss counts tokens by `weights.fixed_length`. Checked against TRL's
    `scale_rewards: none` and OpenRLHF's `dr_grpo`."""
    above, same = above_lowest(scores, groups, valid)
    return blank(above - total(above, same) / count(same), valid)


def deviation(x: Float[Array, " B"], same: Bool[Array, "B B"], ddof: int) -> Float[Array, " B"]:
    """Standard deviation over the row's group; 0 for a group of `ddof` rows or fewer."""
    size = count(same)
    mean = total(x, same) / size
    squares = jnp.sum(jnp.where(same, jnp.square(x[None, :] - mean[:, None]), 0.0), axis=1)
    variance = squares / jnp.maximum(size - ddof, 1)
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)


def grpo(
    scores: Float[Array, " B"],
    groups: Int[Array, " B"],
    valid: Bool[Array, " B"],
    *,
    ddof: int = 1,
    eps: float = 1e-4,
) -> Float[Array, " B"]:
    """(score − mean) / (std + eps) of the group (GRPO, arXiv 2402.03300, §4.1.2).

    The paper does not say which deviation: `ddof` 1 divides the squares by n − 1, as torch, TRL and verl do, 0 by n. eps
    is TRL's (verl's is 1e-6). Checked against both.
    """
    above, same = above_lowest(scores, groups, valid)
    return dr_grpo(scores, groups, valid) / (deviation(above, same, ddof) + eps)


def grpo_batch_std(
    scores: Float[Array, " B"],
    groups: Int[Array, " B"],
    valid: Bool[Array, " B"],
    *,
    ddof: int = 1,
    eps: float = 1e-4,
) -> Float[Array, " B"]:
    """(score − mean of the group) / (std of the whole batch + eps) (arXiv 2508.08221). Checked against TRL's
    `scale_rewards: batch`."""
    batch = jnp.zeros_like(groups)
    above, everyone = above_lowest(scores, batch, valid)
    return dr_grpo(scores, groups, valid) / (deviation(above, everyone, ddof) + eps)


def rloo(scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"]) -> Float[Array, " B"]:
    """score − mean of the others of the group, which is n / (n − 1) times the distance to the mean (RLOO, arXiv
    2402.14740). Checked against TRL's RLOO and verl; verl leaves a group of one its score, here it is 0."""
    size = count(members(groups, valid))
    return dr_grpo(scores, groups, valid) * jnp.where(size > 1, size / jnp.maximum(size - 1, 1), 0.0)


def opo(
    scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"], length: Int[Array, " B"]
) -> Float[Array, " B"]:
    """score − Σ length · score / Σ length over the group: the baseline of least variance if a response's squared gradient
    grows with its length (OPO, arXiv 2505.23585). Meant for one update a rollout. Checked against verl's `opo`."""
    above, same = above_lowest(scores, groups, valid)
    long = length.astype(scores.dtype)
    return blank(above - total(long * above, same) / jnp.maximum(total(long, same), 1.0), valid)


def remax(scores: Float[Array, " B"], greedy: Float[Array, " B"], valid: Bool[Array, " B"]) -> Float[Array, " B"]:
    """score − score of the greedy response to the same prompt (ReMax, arXiv 2310.10505). Needs one more
    response a prompt, sampled at temperature 0 by the same policy, and no group. Checked against verl's `remax`."""
    return blank(scores - greedy, valid)


def reinforce_plus_plus(returns: Float[Array, "B R"], mask: Bool[Array, "B R"]) -> Float[Array, "B R"]:
    """Reward from each token on, shifted and scaled to mean 0 and deviation 1 over all tokens of the batch (REINFORCE++,
    arXiv 2501.03262): put the KL in the reward. Exactly 0 where all returns are equal, or there is one only.
    Checked against verl and OpenRLHF; the deviation has n − 1, as verl's."""
    lowest = jnp.min(jnp.where(mask, returns, jnp.inf))
    return whiten(jnp.where(mask, returns - lowest, 0.0), mask)


def reinforce_plus_plus_baseline(
    scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"], mask: Bool[Array, "B R"]
) -> Float[Array, "B R"]:
    """score − mean of the group at each token, then shifted and scaled over all tokens of the batch (REINFORCE++-baseline,
    arXiv 2501.03262): put the KL in the loss, as k2. Long responses count more in that mean and deviation, so the
    advantage of an all-equal group is 0 only where the shift is. Checked against verl and OpenRLHF."""
    return whiten(jnp.broadcast_to(dr_grpo(scores, groups, valid)[:, None], mask.shape), mask)


def pass_at_k(
    scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"], *, k: int = 2
) -> Float[Array, " B"]:
    """How much the response adds to the best of k, over all k-subsets T of its group that hold it:

        mean_T [max T − max (T without it)] = mean over (k − 1)-subsets S of the others of max(score − max S, 0)

    n / k times s^(loo−1) of PKPO (arXiv 2505.15201, eq. 33), which it was checked against; with k = n it is arXiv
    2503.19595's leave-one-out, the best response's lead over the second best, as verl's `grpo_passk` without its
    deviation. Scores may be any numbers; with 0 and 1 the best of k is pass@k. 0 in a group of fewer than k.
    Raises UserError for k below 2 (pass@1 is `rloo`).
    """
    if k < 2:
        raise UserError(f"pass@k needs k of 2 or more, got {k}; pass@1 is rloo")
    above, same = above_lowest(scores, groups, valid)
    others = same & ~jnp.eye(same.shape[0], dtype=bool)
    size = jnp.sum(others, axis=1, keepdims=True)
    place = jnp.arange(same.shape[0])[None, :]
    ordered = jnp.sort(jnp.where(others, above[None, :], -jnp.inf), axis=1, descending=True)
    # the j-th best of m others is the best of S in C(m − 1 − j, k − 2) of C(m, k − 1) cases; in none where m < k − 1
    chance = (k - 1) / jnp.maximum(size, 1).astype(scores.dtype)
    for drawn in range(k - 2):
        chance = chance * jnp.maximum(size - 1 - place - drawn, 0) / jnp.maximum(size - 1 - drawn, 1)
    counted = (place < size) & valid[:, None]
    gain = jnp.maximum(above[:, None] - jnp.where(counted, ordered, 0.0), 0.0)
    return jnp.sum(jnp.where(counted, chance * gain, 0.0), axis=1)


def spread(scores: Float[Array, " B"], groups: Int[Array, " B"], valid: Bool[Array, " B"]) -> Float[Array, ""]:
    """The mean deviation (n − 1) of scores within their groups, for the log."""
    above, same = above_lowest(scores, groups, valid)
    return jax.lax.stop_gradient(masked_mean(deviation(above, same, 1), valid))
