"""What people said, as data: Comparison, Rating, Pair, Prompt, Demonstration. Each checks itself when it is made.

Import them from `feedback.records`, which also holds what is derived from them.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from rlhf_jax.errors import UserError

Message = dict[str, str]
Messages = tuple[Message, ...]

ROLES = ("system", "developer", "user", "assistant", "tool", "text")
"""Who speaks; "text" is a plain prompt without roles, which no chat template is applied to, and stands alone."""
SOURCE_KINDS = ("human", "ai", "synthetic")


@dataclass(frozen=True)
class Comparison:
    """One judgement: a prompt's responses, ranked by one annotator on one axis. Raises UserError when malformed."""

    prompt: Messages
    """The conversation so far, as {"role", "content"} messages; see `as_messages` for a plain string."""
    responses: tuple[str, ...]
    """Two or more texts that continue the prompt. An empty text is a response like any other."""
    ranks: tuple[int, ...]
    """One per response, in the same order: 0 is best, equal ranks are a tie."""
    _: KW_ONLY
    source_kind: str
    """Who judged, not who wrote the texts: "human", "ai" (a model's verdict) or "synthetic" (a simulated annotator)."""
    axis: str = "overall"
    annotator: str = ""
    """Empty when unknown, or when the ranks are a consensus of several people."""
    strength: int | float | None = None
    """How sure the annotator was, on the scale of the labelling task; None when not asked."""
    margin: int | float = 0.0
    """By how many reward units the better response should win at least (the `margin` column of TRL)."""
    weight: int | float = 1.0
    source: str = ""
    split: str = ""
    item: str = ""
    """The data set's own name of the item judged; empty: prompt, axis and responses name it (`records.item_key`)."""
    prompt_id: str = ""
    """`prompt_key(prompt)`; filled in when left empty."""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not isinstance(self.responses, tuple) or len(self.responses) < 2:
            raise UserError(f"a comparison needs a tuple of at least 2 responses, got {_show(self.responses)}")
        if not all(isinstance(text, str) for text in self.responses):
            raise UserError(f"responses must be texts, got {_show(self.responses)}")
        if not isinstance(self.ranks, tuple) or len(self.ranks) != len(self.responses):
            raise UserError(
                f"ranks must be a tuple of one per response ({len(self.responses)}), got {_show(self.ranks)}"
            )
        if not all(type(rank) is int for rank in self.ranks) or min(self.ranks) != 0:
            raise UserError(f"ranks must be plain ints, the best of them 0, got {_show(self.ranks)}")
        _check_kind(self.source_kind)
        check_number("weight", self.weight, low=0)
        check_number("margin", self.margin)
        if self.strength is not None:
            check_number("strength", self.strength)
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", prompt_key(self.prompt))


