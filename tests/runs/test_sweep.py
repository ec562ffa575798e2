"""Sweeps run: every point once, whatever is killed; stages before what needs them; failures listed, never averaged."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rlhf_jax.runs.sweep import plan, results, spec, state
from tests.runs import sweeps
from tests.runs.sweeps import BASE, STAGE, TOY

SIX = """
settings: {plain: true, gate: GATE, iterations: 6}
seed: 2
points: {one: {}, two: {level: 2.0}, three: {level: 3.0}}
metrics: [rollout/score]
baseline: one
"""
TWENTY_FOUR = """
settings: {gate: GATE, iterations: 6}
seed: [3, 4, 8]
points: {as it is: {}, other: {level: 2.0}}
grid: {ppo.clip: [0.1, 0.3], level: [1.5, 1.6, 1.7]}
metrics: [rollout/score, rollout/kl]
baseline: as it is
"""


def rows(folder, name="summary"):
    with open(Path(folder) / "sweep" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def score(seed, i, level):
    """What the toy logs."""
    return level * (1 - 0.5**i) + 0.01 * ((seed * 7 + i) % 5)


def killed_twice(folder, text, *, jobs):
    """A sweep that is killed with its children, again, and then left to end. Without the gate's file, points wait half-way."""
    gate = folder / "gate"
    path = sweeps.write(folder, text.replace("GATE", str(gate)))
    sweep = sweeps.begin(folder, path, "--jobs", str(jobs))
    sweeps.until(lambda: len(sweeps.half_way(folder)) == jobs, sweep)
    sweeps.kill(sweep, folder)
    saved = sweeps.half_way(folder)
    assert not sweeps.done(folder) and len(saved) == jobs
    gate.touch()
    sweep = sweeps.begin(folder, path, "--jobs", str(jobs))
    sweeps.until(lambda: len(sweeps.done(folder)) >= jobs, sweep)
    gate.unlink()
    sweeps.until(lambda: sweeps.half_way(folder), sweep)
    sweeps.kill(sweep, folder)
    finished, saved = sweeps.done(folder), saved | sweeps.half_way(folder)
    before = len(sweeps.begun(folder))
    gate.touch()
    sweep = sweeps.begin(folder, path, "--jobs", str(jobs))
    assert sweep.wait() == 0
    again = [id for id, _, _ in sweeps.begun(folder)[before:]]
    assert len(again) == len(set(again)), "a point was started twice by one sweep"
    assert not finished & set(again), "a finished point was run again"
    gone_on = {id for id, at, _ in sweeps.begun(folder) if at > 0}
    assert saved <= gone_on, "a point with a checkpoint did not go on from it"


def each_once(folder, text, iterations):
    """Every point of the file is there once, with every iteration once and what the toy logs."""
    sweep = spec.load(TOY, sweeps.write(folder, text))
    wanted = {(arm, seed) for arm in sweep.arms for seed in sweep.seeds}
    got = rows(folder)
    assert sorted((row["arm"], int(row["seed"])) for row in got) == sorted(wanted)
    assert {row["status"] for row in got} == {"done"} and len({row["id"] for row in got}) == len(got)
    assert sweeps.done(folder) == {row["id"] for row in got}
    for row in got:
        lines = sweeps.metrics(folder, row["id"])
        assert [line["iteration"] for line in lines] == list(range(iterations))
        level = sweep.arms[row["arm"]].get("level", 1.0)
        want = [score(int(row["seed"]), i, level) for i in range(iterations)]
        np.testing.assert_allclose([line["rollout/score"] for line in lines], want, rtol=1e-12)


def test_six_points_killed_twice_end_each_exactly_once(tmp_path):
    killed_twice(tmp_path, SIX, jobs=2)
    each_once(tmp_path, SIX, 6)


@pytest.mark.long
def test_twenty_four_points_killed_twice_end_each_exactly_once(tmp_path):
    killed_twice(tmp_path, TWENTY_FOUR, jobs=3)
    each_once(tmp_path, TWENTY_FOUR, 6)
    recomputed(tmp_path, TWENTY_FOUR)


