"""Rankings and ratings as rows of tokens, with what a loss asks of them. Pairs are `data.encode_pairs`."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.runs.data import check_known, encode_text, numbered, pad, said
from rlhf_jax.types import Rankings, Ratings

FILLER = [0]
"""Stands for a text that is not there; a length of 0 has no last token."""


def encode_rankings(
    comparisons: Sequence[records.Comparison],
    tokenizer: Any,
    *,
    window: int,
    most: int,
    axes: Sequence[str] = (),
    stops: Sequence[int] = (),
    ties: bool = True,
    once: bool = True,
) -> tuple[Rankings, Counter[str]]:
    """One row a judgement, and how many were left out: of more than `most` texts, of a text past the window, or with a tie
    unless `ties`. With `once` the judgements of an item share its weight. `axes` and `stops` as for `data.encode_pairs`."""
    judged = Counter(records.item_key(comparison) for comparison in comparisons)
    counts: Counter[str] = Counter()
    kept, rows, ranks = [], [], []
    for comparison in comparisons:
        texts = [encode_text(tokenizer, comparison.prompt, text, stops=stops) for text in comparison.responses]
        order = sorted(set(comparison.ranks))
        reasons = {
            f"longer than {window} tokens: dropped": max(map(len, texts)) > window,
            f"more than {most} texts: dropped": len(texts) > most,
            "with a tie: dropped": len(order) < len(texts) and not ties,
        }
        if any(reasons.values()):
            counts[next(reason for reason, holds in reasons.items() if holds)] += 1
            continue
        kept.append(comparison)
        rows.append(texts)
        ranks.append([order.index(rank) for rank in comparison.ranks])
    if not kept:
        raise UserError(f"no ranking is left of {len(comparisons)} ({dict(counts)}); the window is {window} tokens")
    answers = (text for each in kept for text in said(each.prompt, *each.responses))
    check_known([row for texts in rows for row in texts], tokenizer, "rankings", answers)
    K = max(map(len, rows))
    tokens, length = pad([row for texts in rows for row in texts + [FILLER] * (K - len(texts))], window)
    share = [c.weight / (judged[records.item_key(c)] if once else 1) for c in kept]
    return Rankings(
        tokens.reshape(-1, K, window),
        length.reshape(-1, K),
        np.array([rank + [-1] * (K - len(rank)) for rank in ranks], np.int32),
        np.array(share, np.float32),
        numbered([comparison.axis for comparison in kept], axes),
    ), counts


def encode_ratings(
    ratings: Sequence[records.Rating],
    tokenizer: Any,
    *,
    window: int,
    value: Callable[[records.Rating], float],
    axes: Sequence[str] = (),
    stops: Sequence[int] = (),
    once: bool = True,
) -> tuple[Ratings, list[records.Rating], Counter[str]]:
    """One row a rating (`value` of it), those kept, and how many did not fit. With `once` the ratings of a text on an axis
    share its weight. `axes` and `stops` as for `data.encode_pairs`."""
    judged = Counter((rating.prompt_id, rating.response, rating.axis) for rating in ratings)
    texts = [encode_text(tokenizer, rating.prompt, rating.response, stops=stops) for rating in ratings]
    short = [(rating, row) for rating, row in zip(ratings, texts, strict=True) if len(row) <= window]
    counts = Counter({f"longer than {window} tokens: dropped": len(texts) - len(short)})
    if not short:
        raise UserError(f"no rating is left of {len(ratings)} ({dict(counts)}); the window is {window} tokens")
    kept, rows = [rating for rating, _ in short], [row for _, row in short]
    check_known(rows, tokenizer, "ratings", (text for each in kept for text in said(each.prompt, each.response)))
    share = [r.weight / (judged[r.prompt_id, r.response, r.axis] if once else 1) for r in kept]
    return (
        Ratings(
            *pad(rows, window),
            np.array([value(rating) for rating in kept], np.float32),
            np.array(share, np.float32),
            numbered([rating.axis for rating in kept], axes),
        ),
        kept,
        +counts,
    )


def grade(rating: records.Rating) -> float:
    """The grade 0 … C of a rating. UserError for one that is no whole step of its scale."""
    step = rating.value - rating.scale[0]
    if step != round(step):
        raise UserError(f"a rating of {rating.value} on {rating.axis} is no whole grade; use --loss regression")
    return float(step)


def grades(ratings: Sequence[records.Rating]) -> int:
    """C: the highest grade, which must be that of every rating. UserError otherwise."""
    scales = sorted({rating.scale for rating in ratings})
    if len({high - low for low, high in scales}) > 1 or scales[0][1] - scales[0][0] != round(
        scales[0][1] - scales[0][0]
    ):
        listed = ", ".join(f"{low:g} to {high:g}" for low, high in scales)
        raise UserError(f"ordinal needs scales with one number of grades, got {listed}; use --loss regression")
    return round(scales[0][1] - scales[0][0])


def centred(rating: records.Rating) -> float:
    """A rating as a number from −1, the lowest of its scale, to 1, the highest."""
    low, high = rating.scale
    return 2 * (rating.value - low) / (high - low) - 1


def rated_pairs(ratings: Sequence[records.Rating]) -> list[records.Pair]:
    """Every two responses to a prompt whose mean rating on an axis differs, the higher one as `chosen`."""
    groups: dict[tuple[str, str], dict[str, list[records.Rating]]] = {}
    for rating in ratings:
        groups.setdefault((rating.prompt_id, rating.axis), {}).setdefault(rating.response, []).append(rating)
    found = []
    for texts in groups.values():
        means = {text: float(np.mean([centred(rating) for rating in said])) for text, said in texts.items()}
        for one, other in combinations(means, 2):
            if means[one] != means[other]:
                chosen, rejected = (one, other) if means[one] > means[other] else (other, one)
                first = texts[one][0]
                found.append(
                    records.Pair(
                        first.prompt,
                        chosen,
                        rejected,
                        source_kind=first.source_kind,
                        prompt_id=first.prompt_id,
                        axis=first.axis,
                    )
                )
    return found
