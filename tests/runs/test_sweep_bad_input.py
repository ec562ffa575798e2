"""Every mistake in a sweep is told in one line that says what would be right, before anything runs."""

import time

import pytest

from rlhf_jax.runs.sweep import spec
from tests.runs import sweeps
from tests.runs.sweeps import BASE, STAGE

STAGES = f"\nstages: {{sft: {{script: {STAGE}}}}}\n"
USES = BASE.replace("plain: true", 'plain: true, model: "{sft}"')

# fmt: off
BAD = {
    "an arm that is no baseline's": (BASE + "baseline: tow", "baseline: there is no arm 'tow'; did you mean 'two'?"),
    "a grid over a field that does not exist": (BASE + "grid: {ppo.klip: [0.1]}",
        "arm 'klip=0.1': unknown key '--ppo.klip'; did you mean '--ppo.clip'?"),
    "a point with a field that does not exist": (BASE.replace("level: 2.0", "levle: 2.0"),
        "arm 'two': unknown key '--levle'; did you mean '--level'?"),
    "duplicate points": (BASE.replace("two: {level: 2.0}", "two: {level: 1.0}"),
        "duplicate points: 'one, seed 0' and 'two, seed 0' are the same run"),
    "duplicates in a grid": (BASE + "grid: {level: [3.0, 3.0]}", "grid.level has 3.0 twice: duplicate points"),
    "a grid that makes what a point is": (BASE + "grid: {level: [2.0, 3.0]}",
        "duplicate points: 'two, seed 0' and 'level=2.0, seed 0' are the same run"),
    "a point named as a combination": (BASE.replace("two:", "level=5.0:") + "grid: {level: [5.0]}",
        "points.level=5.0 has the name of a combination of the grid"),
    "no seeds in the list": (BASE.replace("seed: 2", "seed: []"), "seed is empty: give how many seeds, or a list"),
    "no seeds by count": (BASE.replace("seed: 2", "seed: 0"), "seed is empty"),
    "a seed twice": (BASE.replace("seed: 2", "seed: [1, 2, 1]"), "seed has 1 twice: duplicate points"),
    "a seed below 0": (BASE.replace("seed: 2", "seed: [-1]"), "seed must be whole numbers of 0 or more, got -1"),
    "a seed that is no number": (BASE.replace("seed: 2", "seed: [a]"), "seed must be whole numbers of 0 or more, got 'a'"),
    "seeds in words": (BASE.replace("seed: 2", "seed: five"), "seed must be how many seeds, or a list of them, got 'five'"),
    "seeds yes": (BASE.replace("seed: 2", "seed: true"), "seed must be how many seeds, or a list of them, got True"),
    "out of range": (BASE + "grid: {ppo.clip: [0.1, -1.0]}", "arm 'clip=-1.0': ppo.clip must be > 0 and finite, got -1.0"),
    "of another type": (BASE.replace("level: 2.0", "level: high"), "arm 'two': level must be a number, got 'high'"),
    "a function that is not there": (BASE.replace("level: 2.0", "ppo.loss: none.py:f"),
        "arm 'two': function: there is no file 'none.py'"),
    "an unknown key": (BASE + "basline: one", "unknown key 'basline'; did you mean 'baseline'?"),
    "no arms": ("seed: 2\nmetrics: [a]", "points or grid must name an arm"),
    "no metrics": (BASE.replace("metrics: [rollout/score]", ""), "metrics must be a list of names in metrics.jsonl"),
    "an empty list of metrics": (BASE.replace("[rollout/score]", "[]"), "metrics must be a list of names"),
    "a metric twice": (BASE.replace("[rollout/score]", "[a, a]"), "metrics has a name twice"),
    "a metric over nothing": (BASE.replace("[rollout/score]", "{a: {over: 0}}"),
        "metrics.a.over must be a share above 0, at most 1, got 0"),
    "a metric with no direction": (BASE.replace("[rollout/score]", "{a: {better: up}}"),
        "metrics.a.better must be higher or lower, got 'up'"),
    "a metric's unknown key": (BASE.replace("[rollout/score]", "{a: {over_: 1}}"),
        "metrics.a: unknown key 'over_'; did you mean 'over'?"),
    "a metric told in a list": (BASE.replace("[rollout/score]", "[{rollout/score: {over: 0.2}}]"),
        "is no name; to say more of one, write metrics: {rollout/score: {over: 0.2}}"),
    "a list in the list of metrics": (BASE.replace("[rollout/score]", "[[a]]"), "metrics: ['a'] is no name"),
    "a metric's unit": (BASE.replace("[rollout/score]", "{a: {unit: 5}}"), "metrics.a.unit must be a text, got 5"),
    "a baseline that is false": (BASE + "baseline: false", "baseline: there is no arm 'False'"),
    "a baseline that is 0": (BASE + "baseline: 0", "baseline: there is no arm '0'"),
    "a folder that is a number": (BASE + "out: 5", "out must be the name of a folder, got 5"),
    "a folder in a list": (BASE + "out: [a]", "out must be the name of a folder, got ['a']"),
    "a folder that is true": (BASE + "out: true", "out must be the name of a folder, got True"),
    "a folder that no system has": (BASE + 'out: "a\\0b"', "out has the character '\\x00' in 'a\\x00b': leave it out"),
    "one seed by its number": (BASE.replace("seed: 2", "seed: 20261121"),
        "seed: 20261121 asks for 20261121 seeds; write [20261121] for that one"),
    "a value that no command line has": (BASE.replace("level: 2.0", 'note: ["a\\0b"]'),
        "points.two.note has the character '\\x00'"),
    "half a character": (BASE.replace("level: 2.0", 'note: "\\uD800"'), "points.two.note has the character '\\ud800'"),
    "an arm of half a character": (BASE.replace("two:", '"\\uD800":'), "points has the character '\\ud800'"),
    "bytes": (BASE.replace("2.0", "!!binary aGk="), "points.two.level must be a text, a number, true, false, a list or"),
    "a date": (BASE.replace("2.0", "!!timestamp 2020-01-01"), "points.two.level must be a text, a number, true"),
    "a point that is 0": (BASE.replace("{level: 2.0}", "0"), "points.two must be {name: value}, got 0"),
    "the seed in an arm": (BASE.replace("level: 2.0", "seed: 3"), "two: seed is the sweep's to give"),
    "the folder in the settings": (BASE.replace("plain: true", "out: x"), "settings: out is the sweep's to give"),
    "a setting twice": (BASE.replace("level: 2.0", "ppo: {clip: 0.1}, ppo.clip: 0.2"), "points.two: ppo.clip is given twice"),
    "a grid without values": (BASE + "grid: {level: []}", "grid.level must be a list of values, got []"),
    "a grid of one value": (BASE + "grid: {level: 3.0}", "grid.level must be a list of values, got 3.0"),
    "points in a list": (BASE.replace("points:\n  one: {}\n  two: {level: 2.0}", "points: [one, two]"),
        "points must be {name: …}, got ['one', 'two']"),
    "a reference to no stage": (USES.replace("{sft}", "{stf}") + STAGES, "{stf} is no stage; did you mean 'sft'?"),
    "a stage nobody reads": (BASE + STAGES, "stages.sft is read by no arm: name its folder as {sft}"),
    "a stage without a script": (USES + "stages: {sft: {settings: {}}}", "stages.sft must be {script: …, settings: …}"),
    "a stage's script that is not there": (USES + "stages: {sft: {script: stage_.py}}",
        "stages.sft.script: there is no file 'stage_.py'"),
    "a stage's unknown setting": (USES + STAGES.replace("py}", "py, settings: {strat: a}}"),
        "stages.sft: unknown key '--strat'; did you mean '--start'?"),
    "stages in a circle": (USES + f"stages: {{sft: {{script: {STAGE}, settings: {{start: '{{b}}'}}}}, "
        f"b: {{script: {STAGE}, settings: {{start: '{{sft}}'}}}}}}", "stages.sft needs itself: sft → b → sft"),
    "one for all that reads one a seed": (USES.replace("{sft}", "{b}") + f"stages: {{sft: {{script: {STAGE}}}, "
        f"b: {{script: {STAGE}, per_seed: false, settings: {{start: '{{sft}}'}}}}}}",
        "stages.b has per_seed: false, so it cannot read {sft}"),
    "a stage that writes elsewhere": (USES + STAGES.replace("py}", "py, out: ../x}"),
        "stages.sft.out must be a name inside the stage's folder"),
    "a stage named seed": (BASE + f"stages: {{seed: {{script: {STAGE}}}}}", "stages.seed: a stage's name is a word"),
    "broken YAML": (BASE + "grid: [", "sweep.yaml, line 8: "),
}
# fmt: on


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_told_before_anything_runs(name, tmp_path, capsys):
    text, words = BAD[name]
    assert sweeps.run(tmp_path, text) == 2
    told = capsys.readouterr()
    assert words in told.err, told.err
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and told.out == ""
    assert not (tmp_path / "sweep").exists() and not (tmp_path / "stages").exists()


