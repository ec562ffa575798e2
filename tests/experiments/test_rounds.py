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
from rlhf_jax.feedback.store import gold, open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_guideline, add_items, annotator_of
from rlhf_jax.feedback.store.assign import Rules, next_task
from rlhf_jax.feedback.store.judge import Asked, Words, submit
from rlhf_jax.runs import log
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
        ({"label": label.Experiment("", overlap=3)}, "overlap is 3, and there are 2"),
        ({"label": label.Experiment("", select="bald")}, "needs 2 reward_models"),
        ({"label": label.Experiment("", select="bald", reward_models="a,b")}, "rounds.py gives those"),
        ({"label": label.Experiment("", select="bald", kind="rank"), "members": 2}, "kind must be pair"),
    ],
)
def test_settings_that_cannot_be(cfg, change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(cfg, **change)


def test_held_out_prompts_that_are_trained_on_are_told_and_left_out(cfg, tmp_path, monkeypatch, capsys):
    rows = lines(Path(cfg.prompts))
    text = rows[0]["prompt"][-1]["content"]
    copy = {"prompt": [{"role": "user", "content": f"  {text.upper()}"}], "id": 1}
    kept = {"prompt": [{"role": "user", "content": "Who is by the sea?"}], "id": 2}
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in (copy, kept)))
    cfg = dataclasses.replace(cfg, held_out=str(held))
    parts.check(cfg)
    told = f"held_out, {held}: 1 of 2 evaluation records (50.0%) are in the training data: 1 whole"
    assert told in capsys.readouterr().out
    asked = []

    def compare(wanted):
        asked.append(formats.load_prompts(wanted.prompts)[0])
        return {"start": {"judge": np.zeros(2)}, "policy": {"judge": np.ones(2)}}

    monkeypatch.setattr(parts.evaluate, "compare", compare)
    Path(cfg.out).mkdir()
    parts.compared(cfg, cfg.policy, "reward")
    (prompts,) = asked
    assert [prompt.meta for prompt in prompts] == [{"id": 2}] and prompts[0].prompt == tuple(kept["prompt"])
    held.write_text(json.dumps(copy))
    with pytest.raises(UserError, match="every prompt is in the training data"):
        rounds.main(cfg)
    assert not (Path(cfg.out) / "round_1").exists()


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
        names = ["ann", "bob", "cat"]
        people = {name: annotator_of(con, add_annotator(con, name))["id"] for name in names}
        for name, verdict, done in (
            ("ann", {"skip": True}, (0, 1)),
            ("bob", {"strength": 1}, (0, 1)),  # a skip and a verdict: one opinion, and somebody else may give another
            ("cat", {"strength": 1}, (1, 1)),
        ):
            task = next_task(con, people[name], rules)
            submit(con, people[name], task["id"], Words(verdict), Asked(version), rules)
            assert parts.judged_items(con, 1, names) == done
        assert parts.judged_items(con, 2, names) == (0, 1)


def test_a_round_ends_when_nobody_is_left_who_may_judge(tmp_path):
    with closing(open_store(tmp_path / "judgements.sqlite")) as con:
        add_items(con, [NewItem("Q", ["a", "b"], target_n=2, round=1)])
        version, rules = add_guideline(con, "Be fair."), Rules(gold_rate=0.0, repeat_rate=0.0)
        add_annotator(con, "gone long ago")
        for name, verdict in (("ann", {"skip": True}), ("bob", {"strength": 1})):
            who = annotator_of(con, add_annotator(con, name))["id"]
            assert parts.judged_items(con, 1, ["ann", "bob"]) == (0, 1)
            submit(con, who, next_task(con, who, rules)["id"], Words(verdict), Asked(version), rules)
        assert parts.judged_items(con, 1, ["ann", "bob"]) == (1, 1)
        assert parts.judged_items(con, 1, ["ann", "bob", "cat"]) == (0, 1)


