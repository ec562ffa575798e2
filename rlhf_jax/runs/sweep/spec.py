"""The YAML file of a sweep, read and refused: what it says, before any script has seen it.

out: runs/sweeps/clip            where the runs go (default: runs/sweeps/ and the file's name)
config: configs/ppo.yaml         settings of the script to begin with
settings: {iterations: 40}       more of them, for every arm
seed: 5                          0 … 4; or a list
points:                          arms by name, and what each changes
  as it is: {}
  no clip: {ppo.clip: 1000.0}
grid:                            further arms: every combination
  ppo.clip: [0.1, 0.3]
  ppo.epochs: [1, 4]
baseline: as it is               the arm that others are compared with
metrics:                         names in metrics.jsonl; or {name: {over, better, unit, optional}}
  - rollout/score
stages:                          commands that arms share; `{world}` in a setting is that one's folder, `{seed}` the seed
  world: {script: experiments/quickstart.py, settings: {iterations: 1}}
slurm: {timeout_min: 60}         what submitit asks for, with --submit

Stages lie in `stages/` beside the sweep's folder, by name and id, so that sweeps which stand there together share them.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_jax.runs import strict_yaml
from rlhf_jax.runs.ranges import check, nearest, nearest_file, shown

KEYS = ("out", "config", "settings", "seed", "points", "grid", "baseline", "metrics", "stages", "slurm")
STAGE_KEYS = ("script", "config", "settings", "out", "per_seed")
METRIC_KEYS = ("over", "better", "unit", "optional")
OURS = ("seed", "out", "resume", "dry_run")
"""Settings of a script that the sweep itself gives."""


@dataclass(frozen=True)
class Metric:
    """A number that arms are compared by: the mean over the last lines of a run's metrics.jsonl that have it."""

    name: str
    over: int | float = 0.1
    """Share of those lines, from the end; rounded, one at least."""
    better: str = "higher"
    """Or "lower": what counts as an improvement."""
    unit: str = ""
    """For the axes; known by itself for the package's own metrics."""
    optional: bool = False
    """Some arms may log no such number."""


@dataclass(frozen=True)
class Stage:
    """A command that arms share."""

    name: str
    script: str
    config: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    out: str = ""
    """The file or folder that `--out` names, inside the stage's folder; empty: the folder itself."""
    per_seed: bool = True
    """Whether each seed has its own; otherwise one serves all."""


@dataclass(frozen=True)
class Sweep:
    """What is asked for."""

    script: str
    out: Path
    arms: Mapping[str, Mapping[str, Any]]
    """{name: {dotted setting: value}}, the common settings among them."""
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    baseline: str = ""
    config: str = ""
    stages: Mapping[str, Stage] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    """The file itself."""


def load(script: str | Path, path: str | Path, out: str | Path = "") -> Sweep:
    """Read a sweep's YAML. UserError, in one line, for anything that can be told wrong without the script."""
    data, where = strict_yaml.load(path), f"{path}: "
    _keys(data, KEYS, where)
    _plain(data, where)
    for name in ("settings", "points", "grid", "stages", "slurm"):
        value = data.get(name)
        check(value is None or isinstance(value, dict), f"{where}{name} must be {{name: …}}, got {shown(value)}")
    check(Path(script).is_file(), f"there is no script {str(script)!r}{nearest_file(script)}")
    common = flat(data.get("settings") or {}, f"{where}settings")
    arms = {name: common | own for name, own in arms_of(data.get("points"), data.get("grid"), where).items()}
    check(bool(arms), f"{where}points or grid must name an arm, as in points: {{mine: {{ppo.clip: 0.1}}}}")
    for name, settings in [("settings", common), *arms.items()]:
        ours = [key for key in OURS if key in settings]
        check(not ours, f"{where}{name}: {ours and ours[0]} is the sweep's to give" + SEEDS_TOLD)
    folder = data.get("out") or ""
    check(isinstance(folder, str), f"{where}out must be the name of a folder, got {shown(folder)}")
    return Sweep(
        script=str(script),
        out=Path(out or folder or Path("runs/sweeps") / Path(path).stem),
        arms=arms,
        seeds=seeds_of(data.get("seed", 1), where),
        metrics=metrics_of(data.get("metrics"), where),
        baseline=baseline_of(data.get("baseline"), arms, where),
        config=_file(data.get("config"), f"{where}config"),
        stages={str(name): _stage(str(name), told, where) for name, told in (data.get("stages") or {}).items()},
        slurm=data.get("slurm") or {},
        text=Path(path).read_text(encoding="utf-8"),
    )


