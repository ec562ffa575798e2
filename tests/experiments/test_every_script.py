"""every_script.py: every arm is run and measured alike, on prompts that training never saw; and the table is that of the run."""

import dataclasses
import json
import types
from pathlib import Path

import every_parts
import every_script
import numpy as np
import pytest
import quickstart
from scipy import stats

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import intervals
from rlhf_jax.playground import gold, prompts
from rlhf_jax.runs import config
from tests.experiments.conftest import ROOT, lines, write

RUN = ROOT / "experiments" / "results" / "every_script.json"
FILES = ("world/prompts.jsonl", "world/demonstrations.jsonl", "comparisons.jsonl")


@pytest.fixture
def made(tmp_path):
    """The files of a world that are looked for, without models."""
    folder = tmp_path / "worlds" / "seed_7"
    for name in ("sft/model", "reward_model/model", "world"):
        (folder / name).mkdir(parents=True)
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in prompts.draw(7, 6)]
    for name in FILES:
        write(folder / name, rows)
    return folder


@dataclasses.dataclass(frozen=True)
class Tried:
    """What a script of the tests takes."""

    out: str
    seed: int = 0
    model: str = ""
    worth: float = 0.0


@dataclasses.dataclass(frozen=True)
class Trial:
    cfg: every_script.Experiment
    ran: list[Tried]
    arms: dict[str, every_script.Arm]


@pytest.fixture
def trial(monkeypatch, made, tmp_path):
    """ARMS of scripts that only note what they were asked; a model's gold is what its settings say, and noise."""
    ran = []

    def main(cfg):
        ran.append(cfg)
        (Path(cfg.out) / "model").mkdir(parents=True)  # there must be none before
        (Path(cfg.out) / "model" / "worth").write_text(str(cfg.worth))

    def sampled(cfg, at, model):
        worth = float((Path(model) / "worth").read_text()) if "/sft/" not in model else 0.0
        draw = np.random.default_rng(at.seed)
        noise, gains = draw.normal(0, 1, cfg.evaluated), worth + draw.normal(0, 0.1, cfg.evaluated) * bool(worth)
        return {name: noise + gains for name in ("gold", "proxy", "kl", "length")}

    def open_seed(cfg, seed):
        arms = Path(cfg.out) / f"seed_{seed}"
        arms.mkdir(parents=True, exist_ok=True)
        return every_parts.Seed({"world": str(made), "arms": str(arms), "held_out": "asked.jsonl"}, seed, None, None)

    first, second = (types.SimpleNamespace(__name__=name, Experiment=Tried, main=main) for name in ("first", "second"))
    arms = {
        "good": every_script.Arm(((first, {"model": "{world}/sft/model", "worth": 0.5}),)),
        "no good": every_script.Arm(((first, {"model": "{held_out}", "worth": -0.2}),)),
        "of two": every_script.Arm(((first, {"worth": 9.0}), (second, {"model": "{here}/first", "worth": 0.1}))),
        "later": every_script.Arm(((second, {"model": "{arms}/good/first/model", "worth": 0.3}),), after="good"),
    }
    monkeypatch.setattr(every_parts, "sampled", sampled)
    monkeypatch.setattr(every_parts, "open_seed", open_seed)
    monkeypatch.setattr(every_script, "ARMS", arms)
    return Trial(every_script.Experiment(out=str(tmp_path / "run"), seed=7, seeds=3, evaluated=12), ran, arms)


def test_each_arm_runs_its_scripts_on_each_seed_and_its_last_model_is_measured(trial, made, capsys):
    result = every_script.main(trial.cfg)
    assert [(cfg.seed, cfg.worth) for cfg in trial.ran] == [
        (seed, worth) for seed in (7, 8, 9) for worth in (0.5, -0.2, 9.0, 0.1, 0.3)
    ]
    here = Path(trial.cfg.out) / "seed_7"
    told = [(cfg.model, Path(cfg.out)) for cfg in trial.ran[:5]]
    assert told[0] == (f"{made}/sft/model", here / "good/first") and told[1] == ("asked.jsonl", here / "no_good/first")
    assert told[3] == (f"{here}/of_two/first", here / "of_two/second")
    assert told[4] == (f"{here}/good/first/model", here / "later/second")
    rows = result["rows"]
    assert list(rows) == ["SFT", *trial.arms] and "gain" not in rows["SFT"]
    for name, worth in {"good": 0.5, "no good": -0.2, "of two": 0.1, "later": 0.3}.items():
        each = np.subtract(rows[name]["each"]["gold"], rows["SFT"]["each"]["gold"])
        assert rows[name]["gain"][0] == pytest.approx(worth, abs=0.1)
        assert rows[name]["gain"][0] == pytest.approx(each.mean()) == pytest.approx(rows[name]["gain_t"][0])
        assert rows[name]["gain_t"] == pytest.approx(intervals.paired(each))
    assert json.loads((Path(trial.cfg.out) / "results.json").read_text()) == json.loads(json.dumps(result))
    said = capsys.readouterr().out
    assert "+0.5" in said and "-0.2" in said and all(name in said for name in rows)


