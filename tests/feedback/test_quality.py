import math

import numpy as np
import pytest
from scipy.stats import beta, binomtest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import quality
from rlhf_jax.feedback.statistics.agreement import FIRST, SECOND, TIE
from rlhf_jax.feedback.statistics.quality import Judged


def pair(strength, *, who="x", item="1", shown=(0, 1), **fields):
    verdict = strength if isinstance(strength, dict) else {"strength": strength}
    return Judged(who, item, "pair", verdict, shown, **fields)


def test_wilson_is_scipys():
    for hits, n in ((0, 5), (3, 7), (19, 20), (40, 40)):
        found, expected = quality.wilson(hits, n), binomtest(hits, n).proportion_ci(0.95, method="wilson")
        assert (found.share, found.low, found.high) == pytest.approx((hits / n, expected.low, expected.high), abs=1e-12)
        assert (found.hits, found.n) == (hits, n)


def test_exact_is_clopper_pearson():
    for hits, n in ((1, 5), (6, 9), (30, 31)):
        found = quality.exact(hits, n, level=0.9)
        assert found.low == pytest.approx(beta.ppf(0.05, hits, n - hits + 1), abs=1e-9)
        assert found.high == pytest.approx(beta.ppf(0.95, hits + 1, n - hits), abs=1e-9)
    for hits, n in ((0, 4), (4, 4), (7, 30)):
        found = quality.exact(hits, n)
        interval = binomtest(hits, n).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert quality.exact(0, 0) == quality.wilson(0, 0) == quality.Share(0, 0, None, None, None)


@pytest.mark.parametrize(
    ("said", "meant", "right"),
    [
        ({"strength": -1}, {"strength": -3}, True),
        ({"strength": 1}, {"strength": -1}, False),
        ({"strength": 0}, {"both_bad": True}, True),
        ({"strength": 0}, {"strength": 1}, False),
        ({"skip": True}, {"strength": 1}, None),
        ({"ranks": [0, 1, 2]}, {"ranks": [0, 1, 1]}, True),
        ({"ranks": [0, 1, 1]}, {"ranks": [0, 1, 2]}, False),
        ({"ranks": [1, 0, 2]}, {"ranks": [0, 1, 2]}, False),
        ({"ratings": {"helpful": 4, "style": 1}}, {"ratings": {"helpful": 5}}, True),
        ({"ratings": {"helpful": 3}}, {"ratings": {"helpful": 5}}, False),
        ({"ratings": {"style": 5}}, {"ratings": {"helpful": 5}}, False),
    ],
)
def test_what_is_the_same(said, meant, right):
    assert quality.same(said, meant) is right


def test_gold_accuracy_counts_gold_that_is_answered():
    gold = {"strength": 2}
    rows = [pair(1, gold=gold), pair(3, gold=gold), pair(-1, gold=gold), pair({"skip": True}, gold=gold), pair(1)]
    rows += [pair(-2, gold=gold, repeat=True)]
    assert quality.gold_accuracy(rows) == quality.wilson(2, 3)


def test_pace_is_milliseconds_per_hundred_characters():
    assert quality.pace(pair(1, ms=4000, characters=800)) == 500
    assert quality.pace(pair(1, ms=4000)) is quality.pace(pair(1, characters=9)) is None
    assert quality.pace(pair({"skip": True}, ms=10, characters=500)) is None
    rows = [pair(1, ms=10.0 * k, characters=1000) for k in range(1, 101)]
    limit = quality.fast_limit(rows)
    assert limit == pytest.approx(np.percentile(np.arange(1, 101), 5))
    found = quality.speed(rows[:10], limit)
    assert (found.n, found.median) == (10, 5.5) and found.fast == quality.wilson(5, 10)
    assert (found.low, found.high) == pytest.approx((1.45, 9.55)), "nine of ten of 1, 2, ... 10"
    assert quality.speed([], limit).median is quality.fast_limit([]) is None


