"""What changes under a sweep: an edited loss, data, a script's text, a signal, stages that are gone, a full disk."""

import errno
import json
import os
import shutil
import signal
from unittest import mock

import pytest

from rlhf_jax.runs.sweep import execute, plan, spec, state
from tests.runs import sweeps
from tests.runs.sweeps import BASE, STAGE, TOY
from tests.runs.test_sweep import rows

GRACEFUL = '''
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.runs import config


@dataclass(frozen=True)
class Experiment:
    """A script that saves nothing, and ends with 0 when it is told to stop."""

    out: str = ""
    """The folder."""
    seed: int = 0
    """Nothing."""
    gate: str = ""
    """The file that it waits for."""


def main(cfg):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    path = Path(cfg.out) / "metrics.jsonl"
    path.write_text("")
    while not Path(cfg.gate).exists():
        time.sleep(0.005)
        if told:
            return
    path.write_text(json.dumps({"iteration": 0, "rollout/score": 1.0}) + "\\n")


if __name__ == "__main__":
    config.command(main, Experiment)
'''


def jobs_of(folder, text, script=TOY):
    return plan.plan(spec.load(script, sweeps.write(folder, text), folder / "sweep"))


def finished(job):
    """The files of a point that has run, in no time."""
    job.folder.mkdir(parents=True)
    (job.folder / "metrics.jsonl").write_text('{"iteration": 0, "rollout/score": 1.0}\n')
    state.mark(job, "done", {"seconds": 0.1, "code": 0, "script": plan.file_hash(job.command[1])})


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A sweep of which a loss is edited while a point runs that has read it: its jobs, their ends, and its text."""
    monkeypatch.setenv("PYTHONPATH", str(sweeps.ROOT))
    mine, gate = tmp_path / "mine.py", tmp_path / "gate"
    mine.write_text("def add(seed):\n    return 1.0\n")
    text = BASE.replace("plain: true", f"plain: true, gate: {gate}")
    text = text.replace("two: {level: 2.0}", f"two: {{ppo.loss: '{mine}:add'}}")
    jobs = jobs_of(tmp_path, text)

    def tell(states):
        if len(sweeps.half_way(tmp_path)) == 2 and not gate.exists():
            mine.write_text("def add(seed):\n    return 100.0\n")
            gate.touch()

    yield jobs, execute.execute(jobs, at_once=2, tell=tell), text
    plan._function_hash.cache_clear()


def test_a_loss_that_is_edited_while_the_sweep_runs_is_never_recorded_under_the_old_id(edited, tmp_path):
    jobs, states, text = edited
    assert [states[job.id] for job in jobs] == ["done", "failed", "done", "failed"]
    for job in (jobs[1], jobs[3]):
        wanted = f"{tmp_path}/mine.py changed while the sweep ran: start it again"
        assert state.failure(job)["error"] == wanted and state.done(job) is None
    assert jobs[3].id not in [id for id, _, _ in sweeps.begun(tmp_path)], "it began with another text than its id's"
    plan._function_hash.cache_clear()
    assert sweeps.run(tmp_path, text) == 0
    got = {(row["arm"], row["seed"]): row for row in rows(tmp_path)}
    assert got["two", "0"]["id"] != jobs[1].id and float(got["two", "0"]["rollout/score"]) > 100


def test_nothing_goes_on_from_what_another_text_of_a_loss_may_have_saved(edited, tmp_path):
    jobs, _, text = edited
    (tmp_path / "mine.py").write_text("def add(seed):\n    return 1.0\n")
    plan._function_hash.cache_clear()
    assert sweeps.run(tmp_path, text) == 0
    assert [first for id, first, _ in sweeps.begun(tmp_path) if id == jobs[1].id] == [0, 0]


def test_a_configuration_that_is_edited_while_the_sweep_runs_is_told_too(tmp_path):
    (tmp_path / "base.yaml").write_text("level: 3.0\n")
    job = jobs_of(tmp_path, BASE + f"config: {tmp_path}/base.yaml\n")[0]
    assert job.changed() == ""
    (tmp_path / "base.yaml").write_text("level: 4.0\n")
    assert job.changed() == f"{tmp_path}/base.yaml"
    (tmp_path / "base.yaml").unlink()
    assert job.changed() == f"{tmp_path}/base.yaml"


def test_data_is_part_of_the_id_where_there_is_some(tmp_path):
    head = "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Experiment:\n    seed: int = 0\n"
    for folder, more in (("with", "    data: str = ''\n"), ("without", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.py").write_text(f"{head}    out: str = ''\n{more}")

    def id(folder, settings):
        text = f"settings: {settings}\npoints: {{a: {{}}}}\nmetrics: [x]\n"
        return jobs_of(tmp_path, text, str(tmp_path / folder / "s.py"))[0].id

    assert len({id("with", settings) for settings in ("{}", "{data: one}", "{data: two}")}) == 3
    assert id("with", "{}") == id("without", "{}"), "ids from before a script had data"


def test_points_of_another_text_of_the_script_are_told_before_anything_runs_and_on_the_page(tmp_path, capsys):
    script = tmp_path / "toy.py"
    shutil.copy(TOY, script)
    jobs = jobs_of(tmp_path, BASE, str(script))
    ids = [job.id for job in jobs]
    for job in jobs:
        finished(job)
    assert state.other_texts(jobs) == []
    script.write_text(script.read_text() + "# another text\n")
    told = "points were run with another text of toy.py ("
    words = f"4 {told}{ids[0]}, {ids[1]}, {ids[2]} …): delete their folders to run them again"
    assert sweeps.run(tmp_path, BASE, "--dry-run", script=str(script)) == 0
    assert words in capsys.readouterr().out
    assert sweeps.run(tmp_path, BASE, script=str(script)) == 0
    assert capsys.readouterr().out.startswith(words) and not sweeps.begun(tmp_path)
    assert words in (tmp_path / "sweep" / "report.html").read_text()
    shutil.rmtree(jobs[0].folder)
    assert sweeps.run(tmp_path, BASE, script=str(script)) == 0 and len(sweeps.begun(tmp_path)) == 1
    assert f"3 {told}{', '.join(ids[1:])}): delete" in capsys.readouterr().out, "what has just run has this text"
    facts = state.done(jobs[1])
    state.beside(jobs[1], "done").write_text(json.dumps({key: facts[key] for key in facts if key != "script"}))
    assert state.other_texts(jobs[:2]) == [], "a marker from before they kept a text"
    assert state.other_texts(jobs[:3])[0].startswith(f"1 point was run with another text of toy.py ({ids[2]}): delete")


def test_what_ends_with_0_because_it_was_told_to_stop_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(sweeps.ROOT))
    script, gate = tmp_path / "graceful.py", tmp_path / "gate"
    script.write_text(GRACEFUL)
    text = f"settings: {{gate: {gate}}}\npoints: {{one: {{}}}}\nmetrics: [rollout/score]\n"
    (job,) = jobs_of(tmp_path, text, str(script))
    ends, sent = [], []

    def tell(states):
        ends.append(states[job.id])
        if (job.folder / "metrics.jsonl").exists() and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    with pytest.raises(SystemExit, match="143"):
        execute.execute([job], tell=tell)
    assert ends[-1] == "stopped" and "exit code" not in state.beside(job, "log").read_text()
    assert state.done(job) is None and state.failure(job) is None
    gate.touch()
    assert execute.execute([job]) == {job.id: "done"} and "rollout/score" in (job.folder / "metrics.jsonl").read_text()


def test_stages_that_are_gone_are_run_again_only_for_points_that_are_not_done(tmp_path, capsys):
    text = f"""