def test_finished_arms_are_kept_and_changed_ones_run_again(trial):
    whole = every_script.main(trial.cfg)
    trial.ran.clear()
    assert every_script.main(trial.cfg) == whole and not trial.ran
    (Path(trial.cfg.out) / "seed_8" / "no_good.json").unlink()
    assert every_script.main(trial.cfg) == whole and [(cfg.seed, cfg.worth) for cfg in trial.ran] == [(8, -0.2)]
    trial.ran.clear()
    script = trial.arms["good"].steps[0][0]
    trial.arms["good"] = every_script.Arm(((script, {"worth": 0.6}),))
    changed = every_script.main(trial.cfg)
    assert [cfg.worth for cfg in trial.ran] == [0.6, 0.3] * 3  # what starts from its model too
    assert changed["rows"]["no good"] == whole["rows"]["no good"] and changed["rows"]["good"] != whole["rows"]["good"]
    trial.ran.clear()
    every_script.main(dataclasses.replace(trial.cfg, evaluated=50, seeds=1))
    assert len(trial.ran) == 5


def test_one_seed_has_an_interval_over_its_prompts_alone(trial):
    row = every_script.main(dataclasses.replace(trial.cfg, seeds=1))["rows"]["good"]
    assert row["gain_t"] is None and row["gain"][1] < row["gain"][0] < row["gain"][2]


def test_the_bootstrap_draws_seeds_and_their_prompts():
    draw = np.random.default_rng(0)
    seeds, size = 400, 50
    gains = draw.normal(0, 0.3, (seeds, 1)) + draw.normal(0, 1.0, (seeds, size))
    mean, low, high = every_parts.nested(gains[:40], resamples=2000)
    assert mean == pytest.approx(gains[:40].mean())
    # drawing seeds keeps the variance of their means; drawing prompts within them adds that of a mean again
    means = gains[:40].mean(axis=1)
    spread = np.sqrt(means.var() / 40 + gains[:40].var(axis=1).mean() / (40 * size))
    assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.975) * spread, rel=0.08)
    one = every_parts.nested(gains[:1], resamples=2000)
    assert (one[2] - one[1]) / 2 == pytest.approx(stats.norm.ppf(0.975) * gains[0].std() / np.sqrt(size), rel=0.1)
    same = every_parts.nested(np.repeat(means[:5, None], 9, axis=1), resamples=500)
    assert same[1] >= means[:5].min() and same[2] <= means[:5].max() and same[2] - same[1] > 0.1


def test_the_best_of_four_is_expected_over_all_draws(tmp_path):
    asked = prompts.draw(7, 2)
    texts = ["no sentence of this world"] * 7 + ["another"]
    scores = [[0.0, 3.0, 1.0, 2.0, 7.0, 6.0, 5.0, 4.0]] * 2
    rows = [
        row | {"responses": texts, "scores": each, "tokens": list(range(8))}
        for row, each in zip(asked, scores, strict=True)
    ]
    write(tmp_path / "scored.jsonl", rows)
    found = every_parts.chosen(str(tmp_path))
    # by hand: of all 70 ways to draw 4 of 8, the highest score is 3 once, 4 in 4, 5 in 10, 6 in 20 and 7 in 35
    shares = {3: 1 / 70, 4: 4 / 70, 5: 10 / 70, 6: 20 / 70, 7: 35 / 70}
    assert found["proxy"] == pytest.approx([sum(score * share for score, share in shares.items())] * 2)
    place = {score: scores[0].index(score) for score in shares}
    assert found["length"] == pytest.approx([sum(place[score] * share for score, share in shares.items())] * 2)
    assert found["gold"].tolist() == [0.0, 0.0] and found["kl"] == pytest.approx([np.log(4) - 0.75] * 2)


def test_the_evaluation_has_prompts_that_training_never_saw(made, tmp_path):
    path = every_parts.held_out(made, 7, 20, tmp_path / "asked.jsonl")
    rows = lines(path)
    assert len(rows) == 20 and all(prompts.held_out(row) for row in rows)
    assert rows[0]["prompt"][0]["content"] == prompts.draw(7, 1, split="held out")[0]["prompt"]
    assert gold.gold(rows[0], "nonsense")[0] == 0.0  # the columns that it reads are there
    for name in FILES:
        before = (made / name).read_text()
        (made / name).write_text(before + json.dumps({"prompt": rows[3]["prompt"]}) + "\n")
        with pytest.raises(UserError, match=f"{Path(name).name}: 1 prompts of the evaluation"):
            every_parts.held_out(made, 7, 20, tmp_path / "asked.jsonl")
        (made / name).write_text(before)