def test_people_are_waited_for_and_a_pause_is_told(tmp_path, monkeypatch, capsys):
    db = str(tmp_path / "judgements.sqlite")
    wanted, asleep = label.Experiment(db, annotators="ann"), []
    with closing(open_store(db)) as con:
        add_items(con, [NewItem("Q", ["a", "b"], round=1)])
        version, rules = add_guideline(con, "Be fair."), Rules(gold_rate=0.0, repeat_rate=0.0)

        def sleep(seconds):
            who = con.execute("SELECT id FROM annotator").fetchone()[0]
            asleep.append(seconds)
            if len(asleep) == 1:
                gold.pause(con, "ann", "a talk first")
            elif len(asleep) == 3:
                gold.resume(con, "ann")
                submit(con, who, next_task(con, who, rules)["id"], Words({"strength": 1}), Asked(version), rules)

        monkeypatch.setattr(parts.time, "sleep", sleep)
        parts.people(con, "http://x", wanted, 1)
    told = capsys.readouterr().out
    assert len(asleep) == 3 and told.count("0 of 1 items judged") == 2
    assert told.count(f"ann is paused: label.py --db {db} --resume ann lets them go on") == 1


class Stages:
    """The stages of rounds without their work: what each was asked, in order."""

    def __init__(self, monkeypatch):
        self.asked, self.stop_at = [], None
        told = {"comparisons": 3, "ceiling": None, "source_kinds": {"human": 3}}
        self.patch = monkeypatch.setattr
        self.patch(parts, "judge", lambda con, wanted, cfg, number: self.note("judge", number, wanted))
        self.patch(parts, "write_comparisons", lambda con, number, path: told)
        self.patch(parts, "fresh_accuracy", self.fresh)
        self.patch(rounds.label_report, "page_of_store", lambda con: "")
        self.patch(reward_model, "main", lambda wanted: self.train("learn", wanted) | {"held_out": {}})
        numbers = {"rollout/score": 0.5, "rollout/kl": 0.1}
        self.patch(rounds.ppo_script, "main", lambda wanted: self.train("align", wanted) | numbers)
        self.patch(rounds.rounds_table, "report_page", lambda cfg, rows, mix: "report")

    def note(self, *what):
        if what[:2] == self.stop_at:
            raise KeyboardInterrupt
        self.asked.append(what)

    def fresh(self, cfg, number, comparisons, reward):
        self.note("fresh", number, reward)
        return {"accuracy": None, "n": 0}

    def train(self, what, wanted):
        number = int(Path(wanted.out).parent.name.removeprefix("round_"))
        self.note(what, number, wanted)
        (Path(wanted.out) / "model").mkdir(parents=True)
        return {"folder": f"{wanted.out}/model"}

    def of(self, what):
        return [each[2] for each in self.asked if each[0] == what]


def test_fresh_pairs_come_before_the_model_that_learns_from_them(cfg, monkeypatch):
    stages = Stages(monkeypatch)
    rounds.main(cfg)
    order = [what for what, *_ in stages.asked]
    assert order == ["judge", "fresh", "learn", "align"] * 2
    assert stages.of("fresh") == ["", f"{cfg.out}/round_1/reward_model/model"]
    assert [each.comparisons for each in stages.of("learn")] == [
        f"{cfg.out}/round_{k}/comparisons.jsonl" for k in (1, 2)
    ]


def test_what_speaks_against_the_last_policy_is_said():
    def row(number, held_out, baseline, now):
        return {"held_out": held_out, "baseline": baseline, "now": now, "policy": f"runs/round_{number}/ppo/model"}

    good = [row(1, 0.7, 0.6, (0.5, 0.4, 0.6)), row(2, 0.8, 0.6, (0.7, 0.6, 0.8))]
    assert rounds.rounds_table.warnings(good) == []
    first, second = rounds.rounds_table.warnings([good[0], row(2, 0.557, 0.639, (0.4, 0.3, 0.5))])
    assert "round 2" in first and "0.557" in first and "0.639" in first
    assert second == "the held-out score was highest after round 1: runs/round_1/ppo/model"
    unknown = {"held_out": None, "baseline": None, "policy": "x"}
    assert rounds.rounds_table.warnings([unknown]) == []


