"""From the order shown to the item's own order: against an enumeration of every order."""

import itertools

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import Comparison, as_messages, pairs
from rlhf_jax.feedback.store.verdict import STRENGTHS, Axis, canonical, ranks_of

AXES = [Axis("helpful", "?"), Axis("style", "?", low=0, high=2, required=False)]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_pairs_strength_does_not_depend_on_the_order(strength):
    """The reader likes response 1 by `strength`; what they press depends on where it stands."""
    assert canonical("pair", {"strength": strength}, (0, 1)) == {"strength": strength}
    assert canonical("pair", {"strength": -strength}, (1, 0)) == {"strength": strength}
    better = {True: (1, 0), False: (0, 1)}[strength > 0] if strength else (0, 0)
    assert ranks_of("pair", {"strength": strength}) == better


@pytest.mark.parametrize("own", [[0, 0, 1, 2], [2, 0, 1, 0], [0, 1, 2, 3], [0, 0, 0, 0], [0, 1], [1, 0, 2]])
def test_a_rankings_ranks_do_not_depend_on_the_order(own):
    for shown in itertools.permutations(range(len(own))):
        said = {"ranks": [own[place] for place in shown]}
        assert canonical("rank", said, shown) == {"ranks": own}


def test_competition_ranks_are_made_dense():
    assert canonical("rank", {"ranks": [0, 0, 2, 3]}, range(4)) == {"ranks": [0, 0, 1, 2]}


@pytest.mark.parametrize("K", range(2, 10))
def test_a_ranking_gives_every_pair(K):
    """1, 1, 2, 3, … : all C(K, 2) pairs, the first two tied."""
    ranks = canonical("rank", {"ranks": [0, 0, *range(1, K - 1)]}, range(K))["ranks"]
    texts = tuple(f"response {k}" for k in range(K))
    found = pairs(Comparison(as_messages("p"), texts, tuple(ranks), source_kind="human"))
    assert [sum(p.tie for p in found), sum(not p.tie for p in found)] == [1, K * (K - 1) // 2 - 1]
    if K == 4:
        assert sum(not p.tie for p in found) == 5


def test_a_rating_keeps_its_scales_and_only_required_axes_must_be_answered():
    value = canonical("rate", {"ratings": {"helpful": 4}}, [0], AXES)
    assert value == {"ratings": {"helpful": 4}, "scales": {"helpful": [1, 5]}}
    assert canonical("rate", {"ratings": {"helpful": 1, "style": 0}}, [0], AXES)["scales"]["style"] == [0, 2]
    assert ranks_of("rate", value) is None


@pytest.mark.parametrize("kind", ["pair", "rank", "rate"])
def test_anything_can_be_skipped(kind):
    assert canonical(kind, {"skip": True}, (0, 1), AXES) == {"skip": True}
    assert ranks_of(kind, {"skip": True}) is None


def test_both_bad_is_its_own_value_and_ranks_level():
    assert canonical("pair", {"both_bad": True}, (1, 0)) == {"both_bad": True}
    assert ranks_of("pair", {"both_bad": True}) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "said", "told"),
    [
        ("pair", None, "must be an object"),
        ("pair", [], "must be an object"),
        ("pair", {}, "a pair's verdict"),
        ("pair", {"strength": 4}, "a pair's verdict"),
        ("pair", {"strength": -4}, "a pair's verdict"),
        ("pair", {"strength": 1.0}, "a pair's verdict"),
        ("pair", {"strength": True}, "a pair's verdict"),
        ("pair", {"strength": "1"}, "a pair's verdict"),
        ("pair", {"strength": 1, "both_bad": True}, "a pair's verdict"),
        ("pair", {"both_bad": False}, "a pair's verdict"),
        ("pair", {"both_bad": 1}, "a pair's verdict"),
        ("pair", {"skip": 1}, "a pair's verdict"),
        ("pair", {"skip": True, "strength": 1}, "a pair's verdict"),
        ("pair", {"ranks": [0, 1]}, "a pair's verdict"),
        ("rank", {"ranks": [0, 1]}, "3 of them"),
        ("rank", {"ranks": [1, 2, 1]}, "the best 0"),
        ("rank", {"ranks": [0, 1, 3]}, "a ranking's verdict"),
        ("rank", {"ranks": [0, 1, -1]}, "a ranking's verdict"),
        ("rank", {"ranks": [0, 1, None]}, "a ranking's verdict"),
        ("rank", {"ranks": [False, True, 1]}, "a ranking's verdict"),
        ("rank", {"ranks": "012"}, "a ranking's verdict"),
        ("rank", {"strength": 1}, "a ranking's verdict"),
        ("rank", {"both_bad": True}, "a ranking's verdict"),
        ("rate", {"ratings": {"style": 1}}, "not answered: helpful"),
        ("rate", {"ratings": {}}, "not answered: helpful"),
        ("rate", {"ratings": {"helpful": 0}}, "helpful is 1 to 5"),
        ("rate", {"ratings": {"helpful": 6}}, "helpful is 1 to 5"),
        ("rate", {"ratings": {"helpful": 2.5}}, "helpful is 1 to 5"),
        ("rate", {"ratings": {"helpful": True}}, "helpful is 1 to 5"),
        ("rate", {"ratings": {"helpful": 3, "depth": 1}}, "no axis 'depth'"),
        ("rate", {"ratings": [3]}, "a rating's verdict"),
        ("rate", {"ratings": {"helpful": 3}, "more": 1}, "a rating's verdict"),
    ],
)
def test_anything_else_is_refused_in_one_line(kind, said, told):
    with pytest.raises(UserError, match=told) as error:
        canonical(kind, said, (2, 0, 1) if kind == "rank" else (1, 0), AXES)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_a_rating_of_nothing_is_a_skip():
    with pytest.raises(UserError, match="at least one axis"):
        canonical("rate", {"ratings": {}}, [0], AXES[1:])


def test_an_axis_has_a_name_and_a_scale():
    for wrong in (("", 1, 5), ("style", 5, 5)):
        with pytest.raises(UserError, match="low end below"):
            Axis(wrong[0], "?", wrong[1], wrong[2])
