"""The command line of sweeps.

    python -m rlhf_jax.runs.sweep SCRIPT SWEEP.yaml              run what is not done yet, compare, write report.html
    python -m rlhf_jax.runs.sweep SCRIPT SWEEP.yaml --dry-run    check everything, list points, ids and commands
    python -m rlhf_jax.runs.sweep SCRIPT SWEEP.yaml --jobs 4     four points at a time
    python -m rlhf_jax.runs.sweep SCRIPT SWEEP.yaml --submit slurm    each point a SLURM job, through submitit

Exit code 0 when every point is done, 1 when some failed (they are listed), 2 for bad input, 128 + n after signal n.
"""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence

from rlhf_jax.errors import UserError
from rlhf_jax.runs import track
from rlhf_jax.runs.ranges import check, nearest
from rlhf_jax.runs.sweep import live, results, slurm, spec, state
from rlhf_jax.runs.sweep.execute import execute
from rlhf_jax.runs.sweep.plan import Job, plan
from rlhf_jax.runs.sweep.refused import words
from rlhf_jax.runs.sweep.spec import Sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.runs.sweep", description="Settings × seeds of one script."
    )
    parser.add_argument("script", help="a script with a dataclass Experiment that has `seed` and `out`")
    parser.add_argument("sweep", help="the YAML file of the sweep; rlhf_jax/runs/sweep/spec.py tells its keys")
    parser.add_argument("--dry-run", action="store_true", help="only check everything and list what would run")
    parser.add_argument("--jobs", type=int, default=1, help="points at a time (1)")
    parser.add_argument("--out", default="", help="the sweep's folder, in place of the file's")
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="only these runs and the stages they need")
    parser.add_argument("--submit", choices=("slurm", "local"), help="each point a job of submitit's (extra slurm)")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except (UserError, OSError) as error:
        print(f"error: {words(error)}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    check(args.jobs >= 1, f"--jobs must be 1 or more, got {args.jobs}")
    sweep = spec.load(args.script, args.sweep, args.out)
    jobs = _chosen(plan(sweep), args.only)
    track.names()
    if args.dry_run:
        print(listing(sweep, jobs, args.only))
        return 0
    results.check_metrics(jobs, sweep.metrics)
    jobs = state.still_needed(jobs, args.only)
    for line in state.other_texts(jobs):
        print(line, flush=True)
    if args.submit:
        states = slurm.submit(sweep, jobs, args.sweep, cluster=args.submit)
    else:
        metric = sweep.metrics[0].name
        tell = live.watcher(jobs, metric)
        states = execute(jobs, at_once=args.jobs, tell=tell, look=lambda job: _look(job, jobs, sweep))
    lost = [job for job in jobs if states[job.id] != "done"]
    if not args.only:
        from rlhf_jax.runs.sweep import page  # late: it loads SciPy, which points need not wait for

        found = collect(sweep, jobs, states, args.sweep)
        print(f"\n{page.text(found)}\n\nreport: {page.write(found, sweep.out)}")
    for job in lost if args.only else [job for job in lost if job.stage]:
        print(f"{job.name} {states[job.id]}: {_why(job)}", file=sys.stderr)
    return 1 if lost else 0


def collect(sweep: Sweep, jobs: Sequence[Job], states: Mapping[str, str], title: str) -> results.Results:
    """Everything that the points of a sweep logged."""
    stages = {job.id: job for job in jobs if job.stage}
    outcomes = []
    for job in jobs:
        if job.stage:
            continue
        point = results.read(job, sweep.metrics, states.get(job.id, ""))
        if point.status == "blocked":
            broken = [stages[id].name for id in job.needs if states.get(id) != "done"]
            point = point._replace(error=f"not run: {', '.join(broken)} failed")
        outcomes.append(point)
    seconds = sum(point.seconds or 0 for point in outcomes)
    notes = [f"{sweep.script}, {len(outcomes)} runs in {sweep.out}/runs; {seconds / 60:.1f} minutes of them in all."]
    notes += state.other_texts(jobs)
    metrics, arms = sweep.metrics, tuple(sweep.arms)
    return results.Results(title, arms, sweep.seeds, metrics, sweep.baseline, tuple(outcomes), tuple(notes), sweep.text)


def listing(sweep: Sweep, jobs: Sequence[Job], only: Sequence[str] = ()) -> str:
    """Every job with its id and its command."""
    points = sum(not job.stage for job in jobs)
    lines = [f"{len(sweep.arms)} arms × {len(sweep.seeds)} seeds: {points} points, {len(jobs) - points} stages"]
    needed = {job.id for job in state.still_needed(jobs, only)}
    for job in jobs:
        how = "done" if state.done(job) else "failed before" if state.failure(job) else "to run"
        how = how if job.id in needed else "not needed"
        lines += [f"\n{job.id}  {job.name}  ({how})", f"  {shlex.join(job.command)}"]
    ended = sum(state.done(job) is not None for job in jobs)
    lines += [f"\n{line}" for line in state.other_texts(jobs)]
    return "\n".join([*lines, f"\n{ended} of {len(jobs)} are done; nothing was run"])


def _chosen(jobs: list[Job], ids: Sequence[str]) -> list[Job]:
    """The jobs of these ids, and those that they need; all for no ids."""
    known = {job.id: job for job in jobs}
    wanted = set(ids)
    for id in ids:
        check(id in known, f"--only: there is no run {id!r}{nearest(id, known)}")
    for job in reversed(jobs):  # a job comes after those it needs
        wanted |= set(job.needs) if job.id in wanted else set()
    return [job for job in jobs if job.id in wanted] if ids else jobs


def _look(job: Job, jobs: Sequence[Job], sweep: Sweep) -> None:
    if not job.stage:
        results.check_metrics(jobs, sweep.metrics)


def _why(job: Job) -> str:
    return str((state.failure(job) or {}).get("error") or "a stage that it needs failed")


if __name__ == "__main__":
    sys.exit(main())
