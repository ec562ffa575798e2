"""The settings of PPO and of its rewards, each with its default and where that comes from."""

import math
from dataclasses import dataclass, field

from rlhf_jax.runs import ranges


@dataclass(frozen=True)
class Reward:
    """One part of the reward: a model or a function, and its weight."""

    model: str = ""
    """Folder or hub name of a sequence-classification reward model."""
    function: str = ""
    """"file.py:function", called as function(prompts, responses, columns) -> one number a response."""
    weight: float = 1.0
    """What it counts in the sum."""
    axis: int = 0
    """Which output of a reward model with several."""
    axes: dict[str, float] = field(default_factory=dict)
    """What each of its axes counts, by name, as in {helpful: 1.0, harmless: 0.5}; the score is their weighted sum, and every
    axis is logged. Empty: `axis` alone."""
    window: int = 0
    """Tokens of prompt, response and EOS that a reward model reads; 0: both windows and one more."""

    def __post_init__(self) -> None:
        ranges.check(bool(self.model) != bool(self.function), "model or function must be given, and not both")
        ranges.check(math.isfinite(self.weight), f"weight must be a finite number, got {self.weight}")
        ranges.non_negative("axis", self.axis)
        for name, weight in self.axes.items():
            ranges.check(math.isfinite(weight), f"axes.{name} must be a finite number, got {weight}")
        ranges.check(
            not self.axes or bool(self.model), "axes are those of a model; a function returns its parts itself"
        )
        ranges.check(not self.axes or not self.axis, "axis must be left out where axes says what each counts")
        ranges.non_negative("window", self.window)


@dataclass(frozen=True)
class PPO:
    """Every choice of the algorithm, by default that of the TL;DR reproduction (arXiv 2403.17031) where it has one."""

    epochs: int = 4
    """Passes over each rollout."""
    minibatches: int = 1
    """Optimizer steps a pass; rows are dealt anew in each."""
    microbatches: int = 1
    """Pieces a minibatch is cut into to save memory; gradients do not depend on it."""
    gamma: float = 1.0
    """Discount a token."""
    lam: float = 0.95
    """λ of the generalised advantage estimate."""
    value_lam: float | None = None
    """Another λ for the value targets (VC-PPO, arXiv 2503.01491)."""
    length_adaptive_alpha: float | None = None
    """λ of the advantages by length, 1 − 1/(α · length) (VAPO, arXiv 2504.05118)."""
    kl_coef: float = 0.05
    """β, per nat."""
    kl_in: str = "reward"
    """Where the KL to the reference goes: "reward" (detached) or "loss"."""
    kl_estimator: str = ""
    """k1, k2 or k3; empty is k1 in the reward (arXiv 2512.21852) and k2 in the loss (2510.01555)."""
    adaptive_kl_target: float | None = None
    """Nats a response that β is steered towards (arXiv 1909.08593); None keeps β."""
    adaptive_kl_horizon: float = 10_000.0
    """Responses over which the controller acts."""
    target_kl: float | None = None
    """Stop an update once the policy has moved this many nats a token from the one that sampled."""
    policy_loss: str = "clipped"
    """A function of rlhf_jax.objectives.policy_zoo, or "file.py:function" of yours."""
    clip: float | None = None
    """How far the ratio may move from 1 before a token stops pulling (arXiv 1707.06347); None is the loss's own: 0.2 for
    clipped, 3e-4 for gspo."""
    clip_high: float | None = None
    """Upper bound of the ratio's clip, where it differs (arXiv 2503.14476)."""
    dual_clip: float | None = None
    """Bound c > 1 on the loss of tokens with a negative advantage (arXiv 1912.09729)."""
    tau_pos: float | None = None
    """Temperature of sapo where the advantage is positive; None is 1."""
    tau_neg: float | None = None
    """And where it is not; None is 1.05 (arXiv 2511.20347)."""
    penalty: float | None = None
    """Coefficient of kl_penalty; None is 1 (arXiv 1707.06347)."""
    value_clip: float | None = 0.2
    """How far a value may move from that of the rollout before its error stops pulling; None does not clip."""
    value_coef: float = 0.1
    """Of the value loss in the sum."""
    entropy_coef: float = 0.0
    """Bonus a nat of entropy."""
    weights: str = "token_mean"
    """How tokens count: token_mean, sequence_mean or fixed_length."""
    whiten_advantages: bool = True
    """Shift and scale advantages to mean 0 and deviation 1 over the rollout."""
    whiten_rewards: bool = False
    """Scale token rewards to deviation 1, their mean kept."""
    reward_clip: float | None = None
    """Scores are clipped to ± this."""
    missing_eos_penalty: float | None = -1.0
    """The score of a response cut at the window; None leaves it its own."""
    mask_truncated: bool = False
    """Leave responses cut at the window out of the loss (arXiv 2503.14476)."""
    bootstrap_truncated: bool = False
    """Take a response cut at the window to go on: its last value stands for the rest."""
    overlong_buffer: int = 0
    """Tokens before the window's end over which a length penalty grows to 1 (arXiv 2503.14476)."""
    importance_cap: float | None = None
    """Correct for truncated or stale sampling by importance weights up to this."""
    importance_floor: float | None = None
    """Leave tokens out whose importance weight is below this or above the cap (IcePop, arXiv 2510.18855); None caps them."""
    critic_warmup: int = 0
    """Iterations in which only the value model learns."""
    value_lr: float | None = None
    """Learning rate of the value model; None is the policy's."""
    reference_every: int = 0
    """Iterations between moves of the reference towards the policy (TR-DPO, arXiv 2404.09656); 0 keeps it."""
    reference_share: float = 1.0
    """How far it moves: 1 copies the policy."""

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatches", "microbatches"):
            ranges.at_least(name, getattr(self, name), 1)
        for name in ("gamma", "lam", "reference_share"):
            ranges.fraction(name, getattr(self, name))
        for name in ("kl_coef", "value_coef", "entropy_coef", "overlong_buffer", "critic_warmup", "reference_every"):
            ranges.non_negative(name, getattr(self, name))
        ranges.positive("adaptive_kl_horizon", self.adaptive_kl_horizon)
        optional = (
            "clip",
            "length_adaptive_alpha",
            "adaptive_kl_target",
            "target_kl",
            "clip_high",
            "tau_pos",
            "tau_neg",
            "penalty",
            "value_clip",
            "reward_clip",
        )
        for name in (*optional, "importance_cap", "importance_floor", "value_lr"):
            if getattr(self, name) is not None:
                ranges.positive(name, getattr(self, name))
        if self.value_lam is not None:
            ranges.fraction("value_lam", self.value_lam)
        penalty, cap, floor = self.missing_eos_penalty, self.importance_cap, self.importance_floor
        ranges.check(
            floor is None or (cap is not None and floor < cap),
            f"importance_floor must be below importance_cap, got {floor} and {'none' if cap is None else cap}",
        )
        ranges.check(penalty is None or math.isfinite(penalty), f"missing_eos_penalty must be finite, got {penalty}")
        ranges.check(self.dual_clip is None or self.dual_clip > 1, f"dual_clip must be above 1, got {self.dual_clip}")
        ranges.choice("kl_in", self.kl_in, ("reward", "loss"))
        ranges.choice("kl_estimator", self.kl_estimator or "k1", ("k1", "k2", "k3"))
        ranges.choice("weights", self.weights, ("token_mean", "sequence_mean", "fixed_length"))
        if self.kl_in == "loss":
            ranges.check(self.adaptive_kl_target is None, "adaptive_kl_target needs kl_in: reward")
