import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import Comparison, as_messages, votes
from rlhf_jax.feedback.statistics import annotators, dawid_skene
from rlhf_jax.feedback.statistics.agreement import FIRST, SECOND, TIE


def judged(annotator, ranks, prompt="q", responses=("a", "b"), **fields):
    fields = {"source_kind": "human"} | fields
    return Comparison(as_messages(prompt), tuple(responses), ranks, annotator=annotator, **fields)


def crowd(seed, *, items=300, votes=3, listing=False):
    """Gaps (nats; above 0: response a is better) and comparisons by 14 good annotators, 4 spammers and 2 inverted; no ties."""
    rng = np.random.default_rng(seed)
    right = {f"{k:02d}": p for k, p in enumerate([0.95] * 14 + [0.5] * 4 + [0.05] * 2)}
    gold, said = [], []
    for item in range(items):
        gap = 2.4 * rng.normal()
        gold.append(gap)
        for k in rng.choice(20, votes, replace=False):
            name = f"{k:02d}"
            a = (rng.random() < expit(gap)) == (rng.random() < right[name])
            turned = listing and rng.random() < 0.5
            ranks, texts = ((0, 1) if a else (1, 0)), ("a", "b")
            said.append(judged(name, ranks[::-1] if turned else ranks, str(item), texts[::-1] if turned else texts))
    return gold, said


def share_right(pairs, gold):
    """Share of items whose chosen response is the gold one; a tie is half right."""
    by_prompt = {pair.prompt[0]["content"]: pair for pair in pairs}
    return np.mean(
        [0.5 if by_prompt[str(k)].tie else (by_prompt[str(k)].chosen == "a") == (gap > 0) for k, gap in enumerate(gold)]
    )


@pytest.mark.parametrize("seed", range(3))
def test_soft_labels_are_right_more_often_than_the_majority(seed):
    gold, said = crowd(seed, items=600)
    pairs, accuracy = annotators.dawid_skene(said)
    assert share_right(pairs, gold) > share_right(votes(said), gold)
    assert min(accuracy[f"{k:02d}"] for k in range(14)) > max(accuracy[f"{k:02d}"] for k in range(18, 20))
    assert np.mean([accuracy[f"{k:02d}"] for k in range(14, 18)]) == pytest.approx(0.5, abs=0.12)
    assert all(0.5 <= pair.label <= 1 for pair in pairs)


def test_soft_labels_say_how_sure_they_are():
    """A few points too sure on the whole: the model takes hard pairs, on which good people differ too, for easy ones."""
    right = []
    for seed in range(2):
        gold, said = crowd(seed, items=500)
        for pair in annotators.dawid_skene(said)[0]:
            right.append((pair.label, (pair.chosen == "a") == (gold[int(pair.prompt[0]["content"])] > 0)))
    label, hit = np.array(right).T
    assert abs(label.mean() - hit.mean()) < 0.08
    assert hit[label > 0.95].mean() > 0.9 > 0.75 > hit[label < 0.7].mean()


def test_the_labels_do_not_depend_on_which_response_is_listed_first():
    _, said = crowd(0)
    pairs, accuracy = annotators.dawid_skene(said)
    turned = [replace(c, responses=c.responses[::-1], ranks=c.ranks[::-1]) for c in said]
    other, again = annotators.dawid_skene(turned)
    assert again == pytest.approx(accuracy, abs=1e-6)
    assert [pair.chosen for pair in pairs] == [pair.chosen for pair in other]
    assert [pair.label for pair in pairs] == pytest.approx([pair.label for pair in other], abs=1e-6)
    (pairs, eta), (other, again) = annotators.crowd_bt(said), annotators.crowd_bt(turned)
    assert again == pytest.approx(eta, abs=1e-5)
    assert [pair.chosen for pair in pairs] == [pair.chosen for pair in other]
    assert [pair.label for pair in pairs] == pytest.approx([pair.label for pair in other], abs=1e-5)