def test_scripts_that_cannot_be_swept(tmp_path, capsys):
    assert sweeps.run(tmp_path, BASE, script=str(sweeps.SCRIPTS / "tyo.py")) == 2
    assert "there is no script" in (told := capsys.readouterr().err) and "did you mean 'toy.py'?" in told
    bare = tmp_path / "bare.py"
    bare.write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Experiment:\n    out: str = ''\n"
    )
    assert sweeps.run(tmp_path, BASE.replace("plain: true", ""), script=str(bare)) == 2
    assert f"{bare} has no setting 'seed', which a sweep must give" in capsys.readouterr().err
    bare.write_text("def main():\n    pass\n")
    sweeps.experiment_of.cache_clear()
    assert sweeps.run(tmp_path, BASE, script=str(bare)) == 2
    assert "has no function 'Experiment'" in capsys.readouterr().err
    assert sweeps.run(tmp_path, BASE, "--jobs", "0") == 2
    assert "--jobs must be 1 or more, got 0" in capsys.readouterr().err
    assert sweeps.run(tmp_path, BASE, "--only", "123") == 2
    assert "--only: there is no run '123'" in capsys.readouterr().err


SCRIPT = (
    "from dataclasses import dataclass\nimport sys\n@dataclass\nclass Experiment:\n  seed: int = 0\n  out: str = ''\n"
)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("  def __post_init__(self):\n    raise ValueError('bad\\nluck')\n", "arm 'one': ValueError: bad luck"),
        ("  lr: complex = 1j\n", "arm 'one': TypeError: Experiment.lr has type <class 'complex'>"),
        ("sys.exit(3)\n", "own.py: it ended itself while it was loaded, by sys.exit(3)"),
    ],
)
def test_what_a_script_of_ones_own_may_do_is_told(more, words, tmp_path, capsys):
    script = tmp_path / "own.py"
    script.write_text(SCRIPT + more)
    assert sweeps.run(tmp_path, "points: {one: {}}\nmetrics: [a]\n", script=str(script)) == 2
    told = capsys.readouterr().err
    assert words in told and told.startswith("error: ") and told.count("\n") == 1, told


