"""What the tests of sweeps share: the toy script, a sweep's file, and running it here or in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from rlhf_jax.runs.sweep import __main__ as command_line
from rlhf_jax.runs.sweep.plan import experiment_of

__all__ = ["experiment_of"]

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = Path(__file__).parent / "sweep_scripts"
TOY, STAGE = str(SCRIPTS / "toy.py"), str(SCRIPTS / "stage.py")

# Scripts that a sweep starts find this tree before an installed one, whichever folder they start in.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

BASE = """
settings: {plain: true}
seed: 2
points:
  one: {}
  two: {level: 2.0}
metrics: [rollout/score]
"""


def write(folder, text=BASE, name="sweep.yaml"):
    path = Path(folder) / name
    path.write_text(text)
    return str(path)


def run(folder, text=BASE, *more, script=TOY):
    """The exit code of the command, in this process; the runs are in `folder`/sweep."""
    with mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        return command_line.main([script, write(folder, text), "--out", str(Path(folder) / "sweep"), *more])


def begin(folder, path, *more):
    """The command as a process of its own."""
    command = [sys.executable, "-m", "rlhf_jax.runs.sweep", TOY, path, "--out", str(Path(folder) / "sweep"), *more]
    log = open(Path(folder) / f"sweep_{time.monotonic_ns()}.log", "wb")
    with log:
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)


def begun(folder):
    """(id, first iteration, process) of every start of a point, in their order."""
    path = Path(folder) / "sweep" / "runs" / "begun.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(id, int(first), int(process)) for id, first, process in map(str.split, lines)]


def done(folder):
    return {path.stem for path in (Path(folder) / "sweep" / "runs").glob("*.done")}


def half_way(folder):
    """Ids of the points that have a checkpoint and are not done."""
    saved = {path.parent.parent.name for path in (Path(folder) / "sweep" / "runs").glob("*/checkpoints/saved.json")}
    return saved - done(folder)


def until(condition, process=None):
    """Wait for it; an error when the process ends before."""
    while not condition():
        assert process is None or process.poll() is None, "the sweep ended before it could be killed"
        time.sleep(0.005)


def points_of(folder):
    """Process ids of the toys that run for this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:  # it has just ended
            continue
        if TOY in words and any(word.startswith(str(folder)) for word in words):
            found.append(int(path.parent.name))
    return found


def kill(sweep, folder, *, children=True):
    """SIGKILL to the sweep, then to the points that it has started."""
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    for process in points_of(folder) if children else ():
        os.kill(process, signal.SIGKILL)
    until(lambda: not children or not points_of(folder))


def metrics(folder, id):
    path = Path(folder) / "sweep" / "runs" / id / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]
