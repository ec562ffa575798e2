"""The points of a sweep and the stages they need, each resolved by its script's own parser: what runs, and after what.

A run's id is a hash of what it computes: the script's name, every setting after defaults, the stages it reads (by their own
ids) and the text of every user's function. Where runs are written, and how often they save, is no part of it; nor is the
script's own text, which the marker of a finished run keeps (`state.other_texts`).
"""

import dataclasses
import functools
import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.runs import config, strict_yaml
from rlhf_jax.runs.ranges import check, nearest
from rlhf_jax.runs.sweep.refused import refused
from rlhf_jax.runs.sweep.spec import Stage, Sweep

FREE = ("out", "resume", "save_every", "keep", "dry_run")
"""Settings that do not change what is computed."""


@dataclass(frozen=True)
class Job:
    """A command to run once: a point, or a stage that points share."""

    id: str
    arm: str
    """"" of a stage."""
    stage: str
    """"" of a point."""
    seed: int | None
    folder: Path
    command: tuple[str, ...]
    """As in a shell, beginning with "python"."""
    needs: tuple[str, ...]
    """Ids of the stages that come first."""
    resumes: bool
    """Whether the script goes on from a checkpoint when told `--resume true`."""
    reads: tuple[tuple[str, str], ...] = ()
    """(path, hash of its text) of each file that the id goes by and the script reads again: functions, its `--config`."""

    @property
    def name(self) -> str:
        """In words."""
        what = f"stage {self.stage}" if self.stage else self.arm
        return what if self.seed is None else f"{what}, seed {self.seed}"

    def changed(self) -> str:
        """The first of the files in `reads` that is no longer what it was; "" while all are."""
        return next((path for path, text in self.reads if file_hash(path) != text), "")


def plan(sweep: Sweep) -> list[Job]:
    """Every job of a sweep, each after those that it needs. UserError for a setting that a script refuses, a reference to
    no stage, a stage that nobody reads or that needs itself, and for points that are the same run."""
    check(sweep.out.name != "stages", "out: a sweep cannot be named `stages`, which is the folder that sweeps share")
    made: dict[tuple[str, int | None], Job] = {}
    order: list[Job] = []

    def stage(name: str, seed: int, above: tuple[str, ...]) -> Job:
        check(name not in above, f"stages.{name} needs itself: {' → '.join([*above, name])}")
        told = sweep.stages[name]
        own = seed if told.per_seed else None
        if (name, own) not in made:
            settings, needs = fill(told.settings, own, (*above, name), f"stages.{name}")
            made[name, own] = _stage_job(sweep, told, own, settings, needs)
            order.append(made[name, own])
        return made[name, own]

    def fill(settings: Mapping[str, Any], seed: int | None, above: tuple[str, ...], where: str) -> Any:
        needs: dict[str, Job] = {}

        def put(found: re.Match[str]) -> str:
            name = found[1]
            if name is None:
                return found[0][0]
            if name == "seed":
                check(seed is not None, f"{where}: {{seed}} is of no use in a stage with per_seed: false")
                return str(seed)
            check(name in sweep.stages, f"{where}: {{{name}}} is no stage{nearest(name, [*sweep.stages, 'seed'])}")
            check(seed is not None or not sweep.stages[name].per_seed,
                  f"{where} has per_seed: false, so it cannot read {{{name}}}, of which each seed has its own")  # fmt: skip
            job = stage(name, seed or 0, above)
            needs[job.id] = job
            return str(job.folder)

        return {key: _deep(value, put) for key, value in settings.items()}, needs

    known: dict[str, Job] = {}
    for seed in sweep.seeds:  # seed by seed, so that what is there can be compared before all is
        for arm, settings in sweep.arms.items():
            filled, needs = fill(settings, seed, (), f"arm {arm!r}")
            job = _point_job(sweep, arm, seed, filled, needs)
            twin = known.setdefault(job.id, job)
            check(twin is job, f"duplicate points: {twin.name!r} and {job.name!r} are the same run, {job.id}")
            order.append(job)
    unread = [name for name in sweep.stages if all(name != key[0] for key in made)]
    check(not unread, f"stages.{unread and unread[0]} is read by no arm: name its folder as {{{unread and unread[0]}}}")
    return list({job.id: job for job in order}.values())  # seeds that are nothing to a stage share one


