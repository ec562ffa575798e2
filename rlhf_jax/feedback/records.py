"""From judgements to what is trained on: pairs, votes, demonstrations, and parts that share no prompt or no annotator.

A comparison ranks two or more responses to one prompt, by one annotator, on one axis; the rest is derived from it:
`pairs` (one judgement -> ordered pairs), `ranking` (-> groups, the best first), `votes` (several judgements of one item
-> soft labels), `best_responses` (-> demonstrations), `split_by_prompt`, `split_by_annotator`, and who judged:
`mix`, `provenance`. Of ratings, `feedback.ratings` makes comparisons. Plain Python, no arrays.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any, TypeVar

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.schema import (
    ROLES,
    SOURCE_KINDS,
    Comparison,
    Demonstration,
    Message,
    Messages,
    Pair,
    Prompt,
    Rating,
    as_messages,
    check_number,
    prompt_key,
)
from rlhf_jax.feedback.wording import words

__all__ = [
    "ROLES",
    "SOURCE_KINDS",
    "Comparison",
    "Demonstration",
    "Message",
    "Messages",
    "Pair",
    "Prompt",
    "Rating",
    "aligned_ranks",
    "as_messages",
    "best_responses",
    "by_item",
    "item_key",
    "mix",
    "pairs",
    "prompt_key",
    "provenance",
    "ranking",
    "split_by_annotator",
    "split_by_prompt",
    "votes",
]

Asked = TypeVar("Asked", Comparison, Rating, Pair, Prompt, Demonstration)
Judged = TypeVar("Judged", Comparison, Rating, Pair)


def item_key(comparison: Comparison) -> Hashable:
    """What was judged: equal for all judgements of one item, in whatever order the responses were listed."""
    return comparison.prompt_id, comparison.axis, comparison.item, tuple(sorted(comparison.responses))


def by_item(comparisons: Iterable[Comparison]) -> list[list[Comparison]]:
    """Judgements of the same item together, items in the order in which they first appear."""
    groups: dict[Hashable, list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault(item_key(comparison), []).append(comparison)
    return list(groups.values())


def aligned_ranks(responses: Sequence[str], comparison: Comparison) -> tuple[int, ...]:
    """The comparison's ranks, in the order of `responses` (the same texts, perhaps listed in another order)."""
    free = list(range(len(comparison.responses)))
    order = []
    for text in responses:
        at = next(i for i in free if comparison.responses[i] == text)
        free.remove(at)
        order.append(comparison.ranks[at])
    return tuple(order)


def pairs(comparison: Comparison, *, per_set_weight: bool = True) -> list[Pair]:
    """Every pair of one judgement: the better response as `chosen`, equal ranks as a pair with tie=True.

    With `per_set_weight` each of the C(K, 2) pairs of a K-way set weighs 1/C(K, 2) of the comparison, so that a long
    list does not count more than a short one (InstructGPT, arXiv 2203.02155, section 3.5); without it each counts
    fully.
    """
    share = 1 / math.comb(len(comparison.responses), 2) if per_set_weight else 1.0
    found = []
    for i, j in combinations(range(len(comparison.responses)), 2):
        tie = comparison.ranks[i] == comparison.ranks[j]
        best, worst = (i, j) if comparison.ranks[i] <= comparison.ranks[j] else (j, i)
        found.append(
            Pair(
                comparison.prompt,
                comparison.responses[best],
                comparison.responses[worst],
                tie=tie,
                label=0.5 if tie else 1.0,
                margin=0.0 if tie else comparison.margin,
                weight=comparison.weight * share,
                annotator=comparison.annotator,
                prompt_id=comparison.prompt_id,
                source_kind=comparison.source_kind,
                axis=comparison.axis,
                equal=float(tie),
            )
        )
    return found