def test_first_shown_is_about_the_page_not_the_item():
    rows = [pair(-1), pair(2), pair(2, shown=(1, 0)), pair(-3, shown=(1, 0)), pair(1, shown=(1, 0)), pair(0)]
    rows += [
        pair({"both_bad": True}),
        pair({"skip": True}),
        pair(-1, shown=()),
        Judged("x", "r", "rank", {"ranks": [0, 1]}),
    ]
    assert quality.first_shown(rows) == quality.exact(3, 5)


def bot(kind, seed, n=60):
    """Swapped repeats of an annotator who is honest, takes the first shown, or guesses."""
    rng = np.random.default_rng(seed)
    rows = []
    for item in range(n):
        truth, shown = int(rng.choice([-2, 2])), (0, 1) if rng.random() < 0.5 else (1, 0)
        for again in (False, True):
            order = shown[::-1] if again else shown
            clicked = -2 if order == (0, 1) else 2
            said = {"honest": truth, "first": clicked, "random": int(rng.choice([-2, 2]))}[kind]
            rows.append(pair(said, item=str(item), shown=order, repeat=again, created=2 * item + again))
    return rows


def test_self_consistency_of_bots():
    honest, first, guess = (quality.self_consistency(bot(kind, 0)) for kind in ("honest", "first", "random"))
    assert honest.same.share == 1.0 and honest.kappa == 1.0
    assert first.same.share == 0.0 and first.kappa == pytest.approx(-1, abs=0.1)
    assert guess.same.share == pytest.approx(0.5, abs=0.2) and guess.kappa == pytest.approx(0, abs=0.3)
    assert quality.first_shown(bot("first", 0)).share == 1.0
    assert quality.self_consistency([pair(1), pair(1, item="2", repeat=True)]).same.n == 0, (
        "no first time to compare with"
    )
    skipped = [pair(1), pair({"skip": True}, repeat=True)]
    assert quality.self_consistency(skipped) == quality.Consistency(quality.wilson(0, 0), None)


def test_the_repeat_of_another_annotator_is_not_mine():
    rows = [pair(1, who="x"), pair(-1, who="y"), pair(-1, who="y", repeat=True)]
    assert quality.self_consistency(rows).same == quality.wilson(1, 1)
    ranks = [
        Judged("x", "r", "rank", {"ranks": r}, (), repeat=again) for r, again in (([0, 1, 2], False), ([0, 2, 1], True))
    ]
    assert quality.self_consistency(ranks).same == quality.wilson(0, 1)
    ratings = [Judged("x", "r", "rate", {"ratings": {"a": v}}, repeat=again) for v, again in ((3, False), (4, True))]
    assert quality.self_consistency(ratings).same == quality.wilson(0, 1), "the same number, not one near it"


def test_keys_are_those_of_the_page():
    assert quality.key(pair(2)) == quality.key(pair(-2, shown=(1, 0))) != quality.key(pair(2, shown=(1, 0)))
    ranks = [Judged("x", "r", "rank", {"ranks": r}, s) for r, s in (([0, 1, 2], (0, 1, 2)), ([2, 0, 1], (1, 2, 0)))]
    assert quality.key(ranks[0]) == quality.key(ranks[1]) == "ranks [0, 1, 2]"
    assert quality.key(pair({"both_bad": True})) == "both bad" and quality.key(pair({"skip": True})) == "skip"
    rated = Judged("x", "r", "rate", {"ratings": {"b": 1, "a": 2}})
    assert quality.key(rated) == "ratings [('a', 2), ('b', 1)]"


def test_the_longest_run_is_in_the_order_of_making():
    said = [1, 1, 2, 2, 2, 1, 1]
    rows = [pair(s, created=k) for k, s in enumerate(said)]
    in_a_file = sorted(rows, key=lambda row: row.verdict["strength"])
    assert quality.longest_run(in_a_file) == (3, "strength +2"), "not the four of +1 that stand together there"
    assert quality.longest_run([]) == (0, "")


