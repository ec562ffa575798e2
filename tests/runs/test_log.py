import dataclasses
import io
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.runs import log, strict_yaml, versions


@dataclass(frozen=True)
class Inner:
    lr: float = 0.5


@dataclass(frozen=True)
class Experiment:
    iterations: int = 4
    seed: int = 0
    inner: Inner = Inner()
    resume: bool = False
    folder: str = "a"


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def sample(iteration, **more):
    return {"iteration": iteration, "prompt": "p", "response": "r", "stage": "train"} | more


def test_scalars_of_every_kind_become_json_numbers(tmp_path):
    values = {
        "a/int": 3, "a/float": 0.1, "a/numpy": np.float32(0.1), "a/zero_d": np.array(7), "a/jax": jnp.float32(1.5),
        "a/bf16": jnp.bfloat16(1.5), "a/bool": jnp.array(True), "a/i32": jnp.int32(-4), "a/big": 2**40,
        "a/nan": jnp.nan, "a/inf": -math.inf, "a/f64": np.float64("inf"),
    }  # fmt: skip
    with log.open_run(tmp_path / "a", Experiment(), resume=False) as run:
        run.log(0, {"x": 1.0})
        run.log(5, values)
        assert run.nonfinite == 3
    text = (tmp_path / "a" / "metrics.jsonl").read_text()
    first, got = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert first == {"iteration": 0, "x": 1.0}
    assert got == {
        "iteration": 5, "a/int": 3, "a/float": 0.1, "a/numpy": float(np.float32(0.1)), "a/zero_d": 7, "a/jax": 1.5,
        "a/bf16": 1.5, "a/bool": 1, "a/i32": -4, "a/big": 2**40, "a/nan": None, "a/inf": None, "a/f64": None,
        "log/nonfinite": 3,
    }  # fmt: skip
    assert list(got)[1:-1] == list(values)
    assert isinstance(got["a/int"], int) and isinstance(got["a/jax"], float)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"a": np.zeros(3)}, "metric 'a' has shape"),
        ({"a": "high"}, "metric 'a' is"),
        ({"a": None}, "metric 'a' is nothing"),
        ({"iteration": 3}, "named `iteration`"),
    ],
)
def test_what_is_no_scalar_is_refused(tmp_path, metrics, words):
    with log.open_run(tmp_path / "a", Experiment(), resume=False) as run, pytest.raises(UserError, match=words):
        run.log(0, metrics)


def test_lines_are_on_disk_at_once_and_each_iteration_once(tmp_path):
    run = log.open_run(tmp_path / "a", Experiment(), resume=False)
    run.log(1, {"x": 1})
    run.time(1, {"generate": 0.5})
    run.sample([sample(1), sample(1)])
    assert lines(run.folder, "metrics") == [{"iteration": 1, "x": 1}]
    assert lines(run.folder, "timing") == [{"iteration": 1, "generate": 0.5}]
    assert len(lines(run.folder, "samples")) == 2
    for again in (1, 0):
        with pytest.raises(UserError, match=f"iteration {again} comes after 1"):
            run.log(again, {"x": 1})
    run.close()


def test_samples_keep_any_text(tmp_path):
    texts = ["<script>", "日本語", "a\nb\u2028c\x85d", "\udc80 lone", "\x00", '"\\']
    with log.open_run(tmp_path / "a", Experiment(), resume=False) as run:
        run.sample(sample(0, prompt=text, score=jnp.float32(0.5), parts={"length": np.float32(2)}) for text in texts)
        run.sample([sample(0, prompt=[{"role": "user", "content": "x"}], score=float("nan"), parts={"a": jnp.inf})])
        with pytest.raises(UserError, match="a sample needs stage"):
            run.sample([{"iteration": 0, "prompt": "p", "response": "r"}])
        with pytest.raises(UserError, match="stage must be one of before, after, train, got 'late'"):
            run.sample([sample(0, stage="late")])
    rows = log.read_lines(tmp_path / "a" / "samples.jsonl")
    assert [row["prompt"] for row in rows[:-1]] == texts
    assert rows[0]["score"] == 0.5 and rows[0]["parts"] == {"length": 2.0}
    assert rows[-1]["prompt"] == [{"role": "user", "content": "x"}]
    assert rows[-1]["score"] is None and rows[-1]["parts"] == {"a": None}


