import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.model import attention
from tests.jaxprs import named
from tests.model import decoder_oracle as oracle


def drawn(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_attention_with_grouped_heads_equals_a_loop(heads, kv_heads):
    q, k, v = drawn(4, 2, 7, heads, 5), drawn(5, 2, 7, kv_heads, 5), drawn(6, 2, 7, kv_heads, 5)
    mask = np.stack([np.tri(7, dtype=bool), (drawn(7, 7, 7) > 0) | np.eye(7, dtype=bool)])
    found = attention.attend(jnp.float32(q), jnp.float32(k), jnp.float32(v), jnp.array(mask))
    for b in range(2):
        np.testing.assert_allclose(found[b], oracle.attend(q[b], k[b], v[b], mask[b]), atol=2e-6)


@pytest.mark.parametrize("step", [0, 2, 4])
def test_attention_over_the_cache_equals_a_loop_over_contiguous_rows(step):
    G, n, P, R, N, K, H = 2, 3, 4, 5, 4, 2, 6
    q, prompt_k, prompt_v = drawn(8, G, n, N, H), drawn(9, G, P, K, H), drawn(10, G, P, K, H)
    k, v = drawn(11, G, n, R, K, H), drawn(12, G, n, R, K, H)
    lengths = np.array([4, 1])
    arrays = (jnp.float32(x) for x in (q, prompt_k, prompt_v, k, v))
    found = attention.attend_cache(*arrays, jnp.array(lengths), jnp.array(step))
    for g in range(G):
        for i in range(n):
            keys = np.concatenate([prompt_k[g, : lengths[g]], k[g, i, : step + 1]])
            values = np.concatenate([prompt_v[g, : lengths[g]], v[g, i, : step + 1]])
            exact = oracle.attend(q[g, i][None], keys, values, np.ones((1, len(keys)), bool))[0]
            np.testing.assert_allclose(found[g, i], exact, atol=2e-6)


def test_masked_keys_have_no_weight_at_all():
    q, k, v = (jnp.float32(drawn(seed, 1, 6, 2, 4)) for seed in (13, 14, 15))
    mask = jnp.tril(jnp.ones((6, 6), bool))[None]
    changed = k.at[:, 4:].add(50.0), v.at[:, 4:].add(1e30)
    before, after = attention.attend(q, k, v, mask), attention.attend(q, *changed, mask)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.asarray(before[:, 4:]) != np.asarray(after[:, 4:]))


def test_invariant_42_a_fully_masked_row_is_finite_and_so_is_its_gradient():
    q, k, v = (jnp.float32(drawn(seed, 1, 4, 2, 4)) for seed in (16, 17, 18))
    mask = jnp.tril(jnp.ones((4, 4), bool))[None].at[:, 2].set(False)

    def total(q, k, v):
        return jnp.sum(jnp.square(attention.attend(q, k, v, mask)))

    assert np.all(np.isfinite(attention.attend(q, k, v, mask)))
    for gradient in jax.grad(total, argnums=(0, 1, 2))(q, k, v):
        assert np.all(np.isfinite(gradient))
    whole = attention.attend(q, k, v, jnp.tril(jnp.ones((4, 4), bool))[None])
    np.testing.assert_array_equal(np.delete(attention.attend(q, k, v, mask), 2, 1), np.delete(whole, 2, 1))


def test_invariant_42_masked_softmax_of_extreme_scores():
    scores = jnp.array([[1e30, -1e30, 0.0], [3e38, -3e38, 1.0], [0.0, 0.0, 0.0]])
    mask = jnp.array([[True, True, False], [False, True, False], [False, False, False]])
    weights, gradient = jax.value_and_grad(lambda x: attention.masked_softmax(x, mask)[:, 0].sum())(scores)
    assert np.isfinite(weights) and np.all(np.isfinite(gradient))
    found = attention.masked_softmax(scores, mask)
    np.testing.assert_array_equal(found[0], [1, 0, 0])
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, atol=1e-6)


def test_bf16_scores_are_accumulated_and_normalised_in_f32():
    q, k = jnp.asarray(drawn(19, 1, 3, 2, 8), jnp.bfloat16), jnp.asarray(drawn(20, 1, 3, 1, 8), jnp.bfloat16)
    found = attention.scores(q, k)
    assert found.dtype == jnp.float32
    exact = np.einsum("btnh,bsh->bnts", np.asarray(q, np.float64), np.asarray(k, np.float64)[:, :, 0]) / np.sqrt(8)
    np.testing.assert_allclose(found[:, 0], exact, atol=1e-5)
    assert attention.masked_softmax(found, jnp.ones(found.shape, bool)).dtype == jnp.float32
    products = named(jax.make_jaxpr(attention.scores)(q, k), "dot_general")
    assert [product.params["preferred_element_type"] for product in products] == [jnp.float32]