@pytest.mark.long
def test_two_sweeps_at_once_share_the_points_and_an_orphan_is_waited_for(tmp_path):
    gate = tmp_path / "gate"
    path = sweeps.write(tmp_path, SIX.replace("GATE", str(gate)))
    sweep = sweeps.begin(tmp_path, path)
    sweeps.until(lambda: sweeps.half_way(tmp_path), sweep)
    sweeps.kill(sweep, tmp_path, children=False)
    (orphan,) = sweeps.half_way(tmp_path)
    assert len(sweeps.points_of(tmp_path)) == 1
    both = [sweeps.begin(tmp_path, path, "--jobs", "2") for _ in range(2)]
    sweeps.until(lambda: len(sweeps.half_way(tmp_path)) == 5, both[0])
    gate.touch()
    assert [sweep.wait() for sweep in both] == [0, 0]
    told = "".join(log.read_text() for log in tmp_path.glob("sweep_*.log"))
    assert f"elsewhere  one, seed 0  {orphan}" in told
    each_once(tmp_path, SIX, 6)
    starts = [id for id, _, _ in sweeps.begun(tmp_path)]
    assert sorted(starts) == sorted([*sweeps.done(tmp_path), orphan]), "only the orphan was looked after twice"
    assert [at for id, at, _ in sweeps.begun(tmp_path) if id == orphan] == [0, 6], "and it had nothing left to do"


def recomputed(folder, text):
    """comparison.csv from the lines of the runs alone, by loops of its own."""
    sweep = spec.load(TOY, sweeps.write(folder, text))
    points = rows(folder)
    for metric in sweep.metrics:
        values = {}
        for row in points:
            lines = [line[metric.name] for line in sweeps.metrics(folder, row["id"])]
            tail = lines[len(lines) - max(1, round(metric.over * len(lines))) :]
            values[row["arm"], int(row["seed"])] = sum(tail) / len(tail)
            assert float(row[metric.name]) == pytest.approx(values[row["arm"], int(row["seed"])], rel=1e-12)
        base = [values[sweep.baseline, seed] for seed in sweep.seeds]
        for row in (row for row in rows(folder, "comparison") if row["metric"] == metric.name):
            own = [values[row["arm"], seed] for seed in sweep.seeds]
            ordered, cut = sorted(own), len(own) // 4
            kept = ordered[cut : len(own) - cut]
            assert float(row["iqm"]) == pytest.approx(sum(kept) / len(kept), rel=1e-12)
            bounds = [min(own), float(row["iqm_low"]), float(row["iqm"]), float(row["iqm_high"]), max(own)]
            assert all(a <= b + 1e-12 for a, b in zip(bounds, bounds[1:])) and int(row["seeds"]) == len(own)
            if row["arm"] == sweep.baseline:
                assert row["improvement"] == row["gain"] == ""
                continue
            pairs = [(a, b) for a in own for b in base]
            chance = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
            assert float(row["improvement"]) == pytest.approx(chance, abs=1e-12)
            differences = np.subtract(own, base)
            assert float(row["gain"]) == pytest.approx(differences.mean(), abs=1e-12)
            if differences.std() > 1e-9:
                interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
                assert float(row["gain_low"]) == pytest.approx(interval.low, rel=1e-9)
                assert float(row["gain_high"]) == pytest.approx(interval.high, rel=1e-9)


THREE = """
settings: {plain: true, iterations: 20}
seed: [0, 1, 2]
points:
  one: {}
  two: {level: 1.002, ppo.clip: 0.3}
metrics:
  rollout/score: {over: 0.15}
  rollout/kl: {better: lower, over: 1.0}
baseline: one
"""


def test_the_table_is_recomputed_from_the_lines_of_the_runs(tmp_path, capsys):
    assert sweeps.run(tmp_path, THREE.replace("better: lower, ", ""), "--jobs", "3") == 0
    recomputed(tmp_path, THREE)
    told = capsys.readouterr().out
    assert "  6/6  done  " in told and "P(improvement)" in told and "report: " in told
    before = sweeps.begun(tmp_path)
    assert sweeps.run(tmp_path, THREE) == 0
    assert sweeps.begun(tmp_path) == before, "a finished point was run again"
    lower = [row for row in rows(tmp_path, "comparison") if row["metric"] == "rollout/kl" and row["arm"] == "two"]
    assert float(lower[0]["improvement"]) == 0.0 and float(lower[0]["gain"]) > 0, "its KL is higher: no improvement"