def test_a_cut_and_resumed_run_writes_what_an_uninterrupted_one_does(tmp_path):
    def loop(run, start, stop):
        for i in range(start, stop):
            run.log(i, {"x": i / 3})
            run.time(i, {"all": 0.1})
            run.sample([sample(i), sample(i, response="s")])

    with log.open_run(tmp_path / "whole", Experiment(), resume=False) as run:
        loop(run, 0, 6)
    with log.open_run(tmp_path / "killed", Experiment(), resume=False) as run:
        loop(run, 0, 5)
    for name in log.LINES:
        with open(tmp_path / "killed" / f"{name}.jsonl", "a") as file:
            file.write('{"iteration": 5, "x": 1.6')  # torn by a kill
    with log.open_run(tmp_path / "killed", Experiment(resume=True), resume=True) as run:
        with pytest.warns(UserWarning, match="1 unreadable"):
            run.cut(2)
        loop(run, 3, 6)
    for name in log.LINES:
        whole, killed = [(tmp_path / which / f"{name}.jsonl").read_bytes() for which in ("whole", "killed")]
        assert whole == killed and whole.count(b"\n") in (6, 12)


def test_cut_in_the_middle_of_a_run_and_to_nothing(tmp_path):
    with log.open_run(tmp_path / "a", Experiment(), resume=False) as run:
        for i in range(4):
            run.log(i, {"x": i})
        run.cut(1)
        assert [row["iteration"] for row in lines(run.folder, "metrics")] == [0, 1]
        run.log(2, {"x": 20})
        assert [row["x"] for row in lines(run.folder, "metrics")] == [0, 1, 20]
        run.cut(-1)
        assert lines(run.folder, "metrics") == []
        run.log(0, {"x": 9})
    assert lines(tmp_path / "a", "metrics") == [{"iteration": 0, "x": 9}]


def test_a_torn_line_never_swallows_the_next(tmp_path):
    with log.open_run(tmp_path / "a", Experiment(), resume=False) as run:
        run.log(0, {"x": 0})
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 1, "x"')
    with log.open_run(tmp_path / "a", Experiment(), resume=True) as run:  # and nobody called cut
        with pytest.warns(UserWarning, match="unreadable"):
            run.log(1, {"x": 1})
    with pytest.warns(UserWarning, match="unreadable"):
        assert [row["x"] for row in log.read_lines(tmp_path / "a" / "metrics.jsonl")] == [0, 1]


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    folder = tmp_path / "a"
    log.open_run(folder, Experiment(), resume=False).close()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="not empty: --resume true goes on"):
        log.open_run(folder, Experiment(seed=1), resume=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        log.open_run(tmp_path / "mine", Experiment(), resume=False)
    with pytest.raises(UserError, match="no config.yaml"):
        log.open_run(tmp_path / "mine", Experiment(), resume=True)
    with pytest.raises(UserError, match="thesis.txt.*delete it by hand"):
        log.open_run(tmp_path / "mine", Experiment(), resume=False, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_overwrite_begins_anew(tmp_path):
    with log.open_run(tmp_path / "a", Experiment(), resume=False) as run:
        run.log(0, {"x": 1})
    (tmp_path / "a" / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "a" / "report.html").write_text("old")
    with log.open_run(tmp_path / "a", Experiment(seed=1), resume=False, overwrite=True) as run:
        assert sorted(p.name for p in run.folder.iterdir()) == [".lock", "about.json", "config.yaml", "versions.json"]
        run.log(0, {"x": 2})
    assert lines(tmp_path / "a", "metrics") == [{"iteration": 0, "x": 2}]
    with pytest.raises(UserError, match="choose one"):
        log.open_run(tmp_path / "a", Experiment(), resume=True, overwrite=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 1}, r"seed 0, now it is 1"),
        ({"inner": Inner(0.25)}, r"inner.lr 0.5, now it is 0.25"),
        ({"iterations": 3}, r"iterations may only grow on a resume: .* has 4, now 3"),
    ],
)
def test_a_resume_with_another_config_is_refused(tmp_path, changed, words):
    log.open_run(tmp_path / "a", Experiment(), resume=False).close()
    with pytest.raises(UserError, match=words):
        log.open_run(tmp_path / "a", dataclasses.replace(Experiment(), **changed), resume=True)
    assert strict_yaml.load(tmp_path / "a" / "config.yaml") == strict_yaml.plain(Experiment())


