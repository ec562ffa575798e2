"""What a person can say of an item, checked, and turned from the order shown into the item's own order.

A verdict as posted speaks of places on the page. Its value speaks of the item's responses, in the order in which the
item lists them, so that it does not depend on the order shown. Pure functions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.errors import UserError

STRENGTHS = range(-3, 4)
"""The signed 7-point scale: -3 the first is much better, 0 equal, 3 the second is much better."""


@dataclass(frozen=True)
class Axis:
    """One question of the page, answered on a scale of whole numbers. UserError without a name or a scale."""

    name: str
    question: str
    low: int = 1
    high: int = 5
    required: bool = True
    labels: Mapping[str, str] | None = None
    """Words for some of the values: {"1": "not at all", "5": "fully"}."""

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.low < self.high:
            raise UserError(f"an axis has a name, and a low end below its high end, got {self}")


def canonical(kind: str, said: object, shown: Sequence[int], axes: Sequence[Axis] = ()) -> dict[str, Any]:
    """The value of a verdict on an item of this kind whose responses were shown in the order `shown`.

    pair: {"strength": -3..3} or {"both_bad": true}; rank: {"ranks": [0, 1, ...]}, made dense (0, 0, 2 becomes
    0, 0, 1); rate: {"ratings": {axis: value}, "scales": {axis: [low, high]}}; {"skip": true} of any kind. `axes` are
    those that a rating asks for. Raises UserError, one line, for anything else.
    """
    if not isinstance(said, Mapping):
        raise UserError(f'"verdict" must be an object, got {_show(said)}')
    if set(said) == {"skip"} and said["skip"] is True:
        return {"skip": True}
    if kind == "pair":
        return _pair(said, shown)
    return _ranking(said, shown) if kind == "rank" else _rating(said, axes)


def ranks_of(kind: str, value: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The ranks (0 is best, equal is a tie) that a pair's or a ranking's value gives; None of a skip or a rating.

    Both bad ranks them equal.
    """
    if "ranks" in value:
        return tuple(value["ranks"])
    if value.get("both_bad"):
        return (0, 0)
    if "strength" in value:
        return (int(value["strength"] > 0), int(value["strength"] < 0))
    return None


def _pair(said: Mapping[str, Any], shown: Sequence[int]) -> dict[str, Any]:
    if set(said) == {"both_bad"} and said["both_bad"] is True:
        return {"both_bad": True}
    strength = said.get("strength")
    if set(said) != {"strength"} or type(strength) is not int or strength not in STRENGTHS:
        raise UserError(
            f'a pair\'s verdict is {{"strength": -3..3}}, {{"both_bad": true}} or a skip, got {_show(said)}'
        )
    return {"strength": strength if tuple(shown) == (0, 1) else -strength}


def _ranking(said: Mapping[str, Any], shown: Sequence[int]) -> dict[str, Any]:
    ranks = said.get("ranks")
    if (
        set(said) != {"ranks"}
        or not isinstance(ranks, list)
        or len(ranks) != len(shown)
        or not all(type(rank) is int and 0 <= rank < len(shown) for rank in ranks)
        or min(ranks) != 0
    ):
        raise UserError(
            f'a ranking\'s verdict is {{"ranks": [...]}}, {len(shown)} of them, the best 0, got {_show(said)}'
        )
    dense = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    own = [0] * len(ranks)
    for place, rank in zip(shown, ranks, strict=True):
        own[place] = dense[rank]
    return {"ranks": own}


def _rating(said: Mapping[str, Any], axes: Sequence[Axis]) -> dict[str, Any]:
    ratings = said.get("ratings")
    if set(said) != {"ratings"} or not isinstance(ratings, Mapping):
        raise UserError(f'a rating\'s verdict is {{"ratings": {{axis: value}}}}, got {_show(said)}')
    known = {axis.name: axis for axis in axes}
    for name, value in ratings.items():
        if name not in known:
            raise UserError(f"no axis {_show(name)} here; the axes are {', '.join(known)}")
        if type(value) is not int or not known[name].low <= value <= known[name].high:
            raise UserError(f"{name} is {known[name].low} to {known[name].high}, got {_show(value)}")
    missing = [axis.name for axis in axes if axis.required and axis.name not in ratings]
    if missing:
        raise UserError(f"not answered: {', '.join(missing)}")
    if not ratings:
        raise UserError("a rating answers at least one axis; skip instead")
    scales = {name: [known[name].low, known[name].high] for name in ratings}
    return {"ratings": dict(ratings), "scales": scales}


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