SEEDS_TOLD = ": seeds are `seed: 5` or `seed: [0, 1]` at the top of the file, the folder is `out`"


def flat(settings: Any, where: str, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of settings that may be nested; an empty group stays a value. UserError for one given twice."""
    found: dict[str, Any] = {}
    check(isinstance(settings, Mapping), f"{where} must be {{name: value}}, got {shown(settings)}")
    for name, value in settings.items():
        key = f"{prefix}{name}"
        inner = flat(value, where, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
        twice = sorted(set(inner) & set(found))
        check(not twice, f"{where}: {twice and twice[0]} is given twice: keep one")
        found |= inner
    return found


def arms_of(points: Mapping[Any, Any] | None, grid: Mapping[Any, Any] | None, where: str = "") -> dict[str, Any]:
    """{arm: its settings}: the points by their names, then every combination of the grid, named by its values."""
    arms = {}
    for name, own in (points or {}).items():
        arms[str(name)] = flat({} if own is None else own, f"{where}points.{name}")
    for key, values in (grid or {}).items():
        check_list(f"{where}grid.{key}", values)
        for i, value in enumerate(values):
            check(value not in values[:i], f"{where}grid.{key} has {shown(value)} twice: duplicate points")
    if grid:
        short = [str(key).rsplit(".", 1)[-1] for key in grid]
        names = [short[i] if short.count(short[i]) == 1 else str(key) for i, key in enumerate(grid)]
        for values in itertools.product(*grid.values()):
            arm = " ".join(f"{name}={_told(value)}" for name, value in zip(names, values))
            check(arm not in arms, f"{where}points.{arm} has the name of a combination of the grid: duplicate points")
            arms[arm] = flat(dict(zip(grid, values)), f"{where}grid")
    return arms


def check_list(name: str, values: Any) -> None:
    """UserError for what is no list of values, or an empty one."""
    listed = isinstance(values, (list, tuple)) and len(values) > 0
    check(listed, f"{name} must be a list of values, got {shown(values)}")


MAX_SEEDS = 1000
"""Seeds by count; more of them is one seed without its brackets."""


def seeds_of(value: Any, where: str = "") -> tuple[int, ...]:
    """Seeds from a count or a list. UserError for none, one that is given twice, or one that is no whole number >= 0."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    check(whole or isinstance(value, Sequence) and not isinstance(value, str),
          f"{where}seed must be how many seeds, or a list of them, got {shown(value)}")  # fmt: skip
    asked = f"{value} asks for {value} seeds; write [{value}] for that one"
    check(not whole or value <= MAX_SEEDS, f"{where}seed: {asked}, or a list for more than {MAX_SEEDS}")
    seeds = list(range(value)) if whole else list(value)
    check(len(seeds) > 0, f"{where}seed is empty: give how many seeds, or a list such as [0, 1, 2, 3, 4]")
    known = set()
    for seed in seeds:
        right = isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0
        check(right, f"{where}seed must be whole numbers of 0 or more, got {shown(seed)}")
        check(seed not in known, f"{where}seed has {seed} twice: duplicate points")
        known.add(seed)
    return tuple(seeds)