@dataclass(frozen=True)
class Rating:
    """One judgement of one response alone, on one axis, by one annotator. Raises UserError when malformed."""

    prompt: Messages
    response: str
    axis: str
    value: int | float
    """Within `scale`; more is better, except on axes that have no better ("other": how complex, how funny)."""
    scale: tuple[int | float, int | float]
    """The lowest and the highest value that could have been given."""
    _: KW_ONLY
    source_kind: str
    """Who judged: "human", "ai" or "synthetic", as in Comparison."""
    annotator: str = ""
    """Empty when unknown, or when the value is the mean of several people."""
    weight: int | float = 1.0
    source: str = ""
    split: str = ""
    item: str = ""
    """The data set's own name of the item judged; may be left empty."""
    prompt_id: str = ""
    """`prompt_key(prompt)`; filled in when left empty."""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not isinstance(self.response, str):
            raise UserError(f"a response must be a text, got {_show(self.response)}")
        if not isinstance(self.axis, str) or not self.axis:
            raise UserError(f"a rating names its axis, got {_show(self.axis)}")
        if not isinstance(self.scale, tuple) or len(self.scale) != 2:
            raise UserError(f"a scale is a tuple (lowest, highest), got {_show(self.scale)}")
        for end in self.scale:
            check_number("an end of the scale", end)
        if not self.scale[0] < self.scale[1]:
            raise UserError(f"a scale goes from its lowest to its highest value, got {_show(self.scale)}")
        check_number("value", self.value, low=self.scale[0], high=self.scale[1])
        _check_kind(self.source_kind)
        check_number("weight", self.weight, low=0)
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", prompt_key(self.prompt))


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, `chosen` the better with probability `label`. Raises UserError when malformed."""

    prompt: Messages
    chosen: str
    rejected: str
    _: KW_ONLY
    source_kind: str
    tie: bool = False
    """Judged equal: the votes are level, or more of them say equal than prefer the better of the two."""
    label: int | float = 1.0
    """Share of the decisive votes that prefer `chosen`; 0.5 where they are level, or where there is none."""
    margin: int | float = 0.0
    weight: int | float = 1.0
    annotator: str = ""
    prompt_id: str = ""
    axis: str = "overall"
    equal: int | float = 0.0
    """Share of all votes that call the two equal; `label` is about the others."""

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_kind(self.source_kind)
        check_number("label", self.label, low=0, high=1)
        check_number("equal", self.equal, low=0, high=1)
        if self.tie and self.label != 0.5 and not self.equal:
            raise UserError(f"a tie has label 0.5 unless votes call it equal, got {_show(self.label)}")
        check_number("margin", self.margin)
        check_number("weight", self.weight, low=0)
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", prompt_key(self.prompt))

    @property
    def share(self) -> float:
        """Share of all votes for `chosen`, each that calls the two equal as half a vote for either: what a loss that knows
        of no ties learns from."""
        return 0.5 + (1 - self.equal) * (self.label - 0.5)


@dataclass(frozen=True)
class Prompt:
    """A prompt to sample from; `meta` holds the data set's other columns, for reward functions that need them."""

    prompt: Messages
    _: KW_ONLY
    source: str = ""
    prompt_id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", prompt_key(self.prompt))


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response to imitate (supervised fine-tuning)."""

    prompt: Messages
    completion: str
    _: KW_ONLY
    source_kind: str
    """Who wrote or picked the completion."""
    source: str = ""
    prompt_id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_kind(self.source_kind)
        if not isinstance(self.completion, str):
            raise UserError(f"a completion must be a text, got {_show(self.completion)}")
        if not self.prompt_id:
            object.__setattr__(self, "prompt_id", prompt_key(self.prompt))


def as_messages(prompt: str | Sequence[Mapping[str, str]]) -> Messages:
    """A prompt as messages: a plain string becomes one of role "text". Raises UserError for a malformed message."""
    given = ({"role": "text", "content": prompt},) if isinstance(prompt, str) else tuple(dict(m) for m in prompt)
    _check_prompt(given)
    return given


def prompt_key(prompt: Messages) -> str:
    """sha256 (hex) of the roles and contents as canonical JSON: the same prompt has the same key in every file."""
    plain = [[message["role"], message["content"]] for message in prompt]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def _check_prompt(prompt: object) -> None:
    if not isinstance(prompt, tuple) or not prompt:
        raise UserError(f"a prompt is a tuple of at least one message, got {_show(prompt)}")
    for message in prompt:
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or not isinstance(message["content"], str)
        ):
            raise UserError(f'a message has a "role" and a "content" text and nothing else, got {_show(message)}')
        if message["role"] not in ROLES:
            raise UserError(f"a message's role is one of {', '.join(ROLES)}, got {_show(message['role'])}")
        if message["role"] == "text" and len(prompt) > 1:
            raise UserError('a message of role "text" is a whole prompt; in a conversation use the other roles')


def _check_kind(kind: object) -> None:
    if kind not in SOURCE_KINDS:
        raise UserError(f"source_kind is one of {', '.join(SOURCE_KINDS)}, got {_show(kind)}")


def check_number(name: str, value: object, low: int | float = -math.inf, high: int | float = math.inf) -> None:
    """Raises UserError unless the value is a finite number (no boolean) between low and high."""
    try:
        good = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low <= value <= high
        )
    except OverflowError:  # an int too large for a float
        good = False
    if not good:
        limits = (
            "" if low == -math.inf else f" of at least {low:g}" + ("" if high == math.inf else f" and at most {high:g}")
        )
        raise UserError(f"{name} must be a finite number{limits}, got {_show(value)}")


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
