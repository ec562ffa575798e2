"""Rounds of feedback: new prompts each round, tested before they teach, gone on with after a stop."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path

import label
import numpy as np
import pytest
import reward_model
import rounds
import rounds_parts as parts

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.records import Comparison, as_messages
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_guideline, add_items, annotator_of
from rlhf_jax.feedback.store.assign import Rules, next_task
from rlhf_jax.feedback.store.judge import Asked, Words, submit
from rlhf_jax.runs.ppo_settings import Reward
from tests.experiments.conftest import PROMPT, RESPONSE, TEXT, lines


@pytest.fixture
def cfg(world, tmp_path):
    """Two rounds of two simulated people and the smallest models."""
    return rounds.Experiment(
        world.model,
        world.prompts,
        str(tmp_path / "rounds"),
        gold=world.function("words"),
        rounds=2,
        prompts_per_round=12,
        simulated=parts.Simulated(judges=2, temperature=1e-6, position_bias=0.0, length_bias=0.0, lapse=0.0),
        label=label.Experiment(
            "", samples=2, prompt_window=PROMPT, response_window=RESPONSE, rules=Rules(gold_rate=0.0, repeat_rate=0.0)
        ),
        reward=dataclasses.replace(
            world.reward_model(""), model="", comparisons="", window=TEXT + RESPONSE, epochs=1.0
        ),
        ppo=dataclasses.replace(
            world.ppo("", {"judged": Reward(model=parts.NEWEST), "words": Reward(function=world.function("words"))}),
            iterations=1,
        ),
    )


def test_no_prompt_comes_in_two_rounds_and_the_seed_decides_which(cfg):
    one, other = ({p.prompt_id for p in parts.chosen(cfg, number)} for number in (1, 2))
    assert len(one) == len(other) == cfg.prompts_per_round and not one & other
    assert {p.prompt_id for p in parts.chosen(dataclasses.replace(cfg, seed=1), 1)} != one


def test_too_few_prompts_are_told_before_anything_runs(cfg):
    with pytest.raises(UserError, match="36 different prompts; 2 rounds of 19 need 38"):
        rounds.main(dataclasses.replace(cfg, prompts_per_round=19))
    assert not Path(cfg.out).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gold": ""}, "simulated judges need gold"),
        ({"start": "middle"}, "start"),
        ({"rounds": 0}, "rounds"),
        ({"label": label.Experiment("", kind="rate")}, "pair or rank"),
    ],
)
def test_settings_that_cannot_be(cfg, change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(cfg, **change)


def test_a_reward_of_the_round_itself_is_needed(cfg, world):
    with pytest.raises(UserError, match="newest"):
        dataclasses.replace(cfg, ppo=world.ppo(""))


def test_a_stage_is_run_once(tmp_path):
    asked = []

    def run():
        asked.append(1)
        return {"folder": "x", "interval": (0.5, 0.4, 0.6)}

    first, again = (rounds.stage(tmp_path, "policy", run) for _ in range(2))
    assert len(asked) == 1 and first["folder"] == again["folder"] == "x"
    with pytest.raises(ZeroDivisionError):
        rounds.stage(tmp_path, "reward", lambda: 1 / 0)
    assert not (tmp_path / "reward.json").exists()


def test_a_round_is_judged_when_every_item_has_as_many_people_as_it_takes(tmp_path):
    with closing(open_store(tmp_path / "judgements.sqlite")) as con:
        add_items(con, [NewItem("Q", ["a", "b"], target_n=2, round=1), NewItem("Q", ["c", "d"], round=2)])
        version, rules = add_guideline(con, "Be fair."), Rules(gold_rate=0.0, repeat_rate=0.0)
        for name, done in (("ann", (0, 1)), ("bob", (1, 1))):
            who = annotator_of(con, add_annotator(con, name))["id"]
            task = next_task(con, who, rules)
            submit(con, who, task["id"], Words({"strength": 1}), Asked(version), rules)
            assert parts.judged_items(con, 1) == done
        assert parts.judged_items(con, 2) == (0, 1)


def test_fresh_pairs_test_the_model_before_on_random_items_of_this_round_only(cfg, world, tmp_path, monkeypatch):
    def made(number, selection, good, bad):
        return Comparison(
            as_messages("Q"),
            (good, bad),
            (0, 1),
            source_kind="synthetic",
            meta={"round": number, "selection": selection},
        )

    file = tmp_path / "comparisons.jsonl"
    formats.dump(
        file,
        [
            made(1, "random", "x", "long"),
            made(2, "random", "longer", "x"),
            made(2, "random", "longest", "y"),
            made(2, "random", "z", "long"),
            made(2, "active:bald", "z", "longer"),
        ],
    )

    def by_length(prompts, texts, columns):
        return np.array([len(text) for text in texts], float)

    monkeypatch.setattr(parts, "scorer", lambda *a, **k: by_length)
    found = parts.fresh_accuracy(cfg, 2, str(file), "some model")
    assert found["n"] == 3 and found["accuracy"] == pytest.approx(2 / 3)
    assert parts.fresh_accuracy(cfg, 1, str(file), "")["accuracy"] is None


@pytest.mark.long
def test_two_rounds_through_the_served_page_go_on_after_a_stop(cfg, monkeypatch):
    class Stop(Exception):
        pass

    trained = reward_model.main

    def stopped(wanted):
        raise Stop

    monkeypatch.setattr(reward_model, "main", stopped)
    with pytest.raises(Stop):
        rounds.main(cfg)
    out = Path(cfg.out)
    before = (out / "round_1" / "comparisons.jsonl").read_bytes()
    with pytest.raises(UserError, match="resume"):
        rounds.main(cfg)
    monkeypatch.setattr(reward_model, "main", trained)
    with pytest.raises(UserError, match="prompts_per_round"):
        rounds.main(dataclasses.replace(cfg, resume=True, prompts_per_round=11))
    found = rounds.main(dataclasses.replace(cfg, resume=True))
    assert (out / "round_1" / "comparisons.jsonl").read_bytes() == before
    assert found["source_kinds"]["synthetic"] > 0 and found["source_kinds"]["human"] == 0
    assert found["rows"][0]["fresh"] is None and 0 <= found["rows"][1]["fresh"] <= 1
    assert found["folder"] == str(out / "round_2" / "ppo" / "model")
    judged = lines(out / "round_2" / "comparisons.jsonl")
    assert {row["meta"]["round"] for row in judged} == {1, 2} and {row["source_kind"] for row in judged} == {
        "synthetic"
    }
    assert "synthetic" in (out / "report.html").read_text() and (out / "judgements.html").exists()
    assert json.loads((out / "rounds.json").read_text())["rows"] == json.loads(json.dumps(found["rows"]))
    assert [row["iteration"] for row in lines(out / "metrics.jsonl")] == [0, 1, 2]