def test_failures_are_listed_and_never_averaged_away(tmp_path, capsys):
    text = BASE.replace(
        "two: {level: 2.0}", "bad: {fail: error}\n  worse: {fail: nan}\n  silent: {fail: user}\n  shot: {fail: killed}"
    )
    assert sweeps.run(tmp_path, text + "baseline: one\n", "--jobs", "2") == 1
    got = {(row["arm"], row["seed"]): row for row in rows(tmp_path)}
    assert got["bad", "0"]["status"] == "failed" and "RuntimeError: it broke" in got["bad", "0"]["error"]
    assert got["shot", "0"]["status"] == "failed" and got["shot", "0"]["error"] == "killed by signal 9"
    assert got["silent", "1"]["error"] == "error: what the user gave is wrong"
    assert got["worse", "0"]["status"] == "done" and got["worse", "0"]["rollout/score"] == ""
    compared = {row["arm"]: row for row in rows(tmp_path, "comparison")}
    assert compared["one"]["iqm"] and compared["one"]["note"] == ""
    for arm, note in (
        ("bad", "failed: seed 0, 1"),
        ("worse", "not finite: seed 0, 1"),
        ("silent", "failed: seed 0, 1"),
    ):
        assert compared[arm]["iqm"] == compared[arm]["improvement"] == compared[arm]["gain"] == ""
        assert compared[arm]["note"] == f"no average: {note}"
    told = capsys.readouterr().out
    assert "6 of 10 points failed" in told and "RuntimeError: it broke" in told
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "6 of 10 points failed" in page and "no average: not finite: seed 0, 1" in page


