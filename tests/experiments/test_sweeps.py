"""The shipped sweeps: every arm is a run that the script takes, and one of them runs."""

import csv
import dataclasses
import re
from pathlib import Path

import pytest

from rlhf_jax.runs import strict_yaml
from rlhf_jax.runs.sweep import __main__ as command_line
from rlhf_jax.runs.sweep import plan, spec

ROOT = Path(__file__).parent.parent.parent
SWEEPS = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
SMALL = {"corpus": 1500, "demonstrations": 200, "judged": 120, "iterations": 1, "evaluated": 8, "samples": 2}


def test_there_are_three():
    assert [path.stem for path in SWEEPS] == ["kl", "losses", "ppo_details"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_arm_is_a_run_that_the_script_takes(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = path.read_text(encoding="utf-8")
    inside = path.relative_to(ROOT)
    assert f"#   python -m rlhf_jax.runs.sweep experiments/ppo.py {inside} --jobs 2\n" in text
    sweep = spec.load("experiments/ppo.py", str(inside))
    assert len(sweep.seeds) >= 5 and sweep.baseline in sweep.arms
    assert int(re.search(r"# (\d+) runs", text)[1]) == len(sweep.arms) * len(sweep.seeds)
    jobs = plan.plan(dataclasses.replace(sweep, seeds=sweep.seeds[:1]))
    stage, *points = jobs
    assert stage.stage == "world" and [job.arm for job in points] == list(sweep.arms)
    assert all(job.needs == (stage.id,) for job in points)


def test_the_sweeps_share_their_stages(monkeypatch):
    monkeypatch.chdir(ROOT)
    shared = set()
    for path in SWEEPS:
        sweep = spec.load("experiments/ppo.py", str(path))
        one = dict([next(iter(sweep.arms.items()))])
        shared.add(plan.plan(dataclasses.replace(sweep, arms=one, seeds=(30,)))[0].folder)
    assert len(shared) == 1


@pytest.mark.long
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_two_arms_of_each_run_on_a_small_world(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    told = strict_yaml.load(path)
    told["stages"]["world"]["settings"] = SMALL
    told["settings"] |= {"iterations": 2, "prompts_per_iteration": 8, "show": 2}
    told["points"] = {name: told["points"][name] for name in list(told["points"])[:2]}
    told["grid"] = {name: values[-1:] for name, values in told.get("grid", {}).items()}
    told["seed"] = [30]
    small = tmp_path / "small.yaml"
    small.write_text(strict_yaml.dump({key: value for key, value in told.items() if value}))
    out = tmp_path / "sweeps" / path.stem
    assert command_line.main(["experiments/ppo.py", str(small), "--out", str(out)]) == 0
    with open(out / "summary.csv", newline="") as file:
        got = list(csv.DictReader(file))
    assert {row["status"] for row in got} == {"done"}
    for row in got:
        assert all(row[metric] for metric in told["metrics"] if metric != "policy/clip_fraction")
