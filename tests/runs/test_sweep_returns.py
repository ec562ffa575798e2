"""What a function of a notebook may return, and what of it is a failure of that point alone."""

import jax.numpy as jnp
import pytest

from rlhf_jax.runs.sweep import in_process


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (None, "the function must return numbers by name, as {'reward': 1.0}, got nothing"),
        (1.0, "the function must return numbers by name, as {'reward': 1.0}, got 1.0"),
        ({3: 1.0}, "the function must return numbers by name, as {'reward': 1.0}, got {3: 1.0}"),
        ({"reward": [1.0, [2.0, 3.0]]}, "reward must be a number or a list of numbers, got [1.0, ["),
        ({"reward": []}, "reward must be a number or a list of numbers, got []"),
        ({"reward": 1j}, "reward must be a number or a list of numbers, got "),
    ],
)
def test_what_a_function_should_not_return_is_its_points_failure_and_no_others(bad, words, vmap):
    points = {"good": {"call": {"reward": 2.0}}, "bad": {"call": bad}}  # `call`: any name but `seed` is the user's
    shown = in_process.sweep(lambda seed, call: call, points, seeds=2, vmap=vmap, tell=str)
    got = {(row["arm"], row["seed"]): row for row in shown.points()}
    assert got["good", 1]["status"] == "done" and got["good", 1]["reward"] == 2.0
    for seed in (0, 1):
        told = got["bad", seed]["error"].replace("np.float32(1.0)", "1.0").replace("array(1., dtype=float32)", "1.0")
        assert got["bad", seed]["status"] == "failed" and told.startswith("UserError: ")
        assert words in told or vmap and words.partition(", got")[0] in told


def test_what_raises_when_it_is_looked_at_is_its_points_failure():
    class Gone:
        def __array__(self, *_, **__):
            raise RuntimeError("it is\ngone")

    shown = in_process.sweep(lambda seed, x: {"y": x}, {"a": {"x": 1.0}, "b": {"x": Gone()}}, seeds=1, tell=str)
    assert [row["error"] for row in shown.points()] == ["", "RuntimeError: it is gone"]


@pytest.mark.parametrize("vmap", [False, True])
def test_bfloat16_is_a_number(vmap):
    def half(seed):
        x = jnp.asarray(seed, jnp.bfloat16)
        return {"one": x, "list": [x, x + 1], "array": jnp.stack([x, x + 2])}

    shown = in_process.sweep(half, {"a": {}}, seeds=[3, 4], metrics=["one", "list", "array"], vmap=vmap, tell=str)
    got = [(row["one"], row["list"], row["array"]) for row in shown.points()]
    assert got == [(3.0, 4.0, 5.0), (4.0, 5.0, 6.0)]


def test_functions_of_one_name_are_numbered():
    grid = {"loss": [lambda x: x, lambda x: -x, abs]}
    shown = in_process.sweep(lambda seed, loss: {"y": loss(seed + 1.0)}, grid=grid, seeds=1, tell=str)
    assert [(row["arm"], row["y"]) for row in shown.points()] == [
        ("loss=<lambda>", 1.0),
        ("loss=<lambda> 2", -1.0),
        ("loss=abs", 1.0),
    ]
