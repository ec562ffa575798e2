"""The few shapes that travel between the stages, and the letters that name their axes.

    B rows   G prompts   P prompt window   R response window   T = P + R
    D model   N heads   K kv heads   H head dim   F feed-forward   V vocabulary   L layers   A reward axes

Index t of every [B, R] array is about response token t: its log-probability, the value before it, the reward upon it.
Nothing is shifted again. Rows are contiguous and right-padded: prompt, response, padding. Masks come from lengths,
never from token ids, so a padding id that is also the EOS is safe.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from flax import struct
from jaxtyping import Array

from rlhf_jax.errors import UserError
from rlhf_jax.masks import response_mask

Params = dict[str, Any]
"""Arrays by path; a frozen matrix may be a QArray (`model.quantised`)."""
Metrics = dict[str, Array]
Rows = Any
"""An array, of NumPy on the host until a batch of it is taken, of JAX from then on."""

STOP_EOS, STOP_LENGTH, STOP_SEQUENCE = 0, 1, 2


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits: temperature first, then top-k, top-p, min-p, each over what the last one kept."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy (evaluation only)."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens whose mass reaches top_p (arXiv 1904.09751)."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the likeliest (arXiv 2407.01082)."""
    stop: tuple[tuple[int, ...], ...] = ()
    """Token-id sequences that end a response, besides the EOS ids of the model."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (keep all) or a count, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1 (keep all), got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise UserError(f"min_p must be at least 0 (keep all) and below 1, got {self.min_p}")
        if any(len(sequence) == 0 for sequence in self.stop):
            raise UserError("stop holds an empty sequence; each needs at least one token id")

    @property
    def truncates(self) -> bool:
        """Whether some tokens can never be drawn, so that the sampled distribution is not the policy's own."""
        return self.temperature == 0 or self.top_k > 0 or self.top_p < 1 or self.min_p > 0


@struct.dataclass
class Demonstrations:
    """Right-padded rows. `loss_mask[b, t]` says whether token t is one to learn (a completion token, the EOS
    included)."""

    tokens: Rows
    """int32 [B, T]."""
    length: Rows
    """int32 [B]."""
    loss_mask: Rows
    """bool [B, T]; token 0 is predicted by nothing and is never learnt."""
    segment: Rows = None
    """int32 [B, T] where a row holds several texts: which of them each token is of, numbered from 0; the first token of
    each is not learnt. None: one text a row."""


@struct.dataclass
class Pairs:
    """Two texts a row, right-padded, and what judges said of them."""

    chosen: Rows
    """int32 [B, T]: prompt, response, one EOS."""
    chosen_length: Rows
    rejected: Rows
    rejected_length: Rows
    label: Rows
    """f32 [B]: share of the decisive judges who prefer `chosen`; ½ where there is none."""
    margin: Rows
    """f32 [B], ≥ 0."""
    weight: Rows
    """f32 [B], ≥ 0: how much the row counts."""
    tie: Rows = None
    """f32 [B]: share of all judges, who call the two equal."""
    judge: Rows = None
    """int32 [B]: number of the judge."""
    axis: Rows = None
    """int32 [B]: the reward axis that the row is about."""


@struct.dataclass
class Preferences:
    """One prompt a row with the K responses to it that a preference loss reads, right-padded: the chosen and the rejected one
    (K = 2); or a single one that was judged alone (K = 1), perhaps followed by a response to another prompt (K = 2), of
    which only the drift from the reference is measured."""

    tokens: Rows
    """int32 [B, K, T]: prompt and response, contiguous."""
    prompt_length: Rows
    """int32 [B]."""
    response_length: Rows
    """int32 [B, K], the EOS included."""
    label: Rows
    """f32 [B]: probability that the first response is the better one, or that it is a good one."""
    weight: Rows
    """f32 [B], ≥ 0: how much the row counts."""
    ref_logprobs: Rows = None
    """f32 [B, K], nats, of whole responses under the reference; None where no loss reads them."""


@struct.dataclass
class Rankings:
    """K texts a row, right-padded, in a judge's order."""

    tokens: Rows
    """int32 [B, K, T]: prompt, response, one EOS; rows with fewer texts are filled up."""
    length: Rows
    """int32 [B, K], ≥ 1."""
    ranks: Rows
    """int32 [B, K]: 0 is best, equal ranks are a tie, no number is left out; −1 is no text."""
    weight: Rows
    """f32 [B], ≥ 0: how much the row counts."""
    axis: Rows
    """int32 [B]: the reward axis that the row is about."""


