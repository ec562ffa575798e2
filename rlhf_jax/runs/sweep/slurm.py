"""The same points as jobs of a cluster, through submitit: each a plain command that runs one id of this sweep.

    python -m rlhf_jax.runs.sweep SCRIPT SWEEP.yaml --only ID

That command locks, resumes and marks as any other, so that a job which was preempted, or submitted twice, does no harm; the
folder of the sweep must be one that all machines see. submitit writes its own CommandFunction as a pickle into the sweep's
folder and reads it back in the job: its file, not one of ours, and trusted as far as that folder is.
"""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.runs.ranges import one_line
from rlhf_jax.runs.sweep import state
from rlhf_jax.runs.sweep.execute import States
from rlhf_jax.runs.sweep.plan import Job
from rlhf_jax.runs.sweep.spec import Sweep


def submit(sweep: Sweep, jobs: Sequence[Job], path: str, *, cluster: str, poll: float = 1.0) -> States:
    """Submit what is not done, stages before what needs them, wait, and tell how each ended.

    `path` is the sweep's YAML; `cluster` is "slurm", or "local" for processes of this machine. UserError without submitit, or
    for a parameter under `slurm:` that it does not know.
    """
    executor = _executor(sweep, cluster)
    states = {job.id: "done" if state.done(job) else "waiting" for job in jobs}
    while ready := [job for job in jobs if states[job.id] == "waiting" and {states[i] for i in job.needs} <= {"done"}]:
        print(f"{len(ready)} jobs to {cluster}: {', '.join(job.id for job in ready)}", flush=True)
        with executor.batch():
            handles = [executor.submit(_command(sweep, job, path)) for job in ready]
        _wait(handles, poll)
        for job in ready:
            states[job.id] = "done" if state.done(job) else "failed"
    return {id: "blocked" if now == "waiting" else now for id, now in states.items()}


def command(sweep: Sweep, job: Job, path: str) -> list[str]:
    """What a cluster job runs."""
    module = [sys.executable, "-m", "rlhf_jax.runs.sweep", sweep.script, path]
    return [*module, "--out", str(sweep.out), "--only", job.id]


def _command(sweep: Sweep, job: Job, path: str) -> Callable[[], str]:
    from submitit.helpers import CommandFunction

    made: Callable[[], str] = CommandFunction(command(sweep, job, path))
    return made


def _executor(sweep: Sweep, cluster: str) -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("--submit needs submitit: pip install 'rlhf-jax[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=str(Path(sweep.out) / "slurm"), cluster=cluster)
        executor.update_parameters(**({"name": Path(sweep.out).name} | dict(sweep.slurm)))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        told = shlex.join(f"{k}={v}" for k, v in sweep.slurm.items())
        raise UserError(f"slurm: {one_line(str(error))} (given {told or 'nothing'})") from None
    return executor


def _wait(handles: Sequence[Any], poll: float) -> None:
    while not all(handle.done() for handle in handles):
        time.sleep(poll)