def test_judgements_that_list_the_responses_in_another_order_are_of_one_item():
    assert annotators.dawid_skene(crowd(0, listing=True)[1])[1].keys() == annotators.dawid_skene(crowd(0)[1])[1].keys()
    found = annotators.votes([judged("x", (0, 1)), judged("y", (0, 1), responses=("b", "a")), judged("x", (0, 0))])
    assert (found.pair.tolist(), found.annotator.tolist()) == ([0, 0, 0], [0, 1, 0])
    assert found.label.tolist() == [FIRST, SECOND, TIE] and found.names == ("x", "y")


def test_the_posterior_is_that_of_the_mirrored_fit():
    """One item of three, by hand: the label is the posterior of `dawid_skene.fit` on the votes and their mirror images."""
    given = [judged("x", (0, 1), "1"), judged("y", (0, 1), "1"), judged("x", (1, 0), "2"), judged("y", (1, 0), "2")]
    given += [judged("x", (0, 1), "3"), judged("y", (1, 0), "3"), judged("z", (0, 1), "3"), judged("z", (1, 0), "2")]
    pair, who = [0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 0, 1, 2, 0, 1, 2]
    label = [1, 1, 2, 2, 2, 1, 2, 1]
    mirror = {0: 0, 1: 2, 2: 1}
    fit = dawid_skene.fit(
        pair + [p + 3 for p in pair], who * 2, label + [mirror[x] for x in label], classes=3, smoothing=1
    )
    pairs = {p.prompt[0]["content"]: p for p in annotators.dawid_skene(given)[0]}
    for k in range(3):
        one, two = fit.posterior[k, FIRST], fit.posterior[k, SECOND]
        assert pairs[str(k + 1)].label == pytest.approx(max(one, two) / (one + two))
    assert pairs["3"].chosen == "a" and pairs["3"].annotator == "" and pairs["1"].weight == 1


def test_ties_weights_and_sets():
    tied = [judged(who, (0, 0), str(k)) for k in range(5) for who in "xyz"]
    clear = [judged(who, (0, 1), str(k), margin=m) for k in range(5, 20) for who, m in zip("xyz", (1.0, 2.0, 3.0))]
    pairs, _ = annotators.dawid_skene(tied + clear)
    assert [pair.tie for pair in pairs] == [True] * 5 + [False] * 15
    assert {pair.margin for pair in pairs} == {0.0, 2.0} and {pair.label for pair in pairs[:5]} == {0.5}

    leads = [judged(who, ranks, "t") for who, ranks in (("x", (0, 1)), ("y", (0, 0)), ("z", (0, 0)))]
    found = annotators.dawid_skene(tied + clear + leads)[0][-1]
    assert found.tie and found.equal > 0.5 and found.chosen == "a" and found.label > 0.9, "x alone decided, for a"

    ranked = [judged(who, (0, 1, 2), "r", "abc", weight=w) for who, w in (("x", 1.0), ("y", 3.0), ("z", 0.0))]
    assert {p.axis for p in pairs} == {"overall"} and pairs[0].equal > 0.5 > pairs[5].equal
    pairs, accuracy = annotators.dawid_skene(ranked)
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert {p.weight for p in pairs} == {2 / 3} and accuracy.keys() == {"x", "y"}, "z has no weight, and no say"
    assert {p.weight for p in annotators.dawid_skene(ranked, per_set_weight=False)[0]} == {2.0}


def test_source_kinds_are_not_mixed():
    given = [judged("x", (0, 1)), judged("bot", (1, 0), source_kind="synthetic")]
    pairs, _ = annotators.dawid_skene(given)
    assert sorted((p.source_kind, p.chosen) for p in pairs) == [("human", "a"), ("synthetic", "b")]


def test_crowd_bt_labels_are_right_more_often_than_the_majority_and_calibrated():
    """The data are the model's own, so that a label is what a reliable annotator's vote would be, on average."""
    label, share = [], []
    for seed in range(2):
        gold, said = crowd(seed, items=500)
        pairs, _ = annotators.crowd_bt(said)
        assert share_right(pairs, gold) > share_right(votes(said), gold)
        for pair in pairs:
            gap = gold[int(pair.prompt[0]["content"])]
            label.append(pair.label)
            share.append(expit(gap if pair.chosen == "a" else -gap))
    label, share = np.array(label), np.array(share)
    for some in (label < 0.65, (0.65 < label) & (label < 0.8), 0.8 < label):
        assert some.sum() > 100 and abs(label[some].mean() - share[some].mean()) < 0.05


