import csv
import math

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import dawid_skene


@pytest.fixture(scope="module")
def anaesthetists(real):
    """item, annotator, label of the 315 readings of 45 patients by 5 observers, the first of whom read thrice."""
    with open(real("dawid_skene/anaesthetists.csv")) as file:
        rows = [[int(row[key]) - 1 for key in ("patient", "observer", "class")] for row in csv.DictReader(file)]
    return np.array(rows).T


def test_the_paper_s_table(anaesthetists):
    found = dawid_skene.fit(*anaesthetists, classes=4)
    assert found.converged
    assert found.marginals == pytest.approx([0.399555, 0.421983, 0.111795, 0.066667], abs=1e-6)
    assert np.bincount(found.posterior.argmax(1)).tolist() == [18, 19, 5, 3]
    assert found.log_likelihood == pytest.approx(-192.890881, abs=1e-6)
    assert min(np.diff(found.path)) > -1e-9 and len(found.path) > 5
    assert found.log_likelihood == pytest.approx(likelihood(found, *anaesthetists), abs=1e-9)


def likelihood(found, item, annotator, label):
    """sum_i log sum_j pi_j prod e, by loops."""
    total = 0.0
    for i in range(item.max() + 1):
        shares = [
            found.marginals[j]
            * math.prod(found.confusion[k, j, lab] for k, lab in zip(annotator[item == i], label[item == i]))
            for j in range(len(found.marginals))
        ]
        assert found.posterior[i] == pytest.approx(np.array(shares) / sum(shares), abs=1e-9)
        total += math.log(sum(shares))
    return total


def simulated(seed, items=1500, annotators=8, votes=5):
    rng = np.random.default_rng(seed)
    confusion = rng.dirichlet(np.ones(3), (annotators, 3)) * 0.4 + 0.6 * np.eye(3)
    truth = rng.choice(3, items, p=[0.5, 0.3, 0.2])
    who = rng.random((items, annotators)).argsort(1)[:, :votes]
    said = (rng.random((items, votes, 1)) > confusion[who, truth[:, None]].cumsum(2)[..., :2]).sum(2)
    return truth, confusion, np.repeat(np.arange(items), votes), who.ravel(), said.ravel()


def test_the_likelihood_and_the_posterior_are_those_of_the_parameters():
    _, _, *labels = simulated(0, items=80)
    found = dawid_skene.fit(*labels, classes=3)
    assert found.log_likelihood == pytest.approx(likelihood(found, *labels), abs=1e-9)
    assert found.confusion.sum(2) == pytest.approx(np.ones((8, 3))) and (found.confusion >= 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_em_never_falls(smoothing):
    _, _, *labels = simulated(0, items=80)
    path = dawid_skene.fit(*labels, classes=3, smoothing=smoothing).path
    assert len(path) > 5 and min(np.diff(path)) > -1e-9 and path[-1] - path[0] > 1


@pytest.mark.parametrize("seed", range(3))
def test_it_beats_the_majority(seed):
    truth, confusion, *labels = simulated(seed)
    found = dawid_skene.fit(*labels, classes=3)
    assert np.abs(found.confusion - confusion).mean() < 0.03
    assert np.abs(found.marginals - np.bincount(truth) / len(truth)).max() < 0.05
    assert found.accuracy == pytest.approx(np.einsum("j,kjj->k", found.marginals, found.confusion))
    majority = np.array([np.bincount(labels[2][labels[0] == i], minlength=3).argmax() for i in range(len(truth))])
    assert (found.posterior.argmax(1) == truth).mean() > (majority == truth).mean()


@pytest.mark.parametrize("seed", range(3))
def test_it_recovers_simulated_confusion(seed):
    """Every cell, from 6000 labels an annotator (some 1200 of them of the rarest class: a standard error of 0.014)."""
    _, confusion, *labels = simulated(seed, items=6000, annotators=6, votes=6)
    assert np.abs(dawid_skene.fit(*labels, classes=3, tolerance=1e-4).confusion - confusion).max() < 0.05


def test_repeated_labels_count(anaesthetists):
    """Only the last of observer 1's three readings kept: another fit."""
    item, annotator, label = anaesthetists
    last = [
        n for n in range(len(item)) if n + 1 == len(item) or (item[n], annotator[n]) != (item[n + 1], annotator[n + 1])
    ]
    assert len(last) == 225
    other = dawid_skene.fit(item[last], annotator[last], label[last], classes=4)
    assert np.abs(other.marginals - [0.3996, 0.4220, 0.1118, 0.0667]).max() > 0.005


def test_classes_that_nobody_names_and_annotators_who_are_never_wrong():
    found = dawid_skene.fit([0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1], classes=3)
    assert found.marginals.tolist() == [0.5, 0.5, 0.0] and np.isfinite(found.posterior).all()
    assert found.confusion[0].tolist() == [[1, 0, 0], [0, 1, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert found.log_likelihood == pytest.approx(2 * math.log(0.5))


def test_smoothing_keeps_few_labels_from_certainty():
    few = ([0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 1])
    assert dawid_skene.fit(*few, classes=2).confusion[0, 0, 0] == 1.0
    smoothed = dawid_skene.fit(*few, classes=2, smoothing=1).confusion[0, 0, 0]
    assert 0.5 < smoothed < 0.7, "one label and one pseudo-label of each class: at most 2 / 3"


def test_few_iterations_say_that_they_were_few(anaesthetists):
    assert not dawid_skene.fit(*anaesthetists, classes=4, max_iterations=3).converged


@pytest.mark.parametrize(
    ("item", "annotator", "label", "told"),
    [
        ([], [], [], "non-empty"),
        ([0, 1], [0], [0, 1], "equally long"),
        ([0, -1], [0, 0], [0, 1], "whole numbers from 0"),
        ([0, 1], [0, 0], [0.0, 1.0], "whole numbers from 0"),
        ([0, 1], [0, 0], [0, 2], "label 2 does not exist"),
        ([0, 2], [0, 0], [0, 1], "item 1 has no label"),
    ],
)
def test_labels_that_are_none(item, annotator, label, told):
    with pytest.raises(UserError, match=told):
        dawid_skene.fit(item, annotator, label, classes=2)
