"""Preference losses without a reference, and the likelihood term that mixtures add: one a pair, unreduced.

Arguments and `per_token` as in `preference`; c and r are the chosen and the rejected response's log-probability.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.objectives.kl import LIMIT


def simpo(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """SimPO (arXiv 2405.14734, eq. 6): −log σ(β (c − r) − γ), nats, c and r means over tokens (`per_token`).

    γ is the margin that is wanted, in the units of β (c − r). The authors' https://github.com/princeton-nlp/SimPO writes it
    as β · gamma_beta_ratio, TRL's CPOTrainer as β · (simpo_gamma / β): the same; their defaults, 0.5 with β = 2 and 0.1.
    ε as in `preference.sigmoid`, which both have. Checked against those two.
    """
    h = beta * (chosen - rejected) - gamma
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(h) - label_smoothing * jax.nn.log_sigmoid(-h)


def cpo(
    chosen: Float[Array, " B"], rejected: Float[Array, " B"], *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Float[Array, " B"]:
    """CPO's preference part (arXiv 2401.08417, eq. 3): −log σ(β (c − r)), nats, of sums over tokens: DPO under a uniform
    reference. The paper adds the likelihood of the chosen response: mix in `sft`. Checked against TRL's and EasyDeL's
    CPO trainers, which weigh that part with cpo_alpha (1.0)."""
    h = beta * (chosen - rejected)
    return -(1.0 - label_smoothing) * jax.nn.log_sigmoid(h) - label_smoothing * jax.nn.log_sigmoid(-h)


def orpo(chosen: Float[Array, " B"], rejected: Float[Array, " B"], *, beta: float = 0.1) -> Float[Array, " B"]:
    """ORPO (arXiv 2403.07691, eqs. 4, 6 and 7): −c − β log σ(log odds(e^c) − log odds(e^r)), nats, odds(p) = p / (1 − p), with
    c and r means over tokens (`per_token`); β is the paper's λ, and −c its SFT loss.

    Checked against TRL's ORPOTrainer and the authors' https://github.com/xfactlab/orpo; both take their SFT part over all tokens
    of a batch alike, TRL's with those of the prompt, where here every pair counts the same. A mean above
    −2e-9, a response that is certain, is taken as that: its odds have no end.
    """
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    return -chosen - beta * jax.nn.log_sigmoid(log_odds)


def alphapo(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    alpha: float = 0.25,
) -> Float[Array, " B"]:
    """AlphaPO (arXiv 2501.03884): SimPO on a reward of another shape, −log σ(β (ρ(c) − ρ(r)) − γ), nats, where
    ρ(x) = (1 − e^(−α x)) / α and c and r are means over tokens (`per_token`); α → 0 is SimPO.

    −α x is bounded by ±20 before the exponential: a response past it gets no gradient. β and γ are `simpo`'s, γ in the units
    of β ρ; small positive α did best in the paper. Checked against the paper's form as TRL's CPOTrainer (loss_type "simpo",
    alpha) and EasyDeL's CPO have it; those raise e^x to −α, which underflows in f32.
    """

    if alpha == 0:
        return simpo(chosen, rejected, beta=beta, gamma=gamma)
    good, bad = (jnp.clip(-alpha * x, -LIMIT, LIMIT) for x in (chosen, rejected))
    difference = -jnp.exp(bad) * jnp.expm1(good - bad) / alpha  # two powers apart, without cancellation
    return -jax.nn.log_sigmoid(beta * difference - gamma)


def sft(chosen: Float[Array, " B"], rejected: Float[Array, " B"]) -> Float[Array, " B"]:
    """−c, nats a token (`per_token`): the likelihood term of RPO and MPO mixtures (arXiv 2404.19733, eq. 1, whose NLL is
    divided by the length of its response; arXiv 2411.10442). `rejected` is not read.

    Here every pair counts the same, as in 2404.19733; TRL's loss_type "sft" means over all tokens of a batch alike. The two
    agree where responses are equally long.
    """
    return -chosen


def _log_odds(x: Float[Array, " B"]) -> Float[Array, " B"]:
    """log(e^x / (1 − e^x)) for x < 0, without cancellation on either side of −log 2, at most 20."""
    x = jnp.minimum(x, -jnp.exp(jnp.asarray(-LIMIT, x.dtype)))
    near = x > -0.6931471805599453
    close = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x)))
    return x - jnp.where(near, close, far)


for _loss in (simpo, orpo, alphapo, sft):
    _loss.per_token = True  # type: ignore[attr-defined]