def test_a_failed_seed_takes_its_arms_average_and_a_new_start_tries_it_again(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def add(seed):\n    return 1.0\n")
    text = BASE.replace("two: {level: 2.0}", f"two: {{ppo.loss: '{mine}:add'}}") + "baseline: one\n"
    assert sweeps.run(tmp_path, text) == 0
    row = next(row for row in rows(tmp_path) if row["arm"] == "two" and row["seed"] == "1")
    run = tmp_path / "sweep" / "runs" / row["id"]
    facts = json.loads(run.with_suffix(".done").read_text())
    run.with_suffix(".done").unlink()
    run.with_suffix(".failed").write_text(json.dumps(facts | {"error": "RuntimeError: once", "at": 0}))
    sweep = spec.load(TOY, sweeps.write(tmp_path, text), tmp_path / "sweep")
    jobs = plan.plan(sweep)
    lost = next(job for job in jobs if job.id == row["id"])
    assert results.read(lost, sweep.metrics).status == "failed"
    assert sweeps.run(tmp_path, text) == 0, "a failure of an earlier start is tried again"
    assert state.failure(lost) is None and state.done(lost)


def test_stages_run_once_a_seed_before_what_needs_them(tmp_path):
    text = f"""
settings: {{plain: true, model: "{{sft}}"}}
seed: 2
points: {{one: {{}}, two: {{level: 2.0}}}}
metrics: [rollout/score]
stages:
  sft: {{script: {STAGE}, settings: {{start: "{{world}}"}}}}
  world: {{script: {STAGE}, per_seed: false, settings: {{seed: 4, nap: 0.3}}}}
"""
    assert sweeps.run(tmp_path, text, "--jobs", "3") == 0
    starts = (tmp_path / "stages" / "begun.log").read_text().split()
    assert [name.split("-")[0] for name in starts] == ["world", "sft", "sft"]
    got = {(row["arm"], row["seed"]): float(row["rollout/score"]) for row in rows(tmp_path)}
    for seed in (0, 1):
        made = 50 + 10 * (seed + 1)  # the world's number, and the stage's own
        assert got["one", str(seed)] == pytest.approx(made + score(seed, 5, 1.0))
    more = text.replace("two: {level: 2.0}", "two: {level: 2.5}")
    assert sweeps.run(tmp_path, more) == 0
    assert (tmp_path / "stages" / "begun.log").read_text().split() == starts, "a stage was run again"


def test_a_stage_that_fails_blocks_what_needs_it(tmp_path, capsys):
    text = f"""
settings: {{plain: true}}
points: {{one: {{}}, two: {{model: "{{sft}}"}}}}
metrics: [rollout/score]
stages: {{sft: {{script: {STAGE}, settings: {{fail: true}}}}}}
"""
    assert sweeps.run(tmp_path, text) == 1
    got = {row["arm"]: row for row in rows(tmp_path)}
    assert got["one"]["status"] == "done" and got["two"]["status"] == "blocked"
    assert got["two"]["error"] == "not run: stage sft, seed 0 failed"
    assert "stage sft, seed 0 failed: error: the stage was told to fail" in capsys.readouterr().err


def test_a_signal_is_passed_on_and_the_points_are_no_failures(tmp_path):
    path = sweeps.write(tmp_path, BASE.replace("plain: true", f"plain: true, gate: {tmp_path}/never"))
    sweep = sweeps.begin(tmp_path, path)
    sweeps.until(lambda: sweeps.half_way(tmp_path), sweep)
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait() == 128 + signal.SIGTERM
    assert not sweeps.points_of(tmp_path)
    assert not list((tmp_path / "sweep" / "runs").glob("*.failed")) and not sweeps.done(tmp_path)


def test_dry_run_lists_everything_and_runs_nothing(tmp_path, capsys):
    text = BASE + f"stages: {{sft: {{script: {STAGE}}}}}\n"
    text = text.replace("two: {level: 2.0}", 'two: {level: 2.0, model: "{sft}"}')
    assert sweeps.run(tmp_path, text, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "2 arms × 2 seeds: 4 points, 2 stages" in told and "0 of 6 are done; nothing was run" in told
    assert not (tmp_path / "sweep").exists() and not (tmp_path / "stages").exists()
    sweep = spec.load(TOY, sweeps.write(tmp_path, text), tmp_path / "sweep")
    for job in plan.plan(sweep):
        assert f"{job.id}  {job.name}  (to run)" in told
        assert f"--out {job.folder}" in told and job.command[0] == "python"


def test_a_configuration_to_begin_with_and_a_stage_that_writes_a_file(tmp_path):
    (tmp_path / "base.yaml").write_text("level: 3.0\nppo: {clip: 0.4}\n")
    text = f"""
config: {tmp_path}/base.yaml
settings: {{plain: true, note: "{{{{as is}}}}"}}
points: {{one: {{model: "{{made}}/inner"}}, two: {{model: "{{made}}/inner", level: 4.0}}}}
metrics: [rollout/score]
stages: {{made: {{script: {STAGE}, out: inner}}}}
"""
    assert sweeps.run(tmp_path, text) == 0
    got = {row["arm"]: row for row in rows(tmp_path)}
    for arm, level in (("one", 3.0), ("two", 4.0)):
        assert float(got[arm]["rollout/score"]) == pytest.approx(10 + score(0, 5, level))
    told = (tmp_path / "sweep" / "runs" / f"{got['one']['id']}.done").read_text()
    assert json.loads(told)["command"][2:6] == ["--config", f"{tmp_path}/base.yaml", "--plain", "true"]
    assert "{as is}" in json.loads(told)["command"]


def ids(folder, text):
    return {(job.arm or job.stage, job.seed): job.id for job in plan.plan(spec.load(TOY, sweeps.write(folder, text)))}


def test_an_id_is_of_what_is_computed_and_nothing_else(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def add(seed):\n    return 1.0\n")
    text = BASE.replace("two: {level: 2.0}", f"two: {{ppo.loss: '{mine}:add'}}\n  three: {{ppo: {{clip: 0.5}}}}")
    was = ids(tmp_path, text)
    assert len(set(was.values())) == 6
    assert ids(tmp_path, text + "out: elsewhere\nbaseline: one\n") == was
    assert ids(tmp_path, text.replace("one: {}", "one: {level: 1.0, save_every: 3}")) == was, "defaults, written out"
    renamed = ids(tmp_path, text.replace("one: {}", "first: {}"))
    assert renamed["first", 0] == was["one", 0]
    changed = ids(tmp_path, text.replace("clip: 0.5", "clip: 0.6"))
    assert changed["three", 0] != was["three", 0] and changed["one", 0] == was["one", 0]
    mine.write_text("def add(seed):\n    return 2.0\n")
    plan._function_hash.cache_clear()
    edited = ids(tmp_path, text)
    assert edited["two", 0] != was["two", 0] and edited["one", 0] == was["one", 0]


def test_an_id_follows_its_stages_and_not_their_place(tmp_path):
    text = (
        BASE.replace("plain: true", 'model: "{sft}/seed_{seed}"')
        + "stages: {sft: {script: STAGE, settings: {start: a}}}"
    )
    text = text.replace("STAGE", STAGE)
    here = ids(tmp_path, text + "\nout: here/x\n")
    assert ids(tmp_path, text + "\nout: there/y\n") == here
    other = ids(tmp_path, text.replace("start: a", "start: b"))
    assert not set(other.values()) & set(here.values())


def test_the_environment_gives_points_one_cache_of_compiled_programs(tmp_path, monkeypatch):
    from rlhf_jax.runs.sweep import execute

    text = BASE.replace("plain: true", 'model: "{sft}"') + f"stages: {{sft: {{script: {STAGE}}}}}\n"
    stage, job = plan.plan(spec.load(TOY, sweeps.write(tmp_path, text), tmp_path / "sweep"))[:2]
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for each in (stage, job):
        assert execute._environment(each)["JAX_COMPILATION_CACHE_DIR"] == str((tmp_path / "compiled").resolve())
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert execute._environment(job)["JAX_COMPILATION_CACHE_DIR"] == "mine"
    assert execute._environment(job)["PATH"] == os.environ["PATH"]
