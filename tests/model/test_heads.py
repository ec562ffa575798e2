import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.masks import blank
from rlhf_jax.model import heads, transformer
from tests.jaxprs import named
from tests.model import decoder_oracle as oracle

FAMILIES = list(oracle.FAMILIES)
policy = jax.jit(heads.policy, static_argnames=("window", "cfg", "temperature", "chunk"))
value = jax.jit(heads.value, static_argnames=("window", "cfg"))
reward = jax.jit(heads.reward, static_argnames="cfg")
token_logprobs = jax.jit(heads.token_logprobs, static_argnames=("cfg", "temperature", "chunk"))

PROMPT, RESPONSE = np.array([5, 1, 8, 3]), np.array([6, 6, 1, 0])  # full windows, the shortest rows, an empty response
P, R = 8, 6


def rows_of(cfg, prompt=PROMPT, response=RESPONSE, width=P + R, seed=0):
    """tokens [B, width] with ids that mean nothing after the end of each row, and the lengths."""
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (len(prompt), width), dtype=np.int32)
    return tokens, np.array(prompt), np.array(response)


def used(response, window=R):
    return jnp.arange(window)[None] < jnp.asarray(response)[:, None]


def bits(x):
    return np.asarray(x).view(np.uint32)


def value_params(cfg, seed=3):
    rng = np.random.default_rng(seed)
    head = jnp.float32(rng.standard_normal(cfg.d_model) / np.sqrt(cfg.d_model))
    return heads.add_value_head(oracle.parameters(cfg), cfg) | {"value": head, "value_bias": jnp.float32(0.7)}


# The policy


@pytest.mark.parametrize("family", FAMILIES)
def test_policy_equals_a_float64_decoder(family):
    cfg, temperature = oracle.FAMILIES[family], 0.7
    params = oracle.parameters(cfg)
    tokens, prompt, response = rows_of(cfg)
    logprobs, entropy = policy(params, tokens, prompt, response, window=R, cfg=cfg, temperature=temperature, chunk=4)
    assert logprobs.shape == entropy.shape == (4, R) and logprobs.dtype == entropy.dtype == jnp.float32
    for b in range(len(prompt)):
        whole = tokens[b, : prompt[b] + response[b]]
        exact = oracle.log_softmax(oracle.logits(params, whole, cfg) / temperature)
        for t in range(response[b]):
            at = exact[prompt[b] + t - 1]
            assert logprobs[b, t] == pytest.approx(at[whole[prompt[b] + t]], abs=3e-5)
            assert entropy[b, t] == pytest.approx(-np.sum(np.exp(at) * at), abs=3e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 13, 40])
def test_chunks_of_any_size_give_the_dense_log_probabilities_and_gradients(chunk):
    cfg, S = replace(oracle.LLAMA, d_model=16), 13
    rng = np.random.default_rng(0)
    params = {"unembed": jnp.float32(rng.standard_normal((16, cfg.vocab_size)))}
    states = jnp.float32(rng.standard_normal((2, S, 16)))
    targets = jnp.array(rng.integers(0, cfg.vocab_size, (2, S)))
    pull = jnp.float32(rng.standard_normal((2, 2, S)))

    def dense(params, states):
        logprobs = jax.nn.log_softmax(states @ params["unembed"] / 0.7, axis=-1)
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], entropy

    def chunked(params, states):
        return heads.token_logprobs(params, states, targets, cfg=cfg, temperature=0.7, chunk=chunk)

    def compared(function):
        found, back = jax.vjp(function, params, states)
        return found, back((pull[0], pull[1]))

    (found, gradient), (exact, wanted) = jax.jit(compared, static_argnums=0)(chunked), compared(dense)
    for one, two in zip(found, exact):
        np.testing.assert_allclose(one, two, atol=1e-5)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(one, two, atol=1e-5, rtol=1e-5)


def head_of(matrix, cfg=oracle.LLAMA, dtype="float32"):
    """A policy head alone, whose logits are `states @ matrix`."""
    D, V = matrix.shape
    return {"unembed": jnp.float32(matrix)}, replace(cfg, d_model=D, vocab_size=V, dtype=dtype)


