import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import kendalltau

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import bradley_terry, crowd_bt, crowd_bt_pairs

OBJECTIVES = [(crowd_bt.objective, 1), (crowd_bt.objective_with_position, 2)]


def crowd(seed, *, items=40, annotators=50, each=60):
    """Scores, eta (70 % right 19 times of 20, 20 % spammers, 10 % inverted) and comparisons of items drawn at random."""
    rng = np.random.default_rng(seed)
    scores = 1.5 * rng.normal(size=items)
    good, spam = round(0.7 * annotators), round(0.2 * annotators)
    eta = np.array([0.95] * good + [0.5] * spam + [0.05] * (annotators - good - spam))
    who = np.repeat(np.arange(annotators), each)
    first = rng.integers(items, size=len(who))
    second = (first + rng.integers(1, items, size=len(who))) % items
    seen = rng.random(len(who)) < expit(scores[first] - scores[second])
    outcome = (seen == (rng.random(len(who)) < eta[who])).astype(float)
    return scores, eta, crowd_bt.compared(first, second, outcome, who, items=items, annotators=annotators)


def small(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(5, size=40)
    return crowd_bt.compared(
        *(first, (first + rng.integers(1, 5, size=40)) % 5, rng.choice([0, 0.5, 1, 0.3], size=40)),
        rng.integers(3, size=40),
        items=5,
        annotators=3,
        shown_first=rng.choice([-1.0, 0.0, 1.0], size=40),
    )


@pytest.mark.parametrize(("objective", "per_annotator"), OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_finite_differences(objective, per_annotator, seed):
    data = small(seed)
    at = np.random.default_rng(seed).normal(size=5 + 3 * per_annotator)
    slope = objective(at, data)[1]
    for k, step in enumerate(1e-5 * np.eye(len(at))):
        numeric = (objective(at + step, data)[0] - objective(at - step, data)[0]) / 2e-5
        assert slope[k] == pytest.approx(numeric, abs=1e-7)


@pytest.mark.parametrize(("objective", "per_annotator"), OBJECTIVES)
def test_the_objective_is_the_paper_s(objective, per_annotator):
    """Every term by hand: mixture, virtual node of strength 0.7, Beta(3, 2)."""
    data, (alpha, beta) = small(0), (3.0, 2.0)
    at = np.random.default_rng(1).normal(size=5 + 3 * per_annotator)
    s, eta, q = at[:5], expit(at[5:8]), at[8:]
    total = 0.0
    for i, j, y, k, side in zip(data.first, data.second, data.outcome, data.annotator, data.shown_first, strict=True):
        rest = expit(q[k] * side) if per_annotator == 2 else expit(s[j] - s[i])
        p = eta[k] * expit(s[i] - s[j]) + (1 - eta[k]) * rest
        total += y * math.log(p) + (1 - y) * math.log(1 - p)
    total += 0.7 * sum(math.log(expit(x)) + math.log(expit(-x)) for x in [*s, *q])
    total += sum((alpha - 1) * math.log(e) + (beta - 1) * math.log(1 - e) for e in eta)
    assert objective(at, data, strength=0.7, prior=(alpha, beta))[0] == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_spammers_and_inverted_annotators_are_found_and_the_scores_gain(seed):
    scores, eta, data = crowd(seed)
    found = crowd_bt.fit(data)
    good, spam, inverted = (found.eta[eta == level] for level in (0.95, 0.5, 0.05))
    assert good.mean() > 0.8 > 0.65 > spam.mean() > 0.35 > inverted.mean()
    assert np.median(good) > spam.max() and spam.min() > np.median(inverted)
    plain = bradley_terry.fit(data.first, data.second, data.outcome, items=data.items)
    assert kendalltau(found.scores, scores).statistic > kendalltau(plain, scores).statistic


def test_the_fit_is_a_maximum_and_deterministic():
    _, _, data = crowd(0, items=10, annotators=10, each=20)
    found = crowd_bt.fit(data)
    at = np.concatenate([found.scores, np.log(found.eta / (1 - found.eta))])
    assert crowd_bt.objective(at, data)[0] == pytest.approx(found.objective)
    assert np.abs(crowd_bt.objective(at, data)[1]).max() < 1e-4
    assert crowd_bt.fit(data).eta.tolist() == found.eta.tolist()


def test_all_eta_at_one_is_bradley_terry():
    """With a prior that is sure of everybody the model is the plain one."""
    _, _, data = crowd(0, items=10, annotators=10, each=20)
    sure = crowd_bt.fit(data, prior=(1e7, 1.0))
    plain = bradley_terry.fit(data.first, data.second, data.outcome, items=10)
    assert sure.eta.min() > 0.999 and sure.scores == pytest.approx(plain, abs=1e-3)


def test_position_tells_those_who_click_the_first_from_those_who_look():
    rng = np.random.default_rng(0)
    items, who = 30, np.repeat(np.arange(30), 60)
    scores, looks = 1.5 * rng.normal(size=items), np.array([0.95] * 20 + [0.1] * 10)
    first = rng.integers(items, size=len(who))
    second = (first + rng.integers(1, items, size=len(who))) % items
    side = rng.choice([-1.0, 1.0], size=len(who))
    seen, clicked = expit(scores[first] - scores[second]), expit(3.0 * side)
    outcome = (rng.random(len(who)) < np.where(rng.random(len(who)) < looks[who], seen, clicked)).astype(float)
    data = crowd_bt.compared(first, second, outcome, who, items=items, annotators=30, shown_first=side)
    found = crowd_bt.fit_with_position(data)
    assert np.median(found.eta[:20]) > 0.7 > 0.4 > np.median(found.eta[20:])
    assert np.median(found.position[20:]) > 1.5, "they favour the first place, not the last"
    with pytest.raises(UserError, match="needs `shown_first`"):
        crowd_bt.fit_with_position(crowd_bt.compared(first, second, outcome, who, items=items, annotators=30))


def sparse(seed, votes):
    """600 pairs that share no response, `votes` votes on each, of 14 good annotators, 4 spammers and 2 inverted."""
    rng = np.random.default_rng(seed)
    eta = np.array([0.95] * 14 + [0.5] * 4 + [0.05] * 2)
    first = rng.random(600) < expit(2.4 * rng.normal(size=600))
    rows = [
        (p, k, float(first[p] == (rng.random() < eta[k])))
        for p in range(600)
        for k in rng.choice(20, votes, replace=False)
    ]
    return eta, *(np.array(column) for column in zip(*rows, strict=True))


@pytest.mark.long
def test_pairs_that_share_no_response_need_the_integral():
    """With three votes a pair the scores of `fit` bend to the spammers' votes; the marginal fit sees them."""
    off = []
    for seed in range(4):
        eta, pair, who, outcome = sparse(seed, 3)
        found = crowd_bt_pairs.fit(crowd_bt_pairs.voted(pair, who, outcome, annotators=20))
        good, spam, inverted = np.split(found, [14, 18])
        assert good.mean() > 0.8 > 0.7 > spam.mean() > 0.4 > inverted.max() and np.median(good) > spam.max()
        joint = crowd_bt.fit(crowd_bt.compared(2 * pair, 2 * pair + 1, outcome, who, items=1200, annotators=20)).eta
        off.append((spam.mean() - 0.5, joint[14:18].mean() - 0.5))
    marginal, joint = np.abs(off).mean(0)
    assert marginal < 0.1 < joint


def test_the_marginal_objective_is_the_integral():
    _, pair, who, outcome = sparse(0, 2)
    keep = pair < 6
    votes = crowd_bt_pairs.voted(
        pair[keep], who[keep], np.where(who[keep] == who[0], 0.5, outcome[keep]), annotators=20
    )
    at = np.random.default_rng(0).normal(size=20)
    eta, d = expit(at), np.linspace(-30, 30, 60_001)
    density = np.exp(-((d / 1.7) ** 2) / 2) / (1.7 * math.sqrt(2 * math.pi))
    total = (3 * np.log(eta) + np.log(1 - eta)).sum()
    for p in range(6):
        like = np.ones_like(d)
        for k, y in zip(votes.annotator[votes.pair == p], votes.outcome[votes.pair == p], strict=True):
            one = eta[k] * expit(d) + (1 - eta[k]) * expit(-d)
            like = like * one**y * (1 - one) ** (1 - y)
        total += math.log((like * density).sum() * (d[1] - d[0]))
    assert crowd_bt_pairs.objective(at, votes, spread=1.7)[0] == pytest.approx(total, abs=1e-6)


def test_the_marginal_gradient_is_that_of_finite_differences():
    _, pair, who, outcome = sparse(0, 3)
    votes = crowd_bt_pairs.voted(pair, who, outcome, annotators=20)
    at = np.random.default_rng(0).normal(size=20)
    slope = crowd_bt_pairs.objective(at, votes)[1]
    for k, step in enumerate(1e-5 * np.eye(20)):
        numeric = (crowd_bt_pairs.objective(at + step, votes)[0] - crowd_bt_pairs.objective(at - step, votes)[0]) / 2e-5
        assert slope[k] == pytest.approx(numeric, abs=1e-5)


def test_who_judges_alone_keeps_the_prior():
    votes = crowd_bt_pairs.voted([0, 1, 2, 2], [0, 0, 1, 1], [1, 0, 1, 1], annotators=2)
    assert crowd_bt_pairs.fit(votes)[0] == pytest.approx(0.75, abs=1e-6), "Beta(4, 2) has its mode at 3 / 4"


def test_input_that_is_none():
    good = ([0, 1], [1, 0], [1, 0])
    for who, told in (([0], "one a comparison"), ([0, 2], "from 0 to 1"), ([0.0, 1.0], "whole numbers")):
        with pytest.raises(UserError, match=told):
            crowd_bt.compared(*good, who, items=2, annotators=2)
    with pytest.raises(UserError, match="shown_first is 1, -1 or 0"):
        crowd_bt.compared(*good, [0, 1], items=2, annotators=2, shown_first=[2, 0])
    data = crowd_bt.compared(*good, [0, 1], items=2, annotators=2)
    with pytest.raises(UserError, match=r"prior is at least \(1, 1\)"):
        crowd_bt.fit(data, prior=(0.5, 2))
    for bad, told in ((([0], [0, 1], [1, 0]), "equally long"), (([0, 1], [0, 2], [1, 0]), "from 0 to 1")):
        with pytest.raises(UserError, match=told):
            crowd_bt_pairs.voted(*bad, annotators=2)
    with pytest.raises(UserError, match="an outcome is 1"):
        crowd_bt_pairs.voted([0], [0], [2], annotators=1)
    with pytest.raises(UserError, match="spread above 0"):
        crowd_bt_pairs.fit(crowd_bt_pairs.voted([0], [0], [1], annotators=1), spread=0)
