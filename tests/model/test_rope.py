from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.model import rope
from rlhf_jax.model.config import RopeScaling
from tests.model import decoder_oracle as oracle

LLAMA31 = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(
    ("theta", "head_dim", "scaling"),
    [
        (10_000.0, 64, None),
        (500_000.0, 128, LLAMA31),
        (500_000.0, 64, RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)),
        (500.0, 8, RopeScaling("llama3", 8.0, 1.0, 4.0, 64)),
        (10_000.0, 80, RopeScaling("llama3", 2.0, 1.5, 6.0, 512)),
        (10_000.0, 16, RopeScaling("linear", 4.0)),
    ],
)
def test_rope_frequencies_equal_the_published_rule(theta, head_dim, scaling):
    cfg = replace(oracle.LLAMA, rope_theta=theta, head_dim=head_dim, rope_scaling=scaling)
    np.testing.assert_allclose(rope.frequencies(cfg), oracle.rope_frequencies(cfg), rtol=3e-6)


def test_the_scalings_compared_use_all_three_bands_of_llama3():
    cfg = replace(oracle.LLAMA, rope_theta=500_000.0, head_dim=128, rope_scaling=LLAMA31)
    ratio = oracle.rope_frequencies(cfg) / oracle.rope_frequencies(replace(cfg, rope_scaling=None))
    assert np.any(ratio == 1) and np.any(np.isclose(ratio, 1 / 8)) and np.any((ratio > 0.13) & (ratio < 0.99))


@pytest.mark.parametrize("scaling", [None, LLAMA31])
def test_rotation_is_a_complex_product(scaling):
    cfg = replace(oracle.LLAMA, head_dim=16, rope_scaling=scaling)
    positions = np.array([0, 1, 2, 63, 64, 511, 2047])
    x = drawn(0, len(positions), 3, 16)
    found = rope.rotate(jnp.float32(x), jnp.array(positions), rope.frequencies(cfg))
    np.testing.assert_allclose(found, oracle.rotate(x, positions, cfg), atol=3e-4)
    np.testing.assert_array_equal(found[0], np.float32(x[0]))


def test_rotated_products_depend_on_the_distance_alone():
    cfg = replace(oracle.LLAMA, head_dim=16)
    q, k = jnp.float32(drawn(1, 1, 1, 16)), jnp.float32(drawn(2, 1, 1, 16))

    def product(at_q, at_k):
        turned_q, turned_k = (
            rope.rotate(x, jnp.array([at]), rope.frequencies(cfg)) for x, at in ((q, at_q), (k, at_k))
        )
        return float(jnp.sum(turned_q * turned_k))

    assert product(9, 4) == pytest.approx(product(205, 200), abs=1e-4)
    assert abs(product(9, 4) - product(4, 9)) > 1e-2


def test_bf16_rotation_turns_by_f32_angles():
    cfg = replace(oracle.LLAMA, head_dim=16)
    x = jnp.asarray(drawn(3, 2, 1, 16), jnp.bfloat16)
    positions = np.array([501, 511])
    found = rope.rotate(x, jnp.array(positions), rope.frequencies(cfg))
    assert found.dtype == jnp.bfloat16
    exact = oracle.rotate(np.asarray(x, np.float64), positions, cfg)
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=2**-8)