@pytest.mark.parametrize("offset", [0.0, 200.0, -5000.0])
def test_entropy_equals_float64_wherever_the_logits_lie(offset):
    """GPT-2's logits lie around −100: what all of them share must not cost precision."""
    rng = np.random.default_rng(1)
    spread = np.array([[0.0], [1], [3], [10], [40], [200]])
    wanted = np.concatenate([spread * rng.standard_normal((6, 50)), 500 * np.eye(6, 50)])
    wanted = np.float64(np.float32(wanted + offset))
    params, cfg = head_of(wanted)
    states, targets = jnp.eye(12)[None], jnp.zeros((1, 12), jnp.int32)
    logprobs, entropy = token_logprobs(params, states, targets, cfg=cfg)
    exact = oracle.log_softmax(wanted)
    # The logits are exact, so only what differs between them may cost digits.
    allowed = 2e-6 + 4 * np.ptp(wanted, axis=1) * 2**-24
    assert np.all(np.abs(entropy[0] + np.sum(np.exp(exact) * exact, axis=-1)) < allowed)
    assert np.all(np.abs(logprobs[0] - exact[:, 0]) < allowed)


def test_entropy_and_log_probabilities_keep_their_signs():
    """Whatever the rounding: entropy at least 0 and at most log V, log-probabilities at most 0, also of near-certain tokens."""
    rng = np.random.default_rng(2)
    spread, offset = rng.choice([0.1, 1.0, 10.0, 100.0], (400, 1)), rng.choice([0, 77.7], (400, 1))
    wanted = spread * rng.standard_normal((400, 64)) + offset
    params, cfg = head_of(wanted)
    targets = jnp.array(wanted.argmax(axis=1))[None]
    logprobs, entropy = token_logprobs(params, jnp.eye(400)[None], targets, cfg=cfg)
    assert np.all(np.asarray(logprobs) <= 0)
    assert np.all(np.asarray(entropy) >= 0)
    assert np.all(np.asarray(entropy) <= np.log(64) + 1e-5)


def test_entropy_and_its_gradient_are_finite_at_the_edge_of_f32():
    """Tokens that a model rules out with the largest finite numbers."""
    params, cfg = head_of(np.array([[0.0, 1, 2, -3e38, -3e38], [1e38, 0, -1e38, 0, 0]]))
    states, targets = jnp.eye(2)[None], jnp.zeros((1, 2), jnp.int32)

    def total(params):
        logprobs, entropy = heads.token_logprobs(params, states, targets, cfg=cfg)
        return jnp.sum(logprobs + entropy), entropy

    (_, entropy), gradient = jax.value_and_grad(total, has_aux=True)(params)
    exact = oracle.log_softmax(np.array([0.0, 1, 2]))
    np.testing.assert_allclose(entropy[0], [-np.sum(np.exp(exact) * exact), 0], atol=1e-6)
    assert np.all(np.isfinite(gradient["unembed"]))


@functools.cache
def program_of_heads(dtype):
    """Policy head and its gradient, traced as if nobody had asked for full precision."""
    cfg = replace(oracle.LLAMA, dtype=dtype)
    row = [jnp.asarray(x) for x in rows_of(cfg)]

    def total(params):
        logprobs, entropy = heads.policy(params, *row, window=R, cfg=cfg, chunk=4)
        return jnp.sum(logprobs + entropy)

    with jax.default_matmul_precision("default"):
        return cfg, jax.make_jaxpr(jax.value_and_grad(total))(oracle.parameters(cfg))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_invariant_35_logits_are_accumulated_in_f32_at_full_precision(dtype):
    cfg, program = program_of_heads(dtype)
    logits = [
        product
        for product in named(program, "dot_general")
        if product.outvars[0].aval.shape[-1:] == (cfg.vocab_size,) and product.outvars[0].aval.ndim == 3
    ]
    assert len(logits) == 2, "the forward pass and its recomputation"
    for product in logits:
        assert product.params["preferred_element_type"] == jnp.float32
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
        assert product.outvars[0].aval.dtype == jnp.float32
    whole = [
        variable.aval.dtype
        for equation in named(program, "exp") + named(program, "log") + named(program, "reduce_sum")
        for variable in equation.outvars
        if cfg.vocab_size in variable.aval.shape
    ]
    assert whole and all(dtype == jnp.float32 for dtype in whole)