@struct.dataclass
class Ratings:
    """One text a row, right-padded, and how a judge rated it."""

    tokens: Rows
    """int32 [B, T]: prompt, response, one EOS."""
    length: Rows
    """int32 [B]."""
    rating: Rows
    """f32 [B]: the grade, 0 … C, or a number to predict."""
    weight: Rows
    """f32 [B], ≥ 0: how much the row counts."""
    axis: Rows
    """int32 [B]: the reward axis that the row is about."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of one iteration, on the host."""

    tokens: np.ndarray
    """int32 [G, P], right-padded."""
    length: np.ndarray
    """int32 [G]."""
    ids: np.ndarray
    """int32 [G]: the prompt's row in the dataset."""
    texts: Sequence[Any]
    """The prompts as the dataset has them: strings or message lists."""
    meta: Sequence[Mapping[str, Any]]
    """The dataset's other columns."""

    def repeat(self, n: int) -> tuple[list[Any], list[Mapping[str, Any]]]:
        """Texts and columns, each n times in a row, to stand beside samples."""
        return [text for text in self.texts for _ in range(n)], [row for row in self.meta for _ in range(n)]


@struct.dataclass
class Samples:
    """What the sampler returns. Rows of one prompt are contiguous: B = G · n."""

    responses: Array
    """int32 [B, R], right-padded."""
    length: Array
    """int32 [B]: tokens drawn, the EOS included."""
    stop: Array
    """int32 [B]: 0 EOS, 1 length, 2 stop sequence, told by the sampler."""
    behaviour_logprobs: Array
    """f32 [B, R]: log-probability, in nats, under the distribution actually sampled."""


@struct.dataclass
class Rollout:
    """Facts about sampled responses: expensive to make, never changed."""

    tokens: Array
    """int32 [B, T]: prompt and response, contiguous, right-padded."""
    prompt_length: Array
    """int32 [B]."""
    response_length: Array
    """int32 [B]: sampled tokens, the EOS included."""
    stop: Array
    """int32 [B]: 0 EOS, 1 length, 2 stop sequence."""
    prompt_id: Array
    """int32 [B]: rows with the same id form a group."""
    uid: Array
    """int32 [B]: global sample number; it keys the noise."""
    version: Array
    """int32 [B]: how many updates the sampling policy had seen."""
    behaviour_logprobs: Array
    """f32 [B, R], nats, under the distribution sampled (temperature and truncation)."""
    logprobs: Array
    """f32 [B, R], nats, of the same policy through the training forward, at the sampling temperature."""
    entropy: Array
    """f32 [B, R], nats, of that distribution."""
    ref_logprobs: Array | None
    """f32 [B, R], nats, of the reference policy at the same temperature."""
    values: Array | None
    """f32 [B, R]: the value before token t."""
    bootstrap: Array | None
    """f32 [B]: the value after the last token where the response was cut at the window, else 0."""
    scores: Array
    """f32 [B]."""
    score_parts: dict[str, Array]
    """name: f32 [B], unweighted."""
    sampling: Sampling = struct.field(pytree_node=False)

    @property
    def mask(self) -> Array:
        """bool [B, R]: which slots hold a sampled token."""
        return response_mask(self.response_length, self.behaviour_logprobs.shape[1])


@struct.dataclass
class Batch:
    """What PPO's loss reads: facts it needs, and targets. Slots without a token hold zeros."""

    tokens: Array
    prompt_length: Array
    response_length: Array
    mask: Array
    """bool [B, R]: which tokens take part in the loss."""
    logprobs: Array
    behaviour_logprobs: Array
    ref_logprobs: Array | None
    values: Array
    advantages: Array
    """f32 [B, R]."""
    returns: Array
    """f32 [B, R]."""


def overlay(frozen: Any, params: Any) -> Any:
    """`frozen` with the entries of `params` in it, dict by dict: the whole model of which `params` is trained. No array is
    copied. Where `frozen` has no dict, the answer is `params` itself."""
    if not isinstance(frozen, dict):
        return params
    return {**frozen, **{name: overlay(frozen.get(name), inner) for name, inner in params.items()}}


@struct.dataclass
class TrainState:
    """All that training changes: arrays only, no functions and no keys."""

    step: Array
    """int32: optimizer steps taken."""
    params: Any
    opt_state: optax.OptState

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> "TrainState":
        """A state at step 0. The parameters are copied: an update donates its state, and what was passed stays
        alive."""
        params = jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), params)
        return cls(step=jax.numpy.zeros((), jax.numpy.int32), params=params, opt_state=optimizer.init(params))