def test_a_resume_may_grow_and_may_change_what_is_said(tmp_path):
    log.open_run(tmp_path / "a", Experiment(), resume=True).close()  # nothing there: a resume begins the run
    grown = Experiment(iterations=9, resume=True, folder="b")
    log.open_run(tmp_path / "a", grown, resume=True).close()
    assert strict_yaml.load(tmp_path / "a" / "config.yaml")["iterations"] == 9
    log.open_run(
        tmp_path / "a", dataclasses.replace(grown, seed=5), resume=True, may_change=("seed", "resume", "folder")
    ).close()
    with pytest.raises(UserError, match="folder 'b', now it is 'c'"):
        log.open_run(
            tmp_path / "a",
            dataclasses.replace(grown, seed=5, folder="c"),
            resume=True,
            may_change=(),
        )

    @dataclass(frozen=True)
    class Newer(Experiment):
        clip: float = 0.2

    with pytest.raises(UserError, match="clip nothing, now it is 0.2"):
        log.open_run(tmp_path / "a", Newer(9, 5, resume=True), resume=True)


@pytest.mark.parametrize("name", ["a b", "-a", ".a", "a" * 81, "a:b", "ä"])
def test_names_that_would_trouble_a_shell_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="run folder's name"):
        log.open_run(tmp_path / name, Experiment(), resume=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        log.open_run(tmp_path / "a", Experiment(), resume=False)
    with pytest.raises(UserError, match="cannot write to the run folder"):
        log.open_run(tmp_path / "a" / "b", Experiment(), resume=False)


def test_two_runs_do_not_share_a_folder(tmp_path):
    run = log.open_run(tmp_path / "a", Experiment(), resume=False)
    with pytest.raises(UserError, match="is in use"):
        log.open_run(tmp_path / "a", Experiment(), resume=True)
    run.close()
    log.open_run(tmp_path / "a", Experiment(), resume=True).close()
    code = "import sys, fcntl, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); "
    child = subprocess.Popen(
        [sys.executable, "-c", code + "print('held', flush=True); time.sleep(60)", str(tmp_path / "a" / ".lock")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is in use"):
            log.open_run(tmp_path / "a", Experiment(), resume=True)
    finally:
        child.kill()
        child.wait()
    log.open_run(tmp_path / "a", Experiment(), resume=True).close()  # a killed process holds nothing


def test_a_later_process_of_several_writes_nothing(tmp_path):
    run = log.Run(tmp_path / "a", writes=False)
    run.log(0, {"x": 1})
    run.time(0, {"x": 1})
    run.sample([sample(0)])
    run.cut(0)
    run.close()
    assert not (tmp_path / "a").exists()


def test_what_ran_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--name", "two words"])
    log.open_run(tmp_path / "a", Experiment(), resume=False, about={"title": "T", "synthetic": ["made up"]}).close()
    about = json.loads((tmp_path / "a" / "about.json").read_text())
    assert about == {"command": "python train.py --name 'two words'", "title": "T", "synthetic": ["made up"]}
    found = json.loads((tmp_path / "a" / "versions.json").read_text())
    import flax
    import jax
    import optax

    assert (found["jax"], found["flax"], found["optax"]) == (jax.__version__, flax.__version__, optax.__version__)
    assert found["python"] == sys.version.split()[0] and sum(found["devices"].values()) == len(jax.devices())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert (found["git"] or "").rstrip("+") == (head.stdout.strip() if head.returncode == 0 else "")


def test_a_resume_under_other_versions_is_told_and_kept(tmp_path):
    log.open_run(tmp_path / "a", Experiment(), resume=False).close()
    path = tmp_path / "a" / "versions.json"
    first = path.read_bytes()
    log.open_run(tmp_path / "a", Experiment(), resume=True).close()
    assert path.read_bytes() == first
    path.write_text(json.dumps(json.loads(first) | {"jax": "0.0.1"}))
    with pytest.warns(UserWarning, match="jax 0.0.1 -> "):
        log.open_run(tmp_path / "a", Experiment(), resume=True).close()
    found = json.loads(path.read_text())
    assert found["earlier"][0]["jax"] == "0.0.1" and found["jax"] == json.loads(first)["jax"]


def test_a_commit_is_told_only_of_our_own_checkout(monkeypatch, tmp_path):
    import rlhf_jax

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    call = ["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(call, check=True)
    inside = tmp_path / "env" / "rlhf_jax" / "runs"
    inside.mkdir(parents=True)
    monkeypatch.setattr(versions, "__file__", str(inside / "versions.py"))
    assert versions.current()["git"] is None
    inside = tmp_path / "rlhf_jax" / "runs"
    inside.mkdir(parents=True)
    monkeypatch.setattr(versions, "__file__", str(inside / "versions.py"))
    commit = versions.current()["git"]
    assert len(commit) == 40 and set(commit) <= set("0123456789abcdef")
    (tmp_path / "f").write_text("a")
    subprocess.run(["git", "-C", str(tmp_path), "add", "f"], check=True)
    assert versions.current()["git"] == commit + "+"
    assert rlhf_jax.__name__ == "rlhf_jax"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_quiet_without_a_terminal(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    with log.progress(7, 2, every=2) as advance:
        for i in range(2, 7):
            advance({"reward": jnp.float32(i / 4), "tokens/s": 12345.6})
    assert stderr.getvalue() == (
        "4/7  reward 0.75  tokens/s 12,346\n6/7  reward 1.25  tokens/s 12,346\n7/7  reward 1.5  tokens/s 12,346\n"
    )
    stderr.truncate(0)
    with log.progress(1, every=0) as advance:
        advance({"reward": 1.0})
    assert stderr.getvalue().strip("\x00") == ""


def test_progress_shows_live_fields_in_a_terminal(monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with log.progress(4, 2) as advance:
        advance({"reward": 0.25, "KL": 1.5})
        advance({"reward": 0.5, "KL": 2.5})
    shown = stderr.getvalue()
    assert "4/4" in shown and "reward 0.5  KL 2.5" in shown


@pytest.mark.parametrize("kind", [UserError, KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_ends_before_its_first_line_takes_itself_away(tmp_path, kind):
    """What was there before stays: folders, hidden files, and all of a folder that is no run's."""
    folder, old = tmp_path / "new" / "a", tmp_path / "old"
    old.mkdir()
    (old / ".keep").write_text("")
    for place, resume in ((folder, False), (old, True)):
        with pytest.raises(kind), log.open_run(place, Experiment(), resume=resume) as run:
            run.sample([sample(0) | {"stage": "before"}])
            (place / "checkpoints").mkdir()
            raise kind("no")
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and [path.name for path in old.iterdir()] == [".keep"]
    (old / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        log.open_run(old, Experiment(), resume=False)
    assert sorted(path.name for path in old.iterdir()) == [".keep", "notes.txt"]


def test_a_run_that_has_begun_stays_however_it_ends(tmp_path):
    """After a line of metrics, or a checkpoint; and a resumed one in any case."""
    for name, begin in (
        ("logged", lambda run: run.log(0, {"loss": 1})),
        ("saved", lambda run: (run.folder / "checkpoints" / "1").mkdir(parents=True)),
    ):
        with pytest.raises(ValueError), log.open_run(tmp_path / name, Experiment(), resume=False) as run:
            begin(run)
            raise ValueError
        assert (tmp_path / name / "config.yaml").is_file()
    (tmp_path / "logged" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError), log.open_run(tmp_path / "logged", Experiment(), resume=True):
        raise ValueError
    assert (tmp_path / "logged" / "config.yaml").is_file()
    with log.open_run(tmp_path / "quiet", Experiment(), resume=False):
        pass
    assert (tmp_path / "quiet" / "config.yaml").is_file(), "it ended well"
