"""What a sweep says while it runs: a table that is drawn anew on a terminal, plain lines elsewhere."""

import io
import json

from rlhf_jax.runs.sweep import live, plan, spec, state
from tests.runs import sweeps
from tests.runs.sweeps import BASE, TOY


class Terminal(io.StringIO):
    def isatty(self):
        return True


def jobs_of(folder):
    return plan.plan(spec.load(TOY, sweeps.write(folder, BASE), folder / "sweep"))


def logged(job, iteration, score):
    job.folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"iteration": iteration, "rollout/score": score})
    (job.folder / "metrics.jsonl").write_text(line + '\n{"iteration": 99, "torn')


def test_a_terminal_has_one_table_that_is_drawn_anew(tmp_path, monkeypatch):
    jobs, out = jobs_of(tmp_path), Terminal()
    monkeypatch.setattr(live, "EVERY", 0.0)
    tell = live.watcher(jobs, "rollout/score", out)
    logged(jobs[0], 3, 0.75)
    states = dict.fromkeys((job.id for job in jobs), "waiting") | {jobs[0].id: "running", jobs[1].id: "failed"}
    tell(states)
    first = out.getvalue()
    assert first.splitlines()[0].endswith("▸·  seed 0:  iteration 3  rollout/score 0.75")
    assert "two" in first and "✗·" in first and "1 of 4 after 0.0 min" in first and "\x1b[3A" not in first
    tell(states | {jobs[0].id: "done"})
    again = out.getvalue()[len(first) :]
    assert again.startswith("\x1b[3A\x1b[2K") and "●·" in again and "2 of 4" in again


def test_elsewhere_it_is_a_line_a_change(tmp_path):
    jobs, out = jobs_of(tmp_path), io.StringIO()
    tell = live.watcher(jobs, "rollout/score", out)
    waiting = dict.fromkeys((job.id for job in jobs), "waiting")
    tell(waiting | {jobs[3].id: "done"})
    assert out.getvalue() == "", "what was done before is no news"
    running = waiting | {jobs[3].id: "done", jobs[0].id: "running"}
    tell(running)
    tell(running)
    logged(jobs[0], 0, 0.5)
    state.mark(jobs[0], "failed", {"error": "RuntimeError: it broke"})
    tell(running | {jobs[0].id: "failed", jobs[1].id: "running"})
    told = [line.split("  ", 1)[1] for line in out.getvalue().splitlines()]
    assert told[0] == f"1/4  running  one, seed 0  {jobs[0].id}"
    assert told[1] == f"2/4  failed  one, seed 0  {jobs[0].id}  RuntimeError: it broke"
    assert told[2] == f"2/4  running  two, seed 0  {jobs[1].id}" and len(told) == 3
