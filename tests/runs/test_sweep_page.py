"""The page of a sweep: labelled axes, nothing fetched, everything escaped, and what cannot be told left out."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.runs import chart, report
from rlhf_jax.runs.sweep import in_process, page, results, spec
from tests.runs.test_report import VOID, Page, cells

VOID |= {"rect", "polygon"}


def outcomes(arms, seeds, level):
    """Points whose curves rise to level[arm] with a little of the seed in them."""
    for arm in arms:
        for seed in seeds:
            curve = {i: level[arm] * (1 - 0.5**i) + 0.01 * ((seed * 7 + i) % 5) for i in range(12)}
            yield results.Outcome(
                arm, seed, "done", {"rollout/score": curve[11]}, {"rollout/score": curve}, id=f"{arm}{seed}"
            )


def made(arms=("base", "mine"), seeds=(0, 1, 2, 3, 4), level=None, **more):
    points = tuple(outcomes(arms, seeds, level or {arm: 1.0 + i / 10 for i, arm in enumerate(arms)}))
    found = results.Results("A sweep", arms, seeds, spec.metrics_of(["rollout/score"]), arms[0], points)
    return found._replace(**more)


def test_axes_are_labelled_and_units_told():
    got = Page(page.html(made()))
    svgs = re.findall(r"<svg.*?</svg>", got.html)
    texts = [re.findall(r"<text[^>]*>(.*?)</text>", svg) for svg in svgs]
    assert len(svgs) == 4
    assert "rollout/score (points per response)" in texts[0]
    assert "probability that rollout/score is higher" in texts[1]
    assert "difference of rollout/score (points per response)" in texts[2]
    assert "iteration" in texts[3] and "rollout/score (points per response)" in texts[3]
    for text in texts:
        assert sum(re.fullmatch(r"[−\d.,e\u2009-]+", word) is not None for word in text) >= 3, "an axis without numbers"
    labels = re.findall(r'<svg[^>]*role="img" aria-label="([^"]+)"', got.html)
    assert len(labels) == len(svgs) and all("rollout/score" in label for label in labels)
    headings = ["Reward: rollout/score", "Every point", "How to read it"]
    assert got.headings() == headings


def test_marks_differ_in_shape_and_not_in_colour_alone():
    html = page.html(made())
    first, _, _, curve = re.findall(r"<svg.*?</svg>", html)
    assert first.count('<rect class="base"') == 1 and first.count('<circle class="dot"') == 1
    assert first.count('<circle class="seed"') == 10 and first.count('class="guide"') == 1
    assert 'class="basis"' in curve and 'class="arm"' in curve and curve.count('class="edge"') == 2
    assert re.search(r"polyline\.basis\{[^}]*stroke-dasharray", html), "the baseline's curve is dashed"
    assert "prefers-color-scheme:dark" in html


def test_lines_of_an_overlay_are_told_apart_in_grey():
    html = report.document("", chart.lines("A", "b", [chart.Series(f"r{i}", [0, 1], [i, i + 1]) for i in range(8)]))
    dashes = dict(re.findall(r"svg \.(c\d)\{stroke-dasharray:([^}]+)\}", html))
    assert set(dashes) == {f"c{i}" for i in range(1, 8)} and len(set(dashes.values())) == 7
    legend = html[html.index('<div class="legend">') :]
    for i in range(8):
        assert legend.count(f'<line class="c{i}"') == 1 and html.count(f'<polyline class="c{i}"') == 1


def test_dots_stand_where_their_values_are():
    svg = re.findall(r"<svg.*?</svg>", page.html(made()))[0]
    ticks = [
        (float(x), float(text))
        for x, text in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">([\d.]+)<', svg)
    ]
    (x0, v0), (x1, v1) = ticks[0], ticks[-1]
    place = {
        arm: x0 + (value - v0) / (v1 - v0) * (x1 - x0)
        for arm, value in (("base", 1.02 - 2**-11), ("mine", 1.12 - 1.1 * 2**-11))
    }
    square, dot = (
        re.search(r'<rect class="base" x="([\d.]+)"', svg),
        re.search(r'<circle class="dot" cx="([\d.]+)"', svg),
    )
    assert float(square[1]) + 4.5 == pytest.approx(place["base"], abs=1.0)
    assert float(dot[1]) == pytest.approx(place["mine"], abs=1.0)


def test_nothing_on_the_page_runs_or_is_fetched():
    bad = "<script>alert(1)</script>\"' onload=x <img src=http://a.b/c>"
    found = made(arms=("base", bad), title=bad, notes=(bad,), source=bad)
    lost = found.outcomes[-1]._replace(status="failed", error=bad, values={}, curves={})
    html = page.html(found._replace(outcomes=(*found.outcomes[:-1], lost)))
    got = Page(html)
    assert not {tag for tag, _ in got.tags} & {"script", "img", "link", "iframe", "object", "use", "image"}
    assert not re.search(r"(?:src|href|url)\s*[=(]", re.sub(r"&lt;.*?&gt;", "", html))
    assert "default-src 'none'" in html
    for _, attributes in got.tags:
        assert not any(name.startswith("on") for name in attributes)


def test_an_arm_with_a_lost_seed_has_no_average():
    found = made(arms=("base", "mine", "other"))
    lost = found.outcomes[7]._replace(status="failed", error="RuntimeError: x", values={}, curves={})
    nan = found.outcomes[12]._replace(values={"rollout/score": None})
    points = (*found.outcomes[:7], lost, *found.outcomes[8:12], nan, *found.outcomes[13:])
    html = page.html(found._replace(outcomes=points))
    tables = re.findall(r"<table>.*?</table>", html)
    row = {row[0]: row for row in cells(next(table for table in tables if "IQM" in table))}
    assert row["mine"][1:4] == ["4", "–", "–"] and row["mine"][-1] == "no average: failed: seed 2"
    assert row["other"][-1] == "no average: not finite: seed 2" and row["base"][2] != "–"
    assert html.count("Learning curves") == 1 and "RuntimeError: x" in html
    assert "1 of 15 points failed" in html


def test_what_has_not_run_yet_is_told_and_the_rest_compared():
    found = made()
    points = tuple(p._replace(status="waiting", values={}, curves={}) if p.seed > 2 else p for p in found.outcomes)
    text = page.text(found._replace(outcomes=points))
    assert "not run yet: seed 3, 4" in text and "no average" not in text
    assert re.search(r"mine +3 +1\.1", text)


def test_one_seed_has_a_value_and_no_interval():
    text = page.text(made(seeds=(0,)))
    assert re.search(r"mine +1 +1\.109 +– +– +–", text)


@pytest.mark.parametrize("count", [1, 6])
def test_many_arms_and_long_runs_are_drawn(count):
    arms = tuple(f"an arm with a name so long that it is cut somewhere, number {i}" for i in range(count))
    found = made(arms=arms, seeds=(0, 1))
    long = {i: float(i % 7) for i in range(3000)}
    points = tuple(p._replace(curves={"rollout/score": long}) for p in found.outcomes)
    html = page.html(found._replace(outcomes=points))
    drawn = re.findall(r'<polyline class="arm" points="([^"]*)"', html)
    assert len(drawn) == max(1, count - 1) and all(len(line.split()) == 100 for line in drawn)


def run(seed, level=1.0, fail=False):
    """A cell of a notebook."""
    if fail and seed == 1:
        raise RuntimeError("no\nluck")
    return {"reward": [level * (1 - 0.5**i) + 0.001 * seed for i in range(8)], "kl": 0.1 * level}


def test_a_function_of_a_notebook_is_swept_in_process(tmp_path):
    said = []
    points = {"base": {}, "more": {"level": 2.0}, "bad": {"fail": True}}
    shown = in_process.sweep(run, points, seeds=3, baseline="base", tell=said.append)
    assert len(said) == 9 and "RuntimeError: no luck" in said[5]
    got = {(row["metric"], row["arm"]): row for row in shown.rows()}
    assert got["kl", "more"]["iqm"] == pytest.approx(0.2) and got["kl", "more"]["gain"] == pytest.approx(0.1)
    assert got["reward", "more"]["improvement"] == 1.0
    assert got["reward", "base"]["iqm"] == pytest.approx(1 - 0.5**7 + 0.001)
    assert got["reward", "bad"]["iqm"] is None and got["reward", "bad"]["note"] == "no average: failed: seed 1"
    assert "<svg" in shown._repr_html_() and "RuntimeError: no luck" in str(shown) == repr(shown)
    assert shown.write(tmp_path / "out").exists() and (tmp_path / "out" / "summary.csv").read_text().count("\n") == 10
    assert len(shown.points()) == 9


def test_a_grid_of_functions_is_named_by_them():
    def half(x):
        return x / 2

    def double(x):
        return 2 * x

    shown = in_process.sweep(lambda seed, loss, x: {"y": loss(x) + seed}, grid={"loss": [half, double], "x": [1.0, 3.0]},
                             seeds=[5, 6], baseline="loss=half x=1.0", metrics={"y": {"better": "lower"}}, tell=str)  # fmt: skip
    got = {row["arm"]: row for row in shown.rows()}
    assert list(got) == ["loss=half x=1.0", "loss=half x=3.0", "loss=double x=1.0", "loss=double x=3.0"]
    assert got["loss=double x=3.0"]["gain"] == pytest.approx(5.5) and got["loss=double x=3.0"]["improvement"] == 0.0


def walk(seed, step=1.0, fail=False, host=False):
    """A cell of JAX arrays: a curve as an array, one as a list, a number, and a constant."""
    if fail:
        raise RuntimeError("no luck")
    moves = jax.random.normal(jax.random.key(seed), (7,)) * step
    end = float(moves.sum()) if host else moves.sum()
    return {"curve": jnp.cumsum(moves), "list": [moves[0], moves[1]], "end": end, "step": step}


def test_seeds_of_a_notebooks_function_run_together_under_vmap():
    """The same points as one by one, arm by arm, from one call an arm."""
    calls, said = [], []

    def counted(seed, **settings):
        calls.append(seed)
        return walk(seed, **settings)

    points = {"base": {}, "far": {"step": 3.0}}
    alone = in_process.sweep(walk, points, seeds=[3, 1, 4], baseline="base", tell=str)
    together = in_process.sweep(counted, points, seeds=[3, 1, 4], baseline="base", vmap=True, tell=said.append)
    assert len(calls) == 2 and len(said) == 6 and said[3].startswith("4/6  far, seed 3")
    curves = {(point.arm, point.seed): point.curves for point in together.results.outcomes}
    assert len(curves) == 6
    for point in alone.results.outcomes:
        for name, wanted in point.curves.items():
            assert curves[point.arm, point.seed][name] == pytest.approx(wanted, abs=1e-6), (point.arm, point.seed, name)
    assert together.rows() == [{name: pytest.approx(x) if isinstance(x, float) else x for name, x in row.items()}
                               for row in alone.rows()]  # fmt: skip


def test_what_fails_under_vmap_fails_for_every_seed_and_says_why():
    points = {"base": {}, "bad": {"fail": True}, "host": {"host": True}}
    shown = in_process.sweep(walk, points, seeds=2, baseline="base", vmap=True, tell=str)
    errors = {(point.arm, point.seed): point.error for point in shown.results.outcomes}
    assert errors["base", 1] == "" and errors["bad", 0] == errors["bad", 1] == "RuntimeError: no luck"
    assert errors["host", 0].startswith("UserError: under vmap the function must be one of JAX arrays alone: ")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"baseline": "bsae"}, "baseline: there is no arm 'bsae'; did you mean 'base'?"),
        ({"seeds": []}, "seed is empty"),
        ({"seeds": [1, 1]}, "seed has 1 twice"),
        ({"points": {}}, "points or grid must name an arm"),
        ({"points": {"a": {"level": 1}, "b": {"level": 1}}}, "duplicate points: 'a' and 'b' have the same settings"),
        ({"metrics": []}, "metrics must be a list of names"),
        ({"grid": {"level": []}}, "grid.level must be a list of values"),
        ({"grid": {"level": 3}}, "grid.level must be a list of values, got 3"),
        ({"grid": [3]}, "grid must be a dict, as in {'loss': [mine, other]}, got [3]"),
        ({"grid": {"level": [run, run]}}, "grid.level has run twice: duplicate points"),
        ({"grid": {"seed": [1, 2]}}, "grid: settings are the function's arguments by name, but for `seed`"),
        ({"points": ["a"]}, "points must be a dict, as in {'mine': {'loss': mine}}, got ['a']"),
        ({"points": {"a": run}}, "points.a must be settings, as in {'loss': mine}, got <function run"),
        ({"points": {"a": {"seed": 3}}}, "a: settings are the function's arguments by name, but for `seed`"),
        ({"points": {"a": {3: 3}}}, "a: settings are the function's arguments by name, but for `seed`"),
        ({"metrics": [{"a": {}}]}, "metrics: {'a': {}} is no name; to say more of one, write"),
        ({"baseline": 0}, "baseline: there is no arm '0'"),
        ({"seeds": 20261121}, "seed: 20261121 asks for 20261121 seeds; write [20261121] for that one"),
    ],
)
def test_mistakes_of_a_notebook_are_told_before_the_first_call(call, words):
    def never(seed, **settings):
        pytest.fail("it was called")

    with pytest.raises(UserError, match=re.escape(words)):
        as_called = inspect.unwrap(in_process.sweep)  # users have no checks of types before it, as tests have
        as_called(never, **({"points": {"base": {}, "more": {"level": 2}}} | call))


def test_a_metric_that_a_function_does_not_return_is_told_after_its_first_call():
    calls = []

    def counted(seed):
        calls.append(seed)
        return {"reward": 1.0}

    with pytest.raises(
        UserError, match="metrics: 'rewrad' is not among what the function returns; did you mean 'reward'"
    ):
        in_process.sweep(counted, {"a": {}}, metrics=["rewrad"], tell=str)
    assert calls == [0]