def test_a_world_is_found_by_its_seed_and_must_be_whole(made, tmp_path):
    def world_of(worlds, seed=7):
        return every_parts.world_of(every_script.Experiment(worlds=worlds), seed)

    assert world_of(f"{tmp_path}/world*/seed_{{seed}}") == made
    with pytest.raises(UserError, match="seed_8 is 0 folders"):
        world_of(f"{tmp_path}/worlds/seed_{{seed}}", 8)
    (tmp_path / "worlds2" / "seed_7").mkdir(parents=True)
    with pytest.raises(UserError, match="is 2 folders; one"):
        world_of(f"{tmp_path}/world*/seed_{{seed}}")
    (made / "reward_model" / "model").rmdir()
    with pytest.raises(UserError, match="has no reward_model/model"):
        world_of(f"{tmp_path}/worlds/seed_{{seed}}")


def test_a_world_that_is_not_there_is_made_once(tmp_path, monkeypatch):
    asked = []

    def main(cfg):
        asked.append((cfg.seed, cfg.seeds, cfg.iterations))
        (Path(cfg.out) / f"seed_{cfg.seed}").mkdir(parents=True)
        if len(asked) > 1:  # the first one is stopped
            (Path(cfg.out) / "results.json").write_text("{}")

    monkeypatch.setattr(quickstart, "main", lambda cfg: main(cfg))
    cfg = every_script.Experiment(out=str(tmp_path))
    first = every_parts.world_of(cfg, 30)
    first.rmdir()
    assert [every_parts.world_of(cfg, 30) for _ in range(2)] == [first] * 2
    assert asked == [(30, 1, 1)] * 2 and first.is_dir() and first.name == "seed_30"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"worlds": "runs/here"}, "{seed}"),
        ({"evaluated": 1}, "evaluated"),
        ({"seeds": 0}, "seeds"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        every_script.Experiment(**changes)


def test_no_arm_sees_gold_or_the_held_out_prompts_and_all_sample_alike():
    for name, arm in every_script.ARMS.items():
        for script, given in arm.steps:
            paths = {"world": "W", "arms": "A", "here": "H", "held_out": "O"}
            argv = [f"--{key}={str(value).format(**paths)}" for key, value in given.items()]
            cfg = config.parse(script.Experiment, [*argv, "--out=here", "--seed=1"])
            assert "gold" not in str(given) and ("{held_out}" in str(given)) == arm.chosen, name
            if hasattr(cfg, "sampling"):
                assert cfg.sampling.temperature == 0.7, name


@pytest.mark.long
def test_the_real_scripts_in_miniature(tmp_path, monkeypatch):
    small = dict(width=32, layers=1, corpus=300, demonstrations=60, judged=40, judges=2, iterations=1, evaluated=4)
    quickstart.main(quickstart.Experiment(str(tmp_path / "worlds"), 3, **small))
    fewer = {"iterations": 2, "epochs": 0.2, "prompts_per_iteration": 4, "batch": 8}
    for name, arm in every_script.ARMS.items():
        steps = tuple((script, {k: fewer.get(k, v) for k, v in given.items()}) for script, given in arm.steps)
        monkeypatch.setitem(every_script.ARMS, name, arm._replace(steps=steps))
    worlds = str(tmp_path / "worlds" / "seed_{seed}")
    cfg = every_script.Experiment(str(tmp_path / "run"), worlds, seed=3, seeds=1, evaluated=8, samples=2)
    rows = every_script.main(cfg)["rows"]
    assert list(rows) == ["SFT", *every_script.ARMS] and rows["SFT"]["kl"] == 0
    for name, row in rows.items():
        assert all(np.isfinite(row[metric]) for metric in ("gold", "proxy", "kl", "length"))
        assert name == "SFT" or row["kl"] != 0


def test_the_committed_table_is_that_of_these_arms_and_in_the_readme():
    run, readme = json.loads(RUN.read_text(encoding="utf-8")), (ROOT / "README.md").read_text(encoding="utf-8")
    assert run["arms"] == json.loads(json.dumps({name: every_script.told_of(name) for name in every_script.ARMS}))
    assert run["command"] in readme and run["seeds"] == [30, 31, 32, 33, 34]
    rows = run["rows"]
    assert list(rows) == ["SFT", *every_script.ARMS]
    for name, row in rows.items():
        each, begun = row["each"]["gold"], rows["SFT"]["each"]["gold"]
        assert row["gold"] == pytest.approx(np.mean(each))
        gain = ""
        if name != "SFT":
            assert row["gain"][0] == pytest.approx(np.mean(np.subtract(each, begun)))
            assert row["gain_t"] == pytest.approx(intervals.paired(np.subtract(each, begun)))
            gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["gain"])
        assert f"| {name} | {row['gold']:.3f} | {gain} | {row['kl']:.2f} |" in readme
    lowest = min(row["gain_t"][1] for name, row in rows.items() if name != "SFT")
    assert f"begins at {lowest:+.2f} or higher in every" in readme and lowest > 0
    tried = run["tried_on_seed_0"]
    assert list(tried) == list(rows) and all(1 <= len(tries) <= 4 for tries in tried.values())
    fallen = dict(tried["DPO"])["beta 0.1, 0.4 epochs"]
    assert f"fell to {fallen:.3f} on seed 0, below SFT's {tried['SFT'][0][1]:.3f}" in readme
