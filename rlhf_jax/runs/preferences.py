"""Pairs and single judged responses as rows for preference optimisation: prompt and responses apart, so that only responses
count."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.runs.chat import encode_prompt, encode_response
from rlhf_jax.runs.data import check_known, pad, said
from rlhf_jax.types import Preferences


class Verdict(NamedTuple):
    """One response and whether it is good."""

    prompt: records.Messages
    response: str
    label: float
    """Probability that it is good."""
    weight: float
    source_kind: str


def verdicts_of_pairs(pairs: Sequence[records.Pair]) -> list[Verdict]:
    """Two of each pair: the chosen response is good with the pair's label, the rejected one with the rest."""
    return [
        Verdict(pair.prompt, text, label, pair.weight, pair.source_kind)
        for pair in pairs
        for text, label in ((pair.chosen, pair.share), (pair.rejected, 1.0 - pair.share))
    ]


def verdicts_of_ratings(ratings: Sequence[records.Rating]) -> tuple[list[Verdict], Counter[str]]:
    """A rating above the middle of its scale is good, one below it bad; those in the middle are left out and counted. The
    ratings of one response share its weight."""
    counts: Counter[str] = Counter()
    given = Counter((rating.prompt_id, rating.response) for rating in ratings)
    found = []
    for rating in ratings:
        middle = (rating.scale[0] + rating.scale[1]) / 2
        if rating.value == middle:
            counts["rated in the middle: dropped"] += 1
            continue
        weight = rating.weight / given[rating.prompt_id, rating.response]
        found.append(Verdict(rating.prompt, rating.response, float(rating.value > middle), weight, rating.source_kind))
    return found, counts


def encode_preferences(
    pairs: Sequence[records.Pair], tokenizer: Any, *, window: int, stops: Sequence[int] = ()
) -> tuple[Preferences, list[records.Pair], Counter[str]]:
    """Both responses of each pair to its prompt, the pairs kept, and how many were left out: those of which one is longer
    than the window with its prompt, and those whose responses are the same to the tokenizer. `stops` as in `runs.chat`."""
    counts: Counter[str] = Counter()
    kept, rows = [], []
    for pair in pairs:
        prompt = encode_prompt(tokenizer, pair.prompt)
        both = [encode_response(tokenizer, pair.prompt, text, stops=stops) for text in (pair.chosen, pair.rejected)]
        if len(prompt) + max(map(len, both)) > window:
            counts[f"longer than {window} tokens: dropped"] += 1
        elif both[0] == both[1]:
            counts["equal responses: dropped"] += 1
        else:
            kept.append(pair)
            rows.append((prompt, both))
    if not kept:
        raise UserError(f"no pair is left of {len(pairs)} ({dict(counts)}); the window is {window} tokens")
    label, weight = ([getattr(pair, name) for pair in kept] for name in ("share", "weight"))
    texts = (text for pair in kept for text in said(pair.prompt, pair.chosen, pair.rejected))
    return _arrays(rows, window, tokenizer, "pairs", texts, label, weight), kept, counts


def encode_verdicts(
    verdicts: Sequence[Verdict], tokenizer: Any, *, window: int, stops: Sequence[int] = (), mismatched: bool = False
) -> tuple[Preferences, list[Verdict], Counter[str]]:
    """Each response to its prompt, those kept, and how many did not fit. With `mismatched` every row gets a second response:
    that of the next row which is to another prompt and fits behind this one (the first follows the last), or else the
    row is left out. UserError where all prompts are one."""
    counts: Counter[str] = Counter()
    kept, rows = [], []
    for verdict in verdicts:
        prompt = encode_prompt(tokenizer, verdict.prompt)
        response = encode_response(tokenizer, verdict.prompt, verdict.response, stops=stops)
        if len(prompt) + len(response) > window:
            counts[f"longer than {window} tokens: dropped"] += 1
            continue
        kept.append(verdict)
        rows.append((prompt, [response]))
    if mismatched:
        if rows and all(prompt == rows[0][0] for prompt, _ in rows):
            raise UserError("all responses are to one prompt: the KL of kto is measured on responses to others")
        paired = [_with_other(rows, number, window) for number in range(len(rows))]
        counts["no response to another prompt fits: dropped"] += sum(row is None for row in paired)
        kept = [verdict for verdict, row in zip(kept, paired, strict=True) if row is not None]
        rows = [row for row in paired if row is not None]
    if not rows:
        raise UserError(f"no response is left of {len(verdicts)} ({dict(+counts)}); the window is {window} tokens")
    label, weight = ([getattr(verdict, name) for verdict in kept] for name in ("label", "weight"))
    texts = (text for verdict in kept for text in said(verdict.prompt, verdict.response))
    return _arrays(rows, window, tokenizer, "responses", texts, label, weight), kept, +counts


Row = tuple[list[int], list[list[int]]]
"""Ids of a prompt, and of each response."""


def _with_other(rows: Sequence[Row], number: int, window: int) -> Row | None:
    """The row with a second response, to another prompt; None where there is none that fits."""
    prompt, own = rows[number]
    for step in range(1, len(rows)):
        other, responses = rows[(number + step) % len(rows)]
        if other != prompt and len(prompt) + len(responses[0]) <= window:
            return prompt, [*own, responses[0]]
    return None


def _arrays(
    rows: Sequence[Row],
    window: int,
    tokenizer: Any,
    what: str,
    texts: Iterable[str],
    label: Sequence[float],
    weight: Sequence[float],
) -> Preferences:
    flat = [prompt + response for prompt, responses in rows for response in responses]
    check_known(flat, tokenizer, what, texts)
    tokens, _ = pad(flat, window)
    return Preferences(
        tokens.reshape(len(rows), -1, window),
        np.array([len(prompt) for prompt, _ in rows], np.int32),
        np.array([[len(response) for response in responses] for _, responses in rows], np.int32),
        np.array(label, np.float32),
        np.array(weight, np.float32),
    )