settings: {{plain: true, model: "{{sft}}"}}
points: {{one: {{}}}}
metrics: [rollout/score]
stages:
  sft: {{script: {STAGE}, settings: {{start: "{{world}}"}}}}
  world: {{script: {STAGE}, per_seed: false}}
"""
    begun = tmp_path / "stages" / "begun.log"
    finished(next(job for job in jobs_of(tmp_path, text) if job.arm == "one"))
    assert sweeps.run(tmp_path, text, "--dry-run") == 0 and capsys.readouterr().out.count("(not needed)") == 2
    assert sweeps.run(tmp_path, text) == 0 and not begun.exists()
    stage = next(job for job in jobs_of(tmp_path, text) if job.stage == "world")
    assert sweeps.run(tmp_path, text, "--only", stage.id) == 0, "unless it is asked for by name"
    assert len(begun.read_text().split()) == 1
    assert sweeps.run(tmp_path, text.replace("{one: {}}", "{one: {}, two: {level: 2.0}}")) == 0
    assert [name.split("-")[0] for name in begun.read_text().split()] == ["world", "sft"]


def one_line(capsys, words):
    told = capsys.readouterr().err
    assert words in told and told.startswith("error: ") and told.count("\n") == 1, told


def test_what_the_system_refuses_is_told_in_one_line(tmp_path, capsys, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(state.os, "replace", side_effect=full):
        assert sweeps.run(tmp_path, BASE) == 2
    one_line(capsys, "No space left on device")
    job = jobs_of(tmp_path, BASE)[1]
    job.folder.write_text("")
    assert sweeps.run(tmp_path, BASE) == 2
    one_line(capsys, f"{job.folder} is a file where the folder of a run belongs: move it away")
    for script, more in ((f"{'a' * 300}.py", []), (TOY, ["--out", "b" * 300])):
        path = sweeps.write(tmp_path, BASE)
        assert sweeps.command_line.main([script, path, *more, "--dry-run"]) == 2
        one_line(capsys, "File name too long")
    monkeypatch.setenv("RLHF_JAX_TRACK", "wanbd")
    assert sweeps.run(tmp_path / "sweep", BASE) == 2
    one_line(capsys, "RLHF_JAX_TRACK must be one of tensorboard, wandb; got 'wanbd'; did you mean 'wandb'?")
    assert not (tmp_path / "sweep" / "sweep").exists()
