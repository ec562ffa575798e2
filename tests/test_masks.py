"""Masks and masked reductions against plain loops: ragged, empty and single-token rows, anything in the masked slots."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import masks
from tests import oracles


@pytest.fixture(scope="module")
def cases():
    """x [1000, 4, 6] with junk outside the mask, and the mask."""
    rng = np.random.default_rng(0)
    mask = oracles.mask_of(oracles.lengths(rng))
    scale = 10.0 ** rng.integers(-2, 3, (oracles.CASES, 1, 1))
    x = scale * rng.normal(size=mask.shape) + rng.normal(size=(oracles.CASES, 1, 1))
    return oracles.soiled(rng, x, mask), mask


def test_response_mask_is_true_for_the_first_length_slots():
    length = np.array([0, 1, 3, 6], np.int32)
    wanted = [[t < size for t in range(6)] for size in (0, 1, 3, 6)]
    assert masks.response_mask(jnp.asarray(length), 6).tolist() == wanted


def test_blank_zeroes_masked_slots_whatever_stood_there(cases):
    x, mask = cases
    oracles.agree(masks.blank, lambda x, mask: np.where(mask, x, 0.0), x, mask, atol=0, rtol=0)
    # Op by op too: where XLA compiles a product with a mask as a whole it happens to make a selection of it.
    few = jnp.array([[np.nan, np.inf, -np.inf, 7.0, 8.0]]), jnp.array([[False, False, False, False, True]])
    assert masks.blank(*few).tolist() == [[0, 0, 0, 0, 8]]


def test_masked_mean_equals_a_loop_and_is_zero_without_slots(cases):
    x, mask = cases

    def oracle(x, mask):
        kept = [float(v) for v, m in zip(x.ravel(), mask.ravel()) if m]
        return np.float64(sum(kept) / len(kept) if kept else 0.0)

    oracles.agree(masks.masked_mean, oracle, x, mask, atol=1e-4)


def test_weighted_sum_equals_a_loop_over_positive_weights(cases):
    x, mask = cases
    rng = np.random.default_rng(1)
    weights = np.where(mask, rng.uniform(0, 1, mask.shape), 0.0)

    def oracle(x, weights):
        return np.float64(sum(float(v * w) for v, w in zip(x.ravel(), weights.ravel()) if w > 0))

    oracles.agree(masks.weighted_sum, oracle, x, weights, atol=1e-3)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_invariant_21_whiten_equals_a_loop(cases, shift_mean):
    x, mask = cases
    oracles.agree(
        functools.partial(masks.whiten, shift_mean=shift_mean),
        functools.partial(oracles.whiten, shift_mean=shift_mean),
        x,
        mask,
        atol=1e-3,
        rtol=1e-4,
    )


def test_invariant_21_whitening_zero_or_one_token_changes_nothing_and_is_finite():
    x = jnp.array([[3.0, np.nan], [np.inf, -7.0]], jnp.float32)
    one = jnp.array([[True, False], [False, False]])
    for shift_mean in (True, False):
        assert masks.whiten(x, one, shift_mean=shift_mean).tolist() == [[3.0, 0.0], [0.0, 0.0]]
        assert masks.whiten(x, one & False, shift_mean=shift_mean).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_invariant_21_whitening_equal_values_gives_zero_not_nan():
    x = jnp.full((3, 4), 0.7, jnp.float32)
    assert np.abs(masks.whiten(x, jnp.ones((3, 4), bool))).max() < 1e-2
    kept = masks.whiten(x, jnp.ones((3, 4), bool), shift_mean=False)
    np.testing.assert_allclose(kept, 0.7, atol=1e-2)


def test_invariant_21_whitened_masked_slots_are_exactly_zero(cases):
    x, mask = cases
    white = jax.jit(jax.vmap(masks.whiten))(x.astype(np.float32), mask)
    assert (np.asarray(white)[~mask] == 0).all()


@pytest.mark.parametrize("reduce", [masks.masked_mean, masks.weighted_sum])
def test_invariant_09_masked_slots_change_neither_value_nor_gradient(reduce):
    rng = np.random.default_rng(2)
    mask = oracles.mask_of(np.array([0, 1, 4, 6], np.int32))
    second = jnp.asarray(mask if reduce is masks.masked_mean else (mask / mask.sum()).astype(np.float32))
    clean = np.where(mask, rng.normal(size=mask.shape), 0.0).astype(np.float32)
    both = jax.jit(jax.value_and_grad(lambda x: reduce(x, second)))
    wanted = both(clean)
    for _ in range(10):
        found = both(oracles.soiled(rng, clean, mask).astype(np.float32))
        assert [np.asarray(x).tobytes() for x in found] == [np.asarray(x).tobytes() for x in wanted]


def test_rows_at_reads_a_window_and_repeats_the_last_position():
    x = np.arange(3 * 5 * 2, dtype=np.float32).reshape(3, 5, 2)
    start = np.array([0, 2, 4], np.int32)
    found = masks.rows_at(jnp.asarray(x), jnp.asarray(start), 4)
    wanted = [[x[b, min(start[b] + t, 4)].tolist() for t in range(4)] for b in range(3)]
    assert found.tolist() == wanted
    assert masks.rows_at(jnp.asarray(x[..., 0]), jnp.asarray(start), 4).tolist() == [
        [position[0] for position in row] for row in wanted
    ]


def test_invariant_15_last_token_is_the_last_real_one_not_the_last_column():
    x = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
    assert masks.last_token(x, jnp.array([1, 3, 4])).tolist() == [0.0, 6.0, 11.0]