def test_crowd_bt_labels_and_ties():
    given = [judged(who, (0, 0) if who in tied else (0, 1), axis="style") for who in "xyz" for tied in ["yz"]]
    (pair,), eta = annotators.crowd_bt(given)
    assert (pair.tie, pair.chosen, pair.equal, pair.axis) == (True, "a", pytest.approx(2 / 3), "style")
    assert 0.5 < pair.label < 0.75, "equal leads, and of who decided the label still tells"
    (pair,), eta = annotators.crowd_bt([judged("x", (1, 0), margin=2.0)])
    assert eta["x"] == pytest.approx(0.75, abs=1e-6) and (pair.chosen, pair.margin, pair.annotator) == ("b", 2.0, "x")
    # E[sigma(d) (1/2 + sigma(d) / 2 - 1/4)] / (1/2), over d ~ Normal(0, 2.4^2), is 1/2 + Var[sigma(d)]
    d = 2.4 * np.random.default_rng(0).normal(size=400_000)
    assert pair.label == pytest.approx(0.5 + expit(d).var(), abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_eta_orders_good_spammers_and_inverted(seed):
    _, eta = annotators.crowd_bt(crowd(seed, items=600)[1])
    good, spam, inverted = ([eta[f"{k:02d}"] for k in group] for group in (range(14), range(14, 18), range(18, 20)))
    assert np.mean(good) > 0.8 > 0.7 > np.mean(spam) > 0.4 > max(inverted)
    assert np.median(good) > max(spam) and min(spam) > max(inverted)


def test_weights_follow_eta():
    given = [judged("x", (0, 1)), judged("y", (0, 1), weight=2.0), judged("z", (0, 1)), judged("w", (0, 1))]
    found = annotators.weighed(given, {"x": 1.0, "y": 0.75, "z": 0.5, "w": 0.1})
    assert [(c.annotator, c.weight) for c in found] == [("x", 1.0), ("y", 1.0)]
    for eta in ({"x": 1.0}, {"x": 1.2, "y": 0.5, "z": 0.5, "w": 0.5}, {"x": math.nan}):
        with pytest.raises(UserError, match="needs an eta from 0 to 1"):
            annotators.weighed(given, eta)


def test_weighed_votes_are_right_more_often():
    gains = []
    for seed in range(3):
        gold, said = crowd(seed, items=200, votes=4)
        weighed = annotators.weighed(said, annotators.crowd_bt(said)[1])
        judged_items = {c.prompt[0]["content"] for c in weighed}
        pairs = [p for p in votes(said) if p.prompt[0]["content"] not in judged_items] + votes(weighed)
        gains.append(share_right(pairs, gold) - share_right(votes(said), gold))
    assert min(gains) >= 0 and np.mean(gains) > 0.02


def test_reliability_of_units_is_that_of_the_comparisons():
    _, said = crowd(0)
    units = {}
    for c in said:
        units.setdefault((c.prompt[0]["content"], 0, 1), {})[c.annotator] = FIRST if c.ranks == (0, 1) else SECOND
    units[("alone", 0, 1)] = {"00": FIRST}
    found = annotators.reliability(units)
    assert {name: one.eta for name, one in found.items()} == pytest.approx(annotators.crowd_bt(said)[1], abs=1e-5)
    accuracy = annotators.dawid_skene(said)[1]
    assert {name: one.accuracy for name, one in found.items()} == pytest.approx(accuracy, abs=1e-5)
    assert sum(one.shared for one in found.values()) == len(said)
    assert annotators.reliability({("alone", 0, 1): {"x": FIRST}}) == {}


def test_nothing_judged():
    for empty in ([], [judged("x", (0, 1), weight=0.0)]):
        for function in (annotators.dawid_skene, annotators.crowd_bt):
            with pytest.raises(UserError, match="no votes to weigh"):
                function(empty)
