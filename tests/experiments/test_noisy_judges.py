"""noisy_judges.py: the made judges are who they should be, the evaluation is the gold one, and the tables add up."""

import dataclasses
import json

import judged_world
import noisy_judges
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import intervals
from rlhf_jax.feedback import simulate
from rlhf_jax.runs import judged

SMALL = dict(
    seed=7,
    seeds=2,
    held_out=300,
    judges=10,
    pairs=120,
    pool=80,
    first=16,
    ask=8,
    rounds=1,
    members=2,
    steps=6,
    repeats=1,
)


def test_the_panel_holds_who_it_says():
    rng = np.random.default_rng(0)
    who = judged_world.panel(rng, 10, temperature=0.02, spammers=2, inverted=1)
    items = judged_world.made(1, 200, split="train")
    apart = np.array([item.scores[0] - item.scores[1] for item in items])
    for number, (low, high) in {0: (0.35, 0.65), 1: (0.35, 0.65), 2: (0.0, 0.2), 3: (0.8, 1.0), 9: (0.8, 1.0)}.items():
        said = [simulate.judge(rng, who[number], item.scores, [20, 20]).ranks for item in items]
        right = np.mean([0.5 if a == b else float((a < b) == (d > 0)) for (a, b), d in zip(said, apart)])
        assert low <= right <= high, (number, right)


def test_gold_pairs_are_as_the_gold_preference_says():
    items = judged_world.made(1, 50, split="held out")
    pairs = judged_world.truth(items)
    for item, pair in zip(items, pairs, strict=True):
        assert {pair.chosen, pair.rejected} == set(item.responses) and pair.source_kind == "synthetic"
        assert item.scores[list(item.responses).index(pair.chosen)] == max(item.scores) > min(item.scores)


def test_held_out_prompts_are_never_judged_and_skew_is_what_it_says():
    even, skewed = (judged_world.made(1, 600, split="train", skew=skew) for skew in (0.0, 2.0))
    asked = {item.prompt for item in (*even, *skewed)}
    assert not asked & {item.prompt for item in judged_world.made(1, 600, split="held out")}
    share = [np.mean(["otter" in item.prompt for item in items]) for items in (even, skewed)]
    assert share[0] < 0.2 and share[1] > 0.4  # 1/12, and 1 / (1 + 1/4 + 1/9 + …)


def test_the_reward_is_the_sum_of_the_features_of_a_text():
    pair = judged_world.truth(judged_world.made(1, 1, split="train"))[0]
    table = np.random.default_rng(0).normal(size=judged_world.SIZE).astype(np.float32)
    rows = judged_world.encode([pair])
    prompt = pair.prompt[-1]["content"]
    one, other = (sum(table[judged_world.features(prompt, text)]) for text in (pair.chosen, pair.rejected))
    found = judged_world.margins([{"table": table}, {"table": -table}], rows)
    assert found[:, 0] == pytest.approx([one - other, other - one], abs=1e-3)
    assert (
        max(map(len, (judged_world.features(prompt, text) for text in (pair.chosen, pair.rejected))))
        < judged_world.MOST
    )


def test_a_model_learns_from_true_labels():
    rows = judged_world.encode(judged_world.truth(judged_world.made(3, 400, split="train")))
    model = judged_world.fit(rows, 0, steps=60, batch=32, lr=3e-3)
    assert (judged_world.margins([model], rows)[0] > 0).mean() > 0.9


@pytest.mark.long
def test_the_tables_hold_every_seed_and_its_paired_gain(tmp_path, capsys):
    cfg = noisy_judges.Experiment(out=str(tmp_path / "run"), **SMALL)
    result = noisy_judges.main(cfg)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seeds"] == [7, 8]
    for name, arms in (
        ("reliability", noisy_judges.ARMS),
        (noisy_judges.EVENLY, noisy_judges.STRATEGIES),
        (noisy_judges.AS_ASKED, noisy_judges.STRATEGIES),
    ):
        table = result[name]
        assert tuple(table) == arms
        for row in table.values():
            assert row["gain"] == intervals.paired(np.subtract(row["accuracy"], table[arms[0]]["accuracy"]))
    said = capsys.readouterr().out
    assert said.startswith("2 seeds, one after another: ") and "a minute or so each" in said.splitlines()[0]
    assert "made up" in said and all(name in said for name in (*noisy_judges.ARMS, *noisy_judges.STRATEGIES))
    again = noisy_judges.main(dataclasses.replace(cfg, seeds=1, seed=8))
    assert again["reliability"]["Crowd-BT"]["accuracy"] == result["reliability"]["Crowd-BT"]["accuracy"][1:]


def test_a_round_keeps_its_random_part_and_asks_nothing_twice():
    cfg = noisy_judges.Experiment(**SMALL | {"ask": 10})
    rng = np.random.default_rng(0)
    z, said = rng.normal(size=(40, 6)), rng.normal(size=(3, 40))
    for strategy in noisy_judges.STRATEGIES:
        draw = np.random.default_rng(1)
        found = noisy_judges.choose(strategy, said, z, z[:5], cfg, draw)
        assert len(set(found.index.tolist())) == 10
        assert found.random.sum() == (10 if strategy == "random" else 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"votes": 50}, "at most the 40 judges"),
        ({"spammers": 0.9, "inverted": 0.2}, "good judges"),
        ({"pool": 10}, "pool"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        noisy_judges.Experiment(**changes)


def test_the_arms_differ_in_labels_alone():
    """Majority labels are whole, each judgement is a row of its judge, and all are of the same pairs."""
    rng = np.random.default_rng(0)
    who = judged_world.panel(rng, 6, temperature=0.1, spammers=1)
    said = simulate.collect(rng, judged_world.made(1, 30, split="train"), who, votes=3)
    each = judged_world.encode(judged.pairs(said, "each"), [judge.name for judge in who])
    assert each.label.size == 90 and set(each.judge.tolist()) == set(range(6))
    votes = judged.pairs(said, "votes")
    assert len(votes) == len(judged.pairs(said, "dawid_skene")) == 30
