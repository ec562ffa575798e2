"""Several judgements of an item, as pairs to learn from: by votes, one by one, or by how reliable each judge is."""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.feedback.statistics import annotators
from rlhf_jax.runs.functions import resolve_function

JUDGEMENTS = ("votes", "each", "dawid_skene", "crowd_bt")
"""How several judgements of one item become pairs."""

KINDS = {"plackett_luce": "rankings", "ordinal": "ratings", "regression": "ratings"}
"""What the losses of `objectives.reward` learn from that do not learn from pairs."""
BY_FIRST = {"chosen": "pairs", "scores": "rankings", "score": "ratings"}


def kind_by_name(loss: str) -> str:
    """ "pairs", "rankings" or "ratings": what a loss learns from, or a function of the user's by its first parameter."""
    if ":" not in loss:
        return KINDS.get(loss, "pairs")
    first = next(iter(inspect.signature(resolve_function(loss, "loss")).parameters), "")
    return BY_FIRST.get(first, "pairs")


def of_axes(found: Sequence[Any], axes: Sequence[str]) -> list[Any]:
    """The records on these axes, all of them where none is named. UserError for an axis that no record has."""
    there = Counter(record.axis for record in found)
    missing = [axis for axis in axes if axis not in there]
    if missing:
        listed = ", ".join(f"{axis} ({count})" for axis, count in there.items())
        raise UserError(f"axes: nobody judged {missing[0]!r}; the axes in the data are {listed}")
    return [record for record in found if record.axis in axes] if axes else list(found)


def with_margins(comparisons: Sequence[records.Comparison], margins: Sequence[float]) -> list[records.Comparison]:
    """Each comparison with the margin of its strength added: `margins[s - 1]` for strength s, evenly between whole ones, 0 for
    a tie or where no strength was given (Llama 2's margin by preference rating, arXiv 2307.09288). UserError for a strength
    beyond them."""
    if not margins:
        return list(comparisons)
    found = []
    for comparison in comparisons:
        strength = abs(comparison.strength or 0)
        if strength > len(margins):
            raise UserError(
                f"strength_margins has {len(margins)} numbers, one a strength from 1 on; {comparison.annotator or 'somebody'} "
                f"gave strength {comparison.strength}"
            )
        margin = float(np.interp(strength, range(len(margins) + 1), [0.0, *margins]))
        found.append(replace(comparison, margin=comparison.margin + margin))
    return found


def pairs(comparisons: Sequence[records.Comparison], judgements: str = "votes") -> list[records.Pair]:
    """The pairs of these comparisons, as one of JUDGEMENTS says:

    votes        one a pair of texts, its label the share of votes (`records.votes`)
    each         one a judgement
    dawid_skene  one a pair of texts, its label the probability that Dawid and Skene's model gives it, in which every judge
                 errs in their own way and ties are a third verdict (`annotators.dawid_skene`)
    crowd_bt     one a pair of texts, its label what a reliable judge would say of it by Crowd-BT (`annotators.crowd_bt`)
    The last two find out how reliable a judge is on each axis by itself.
    """
    if judgements == "votes":
        return records.votes(comparisons)
    if judgements == "each":
        return [pair for comparison in comparisons for pair in records.pairs(comparison)]
    rule: Callable[..., tuple[list[records.Pair], dict[str, float]]] = getattr(annotators, judgements)
    by_axis = [of_axes(comparisons, [axis]) for axis in dict.fromkeys(c.axis for c in comparisons if c.weight > 0)]
    return [pair for group in by_axis for pair in rule(group)[0]]
