"""What is known of a job on disk, beside its folder: a lock, the marker that it is done, its last failure, its output.

The lock is held by the process that runs the job and by its child alike, and the system takes it away when both are gone,
however they end: a job whose sweep was killed goes on alone, and another sweep waits for it. Markers are written whole.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rlhf_jax.errors import UserError
from rlhf_jax.runs.sweep.plan import Job, file_hash

try:
    import fcntl
except ImportError:  # not on Windows: there, two sweeps must not run in one folder
    fcntl = None  # type: ignore[assignment]


def beside(job: Job, kind: str) -> Path:
    """The path of the job's "lock", "done", "failed" or "log"."""
    return job.folder.with_name(f"{job.folder.name}.{kind}")


def done(job: Job) -> dict[str, Any] | None:
    """The facts of a finished job: command, seconds, at (Unix time of its end), script (hash of its text at the start);
    None while it is not finished."""
    return _read(beside(job, "done")) if job.folder.is_dir() else None


def failure(job: Job) -> dict[str, Any] | None:
    """The facts of its last failure: command, seconds, at, code, error; None without one."""
    return _read(beside(job, "failed"))


def other_texts(jobs: Sequence[Job]) -> list[str]:
    """A line for each script with another text now than when some of the finished jobs ran: an id does not go by it."""
    found: dict[str, list[str]] = {}
    now: dict[str, str] = {}
    for job in jobs:
        script = job.command[1]
        text = now.setdefault(script, file_hash(script))
        if (done(job) or {}).get("script", text) != text:
            found.setdefault(script, []).append(job.id)
    return [
        f"{len(ids)} {'points were' if len(ids) > 1 else 'point was'} run with another text of {Path(script).name} "
        f"({', '.join(ids[:3])}{' …' if len(ids) > 3 else ''}): delete their folders to run them again"
        for script, ids in found.items()
    ]


def still_needed(jobs: Sequence[Job], also: Sequence[str] = ()) -> list[Job]:
    """The jobs without those stages that are not done and that no unfinished point needs, nor is among the ids `also`."""
    wanted = set(also)
    for job in reversed(jobs):  # a job comes after those it needs
        if job.id in wanted or not (job.stage or done(job)):
            wanted |= {job.id, *job.needs}
    return [job for job in jobs if job.id in wanted or not job.stage or done(job)]


def mark(job: Job, kind: str, facts: Mapping[str, Any]) -> None:
    """Write the marker "done" or "failed", whole or not at all; what is done has no failure any more."""
    told = {"id": job.id, "name": job.name, "command": list(job.command), "at": time.time()} | dict(facts)
    path = beside(job, kind)
    hidden = path.with_name(f".{path.name}.new")
    hidden.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
    os.replace(hidden, path)
    if kind == "done":
        beside(job, "failed").unlink(missing_ok=True)


def lock(job: Job) -> TextIO | None:
    """Take the job, for this process and the child that inherits the file; None while another process has it."""
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        file = open(beside(job, "lock"), "a")
    except OSError as error:
        raise UserError(f"cannot write to {job.folder.parent}: {error.strerror}") from None
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # some network file systems have no locks
        pass
    return file


def last_error(job: Job, code: int) -> str:
    """Why a job ended with this exit code, in one line: the signal, or the last error in its output."""
    if code < 0:
        return f"killed by signal {-code}"
    try:
        lines = beside(job, "log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if _is_error(line)]
    return (errors or said or [f"exit code {code}, without a word"])[-1][:300]


def _is_error(line: str) -> bool:
    first = line.split(":", 1)[0].split(" ", 1)[0].rsplit(".", 1)[-1]
    return line.startswith("error: ") or (":" in line and first.endswith(("Error", "Exception")))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
