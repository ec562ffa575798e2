"""The settings of policy gradients without a critic, each with its default and where that comes from."""

import math
from dataclasses import dataclass

from rlhf_jax.runs import ranges


@dataclass(frozen=True)
class GRPO:
    """Every choice of a critic-free algorithm, by default that of GRPO (arXiv 2402.03300) where it has one."""

    advantage: str = "grpo"
    """A function of rlhf_jax.objectives.group_advantages, or "file.py:function" of yours."""
    k: int = 2
    """Of pass_at_k: the best of how many."""
    policy_loss: str = "clipped"
    """A function of rlhf_jax.objectives.policy_zoo, or "file.py:function" of yours."""
    clip: float | None = None
    """Its lower bound (of the ratio, or of its logarithm in geometric_mean); None is the function's own, 0.2 for clipped."""
    clip_high: float | None = None
    """Its upper bound, where it differs (arXiv 2503.14476)."""
    dual_clip: float | None = None
    """Bound c > 1 on the loss of tokens with a negative advantage (arXiv 1912.09729)."""
    tau_pos: float | None = None
    """Temperature of sapo where the advantage is positive; None is 1."""
    tau_neg: float | None = None
    """And where it is not; None is 1.05 (arXiv 2511.20347)."""
    penalty: float | None = None
    """Coefficient of kl_penalty; None is 1 (arXiv 1707.06347)."""
    weights: str = "sequence_mean"
    """How tokens count: sequence_mean (GRPO, GSPO), token_mean (DAPO) or fixed_length (Dr. GRPO)."""
    epochs: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimizer steps a pass; rows are dealt anew in each."""
    microbatches: int = 1
    """Pieces a minibatch is cut into to save memory; gradients do not depend on it."""
    kl_coef: float = 0.04
    """β, per nat; the paper's."""
    kl_in: str = "loss"
    """Where the KL to the reference goes: "loss", or "reward" (detached)."""
    kl_estimator: str = ""
    """k1, k2 or k3; empty is k3 in the loss (the paper's) and k1 in the reward (arXiv 2512.21852)."""
    entropy_coef: float = 0.0
    """Bonus a nat of entropy."""
    target_kl: float | None = None
    """Stop an update once the policy has moved this many nats a token from the one that sampled."""
    reward_clip: float | None = None
    """Scores are clipped to ± this."""
    missing_eos_penalty: float | None = None
    """The score of a response cut at the window; None leaves it its own."""
    overlong_buffer: int = 0
    """Tokens before the window's end over which a length penalty grows to 1 (arXiv 2503.14476)."""
    length_coef: float = 0.0
    """Taken from the score for each token of the response (arXiv 2503.04697)."""
    mask_truncated: bool = False
    """Leave responses cut at the window out of the loss (arXiv 2503.14476)."""
    drop_flat: bool = False
    """Leave prompts whose responses all score the same out of the loss (arXiv 2503.14476); none is sampled in their place."""
    importance_cap: float | None = None
    """Correct for truncated or stale sampling by importance weights up to this."""
    importance_floor: float | None = None
    """Leave tokens out whose importance weight is below this or above the cap (IcePop, arXiv 2510.18855); None caps them."""
    reference_every: int = 0
    """Iterations between moves of the reference towards the policy (TR-DPO, arXiv 2404.09656); 0 keeps it."""
    reference_share: float = 1.0
    """How far it moves: 1 copies the policy."""

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches", "microbatches"):
            ranges.at_least(name, getattr(self, name), 1)
        ranges.at_least("k", self.k, 2)
        for name in ("kl_coef", "entropy_coef", "overlong_buffer", "length_coef", "reference_every"):
            ranges.non_negative(name, getattr(self, name))
        optional = ("clip", "clip_high", "tau_pos", "tau_neg", "penalty", "target_kl", "reward_clip")
        for name in (*optional, "importance_cap", "importance_floor"):
            if getattr(self, name) is not None:
                ranges.positive(name, getattr(self, name))
        penalty, cap, floor = self.missing_eos_penalty, self.importance_cap, self.importance_floor
        ranges.check(penalty is None or math.isfinite(penalty), f"missing_eos_penalty must be finite, got {penalty}")
        ranges.check(self.dual_clip is None or self.dual_clip > 1, f"dual_clip must be above 1, got {self.dual_clip}")
        ranges.check(
            floor is None or (cap is not None and floor < cap),
            f"importance_floor must be below importance_cap, got {floor} and {'none' if cap is None else cap}",
        )
        ranges.fraction("reference_share", self.reference_share)
        ranges.choice("kl_in", self.kl_in, ("reward", "loss"))
        ranges.choice("kl_estimator", self.kl_estimator or "k1", ("k1", "k2", "k3"))
        ranges.choice("weights", self.weights, ("token_mean", "sequence_mean", "fixed_length"))