def metrics_of(value: Any, where: str = "") -> tuple[Metric, ...]:
    """Metrics from a list of names or {name: {over, better, unit, optional}}. UserError for none and for a bad one."""
    for each in value if isinstance(value, (list, tuple)) else ():
        mapping = "metrics: {rollout/score: {over: 0.2}}"
        check(isinstance(each, str), f"{where}metrics: {shown(each)} is no name; to say more of one, write {mapping}")
    told = dict.fromkeys(value) if isinstance(value, (list, tuple)) else value
    check(isinstance(told, Mapping) and len(told) > 0,
          f"{where}metrics must be a list of names in metrics.jsonl, such as [rollout/score], got {shown(value)}")  # fmt: skip
    check(len(told) == len(value), f"{where}metrics has a name twice: keep one")
    found = []
    for name, more in told.items():
        at = f"{where}metrics.{name}"
        check(
            isinstance(name, str) and (more is None or isinstance(more, Mapping)),
            f"{at} must be {{over: …, better: …}}",
        )
        _keys(more or {}, METRIC_KEYS, f"{at}: ")
        unit = (more or {}).get("unit", "")
        check(isinstance(unit, str), f"{at}.unit must be a text, got {shown(unit)}")
        metric = Metric(name, **(more or {}))
        number = isinstance(metric.over, (int, float)) and not isinstance(metric.over, bool)
        check(number and math.isfinite(metric.over) and 0 < metric.over <= 1,
              f"{at}.over must be a share above 0, at most 1, got {shown(metric.over)}")  # fmt: skip
        check(metric.better in ("higher", "lower"), f"{at}.better must be higher or lower, got {shown(metric.better)}")
        check(isinstance(metric.optional, bool), f"{at}.optional must be true or false, got {shown(metric.optional)}")
        found.append(metric)
    return tuple(found)


def baseline_of(value: Any, arms: Mapping[str, Any], where: str = "") -> str:
    """The arm that others are compared with, "" for None. UserError for one that is no arm, with the nearest."""
    baseline = "" if value is None else str(value)
    known = not baseline or baseline in arms
    check(known, f"{where}baseline: there is no arm {baseline!r}{nearest(baseline, arms, 0.0)}")
    return baseline


def _stage(name: str, told: Any, where: str) -> Stage:
    at = f"{where}stages.{name}"
    check(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,39}", name) is not None and name != "seed",
          f"{at}: a stage's name is a word of letters, digits and _, not `seed`")  # fmt: skip
    check(isinstance(told, dict) and isinstance(told.get("script"), str), f"{at} must be {{script: …, settings: …}}")
    _keys(told, STAGE_KEYS, f"{at}: ")
    settings = flat(told.get("settings") or {}, f"{at}.settings")
    per_seed = told.get("per_seed", True)
    check(isinstance(per_seed, bool), f"{at}.per_seed must be true or false, got {shown(per_seed)}")
    ours = [key for key in OURS if key in settings and (key != "seed" or per_seed)]
    check(not ours, f"{at}: {ours and ours[0]} is the sweep's to give" + SEEDS_TOLD)
    out = told.get("out") or ""
    inside = isinstance(out, str) and not Path(out).is_absolute() and ".." not in Path(out).parts
    check(inside, f"{at}.out must be a name inside the stage's folder, got {shown(out)}")
    script = _file(told["script"], f"{at}.script")
    return Stage(name, script, _file(told.get("config"), f"{at}.config"), settings, out, per_seed)


def _file(path: Any, name: str) -> str:
    if path is None:
        return ""
    check(
        isinstance(path, str) and Path(path).is_file(),
        f"{name}: there is no file {str(path)!r}{nearest_file(str(path))}",
    )
    return str(path)


def _keys(told: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in told:
        check(key in known, f"{where}unknown key {str(key)!r}{nearest(str(key), known, 0.0)}")


def _plain(value: Any, where: str, at: str = "") -> None:
    """UserError for what YAML can hold and no command line can."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _plain(key, where, at)
            _plain(inner, where, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for inner in value:
            _plain(inner, where, at)
    elif isinstance(value, str):
        wrong = re.search(r"[\0\ud800-\udfff]", value)
        check(wrong is None, f"{where}{at} has the character {wrong and wrong[0]!a} in {shown(value)}: leave it out")
    else:
        right = value is None or isinstance(value, (bool, int, float))
        check(right, f"{where}{at} must be a text, a number, true, false, a list or {{name: …}}, got {shown(value)}")


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