def test_an_arm_named_by_a_number_can_be_the_baseline(tmp_path):
    path = sweeps.write(tmp_path, BASE.replace("one:", "0:") + "baseline: 0")
    assert spec.load(sweeps.TOY, path).baseline == "0"


def test_thousands_of_seeds_are_read_at_once():
    began = time.process_time()
    assert len(spec.seeds_of(list(range(20_000)))) == 20_000
    assert time.process_time() - began < 2.0


def test_a_metric_that_no_run_has_is_told_after_the_first_run_and_then_before_any(tmp_path, capsys):
    text = BASE.replace("rollout/score", "rollout/scroe").replace("plain: true", "plain: true, iterations: 1")
    assert sweeps.run(tmp_path, text) == 2
    told = capsys.readouterr().err
    assert "metrics: no finished run has 'rollout/scroe'; did you mean 'rollout/score'?" in told
    assert len(sweeps.begun(tmp_path)) == 1 and len(sweeps.done(tmp_path)) == 1, (
        "the first run told it; no second began"
    )
    assert sweeps.run(tmp_path, text) == 2
    assert len(sweeps.begun(tmp_path)) == 1, "now it is known before anything runs"
    assert "did you mean 'rollout/score'?" in capsys.readouterr().err
    both = text.replace("[rollout/scroe]", "{rollout/score: {}, rollout/scroe: {optional: true}}")
    assert sweeps.run(tmp_path, both) == 0, "one that only some arms log may be missing"
    assert "no average: not logged: seed 0, 1" in capsys.readouterr().out
