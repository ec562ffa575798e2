"""Running jobs: each a process of its own, so many at a time, each finished once however often a sweep is started.

A job that another sweep holds is left to it and waited for. One that was interrupted goes on from its checkpoint where its
script keeps some (`--resume true`), else from the start. SIGTERM or Ctrl-C is passed on once to the children, which save and end.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from rlhf_jax.runs.interrupt import interruptible
from rlhf_jax.runs.ranges import check
from rlhf_jax.runs.sweep import state
from rlhf_jax.runs.sweep.plan import Job, file_hash

POLL = 0.05

States = dict[str, str]
"""Id: waiting, running, elsewhere (another sweep has it), done, failed, blocked (a stage that it needs failed), stopped."""


class Child(NamedTuple):
    """A job that runs, and the lock that it shares with this process."""

    job: Job
    process: subprocess.Popen[bytes]
    lock: TextIO
    began: float
    script: str
    """Hash of the script's text at the start."""


def execute(
    jobs: Sequence[Job],
    *,
    at_once: int = 1,
    tell: Callable[[Mapping[str, str]], None] = lambda states: None,
    look: Callable[[Job], None] = lambda job: None,
) -> States:
    """Run what is not done yet; `jobs` has every job after those it needs. How each ended.

    `tell` hears the states all the time; `look` is called with each job that ends well, and may raise, which ends the
    sweep. SystemExit with 128 + the signal's number once the children have ended after a signal.
    """
    started = time.time()
    states = {job.id: "done" if state.done(job) else "waiting" for job in jobs}
    children: list[Child] = []
    with interruptible() as stop:
        try:
            while not stop():
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    states[child.job.id] = _settle(child, stopping=bool(stop()))
                    if states[child.job.id] == "done":
                        look(child.job)
                for job in jobs:
                    if states[job.id] in ("waiting", "elsewhere") and len(children) < at_once:
                        states[job.id] = _next(job, states, started, children)
                tell(states)
                if not {"waiting", "running", "elsewhere"} & set(states.values()):
                    return states
                time.sleep(POLL)
            raise SystemExit(128 + stop())
        finally:
            for child in children:
                child.process.send_signal(signal.SIGTERM)
            for child in children:
                child.process.wait()
            for child in children:
                states[child.job.id] = _settle(child, stopping=True)
            tell(states)


def _next(job: Job, states: States, started: float, children: list[Child]) -> str:
    """The state of a job that has not begun: it is started, if it can be."""
    needed = {states[id] for id in job.needs}
    if needed & {"failed", "blocked"}:
        return "blocked"
    if needed - {"done"}:
        return "waiting"
    taken = job.folder.exists() and not job.folder.is_dir()
    check(not taken, f"{job.folder} is a file where the folder of a run belongs: move it away")
    lock = state.lock(job)
    if lock is None:
        return "elsewhere"
    failed = state.failure(job)
    if state.done(job) or (failed and failed["at"] >= started):  # another sweep has had it meanwhile
        lock.close()
        return "done" if state.done(job) else "failed"
    if path := job.changed():
        return _changed(job, path, {}, lock)
    children.append(_start(job, lock))
    return "running"


def _start(job: Job, lock: TextIO) -> Child:
    goes_on = job.resumes and (job.folder / "checkpoints").is_dir()
    if job.folder.is_dir() and not goes_on:
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    script = file_hash(job.command[1])
    command = [sys.executable, *job.command[1:], *(["--resume", "true"] if goes_on else [])]
    with open(state.beside(job, "log"), "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),  # the lock lasts as long as either process
            start_new_session=True,  # a terminal's Ctrl-C comes here alone, and is passed on once
            env=_environment(job),
        )
    return Child(job, process, lock, time.monotonic(), script)


def _environment(job: Job) -> dict[str, str]:
    """This process's own; what one point compiles, the next one finds, unless the user says otherwise."""
    cache = job.folder.parents[1 if job.stage else 2] / "compiled"  # beside the stages, for all sweeps there
    ours = {"JAX_COMPILATION_CACHE_DIR": str(cache.resolve()), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return ours | dict(os.environ)


def _settle(child: Child, *, stopping: bool) -> str:
    """Write down how a job ended, then let it go. What was told to stop is never done: scripts may end with 0 half-way."""
    code, job = child.process.returncode, child.job
    facts = {"seconds": round(time.monotonic() - child.began, 2), "code": code, "script": child.script}
    try:
        if path := job.changed():
            return _changed(job, path, facts, child.lock)
        if stopping:
            return "stopped"
        if code == 0:
            state.mark(job, "done", facts)
            return "done"
        state.mark(job, "failed", facts | {"error": state.last_error(job, code)})
        return "failed"
    finally:
        child.lock.close()


def _changed(job: Job, path: str, facts: Mapping[str, Any], lock: TextIO) -> str:
    """A job's failure because a file that its id goes by is another one now: nobody knows which text it has run."""
    try:
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)  # nothing goes on from there under this id
        state.mark(job, "failed", {**facts, "error": f"{path} changed while the sweep ran: start it again"})
        return "failed"
    finally:
        lock.close()
