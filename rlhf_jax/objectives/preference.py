"""Losses of pairs of responses under a policy and a reference, one a pair, unreduced; every preference loss by its name.

Arguments are log-probabilities of whole responses, [B], nats: sums over tokens, or means where the loss says `per_token = True`.
A loss of pairs begins with (chosen, rejected), one of single responses with (logprobs, desirable); what else it needs it takes
by name. u = log π/π_ref of the chosen response, v of the rejected one, h = u − v; β > 0 is how strongly the policy is
held to the reference. One that compares rows with each other says `spans_rows = True`.

"TRL" below is https://github.com/huggingface/trl (DPOTrainer at f2cd577), "EasyDeL" https://github.com/erfanzar/EasyDeL.
Those without a reference are in `preference_free`, those of single responses in `preference_unpaired`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.errors import UserError
from rlhf_jax.objectives.kl import LIMIT
from rlhf_jax.objectives.preference_free import alphapo, cpo, orpo, sft, simpo
from rlhf_jax.objectives.preference_unpaired import apo_zero_unpaired, bco, kto

__all__ = [
    "LOSSES",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "cpo",
    "discopop",
    "exo",
    "hinge",
    "ipo",
    "kto",
    "nca",
    "orpo",
    "robust",
    "sft",
    "sigmoid",
    "simpo",
    "sppo_hard",
]

LOSSES = (
    *("sigmoid", "robust", "hinge", "ipo", "exo", "nca", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"),
    *("discopop", "bco_pair", "simpo", "orpo", "cpo", "alphapo", "sft", "kto", "bco", "apo_zero_unpaired"),
)
"""The functions that a configuration may name."""


def sigmoid(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """DPO (arXiv 2305.18290, eq. 7): −(1 − ε) log σ(β h) − ε log σ(−β h), nats.

    ε > 0 is conservative DPO, which takes a share ε of the labels to be flipped and stops at β h = log((1 − ε) / ε)
    (https://ericmitchell.ai/cdpo.pdf, eq. 3). Checked against the authors' code
    (https://github.com/eric-mitchell/direct-preference-optimization), EasyDeL and OpenRLHF; TRL knows it without ε only.
    """
    h = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return _smoothed(h, label_smoothing)


def robust(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Float[Array, " B"]:
    """Robust DPO (arXiv 2403.00409): [−(1 − ε) log σ(β h) + ε log σ(−β h)] / (1 − 2ε), an unbiased estimate of DPO's loss where
    a share ε of the labels is flipped. It has no lower bound. ε = 0.1 is the paper's. UserError unless 0 ≤ ε < ½.
    Checked against TRL and EasyDeL, which agree."""
    if not 0 <= label_smoothing < 0.5:
        raise UserError(
            f"label_smoothing of robust is a share of flipped labels, 0 to below 0.5; got {label_smoothing}"
        )
    h = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    right, wrong = -jax.nn.log_sigmoid(h), -jax.nn.log_sigmoid(-h)
    return ((1.0 - label_smoothing) * right - label_smoothing * wrong) / (1.0 - 2.0 * label_smoothing)


def hinge(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """max(0, 1 − β h): the hinge of SLiC-HF (arXiv 2305.10425) on the normalised likelihoods of RSO (arXiv 2309.06657). No
    gradient past the margin 1 / β. Checked against TRL and EasyDeL, which agree."""
    return jax.nn.relu(1.0 - beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def ipo(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """IPO (arXiv 2310.12036, eq. 17): (h − 1 / (2β))², nats²; β is the paper's τ, and a margin of 1 / (2β) is enough.

    `per_token`: u and v are means over tokens. The paper writes sums, as do DPO's authors' code and OpenRLHF; TRL divides by the
    length, on word of IPO's authors that their results are of this form, and so do EasyDeL and
    https://github.com/ContextualAI/HALOs. Followed are the latter three.
    """
    return jnp.square((chosen - ref_chosen) - (rejected - ref_rejected) - 1.0 / (2.0 * beta))


def exo(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
) -> Float[Array, " B"]:
    """EXO for pairs (arXiv 2402.00856, eq. 16): the reverse KL(q ‖ p), nats, of q = (σ(β h), σ(−β h)) to p = (1 − ε, ε).

    Smallest at β h = log((1 − ε) / ε). UserError unless 0 < ε < 1: at 0 it is infinite. Checked against TRL and EasyDeL; the
    authors' https://github.com/haozheji/exact-optimization leaves p unnormalised, (1, e^−10), a difference below 5e-5.
    """
    if not 0 < label_smoothing < 1:
        raise UserError(f"label_smoothing of exo must be above 0 and below 1 (1e-3, say); got {label_smoothing}")
    h = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    ahead, behind = jax.nn.log_sigmoid(h), jax.nn.log_sigmoid(-h)
    ahead_term = jax.nn.sigmoid(h) * (ahead - jnp.log1p(-label_smoothing))
    return ahead_term + jax.nn.sigmoid(-h) * (behind - jnp.log(label_smoothing))


def nca(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """NCA for pairs (arXiv 2402.05369): −log σ(β u) − ½ log σ(−β u) − ½ log σ(−β v), nats. It holds the chosen response near
    β u = log 2 instead of raising the difference alone. Checked against TRL, EasyDeL and the authors'
    https://github.com/thu-ml/Noise-Contrastive-Alignment, which agree."""
    u, v = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    return -jax.nn.log_sigmoid(u) - 0.5 * jax.nn.log_sigmoid(-u) - 0.5 * jax.nn.log_sigmoid(-v)


def sppo_hard(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """SPPO (arXiv 2405.00675, eq. 4.7) with win rates 1 and 0: (u − 1 / (2β))² + (v + 1 / (2β))², nats²; β = 1 / η.

    The paper's η is about 1000, so its β about 1e-3. Checked against TRL and EasyDeL; the authors'
    https://github.com/uclaml/SPPO takes half of it, which a learning rate cannot tell apart from the sum followed here.
    """
    u, v = chosen - ref_chosen, rejected - ref_rejected
    return jnp.square(u - 0.5 / beta) + jnp.square(v + 0.5 / beta)


def aot(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Paired AOT (arXiv 2406.05882): the policy's margins log π(chosen) / π(rejected), as a distribution over the batch, are to
    dominate the reference's. The row whose margin is the k-th smallest is compared with the k-th smallest margin of the
    reference, d apart, at −(1 − ε) log σ(β d) − ε log σ(−β d), nats.

    Quantiles are of the minibatch, rows unweighted: `spans_rows`. Each row keeps its own loss, where TRL and EasyDeL ("aot"),
    against which it was checked, return the same numbers in order of their rank.
    """
    margin, reference = chosen - rejected, jnp.sort(ref_chosen - ref_rejected)
    return _smoothed(beta * (margin - reference[_rank(margin)]), label_smoothing)


def aot_unpaired(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Unpaired AOT (arXiv 2406.05882): the rewards u of the chosen responses are to dominate the v of the rejected ones, k-th
    smallest against k-th smallest, whichever pairs they came from. Loss, units and `spans_rows` as for `aot`; a row's loss
    is that of its chosen response. Checked against TRL; EasyDeL, like TRL before it renamed the two, calls it "aot_pair"."""
    u, v = chosen - ref_chosen, rejected - ref_rejected
    return _smoothed(beta * (u - jnp.sort(v)[_rank(u)]), label_smoothing)


def apo_zero(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """APO-zero (arXiv 2408.06266, eq. 7): 1 − σ(β u) + σ(β v), where chosen responses are better than the policy's own: up they
    go, the others down. Checked against TRL and EasyDeL, which agree."""
    return jax.nn.sigmoid(-beta * (chosen - ref_chosen)) + jax.nn.sigmoid(beta * (rejected - ref_rejected))


def apo_down(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """APO-down (arXiv 2408.06266, eq. 8): σ(β u) + 1 − σ(β h), where the policy's own responses are better than the chosen ones:
    both go down, the rejected one further. Checked against TRL and EasyDeL, which agree."""
    u, v = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    return jax.nn.sigmoid(u) + jax.nn.sigmoid(v - u)


def discopop(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.05,
    tau: float = 0.05,
) -> Float[Array, " B"]:
    """DiscoPOP (arXiv 2406.08414, eq. 5), found by a language model: (1 − m) · (−log σ(β h)) + m · exp(−β h) with
    m = σ(β h / τ). Not convex: it rises a little about h = 0.

    β = τ = 0.05 are the paper's. β h is bounded by ±20 before the exponential. Checked against TRL and the authors'
    https://github.com/luchris429/DiscoPOP; EasyDeL's τ is 1 by default.
    """
    h = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    mixed = jax.nn.sigmoid(h / tau)
    return (1.0 - mixed) * -jax.nn.log_sigmoid(h) + mixed * jnp.exp(-jnp.clip(h, -LIMIT, LIMIT))


def bco_pair(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    ref_chosen: Float[Array, " B"],
    ref_rejected: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """BCO on pairs (arXiv 2404.04656): −log σ(β u − δ) − log σ(δ − β v), nats, δ the mean of all β u and β v, detached.

    δ is of the minibatch (`spans_rows`), as in EasyDeL; TRL's "bco_pair" has none (δ = 0). The paper averages over the data as
    they pass; `preference_unpaired.bco` says why that is not done here.
    """
    u, v = beta * (chosen - ref_chosen), beta * (rejected - ref_rejected)
    shift = jax.lax.stop_gradient(jnp.mean(u + v) / 2.0)
    return -jax.nn.log_sigmoid(u - shift) - jax.nn.log_sigmoid(shift - v)


def _smoothed(h: Float[Array, " B"], share: float) -> Float[Array, " B"]:
    """−log σ(h), a share of the labels taken to be flipped."""
    return -(1.0 - share) * jax.nn.log_sigmoid(h) - share * jax.nn.log_sigmoid(-h)


def _rank(x: Float[Array, " B"]) -> Array:
    """int32 [B]: how many of the others are smaller; equal ones in order."""
    return jnp.argsort(jnp.argsort(x))


ipo.per_token = True  # type: ignore[attr-defined]
for _loss in (aot, aot_unpaired, bco_pair):
    _loss.spans_rows = True  # type: ignore[attr-defined]
