import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import rows as agreement_rows
from rlhf_jax.feedback.statistics.agreement import FIRST, SECOND, TIE, cohen_kappa
from rlhf_jax.feedback.statistics.quality import Judged

ROWS = [
    Judged("x", "p", "pair", {"strength": -2}, (1, 0)),
    Judged("y", "p", "pair", {"both_bad": True}, (0, 1)),
    Judged("z", "p", "pair", {"skip": True}, (0, 1)),
    Judged("x", "p", "pair", {"strength": 3}, (0, 1), repeat=True),
    Judged("x", "g", "pair", {"strength": 1}, (0, 1), gold={"strength": 1}),
    Judged("x", "r", "rank", {"ranks": [0, 1, 1]}, (2, 0, 1)),
    Judged("y", "r", "rank", {"ranks": [2, 1, 0]}, (0, 1, 2)),
    Judged("x", "s", "rate", {"ratings": {"helpful": 4, "style": 2}}, (0,)),
    Judged("y", "s", "rate", {"ratings": {"helpful": 5}}, (0,)),
]


def test_preferences_of_pairs_and_rankings():
    assert agreement_rows.preferences(ROWS) == {
        ("p", 0, 1): {"x": FIRST, "y": TIE},
        ("r", 0, 1): {"x": FIRST, "y": SECOND},
        ("r", 0, 2): {"x": FIRST, "y": SECOND},
        ("r", 1, 2): {"x": TIE, "y": SECOND},
    }


def test_strengths_and_ratings():
    assert agreement_rows.strengths(ROWS) == {"p": {"x": -2}}
    assert agreement_rows.ratings(ROWS) == {"helpful": {"s": {"x": 4, "y": 5}}, "style": {"s": {"x": 2}}}
    assert [row.annotator for row in agreement_rows.opinions(ROWS)] == ["x", "y", "x", "y", "x", "y"]


def test_counts_take_the_commonest_number_of_raters():
    units = [{"x": 1, "y": 2}, {"x": 1, "y": 1, "z": 0}, {"y": 0, "z": 0}, {"x": 2}]
    assert agreement_rows.counts(units, (0, 1, 2)) == [[0, 1, 1], [2, 0, 0]]
    assert agreement_rows.counts([{"x": 1}], (0, 1)) == []
    with pytest.raises(UserError, match="value 2 is not among the categories"):
        agreement_rows.counts(units, (0, 1))


def test_couples_share_units():
    units = [{"x": k % 3, "y": (k * k) % 3} | ({"z": 0} if k < 5 else {}) for k in range(12)]
    (couple,) = agreement_rows.couples(units)
    kappa = cohen_kappa([k % 3 for k in range(12)], [(k * k) % 3 for k in range(12)])
    assert couple == ("x", "y", 12, pytest.approx(kappa))
    assert [c[:3] for c in agreement_rows.couples(units, least=5)] == [("x", "y", 12), ("x", "z", 5), ("y", "z", 5)]
    assert len(agreement_rows.couples(units, least=5, most=2)) == 2
    assert agreement_rows.couples([{"x": 1, "y": 1}] * 10)[0].kappa is None