def test_invariant_36_bf16_states_cost_no_more_than_f32_log_sum_exp():
    """Log-probabilities from bf16 states equal float64 on the same bf16 numbers; logits rounded to bf16 would be off by 0.03
    nats, a bf16 log-sum-exp by 0.1."""
    rng = np.random.default_rng(4)
    states = jnp.asarray(rng.standard_normal((2, 40, 32)), jnp.bfloat16)
    matrix = rng.standard_normal((32, 5000)) * 0.8
    params, cfg = head_of(matrix, dtype="bfloat16")
    targets = jnp.array(rng.integers(0, 5000, (2, 40)))
    logprobs, entropy = token_logprobs(params, states, targets, cfg=cfg, chunk=16)
    rounded = np.asarray(params["unembed"].astype(jnp.bfloat16), np.float64)
    exact = oracle.log_softmax(np.asarray(states, np.float64) @ rounded)
    picked = np.take_along_axis(exact, np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(logprobs, picked, atol=2e-5)
    np.testing.assert_allclose(entropy, -np.sum(np.exp(exact) * exact, axis=-1), atol=2e-5)
    assert logprobs.dtype == entropy.dtype == jnp.float32


# What must not matter to any head


def test_invariant_08_padding_and_batch_mates_do_not_matter():
    cfg = oracle.LLAMA
    params, critic, judge_cfg = oracle.parameters(cfg), value_params(cfg), replace(cfg, axes=2)
    judge = oracle.parameters(judge_cfg)

    def read(tokens, prompt, response):
        logprobs, entropy = policy(params, tokens, prompt, response, window=R, cfg=cfg, chunk=4)
        values = value(critic, tokens, prompt, response, window=R + 1, cfg=cfg)
        mask, wide = used(response), used(response + 1, R + 1)
        found = (blank(jnp.array(x), m) for x, m in ((logprobs, mask), (entropy, mask), (values, wide)))
        return [*found, reward(judge, tokens, prompt + response, cfg=judge_cfg)]

    tokens, prompt, response = rows_of(cfg)
    first = read(tokens, prompt, response)
    padded = np.pad(tokens, ((0, 0), (0, 64)), constant_values=5)
    for one, two in zip(read(padded, prompt, response), first):
        np.testing.assert_allclose(one, two, atol=1e-5)
    for one, two in zip(read(tokens[2:3], prompt[2:3], response[2:3]), first):
        np.testing.assert_allclose(one, two[2:3], atol=1e-5)
    order = np.array([3, 1, 0, 2])
    for one, two in zip(read(tokens[order], prompt[order], response[order]), first):
        np.testing.assert_allclose(one, two[order], atol=1e-5)

    padding = np.arange(P + R)[None] >= (prompt + response)[:, None]
    for content in (0, cfg.vocab_size, 2**31 - 1, -1, -100):
        strange = np.where(padding, np.int32(content), tokens)
        for one, two in zip(read(strange, prompt, response), first):
            np.testing.assert_array_equal(bits(one), bits(two))


def test_invariant_08_strange_ids_in_padding_leave_gradients_alone():
    cfg = oracle.LLAMA
    tokens, prompt, response = rows_of(cfg)
    padding = np.arange(P + R)[None] >= (prompt + response)[:, None]

    @jax.jit
    @jax.grad
    def gradient(params, tokens, prompt, response):
        logprobs, entropy = heads.policy(params, tokens, prompt, response, window=R, cfg=cfg, chunk=4)
        return jnp.sum(blank(logprobs + entropy, used(response)))

    strange = [np.where(padding, np.int32(content), tokens) for content in (0, 2**31 - 1)]
    first, again = (gradient(oracle.parameters(cfg), tokens, prompt, response) for tokens in strange)
    for path in first:
        assert np.all(np.isfinite(first[path])), path
        np.testing.assert_array_equal(bits(first[path]), bits(again[path]), err_msg=path)


def test_invariant_08_the_response_window_does_not_matter():
    cfg, critic = oracle.LLAMA, value_params(oracle.LLAMA)
    tokens, prompt, response = rows_of(cfg, PROMPT, [3, 3, 1, 0])
    wide = policy(oracle.parameters(cfg), tokens, prompt, response, window=6, cfg=cfg, chunk=4)
    narrow = policy(oracle.parameters(cfg), tokens, prompt, response, window=3, cfg=cfg, chunk=2)
    for one, two in zip(narrow, wide):
        np.testing.assert_allclose(np.where(used(response, 3), one - two[:, :3], 0), 0, atol=1e-5)
    one, seven = (value(critic, tokens, prompt, response, window=window, cfg=cfg) for window in (1, 7))
    np.testing.assert_allclose(one, seven[:, :1], atol=1e-5)


# Values


def test_values_equal_a_float64_decoder_and_go_one_past_the_end():
    cfg, critic = oracle.LLAMA, value_params(oracle.LLAMA)
    tokens, prompt, response = rows_of(cfg)
    found = value(critic, tokens, prompt, response, window=R + 1, cfg=cfg)
    assert found.shape == (4, R + 1) and found.dtype == jnp.float32
    for b in range(4):
        states = oracle.hidden(critic, tokens[b, : prompt[b] + response[b]], cfg)
        exact = states @ np.float64(critic["value"]) + 0.7
        np.testing.assert_allclose(found[b, : response[b] + 1], exact[prompt[b] - 1 :], atol=3e-5)


@pytest.mark.parametrize("name", ["value", "score"])
def test_values_and_rewards_of_bf16_models_are_f32_from_birth(name):
    """The head's own product: f32 numbers in, full precision, f32 out, even where nobody asked for it."""
    cfg = replace(oracle.LLAMA, dtype="bfloat16", axes=3 if name == "score" else 0)
    tokens, prompt, response = (jnp.asarray(x) for x in rows_of(cfg))
    with jax.default_matmul_precision("default"):
        if name == "value":
            run = functools.partial(heads.value, window=R, cfg=cfg)
            program = jax.make_jaxpr(run)(value_params(cfg), tokens, prompt, response)
        else:
            run = functools.partial(heads.reward, cfg=cfg)
            program = jax.make_jaxpr(run)(oracle.parameters(cfg), tokens, prompt + response)
    assert program.out_avals[0].dtype == jnp.float32
    product = named(program, "dot_general")[-1]
    assert product.outvars[0].aval.size == program.out_avals[0].size
    assert [x.aval.dtype for x in (*product.invars, *product.outvars)] == [jnp.float32] * 3
    assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


def test_invariant_12_a_value_cannot_see_its_token():
    """Changing response token t and all after it leaves values 0 … t bit for bit, and changes the next one."""
    cfg, critic = oracle.LLAMA, value_params(oracle.LLAMA)
    tokens, prompt, response = rows_of(cfg, PROMPT, [6, 6, 6, 6])
    before = value(critic, tokens, prompt, response, window=R + 1, cfg=cfg)
    for t in range(R):
        later = np.arange(P + R)[None] >= prompt[:, None] + t
        changed = np.where(later, (tokens + 11) % cfg.vocab_size, tokens)
        after = value(critic, changed, prompt, response, window=R + 1, cfg=cfg)
        np.testing.assert_array_equal(bits(after[:, : t + 1]), bits(before[:, : t + 1]))
        assert np.all(np.abs(after[:, t + 1] - before[:, t + 1]) > 1e-4)


def test_invariant_12_13_gradients_reach_back_only():
    """d value[t] and d logprob[t] by the embedding of each position's own token: none from token t on."""
    cfg, prompt, response = oracle.LLAMA, jnp.array([3]), jnp.array([6])
    critic, tokens = value_params(cfg), jnp.arange(9, dtype=jnp.int32)[None]

    def outputs(embed):
        row = tokens, prompt, response
        values = heads.value(critic | {"embed": embed}, *row, window=6, cfg=cfg)
        logprobs, _ = heads.policy(oracle.parameters(cfg) | {"embed": embed}, *row, window=6, cfg=cfg)
        return values[0], logprobs[0]

    for jacobian in jax.jit(jax.jacobian(outputs))(critic["embed"]):
        reach = np.abs(np.asarray(jacobian)).sum(axis=-1)[:, :9]  # [t, position]
        for t in range(6):
            assert np.all(reach[t, 3 + t :] == 0), f"output {t} sees its own token or a later one"
            assert np.all(reach[t, : 3 + t] > 0), f"output {t} does not see all before it"


def test_a_new_value_head_is_zero():
    cfg = oracle.LLAMA
    critic = heads.add_value_head(oracle.parameters(cfg), cfg)
    assert critic["value"].dtype == critic["value_bias"].dtype == jnp.float32
    assert "unembed" not in critic
    np.testing.assert_array_equal(value(critic, *rows_of(cfg), window=R, cfg=cfg), 0)


def test_a_value_head_from_a_reward_model_starts_at_the_reward():
    cfg = replace(oracle.LLAMA, axes=2, reward_mean=(0.4, 9.0), reward_std=(2.5, 7.0))
    params = oracle.parameters(cfg)
    tokens, prompt, response = rows_of(cfg)
    scores = reward(params, tokens, prompt + response, cfg=cfg)
    for axis in (0, 1):
        critic = heads.add_value_head(params, cfg, axis)
        assert "score" not in critic
        values = value(critic, tokens, prompt, response, window=R + 1, cfg=cfg)
        np.testing.assert_allclose(values[np.arange(4), response], scores[:, axis], atol=1e-5)


# Rewards


def test_rewards_equal_a_float64_decoder_at_the_last_token():
    cfg = replace(oracle.QWEN2, axes=3, reward_mean=(0.5, -2.0, 0.0), reward_std=(2.0, 0.5, 1.0))
    params = oracle.parameters(cfg)
    tokens, lengths = rows_of(cfg)[0], np.array([14, 1, 9, 6])
    found = reward(params, tokens, lengths, cfg=cfg)
    assert found.shape == (4, 3) and found.dtype == jnp.float32
    raw = reward(params, tokens, lengths, cfg=replace(cfg, reward_mean=(), reward_std=()))
    for b in range(4):
        exact = oracle.hidden(params, tokens[b, : lengths[b]], cfg)[-1] @ np.float64(params["score"])
        np.testing.assert_allclose(raw[b], exact, atol=3e-5)
        np.testing.assert_allclose(found[b], (exact - [0.5, -2.0, 0.0]) / [2.0, 0.5, 1.0], atol=6e-5)


def test_invariant_31_a_new_reward_head_has_the_published_scale():
    cfg = replace(oracle.LLAMA, d_model=255, axes=40)
    trunk = {"embed": jnp.zeros((4, 255)), "unembed": jnp.zeros((255, 4))}
    params = heads.add_reward_head(jax.random.key(0), trunk, cfg)
    assert params["score"].shape == (255, 40) and "unembed" not in params
    assert float(jnp.std(params["score"])) == pytest.approx(1 / 16, rel=0.05)


# A mesh


def test_every_head_gives_the_same_on_eight_devices():
    cfg = replace(oracle.LLAMA, vocab_size=64)
    specs, mesh = transformer.param_specs(cfg), sharding.make_mesh(data=2, fsdp=2, tensor=2)
    params, critic, judge_cfg = oracle.parameters(cfg), value_params(cfg), replace(cfg, axes=2)
    judge = oracle.parameters(judge_cfg)

    @jax.jit
    def outputs(params, critic, judge, tokens, prompt, response):
        row = tokens, prompt, response
        values = heads.value(critic, *row, window=R, cfg=cfg)
        scores = heads.reward(judge, tokens, prompt + response, cfg=judge_cfg)
        return *heads.policy(params, *row, window=R, cfg=cfg, chunk=4), values, scores

    row = rows_of(cfg, [5, 1, 8, 3] * 2, [6, 6, 1, 2] * 2)
    alone = outputs(params, critic, judge, *row)
    axes = {path: spec.axes for path, spec in specs.items()}
    axes |= {"value": ("embed",), "value_bias": (), "score": ("embed", None)}
    with jax.set_mesh(mesh):
        placed = [sharding.place(tree, axes, mesh) for tree in (params, critic, judge)]
        assert placed[0]["layers/q"].sharding.shard_shape((2, 32, 4, 8)) == (2, 16, 2, 8)
        together = outputs(*placed, *sharding.place_rows(row, mesh))
    mask = used(row[2])
    for one, two in zip(together[:3], alone[:3]):
        assert len(one.sharding.device_set) == 8
        np.testing.assert_allclose(np.where(mask, one, 0), np.where(mask, two, 0), atol=1e-5)
    np.testing.assert_allclose(together[3], alone[3], atol=1e-5)