def _point_job(sweep: Sweep, arm: str, seed: int, settings: Mapping[str, Any], needs: Mapping[str, Job]) -> Job:
    Experiment = experiment_of(sweep.script)
    for name in ("seed", "out"):
        check(name in _names(Experiment), f"{sweep.script} has no setting {name!r}, which a sweep must give")
    argv = [*_config(sweep.config), *arguments(settings), "--seed", str(seed)]
    id, reads = identity(sweep.script, argv, needs, sweep.config, f"arm {arm!r}")
    folder = sweep.out / "runs" / id
    command = ("python", sweep.script, *argv, "--out", str(folder))
    return Job(id, arm, "", seed, folder, command, tuple(needs), "resume" in _names(Experiment), reads)


def _stage_job(
    sweep: Sweep, told: Stage, seed: int | None, settings: Mapping[str, Any], needs: Mapping[str, Job]
) -> Job:
    Experiment = experiment_of(told.script)
    check("out" in _names(Experiment), f"{told.script} has no setting 'out', which a sweep must give")
    seeded = seed is not None and "seed" in _names(Experiment)
    argv = [*_config(told.config), *arguments(settings), *(["--seed", str(seed)] if seeded else [])]
    id, reads = identity(told.script, argv, needs, told.config, f"stages.{told.name}")
    folder = sweep.out.parent / "stages" / f"{told.name}-{id}"
    command = ("python", told.script, *argv, "--out", str(folder / told.out))
    resumes = "resume" in _names(Experiment)
    return Job(id, "", told.name, seed, folder, command, tuple(needs), resumes, reads)


def arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them: --a.b value."""
    found = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        found += [f"--{key}={text}"] if text.startswith("--") else [f"--{key}", text]
    return found


def identity(
    script: str, argv: list[str], needs: Mapping[str, Job], config_file: str, where: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """12 hexadecimal digits that stand for what this command computes, and the files that they go by, with their hashes.

    UserError where the script refuses a setting, or cannot read settings at all.
    """
    Experiment = experiment_of(script)
    with refused(where, Exception, SystemExit):
        reads = {config_file: file_hash(config_file)} if config_file else {}
        cfg = config.parse(Experiment, [*argv, "--out", "out"])
        settings = {key: value for key, value in strict_yaml.plain(cfg).items() if key not in FREE}
        if not settings.get("data", True):  # none: ids stay what they were
            del settings["data"]
        functions = {spec: _function_hash(spec) for spec in sorted(_functions(settings))}
    reads |= {spec.rpartition(":")[0]: text for spec, text in functions.items()}
    text = json.dumps([Path(script).name, settings, functions], sort_keys=True, ensure_ascii=False)
    for job in needs.values():
        text = text.replace(json.dumps(str(job.folder), ensure_ascii=False)[1:-1], f"stage {job.id}")
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12], tuple(reads.items())


def file_hash(path: str) -> str:
    """Of a file's text; "" where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


@functools.cache
def experiment_of(script: str) -> Any:
    """The script's configuration, its dataclass `Experiment`. UserError where it has none. The script is imported."""
    folder = str(Path(script).resolve().parent)
    if folder not in sys.path:  # where Python would look for the files beside a script
        sys.path.insert(0, folder)
    with refused(f"script: {script}", SystemExit):
        found = config.resolve_function(f"{script}:Experiment", "script")
    check(dataclasses.is_dataclass(found), f"{script}: Experiment is no dataclass of settings")
    return found


def _names(Experiment: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(Experiment)]


def _config(path: str) -> list[str]:
    return ["--config", path] if path else []


def _functions(value: Any) -> set[str]:
    """Every "file.py:function" in a plain value."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return {spec for each in inner for spec in _functions(each)}
    return {value} if isinstance(value, str) and re.fullmatch(r"\S.*\.py:[A-Za-z_]\w*", value) else set()


@functools.cache
def _function_hash(spec: str) -> str:
    text = file_hash(spec.rpartition(":")[0])
    config.resolve_function(spec)  # a name that is wrong is told before anything runs
    return text


def _deep(value: Any, put: Any) -> Any:
    """The value with `{name}` in every text of it replaced; `{{` and `}}` stand for single braces."""
    if isinstance(value, str):
        return re.sub(r"\{\{|\}\}|\{(\w+)\}", put, value)
    if isinstance(value, list):
        return [_deep(each, put) for each in value]
    return {key: _deep(each, put) for key, each in value.items()} if isinstance(value, dict) else value
