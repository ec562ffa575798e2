"""best_of_n.py: what it writes is what SFT and DPO read, and what it tells is what the samples say."""

import dataclasses
import json

import best_of_n
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import best_of_n as worth
from rlhf_jax.feedback import formats
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling
from tests.experiments.conftest import PROMPT, RESPONSE, lines


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("best") / "run"
    rewards = {
        "words": Reward(function=world.function("words")),
        "letters": Reward(function=world.function("parts"), weight=0.0),
    }
    cfg = best_of_n.Experiment(
        world.model, world.prompts, rewards, str(out), samples=5, finished=False, kind="synthetic", batch=16,
        prompt_window=PROMPT, response_window=RESPONSE, sampling=Sampling(temperature=1.0),
    )  # fmt: skip
    return cfg, best_of_n.main(cfg), out


def test_the_best_are_demonstrations_and_best_and_worst_are_pairs(run):
    _, told, out = run
    scored = lines(out / "scored.jsonl")
    best, _ = formats.load_demonstrations(out / "best.jsonl")
    pairs, _ = formats.load(out / "pairs.jsonl")
    assert len(scored) == len(best) == told["best"] == told["prompts"] == 36 and 0 < len(pairs) == told["pairs"]
    texts = {json.dumps(list(each.prompt)): each.completion for each in best}
    for row in scored:
        assert row["scores"] == [len(text.split()) for text in row["responses"]]
        chosen = texts[json.dumps(row["prompt"])]
        assert len(chosen.split()) == max(row["scores"]) and chosen in row["responses"]
    assert all(len(p.responses[0].split()) > len(p.responses[1].split()) for p in pairs)
    assert {pair.source_kind for pair in pairs} == {"synthetic"}


def test_the_table_is_that_of_the_scores(run):
    _, told, out = run
    scores = np.array([row["scores"] for row in lines(out / "scored.jsonl")], float)
    wanted = worth.expected_best(scores).mean(axis=0)
    for k in range(1, 6):
        mean, low, high = told["expected"]["score"][k]
        assert mean == pytest.approx(wanted[k - 1]) and low <= mean <= high
    letters = np.array([[len(t) * 0.1 for t in row["responses"]] for row in lines(out / "scored.jsonl")])
    found = told["expected"]["letters"][5][0]
    assert found == pytest.approx(worth.expected_best(scores, letters)[:, -1].mean(), rel=1e-5)
    kept = json.loads((out / "results.json").read_text())["expected"]["score"]["1"]
    assert kept[0] == pytest.approx(scores.mean())


def test_responses_that_were_cut_are_never_written(run):
    cfg = dataclasses.replace(run[0], finished=True)
    rows = [
        {"prompt": [{"role": "user", "content": "a"}], "responses": ["x y", "x", "x y z"], "stop": ["eos", "eos", "length"]},
        {"prompt": [{"role": "user", "content": "b"}], "responses": ["x", "y", "z"], "stop": ["length"] * 3},
        {"prompt": [{"role": "text", "content": "c"}], "responses": ["x", "y", "z"], "stop": ["eos"] * 3},
    ]  # fmt: skip
    best, pairs = best_of_n.chosen(rows, np.array([[2.0, 1.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), cfg)
    assert [row["completion"] for row in best] == [[{"role": "assistant", "content": "x y"}], "x"]
    assert [pair.responses for pair in pairs] == [("x y", "x")], "no pair where nothing was left or all score alike"


def test_greedy_samples_have_no_best(run):
    with pytest.raises(UserError, match="temperature must be > 0"):
        dataclasses.replace(run[0], sampling=Sampling(temperature=0.0))