def test_a_run_folder_that_was_moved_goes_on(cfg, monkeypatch, tmp_path):
    stages = Stages(monkeypatch)
    stages.stop_at = ("align", 2)
    with pytest.raises(KeyboardInterrupt):
        rounds.main(dataclasses.replace(cfg, start="last"))
    Path(cfg.out).rename(tmp_path / "moved")
    stages.stop_at, stages.asked = None, []
    now = dataclasses.replace(cfg, start="last", out=str(tmp_path / "moved"), resume=True)
    found = rounds.main(now)
    (aligned,) = stages.of("align")
    assert [what for what, *_ in stages.asked] == ["align"]
    assert aligned.rewards["judged"].model == f"{now.out}/round_2/reward_model/model"
    assert aligned.policy == f"{now.out}/round_1/ppo/model" and Path(aligned.policy).is_dir()
    assert found["folder"] == f"{now.out}/round_2/ppo/model"


def test_a_stage_that_was_begun_elsewhere_is_gone_on_with(cfg, tmp_path):
    """Its own settings name the folder in which it lay."""
    old, new = tmp_path / "old", tmp_path / "new"
    out = str(old / "round_1" / "ppo")
    begun = dataclasses.replace(cfg.ppo, out=out, rewards={"judged": Reward(model=f"{old}/round_1/reward_model/model")})
    with log.open_run(out, begun, resume=False) as run:
        run.log(0, {"x": 1.0})
    old.rename(new)
    now = dataclasses.replace(cfg, out=str(new))
    here = f"{new}/round_1/ppo"
    assert parts.begun(now, here) and not parts.begun(now, f"{new}/round_2/ppo")
    rewards = {"judged": Reward(model=f"{new}/round_1/reward_model/model")}
    wanted = dataclasses.replace(begun, out=here, rewards=rewards)
    with log.open_run(here, wanted, resume=True):
        pass


def test_the_reward_models_of_the_round_before_choose_what_is_asked(cfg, monkeypatch):
    stages = Stages(monkeypatch)
    asks = dataclasses.replace(cfg.label, samples=3, select="bald", ask=5)
    rounds.main(dataclasses.replace(cfg, label=asks, members=2))
    first, second = stages.of("judge")
    assert (first.select, first.reward_models, first.ask) == ("random", "", 5)
    folders = [f"{cfg.out}/round_1/{name}/model" for name in ("reward_model", "reward_model_1")]
    assert (second.select, second.reward_models.split(",")) == ("bald", folders)
    assert [each.member for each in stages.of("learn")] == [0, 1, 0, 1]
    assert [each.rewards["judged"].model for each in stages.of("align")][0] == folders[0], "PPO takes the first"


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
    assert found["rows"][0]["fresh"] is None
    assert found["rows"][1]["fresh"] == pytest.approx(
        share_of_right(out / "round_1" / "reward_model" / "model", out / "round_2" / "comparisons.jsonl", 2)
    )
    assert found["folder"] == str(out / "round_2" / "ppo" / "model")
    judged = lines(out / "round_2" / "comparisons.jsonl")
    assert {row["meta"]["round"] for row in judged} == {1, 2} and {row["source_kind"] for row in judged} == {
        "synthetic"
    }
    assert "synthetic" in (out / "report.html").read_text() and (out / "judgements.html").exists()
    assert json.loads((out / "rounds.json").read_text())["rows"] == json.loads(json.dumps(found["rows"]))
    assert [row["iteration"] for row in lines(out / "metrics.jsonl")] == [0, 1, 2]


def share_of_right(model, comparisons, number):
    """How often the model gives the winner of a pair of this round the higher score."""
    score, votes = reward_model.scorer(str(model), window=TEXT + RESPONSE, rows=8), {}
    for row in lines(comparisons):
        if row["meta"]["round"] == number and row["ranks"][0] != row["ranks"][1]:
            texts = [text for _, text in sorted(zip(row["ranks"], row["responses"], strict=True))]
            votes[json.dumps(row["prompt"]), *texts] = as_messages(row["prompt"])
    right = []
    for (_, better, worse), prompt in votes.items():
        one, other = np.asarray(score([prompt, prompt], [better, worse], [{}, {}]))
        right.append(1.0 if one > other else 0.5 if one == other else 0.0)
    return np.mean(right)
