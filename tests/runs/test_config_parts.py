"""Dicts of dataclasses, such as the parts of a reward: set from the command line, and explained by the part's name."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.runs import config, hints


@dataclass(frozen=True)
class Part:
    model: str = ""
    function: str = ""
    weight: float = 1.0
    axis: int = 0

    def __post_init__(self):
        config.check(bool(self.model) != bool(self.function), "model or function must be given, and not both")
        config.non_negative("axis", self.axis)


@dataclass(frozen=True)
class Experiment:
    rewards: dict[str, Part]
    steps: int = 3
    scale: dict[str, float] = field(default_factory=dict)
    other: Part = Part(model="m")


FILE = "rewards:\n  r: {function: a.py:b, weight: 0.25}\n  s: {model: folder}\n"


def parsed(tmp_path, argv, text=None):
    if text is not None:
        (tmp_path / "x.yaml").write_text(text)
        argv = [*argv, "--config", str(tmp_path / "x.yaml")]
    return config.parse(Experiment, argv)


@pytest.mark.parametrize("colon", ["F.py:f", "3", "null", "a: b"])
def test_a_part_of_the_command_line_alone(tmp_path, colon):
    """Text is text, whatever YAML would take it for."""
    got = parsed(tmp_path, ["--rewards.r.function", colon, "--steps", "5", "--rewards.s.model=m", "--rewards.s.axis=2"])
    assert got == Experiment({"r": Part(function=colon), "s": Part(model="m", axis=2)}, steps=5)


def test_settings_of_parts_fold_into_the_file(tmp_path):
    given = ["--rewards.r.weight", "-2", "--rewards.t.function", "c.py:d", "--rewards.s", "{model: other}"]
    want = {"r": Part(function="a.py:b", weight=-2.0), "s": Part(model="other"), "t": Part(function="c.py:d")}
    got = parsed(tmp_path, given, FILE)
    assert got.rewards == want and type(got.rewards["r"].weight) is float
    assert parsed(tmp_path, [], FILE).rewards == {"r": Part(function="a.py:b", weight=0.25), "s": Part(model="folder")}


def test_of_the_command_line_itself_the_last_counts(tmp_path):
    whole = ["--rewards", "{r: {model: m}}"]
    assert parsed(tmp_path, [*whole, "--rewards.r.axis", "1"], FILE).rewards == {"r": Part(model="m", axis=1)}
    assert parsed(tmp_path, ["--rewards.r.axis", "1", *whole], FILE).rewards == {"r": Part(model="m")}


@pytest.mark.parametrize(
    ("argv", "text", "words"),
    [
        ([], "rewards: {q: {model: m}, r: {model: m, weight: heavy}}", ["rewards.r.weight must be a number, got 'heavy' (in"]),
        ([], "rewards: {r: {model: 3}}", ["rewards.r.model must be text, got 3", "x.yaml"]),
        (["--rewards.r.weight", "heavy"], FILE, ["rewards.r.weight must be a number, got 'heavy' (on the command line)"]),
        (["--rewards", "{r: {model: m, axis: x}}"], None, ["rewards.r.axis must be a whole number, got 'x' (on the command"]),
        (["--rewards", "{r: {functoin: x}}"], None, ["unknown key 'rewards.r.functoin'", "mean 'rewards.r.function'?"]),
        (["--rewards.r.functoin", "x"], None, ["unknown key '--rewards.r.functoin'", "mean '--rewards.r.function'?"]),
        ([], "rewards: {r: {functoin: x}}", ["x.yaml: unknown key 'rewards.r.functoin'", "mean 'rewards.r.function'?"]),
        (["--rewards", "{r: {"], None, ["--rewards must be {name: value"]),
        (["--rewards", "a.py:b"], None, ["rewards must be {name: {model: …", "got 'a.py:b' (on the command line)"]),
        ([], "rewards: [a, b]", ["rewards must be {name: {model: …", "got ['a', 'b']"]),
        (["--rewards.r", "3"], None, ["--rewards.r is a group: give its fields (model, function"]),
        (["--rewards.r.model"], None, ["--rewards.r.model needs a value: text"]),
        ([], "rewards: {r: {weight: 1}}", ["rewards.r.model or function must be given, and not both"]),
        (["--rewards.r.axis", "-1"], FILE, ["rewards.r.axis must be >= 0", "got -1"]),
        (["--config"], None, ["--config needs a value: a YAML file"]),
        (["--config", "--steps", "3"], None, ["--config needs a value"]),
        (["--config="], None, ["--config needs a value"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_the_parts_name(tmp_path, argv, text, words):
    with pytest.raises(UserError) as caught:
        parsed(tmp_path, argv, text)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, [3, -1], [True, 3.0, "3", None]),
        (float, [3, 0.5], [True, "3"]),
        (bool, [True], [1, "true"]),
        (str, ["", "x"], [3, None]),
        (int | None, [3, None], ["x", False]),
        (Literal["a", "b"], ["a"], ["c", 1]),
        (Part, [{}], [3, "x", None]),
        (dict[str, float], [{}], [[], 3]),
        (tuple[int, ...], [[1]], [{}, "x"]),
    ],
)
def test_which_plain_values_are_of_a_type(hint, right, wrong):
    assert [hints.fits(hint, value) for value in [*right, *wrong]] == [True] * len(right) + [False] * len(wrong)
