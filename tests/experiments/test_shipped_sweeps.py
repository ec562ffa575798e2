"""The sweeps in experiments/sweeps: every setting is one that scripts take, one world a seed serves all, an arm runs whole."""

import json

import pytest

from rlhf_jax.runs.sweep import __main__ as command
from rlhf_jax.runs.sweep import plan, spec
from tests.experiments.conftest import ROOT

POINTS = {"ppo_details": 85, "kl": 65, "losses": 45}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """Where README's commands are given."""
    monkeypatch.chdir(ROOT)


@pytest.mark.long
def test_every_arm_is_planned_and_all_sweeps_share_the_worlds():
    worlds = set()
    assert {path.stem for path in (ROOT / "experiments/sweeps").iterdir()} == set(POINTS)
    for name, points in POINTS.items():
        sweep = spec.load("experiments/ppo.py", f"experiments/sweeps/{name}.yaml")
        jobs = plan.plan(sweep)
        assert sum(not job.stage for job in jobs) == points == len(sweep.arms) * 5 and sweep.seeds == (
            30,
            31,
            32,
            33,
            34,
        )
        worlds |= {(job.id, job.folder) for job in jobs if job.stage}
    assert len(worlds) == 5


@pytest.mark.long
def test_one_arm_runs_whole_and_people_like_its_answers_better(tmp_path, capsys):
    sweep = ["experiments/ppo.py", "experiments/sweeps/ppo_details.yaml", "--out", str(tmp_path / "details")]
    jobs = plan.plan(spec.load(sweep[0], sweep[1], sweep[3]))
    (job,) = [job for job in jobs if (job.arm, job.seed) == ("as it is", 30)]
    assert command.main([*sweep, "--only", job.id]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    gold = [line["reward/gold"] for line in lines]
    assert len(gold) == 30 and sum(gold[-3:]) / 3 > sum(gold[:3]) / 3 + 0.1