def test_concentration():
    rows = [pair(1, who=who) for who in "xxxxxyyyzz"]
    assert quality.concentration(rows) == pytest.approx([0.5, 0.8, 1.0])
    assert [quality.top_share(rows, k) for k in (1, 2, 20)] == pytest.approx([0.5, 0.8, 1.0])
    assert quality.concentration([]) == [] and quality.top_share([], 3) is None
    with pytest.raises(UserError, match="k is 1 or more"):
        quality.top_share(rows, 0)


def worker(kind, seed, n=60):
    """One annotator's rows, gold and repeats among them: honest (95 % right), or bad in one way."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        truth, order = int(rng.choice([-2, 2])), (0, 1) if rng.random() < 0.5 else (1, 0)
        said = truth if rng.random() < 0.95 else -truth
        said = int(rng.choice([-3, -2, -1])) * (1 if said < 0 else -1)
        ms = rng.lognormal(9, 0.5)
        if kind == "random":
            said = int(rng.choice([-2, 2]))
        if kind == "first":
            said = -2 if order == (0, 1) else 2
        if kind == "fast":
            ms /= 20
        if kind == "one key":
            said = 1 if order == (0, 1) else -1
        gold = {"strength": truth} if k % 3 == 0 else None
        rows.append(pair(said, who=kind, item=str(k), shown=order, ms=ms, characters=900, gold=gold, created=2 * k))
        if k % 3 == 1:
            again = (
                said
                if kind not in ("random", "first", "one key")
                else -said
                if kind != "random"
                else int(rng.choice([-2, 2]))
            )
            rows.append(
                pair(
                    again,
                    who=kind,
                    item=str(k),
                    shown=order[::-1],
                    ms=ms,
                    characters=900,
                    repeat=True,
                    created=2 * k + 1,
                )
            )
    return rows


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("honest", set()),
        ("first", {"first_shown", "self_consistency", "longest_run"}),
        ("one key", {"first_shown", "self_consistency", "longest_run"}),
        ("fast", {"speed"}),
    ],
)
def test_alarms_name_what_is_wrong(kind, told):
    pool = [row for seed in range(10) for row in worker("honest", seed)]
    limit = quality.fast_limit(pool)
    for seed in range(100, 103):
        found = quality.alarms(worker(kind, seed), limit)
        assert told <= found.keys() <= told | ({"gold_accuracy"} if told & {"first_shown"} else set()), found


def test_honest_annotators_are_left_alone():
    limit = quality.fast_limit([row for seed in range(10) for row in worker("honest", seed)])
    alarmed = [bool(quality.alarms(worker("honest", seed), limit)) for seed in range(10, 60)]
    assert np.mean(alarmed) < 0.12, "one in 20 is told of a position bias that is chance"
    caught = [bool(quality.alarms(worker("random", seed), limit)) for seed in range(20)]
    assert np.mean(caught) > 0.3


def test_few_judgements_raise_no_alarm():
    gold = {"strength": 2}
    assert quality.alarms([pair(-2, gold=gold, created=k) for k in range(4)], None) == {}
    assert "gold_accuracy" in quality.alarms([pair(-2, gold=gold, created=k) for k in range(5)], None)


def test_by_annotator_sorts():
    rows = [pair(1, who="b", created=2), pair(1, who="a", created=3), pair(2, who="b", created=1)]
    assert quality.by_annotator(rows) == {"a": [rows[1]], "b": [rows[2], rows[0]]}


@pytest.mark.parametrize(
    ("kind", "verdict", "told"),
    [
        ("choice", {"strength": 1}, "kind is one of pair, rank, rate"),
        ("pair", {"ranks": [0, 1]}, "a pair has one of both_bad, strength, skip"),
        ("rate", {}, "a rate has one of ratings, skip"),
        ("pair", {"strength": 1, "skip": True}, "one of"),
    ],
)
def test_a_row_checks_itself(kind, verdict, told):
    with pytest.raises(UserError, match=told):
        Judged("x", "1", kind, verdict)
    assert quality.preference({"both_bad": True}) == TIE and quality.preference({"strength": -1}) == FIRST
    assert quality.preference({"strength": 2}) == SECOND and quality.preference({"skip": True}) is None
    assert math.isclose(quality.wilson(1, 2).share, 0.5)
