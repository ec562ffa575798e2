"""How a sweep goes: a table that is drawn anew on a terminal, one plain line a change elsewhere."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.runs.chart import number
from rlhf_jax.runs.sweep import state
from rlhf_jax.runs.sweep.plan import Job

EVERY = 1.0
MARKS = {"waiting": "·", "running": "▸", "elsewhere": "▹", "done": "●", "failed": "✗", "blocked": "–", "stopped": "◦"}
ENDED = ("done", "failed", "blocked")
TAIL = 1 << 14


def watcher(jobs: Sequence[Job], metric: str, stream: Any = None) -> Callable[[Mapping[str, str]], None]:
    """What `execute` tells the states to. `metric` is shown of what runs and has run."""
    out = sys.stdout if stream is None else stream
    return _table(jobs, metric, out) if out.isatty() else _lines(jobs, metric, out)


def _lines(jobs: Sequence[Job], metric: str, out: Any) -> Callable[[Mapping[str, str]], None]:
    known: dict[str, str] = {}

    def tell(states: Mapping[str, str]) -> None:
        for job in sorted(jobs, key=lambda job: states[job.id] not in ENDED):  # what ended, then what began instead
            now = states[job.id]
            if known.get(job.id, "waiting") == now:
                continue
            if job.id not in known and now == "done":
                known[job.id] = now  # it was before this sweep began
                continue
            known[job.id] = now
            ended = sum(s in ENDED for s in states.values())
            print(f"{time.strftime('%H:%M:%S')}  {ended}/{len(jobs)}  {now}  {job.name}  {job.id}"
                  f"{_told(job, now, metric)}", file=out, flush=True)  # fmt: skip

    return tell


def _table(jobs: Sequence[Job], metric: str, out: Any) -> Callable[[Mapping[str, str]], None]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(f"stage {job.stage}" if job.stage else job.arm, []).append(job)
    began, drawn, last = time.monotonic(), 0, (0.0, "")

    def tell(states: Mapping[str, str]) -> None:
        nonlocal drawn, last
        now, word = time.monotonic(), " ".join(states.values())
        over = not {"waiting", "running", "elsewhere"} & set(states.values())
        if now - last[0] < EVERY and not (over and word != last[1]):
            return
        last = now, word
        rows = []
        for name, inside in groups.items():
            marks = "".join(MARKS[states[job.id]] for job in inside)
            busy = [job for job in inside if states[job.id] == "running"]
            told = "; ".join(f"seed {job.seed}:{_told(job, 'running', metric)}" for job in busy if not job.stage)
            rows.append(f"{name[:44]:<44}  {marks}  {told}"[:118])
        ended = sum(s in ENDED for s in states.values())
        rows.append(f"{ended} of {len(jobs)} after {(now - began) / 60:.1f} min   "
                    + "  ".join(f"{mark} {word}" for word, mark in MARKS.items()))  # fmt: skip
        back = f"\x1b[{drawn}A" if drawn else ""
        out.write(back + "".join(f"\x1b[2K{row}\n" for row in rows))
        out.flush()
        drawn = len(rows)

    return tell


def _told(job: Job, now: str, metric: str) -> str:
    if now == "failed":
        return f"  {(state.failure(job) or {}).get('error', '')}"
    if job.stage or now not in ("running", "done"):
        return ""
    row = _last_row(job.folder / "metrics.jsonl")
    if not row:
        return ""
    value = row.get(metric)
    shown = f"  {metric} {number(value)}" if isinstance(value, (int, float)) else ""
    return f"  iteration {row.get('iteration')}{shown}"


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a .jsonl file; {} without one."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().split(b"\n")[:-1]
        found = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
