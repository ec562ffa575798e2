"""Rewards from functions: mixing, parts, and a plain sentence for everything a user's function can get wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import rewards
from rlhf_jax.errors import UserError

PROMPTS, RESPONSES, META = ["p", "q", "r"], ["a", "bb", "ccc"], [{"k": 1}, {"k": 2}, {"k": 3}]


def length(prompts, responses, meta):
    return [len(r) for r in responses]


def column(prompts, responses, meta):
    return np.array([row["k"] * 0.1 for row in meta]), {"inner": [row["k"] - 0.5 for row in meta]}


def test_a_mix_is_the_weighted_sum_and_reports_its_parts_unweighted():
    total, parts = rewards.mix({"length": (length, 0.5), "column": (column, -2.0)})(PROMPTS, RESPONSES, META)
    assert total.dtype == np.float32
    np.testing.assert_allclose(total, [0.5 - 0.2, 1.0 - 0.4, 1.5 - 0.6], rtol=1e-6)
    assert set(parts) == {"length", "column", "column.inner"}
    assert parts["length"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(parts["column.inner"], [0.5, 1.5, 2.5])
    assert all(x.dtype == np.float32 for x in parts.values())


def test_invariant_02_fractional_scores_stay_fractions_and_integers_become_f32():
    total, _ = rewards.mix({"r": (lambda p, r, m: [0.75, -1.9, 0.7], 1.0)})(PROMPTS, RESPONSES, META)
    assert total.tolist() == np.array([0.75, -1.9, 0.7], np.float32).tolist()
    assert rewards.to_scores("r", [1, 2, 3], 3).dtype == np.float32


@pytest.mark.parametrize("kind", [list, tuple, np.array, jnp.array])
def test_scores_may_come_as_any_sequence(kind):
    assert rewards.to_scores("r", kind([1.5, 2.5, 3.5]), 3).tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ([1.0, 2.0], r"'mine' returned shape \(2,\) for 3 responses; it must return \(3,\)"),
        ([[1.0], [2.0], [3.0]], r"shape \(3, 1\)"),
        (0.5, r"shape \(\)"),
        ([1.0, float("nan"), float("inf")], r"not finite in rows \[1, 2\] \(2 of 3\)"),
        (["a", "b", "c"], "one number a response; got list"),
        ([[1.0], [1.0, 2.0], []], "one number a response"),
        (None, "'mine'"),
        (["1", "2", "3"], "one number a response"),
        (([1.0, 2.0, 3.0], [0.5]), "one number a response"),
        (([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]), r"shape \(2, 3\)"),
        (([1.0, 2.0, 3.0], {"part": [1.0]}), r"'mine.part' returned shape \(1,\)"),
    ],
)
def test_what_a_function_returns_wrongly_is_told(result, told):
    with pytest.raises(UserError, match=told):
        rewards.checked("mine", lambda p, r, m: result)(PROMPTS, RESPONSES, META)


def test_a_tuple_of_numbers_is_scores():
    assert rewards.checked("mine", lambda p, r, m: (1.0, 2.0, 3.0))(PROMPTS, RESPONSES, META)[0].tolist() == [1, 2, 3]
    two = rewards.checked("mine", lambda p, r, m: (1.0, 2.0))(PROMPTS[:2], RESPONSES[:2], META[:2])
    assert two[0].tolist() == [1, 2] and two[1] == {}


def test_a_function_that_empties_its_lists_harms_nobody():
    def greedy(prompts, responses, meta):
        return [float(len(responses.pop())) for _ in range(len(responses))]

    given = list(RESPONSES)
    total, _ = rewards.mix({"greedy": (greedy, 1.0), "length": (length, 1.0)})(PROMPTS, given, META)
    assert given == RESPONSES and total.tolist() == [4, 4, 4]


def test_an_exception_names_the_reward_and_keeps_its_cause():
    def broken(prompts, responses, meta):
        return [row["missing"] for row in meta]

    with pytest.raises(UserError, match="reward 'mine' raised KeyError: 'missing'") as error:
        rewards.checked("mine", broken)(PROMPTS, RESPONSES, META)
    assert isinstance(error.value.__cause__, KeyError)


def test_a_users_own_error_passes_unchanged():
    def refuses(prompts, responses, meta):
        raise UserError("too long")

    with pytest.raises(UserError, match="^too long$"):
        rewards.checked("mine", refuses)(PROMPTS, RESPONSES, META)


def test_no_reward_at_all_is_refused():
    with pytest.raises(UserError, match="at least one reward"):
        rewards.mix({})
