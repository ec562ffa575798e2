"""Points as jobs of submitit's local executor, which runs them as SLURM would; skipped where submitit is not installed."""

import os
import sys

import pytest

from rlhf_jax.runs.sweep import plan, slurm, spec
from tests.runs import sweeps
from tests.runs.sweeps import BASE, STAGE, TOY
from tests.runs.test_sweep import rows


def test_what_a_cluster_job_runs_is_a_plain_command(tmp_path):
    sweep = spec.load(TOY, sweeps.write(tmp_path), tmp_path / "sweep")
    job = plan.plan(sweep)[0]
    got = slurm.command(sweep, job, "sweep.yaml")
    module = [sys.executable, "-m", "rlhf_jax.runs.sweep"]
    assert got == [*module, TOY, "sweep.yaml", "--out", str(tmp_path / "sweep"), "--only", job.id]


def test_only_runs_one_point_and_the_stages_it_needs(tmp_path):
    text = BASE.replace("two: {level: 2.0}", 'two: {model: "{sft}"}') + f"stages: {{sft: {{script: {STAGE}}}}}\n"
    sweep = spec.load(TOY, sweeps.write(tmp_path, text), tmp_path / "sweep")
    point = next(job for job in plan.plan(sweep) if job.arm == "two")
    assert sweeps.run(tmp_path, text, "--only", point.id) == 0
    assert sweeps.done(tmp_path) == {point.id} and len(list((tmp_path / "stages").glob("*.done"))) == 1
    assert not (tmp_path / "sweep" / "report.html").exists()


def test_without_submitit_it_is_told_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert sweeps.run(tmp_path, BASE, "--submit", "local") == 2
    assert "--submit needs submitit: pip install 'rlhf-jax[slurm]'" in capsys.readouterr().err


@pytest.mark.long
def test_a_sweep_through_submitits_local_executor(tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(sweeps.ROOT), *sys.path]))  # submitit's own processes read it
    text = BASE.replace("seed: 2", "seed: 1").replace("two: {level: 2.0}", 'two: {model: "{sft}"}\n  bad: {fail: user}')
    text += f"stages: {{sft: {{script: {STAGE}}}}}\nslurm: {{timeout_min: 5}}\n"
    path = sweeps.write(tmp_path, text)
    arguments = [TOY, path, "--out", str(tmp_path / "sweep"), "--submit", "local"]
    assert sweeps.command_line.main(arguments) == 1, "one arm fails"
    got = {row["arm"]: row for row in rows(tmp_path)}
    assert [got[arm]["status"] for arm in ("one", "two", "bad")] == ["done", "done", "failed"]
    assert got["bad"]["error"] == "error: what the user gave is wrong"
    assert float(got["two"]["rollout/score"]) == pytest.approx(float(got["one"]["rollout/score"]) + 10)
    begun = len(sweeps.begun(tmp_path))
    assert sweeps.command_line.main(arguments) == 1
    assert len(sweeps.begun(tmp_path)) == begun + 1, "what is done was submitted again"
    sweeps.write(tmp_path, text.replace("timeout_min", "timeout_mni"))
    capsys.readouterr()
    assert sweeps.command_line.main(arguments) == 2
    assert "timeout_mni" in capsys.readouterr().err