def ranking(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """The responses in groups of equal rank, the best group first; within a group as they were listed."""
    return tuple(
        tuple(text for text, own in zip(comparison.responses, comparison.ranks, strict=True) if own == rank)
        for rank in sorted(set(comparison.ranks))
    )


def votes(comparisons: Iterable[Comparison], *, per_set_weight: bool = True) -> list[Pair]:
    """Several judgements of an item as one pair (K responses: C(K, 2) pairs) with a soft label.

    `label` is the share of the decisive votes that prefer `chosen`, each vote counting its comparison's weight: 2
    against 1 gives 0.667, and disagreement is kept instead of being dropped. `equal` is the share of all votes that say
    "equal", which `label` is not about: 2 against 0 and 3 equal are label 1 and equal 0.6. A pair is a tie when the two
    sides are level or when more votes say "equal" than prefer the winner. An item counts once: its weight is the mean of
    its judgements' weights (items whose judgements all weigh 0 are left out), its margin their mean over the votes for the
    winner, 0 for a tie. Judgements of different source kinds are not mixed: they give one pair for each kind.
    """
    found = []
    for group in by_item(comparisons):
        for kind in SOURCE_KINDS:
            judgements = [c for c in group if c.source_kind == kind and c.weight > 0]
            if judgements:
                found += _vote(judgements, per_set_weight)
    return found


def _vote(judgements: list[Comparison], per_set_weight: bool) -> list[Pair]:
    first = judgements[0]
    ranks = [aligned_ranks(first.responses, c) for c in judgements]
    share = 1 / math.comb(len(first.responses), 2) if per_set_weight else 1.0
    annotator = first.annotator if len({c.annotator for c in judgements}) == 1 else ""
    found = []
    for i, j in combinations(range(len(first.responses)), 2):
        for_i = sum(c.weight for c, r in zip(judgements, ranks, strict=True) if r[i] < r[j])
        for_j = sum(c.weight for c, r in zip(judgements, ranks, strict=True) if r[i] > r[j])
        equal = sum(c.weight for c, r in zip(judgements, ranks, strict=True) if r[i] == r[j])
        level = math.isclose(for_i, for_j)
        tie = level or equal > max(for_i, for_j)
        best, worst = (i, j) if for_i >= for_j else (j, i)
        margins = [c.margin for c, r in zip(judgements, ranks, strict=True) if r[best] < r[worst]]
        found.append(
            Pair(
                first.prompt,
                first.responses[best],
                first.responses[worst],
                tie=tie,
                label=0.5 if level else max(for_i, for_j) / (for_i + for_j),
                margin=0.0 if tie else sum(margins) / len(margins),
                weight=share * sum(c.weight for c in judgements) / len(judgements),
                annotator=annotator,
                prompt_id=first.prompt_id,
                source_kind=first.source_kind,
                axis=first.axis,
                equal=equal / (for_i + for_j + equal),
            )
        )
    return found


def best_responses(comparisons: Iterable[Comparison]) -> list[Demonstration]:
    """One demonstration per item: the response of the best (weighted) mean rank; none when several share it."""
    found = []
    for group in by_item(comparisons):
        first = group[0]
        ranks = [aligned_ranks(first.responses, c) for c in group]
        totals = [sum(c.weight * r[k] for c, r in zip(group, ranks, strict=True)) for k in range(len(first.responses))]
        if totals.count(min(totals)) == 1:
            found.append(
                Demonstration(
                    first.prompt,
                    first.responses[totals.index(min(totals))],
                    source_kind=first.source_kind,
                    source=first.source,
                    prompt_id=first.prompt_id,
                    meta=first.meta,
                )
            )
    return found


def split_by_prompt(
    records: Iterable[Asked], fraction: float, seed: int = 0, *, by: str = "conversation"
) -> tuple[list[Asked], list[Asked]]:
    """Two parts that share no prompt, the second with about `fraction` of the prompts; each keeps the order given.

    The part of a record depends only on its prompt and the seed, so it stays the same when the data grow. Prompts of the
    same words (`wording.words`: but for case, punctuation, spaces, Unicode form; system messages aside) are one prompt, as
    for `leakage.leaks`. With by="conversation" prompts that open alike (through the first user message) stay together:
    the turns of one dialogue or tree do not leak into the other part. by="prompt" hashes the whole prompt. Raises
    UserError for a fraction outside 0..1.
    """
    check_number("fraction", fraction, low=0, high=1)
    if by not in ("conversation", "prompt"):
        raise UserError(f'by must be "conversation" or "prompt", got {by!r}')
    rest: list[Asked] = []
    held: list[Asked] = []
    for record in records:
        prompt = _opening(record.prompt) if by == "conversation" else record.prompt
        said = words("\n".join(m["content"] for m in prompt if m["role"] not in ("system", "developer")))
        key = " ".join(said) or prompt_key(prompt)
        digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()
        (held if int.from_bytes(digest[:8], "big") < fraction * 2**64 else rest).append(record)
    return rest, held


def split_by_annotator(records: Iterable[Judged], fraction: float, seed: int = 0) -> tuple[list[Judged], list[Judged]]:
    """Two parts that share no annotator, the second with about `fraction` of the annotators (at least one, unless
    fraction is 0); each keeps the order given.

    Accuracy on people whose labels were not trained on is lower than on those whose were: 69.6 against 72.4 % in
    InstructGPT (arXiv 2203.02155). The parts may well share prompts; split each by prompt too where that matters.
    Raises UserError for a fraction outside 0..1, and where a record names no annotator: nobody knows whose it is.
    """
    check_number("fraction", fraction, low=0, high=1)
    given = list(records)
    unnamed = sum(not record.annotator for record in given)
    if unnamed:
        raise UserError(
            f"{unnamed} of {len(given)} records name no annotator; split by prompt, or leave those records out"
        )
    names = sorted(
        {record.annotator for record in given}, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()
    )
    count = max(round(fraction * len(names)), 1 if fraction > 0 else 0)
    held = set(names[:count])
    return [r for r in given if r.annotator not in held], [r for r in given if r.annotator in held]


def mix(records: Iterable[Comparison | Rating | Pair | Demonstration]) -> dict[str, int]:
    """How many records each source kind gave, as {"human": ..., ...}; kinds that gave none are left out."""
    counts = Counter(record.source_kind for record in records)
    return {kind: counts[kind] for kind in SOURCE_KINDS if counts[kind]}


def provenance(records: Iterable[Comparison | Rating | Demonstration]) -> list[dict[str, Any]]:
    """Where the records come from: {"source", "licence", "sha256", "source_kind", "records"}, the largest part first.

    Licence and sha256 (of the file that was read first) are empty for records that no file was read for.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    for record in records:
        known = record.meta.get("provenance")
        licence, sha = (
            (str(known.get(key, "")) for key in ("licence", "sha256")) if isinstance(known, dict) else ("", "")
        )
        counts[record.source, licence, sha, record.source_kind] += 1
    names = ("source", "licence", "sha256", "source_kind")
    return [dict(zip(names, key, strict=True)) | {"records": count} for key, count in counts.most_common()]


def _opening(prompt: Messages) -> Messages:
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), len(prompt) - 1)
    return prompt[: first + 1]
