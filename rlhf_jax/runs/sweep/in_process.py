"""A sweep in this process: a function of a notebook cell over points × seeds, and the same comparison as of a script.

def run(seed, loss):
    ...
    return {"reward": reward, "kl": [kl_1, kl_2, …]}     # a number, or a list: a curve of which the end counts

shown = in_process.sweep(run, {"clip": {"loss": clipped}, "mine": {"loss": mine}}, seeds=5, baseline="clip")
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.runs import chart
from rlhf_jax.runs.ranges import check, nearest, one_line, shown
from rlhf_jax.runs.sweep import charts, page, spec
from rlhf_jax.runs.sweep.compare import table
from rlhf_jax.runs.sweep.results import Curve, Outcome, Results, last, summary

# On white under any theme of the notebook, which a page cannot know.
STYLE = f"""{chart.STYLE}{charts.STYLE}
.sweep{{--paper:#fff;--ink:#1c1e21;--soft:#667;--line:#e4e6ea;--c0:#0072b2;background:#fff;color:#1c1e21;padding:1em}}
.sweep .charts{{display:grid;gap:1.2rem;grid-template-columns:repeat(auto-fill,minmax(300px,1fr))}}.sweep .n{{text-align:right}}
.sweep td,.sweep th{{padding:.2em .9em .2em 0;color:#1c1e21;background:#fff}}
"""


Function = Callable[..., Mapping[str, Any]]
"""function(seed=…, **settings) -> numbers, or lists of them, by name."""

Arms = Mapping[str, Mapping[str, Any]]
"""Settings by the arm's name."""

OUTSIDE = "under vmap the function must be one of JAX arrays alone"


@dataclass(frozen=True)
class Shown:
    """The results, as a notebook shows them: tables and charts."""

    results: Results

    def rows(self) -> list[dict[str, Any]]:
        """The comparison, one row a metric and arm, with all numbers in full."""
        return table(self.results)

    def points(self) -> list[dict[str, Any]]:
        """One row a point."""
        return summary(self.results)

    def write(self, folder: str | Path) -> Path:
        """Write summary.csv, comparison.csv and report.html; the path of the last."""
        return page.write(self.results, folder)

    def __str__(self) -> str:
        return page.text(self.results)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        found = self.results
        parts = "".join(f"<h3>{page.name(m)}</h3>{page.metric_html(found, m)}" for m in found.metrics)
        return f'<style>{STYLE}</style><div class="sweep">{page.head(found)}{page.failures(found)}{parts}</div>'


def sweep(
    function: Function,
    points: Arms | None = None,
    seeds: int | Sequence[int] = 5,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    metrics: Sequence[str] | Mapping[str, Any] | None = None,
    baseline: str = "",
    title: str = "A sweep",
    vmap: bool = False,
    tell: Callable[[str], None] = print,
) -> Shown:
    """Call function(seed=…, **settings) for every arm and seed, seed by seed, and compare what it returns.

    `vmap`: call it once an arm, with all seeds as one array under `jax.vmap`: for small models, which leave a machine idle
    one by one. The function must be one of JAX arrays alone: no NumPy, `float` or `if` on what depends on the seed.

    `points` are arms by name, {"mine": {"loss": mine}}; `grid` makes one of every combination, named by its values.
    `metrics` (default: all that the first call returns) may say more of each, as in a sweep's YAML. A call that raises is a
    failure: it is listed, and its arm has no average. `tell` hears a line a call. UserError, before the first call, for an
    arm that is no baseline's, no seeds, no arms, arms alike; after it, for a metric that it does not return.
    """
    arms = _arms(points, grid)
    numbers = spec.seeds_of(seeds)
    baseline = spec.baseline_of(baseline, arms)
    chosen = None if metrics is None else spec.metrics_of(metrics)
    found: list[Outcome] = []
    logged: list[str] = []
    for outcome in (_together if vmap else _one_by_one)(function, arms, numbers):
        if outcome.curves and not logged:
            logged = list(outcome.curves)
            for metric in chosen or ():
                known = metric.name in logged or metric.optional
                check(
                    known,
                    f"metrics: {metric.name!r} is not among what the function returns{nearest(metric.name, logged)}",
                )
        found.append(outcome)
        ended = outcome.error or f"{outcome.seconds:.1f} s"
        tell(f"{len(found)}/{len(arms) * len(numbers)}  {outcome.arm}, seed {outcome.seed}  {ended}")
    judged = chosen or spec.metrics_of(logged or ["nothing"])
    over = {metric.name: metric.over for metric in judged}
    outcomes = [
        point._replace(values={name: last(curve, over[name]) for name, curve in point.curves.items() if name in over})
        for point in found
    ]
    return Shown(Results(title, tuple(arms), numbers, judged, baseline, tuple(outcomes)))


def _one_by_one(function: Function, arms: Arms, seeds: Sequence[int]) -> Iterator[Outcome]:
    """Every arm's outcome under the first seed, then under the next."""
    for seed in seeds:
        for arm, settings in arms.items():
            returned, error, seconds = _attempt(function, seed=seed, **settings)
            yield _outcome(arm, seed, returned, error, seconds)


def _together(function: Function, arms: Arms, seeds: Sequence[int]) -> Iterator[Outcome]:
    """Every seed's outcome of the first arm, all from one call, then of the next. A seed's seconds are its share."""

    def all_seeds(**settings: Any) -> Mapping[str, Any]:
        names: list[str] = []  # in the function's order, which a dict loses on its way through JAX

        def values(seed: jax.Array) -> tuple[Any, ...]:
            returned = _named(function(seed=seed, **settings))
            names.extend(returned)
            return tuple(returned.values())

        try:
            with warnings.catch_warnings():  # what all seeds start from is one array, and cannot become theirs
                warnings.filterwarnings("ignore", "Some donated buffers were not usable")
                found = jax.device_get(jax.vmap(values)(jnp.asarray(seeds)))
        except jax.errors.JAXTypeError as raised:
            why = one_line(str(raised)).partition(". ")[0]
            raise UserError(f"under vmap the function must be one of JAX arrays alone: {why}") from None
        return dict(zip(names, found, strict=True))

    for arm, settings in arms.items():
        returned, error, seconds = _attempt(all_seeds, **settings)
        for i, seed in enumerate(seeds):
            own = {name: jax.tree.map(itemgetter(i), value) for name, value in returned.items()}
            yield _outcome(arm, seed, own, error, seconds / len(seeds))


def _attempt(call: Function, /, **settings: Any) -> tuple[Mapping[str, Any], str, float]:
    """What a call returned, its error, and how many seconds it took."""
    began = time.perf_counter()
    try:
        returned, error = _named(call(**settings)), ""
    except Exception as raised:  # whatever it is: the other points go on
        returned, error = {}, f"{type(raised).__name__}: {one_line(str(raised))}"
    return returned, error, time.perf_counter() - began


def _named(returned: Any) -> Mapping[str, Any]:
    right = isinstance(returned, Mapping) and all(isinstance(name, str) for name in returned)
    check(right, f"the function must return numbers by name, as {{'reward': 1.0}}, got {shown(returned)}")
    return cast(Mapping[str, Any], returned)


def _outcome(arm: str, seed: int, returned: Mapping[str, Any], error: str, seconds: float) -> Outcome:
    curves: dict[str, Curve] = {}
    try:
        curves = {name: _curve(name, value) for name, value in returned.items()}
    except Exception as raised:
        error = f"{type(raised).__name__}: {one_line(str(raised))}"
    return Outcome(arm, seed, "failed" if error else "done", {}, curves, error, seconds=round(seconds, 3))


def _arms(points: Any, grid: Any) -> dict[str, Mapping[str, Any]]:
    points, grid = {} if points is None else points, {} if grid is None else grid
    for what, told, like in (("points", points, "{'mine': {'loss': mine}}"), ("grid", grid, "{'loss': [mine, other]}")):
        check(isinstance(told, Mapping), f"{what} must be a dict, as in {like}, got {shown(told)}")
    for key, values in grid.items():
        spec.check_list(f"grid.{key}", values)
    for arm, own in [*points.items(), ("grid", grid)]:
        check(isinstance(own, Mapping), f"points.{arm} must be settings, as in {{'loss': mine}}, got {shown(own)}")
        right = all(isinstance(key, str) for key in own) and "seed" not in own
        check(right, f"{arm}: settings are the function's arguments by name, but for `seed`, which the sweep gives")
    arms: dict[str, Mapping[str, Any]] = {str(name): dict(own) for name, own in points.items()}
    named = {key: _words(key, values) for key, values in grid.items()}
    back = {key: dict(zip(named[key], values)) for key, values in grid.items()}
    for arm, settings in spec.arms_of(None, named).items():
        check(arm not in arms, f"points.{arm} has the name of a combination of the grid: duplicate points")
        arms[arm] = {key: back[key][word] for key, word in settings.items()}
    check(bool(arms), "points or grid must name an arm, as in {'mine': {'loss': mine}}")
    known = list(arms.items())
    for i, (arm, settings) in enumerate(known):
        twin = next((name for name, other in known[:i] if _same(settings, other)), None)
        check(twin is None, f"duplicate points: {twin!r} and {arm!r} have the same settings")
    return arms


def _words(key: str, values: Sequence[Any]) -> list[str]:
    """A word for each value of a grid; functions of one name, such as lambdas, are numbered."""
    found: list[str] = []
    for i, value in enumerate(values):
        word = _word(value)
        twin = any(_equal(value, other) for other in values[:i])
        check(not twin, f"grid.{key} has {word} twice: duplicate points")
        count = sum(word == _word(other) for other in values[:i])
        found.append(f"{word} {count + 1}" if count else word)
    return found


def _word(value: Any) -> str:
    return str(getattr(value, "__name__", None) or value)


def _equal(one: Any, other: Any) -> bool:
    return one is other or bool(np.array_equal(one, other))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)


def _curve(name: str, value: Any) -> Curve:
    try:  # one by one: NumPy knows no list of bfloat16
        array = np.stack([np.asarray(v) for v in value]) if isinstance(value, (list, tuple)) else np.asarray(value)
    except ValueError:  # ragged, or empty
        array = np.empty(0)
    array = np.atleast_1d(array)
    real = any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.bool_, jnp.integer, jnp.floating))
    right = array.ndim == 1 and array.size > 0 and real
    check(right, f"{name} must be a number or a list of numbers, got {shown(value)}")
    return {i: float(v) if np.isfinite(v) else None for i, v in enumerate(array)}
