"""How far a student's next-token distribution is from its teacher's: divergences over the whole vocabulary, one a token.

Arguments are log-probabilities of all V tokens at the same place, [..., V]; the answer is [...], in nats, never below 0 but for
rounding. A log-probability below FLOOR, −∞ included, counts as FLOOR, and no gradient passes there: an id that one model rules
out costs much, not NaN. Student first, teacher second, in all of them.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.errors import UserError

FLOOR = -1e4
"""The least log-probability that is told from others, nats; exp of it is 0 in f32 and f64."""

DIVERGENCES = ("jsd", "forward_kl", "reverse_kl")
"""The functions that a configuration may name."""


def forward_kl(student: Float[Array, "*b V"], teacher: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """KL(p ‖ q) = Σ p (log p − log q), p the teacher, q the student: the student must cover what the teacher may say.

    Its gradient is that of the cross-entropy to the teacher's distribution (arXiv 1503.02531).
    """
    student, teacher = _bounded(student), _bounded(teacher)
    return jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)


def reverse_kl(student: Float[Array, "*b V"], teacher: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """KL(q ‖ p) = Σ q (log q − log p), q the student: it must not say what the teacher would not (MiniLLM, arXiv 2306.08543,
    where it is one of sequences; here token by token, as in arXiv 2306.13649)."""
    return forward_kl(teacher, student)


def jsd(student: Float[Array, "*b V"], teacher: Float[Array, "*b V"], *, beta: float = 0.5) -> Float[Array, "*b"]:
    """Generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, eq. 1), p the teacher and q the student:

        β KL(p ‖ m) + (1 − β) KL(q ‖ m)        m = β p + (1 − β) q

    It vanishes at both ends, and divided by β, or by 1 − β, tends to the forward, or the reverse, KL there: β = 0 is
    therefore `forward_kl` and β = 1 `reverse_kl`. At most −β log β − (1 − β) log(1 − β). UserError unless 0 ≤ β ≤ 1.
    Checked against TRL's GKD trainer (https://github.com/huggingface/trl) and by these limits; EasyDeL's has the
    two roles exchanged, and TRL's first version took m as a mean of log-probabilities.
    """
    if not 0 <= beta <= 1:
        raise UserError(f"beta of jsd must be between 0 (forward KL) and 1 (reverse KL), got {beta}")
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    student, teacher = _bounded(student), _bounded(teacher)
    mixed = jnp.logaddexp(math.log(beta) + teacher, math.log1p(-beta) + student)
    terms = beta * jnp.exp(teacher) * (teacher - mixed) + (1 - beta) * jnp.exp(student) * (student - mixed)
    return jnp.sum(terms, axis=-1)


def _bounded(logprobs: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
    """`where` and not `maximum`, whose gradient is shared between equals."""
    return jnp.where(logprobs > FLOOR, logprobs, FLOOR)
