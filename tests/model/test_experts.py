"""Mixtures of experts against a loop over tokens and experts; their files, their costs, their balance."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax import sharding
from rlhf_jax.algorithms import sft
from rlhf_jax.errors import UserError
from rlhf_jax.model import cost, experts, hf, lora, transformer
from rlhf_jax.model.hf import config as hf_config
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import routing, weights
from rlhf_jax.types import Demonstrations
from tests.fixtures.hf import checkpoints
from tests.jaxprs import named
from tests.model import decoder_oracle as oracle

MIXTRAL = dataclasses.replace(oracle.LLAMA, family="mixtral", d_ff=24, experts=5, experts_used=2, layers=3)
PLAIN = dataclasses.replace(MIXTRAL, renormalise=False, experts_used=3)
run = jax.jit(experts.mlp, static_argnums=(2, 3))
hidden = jax.jit(transformer.hidden, static_argnames="cfg")
both = jax.jit(transformer.hidden_and_routing, static_argnames="cfg")


def layer_of(cfg, index=0):
    params = oracle.parameters(cfg)
    return {path[7:]: x[index] for path, x in params.items() if path.startswith("layers/")}


def inputs(*shape, seed=0):
    return jnp.asarray(np.random.RandomState(seed).standard_normal((*shape, 32)), jnp.float32)


# --- what is computed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [MIXTRAL, PLAIN, *(dataclasses.replace(MIXTRAL, experts_used=k) for k in (1, 5))])
def test_experts_are_those_of_a_loop(cfg):
    x, layer = inputs(3, 7), layer_of(cfg)
    out, routed = run(x, layer, jax.nn.silu, cfg)
    wide = {name: np.asarray(w, np.float64) for name, w in layer.items()}
    wanted, logits = oracle.mixture(np.asarray(x, np.float64).reshape(21, 32), wide, cfg)
    np.testing.assert_allclose(routed.reshape(21, -1), logits, atol=1e-5)
    np.testing.assert_allclose(out.reshape(21, 32), wanted, atol=1e-5)


def test_an_expert_may_have_all_tokens_and_another_none():
    layer = layer_of(MIXTRAL)
    x = jnp.abs(inputs(1, 40))
    layer["router"] = jnp.stack([jnp.full(32, s) for s in (0.1, -1.0, 0.2, -1.0, -1.0)], axis=1)
    out, _ = run(x, layer, jax.nn.silu, MIXTRAL)
    wide = {name: np.asarray(w, np.float64) for name, w in layer.items()}
    np.testing.assert_allclose(out[0], oracle.mixture(np.asarray(x[0], np.float64), wide, MIXTRAL)[0], atol=1e-5)
    assert set(np.asarray(experts.route(x, layer, MIXTRAL)[2]).ravel()) == {0, 2}


def test_no_token_changes_another():
    """One token alone, and among others that all want the same experts."""
    layer, x = layer_of(PLAIN), inputs(1, 6)
    crowd = jnp.concatenate([x, jnp.repeat(x[:, :1], 90, axis=1)], axis=1)
    np.testing.assert_allclose(
        run(crowd, layer, jax.nn.silu, PLAIN)[0][:, :6], run(x, layer, jax.nn.silu, PLAIN)[0], atol=1e-6
    )


@pytest.mark.parametrize("cfg", [MIXTRAL, PLAIN])
def test_gradients_are_those_of_all_experts_masked(cfg):
    """Router included: every expert meets every token, and weights of 0 take away what was not chosen."""
    layer, x, target = layer_of(cfg), inputs(2, 9), inputs(2, 9, seed=1)

    def slow(x, layer):
        probs = jax.nn.softmax(x @ layer["router"], axis=-1)
        least = jnp.sort(probs, axis=-1)[..., -cfg.experts_used, None]
        share = jnp.where(probs >= least, probs, 0)
        share = share / share.sum(axis=-1, keepdims=True) if cfg.renormalise else share
        gate, up = (jnp.einsum("btd,edf->btef", x, layer[f"expert_{name}"]) for name in ("gate", "up"))
        return jnp.einsum("bte,btef,efd->btd", share, jax.nn.silu(gate) * up, layer["expert_down"])

    def fast(x, layer):
        return experts.mlp(x, layer, jax.nn.silu, cfg)[0]

    used = {name: layer[name] for name in ("router", "expert_gate", "expert_up", "expert_down")}
    found, wanted = (
        jax.jit(jax.grad(lambda x, w, f=f: jnp.sum(f(x, w) * target), argnums=(0, 1)))(x, used) for f in (fast, slow)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(b).max() > 0.01
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_routing_comes_with_the_hidden_states():
    tokens = np.random.RandomState(0).randint(0, 96, (2, 12)).astype(np.int32)
    params, lengths = oracle.parameters(MIXTRAL), np.array([12, 8])
    states, routed = both(params, tokens, lengths, cfg=MIXTRAL)
    assert routed.shape == (3, 2, 12, 5) and routed.dtype == jnp.float32
    np.testing.assert_array_equal(states, hidden(params, tokens, lengths, cfg=MIXTRAL))
    for row, length in enumerate(lengths):
        logits = []
        wanted = oracle.hidden(params, tokens[row, :length], MIXTRAL, logits)
        np.testing.assert_allclose(states[row, :length], wanted, atol=2e-5)
        np.testing.assert_allclose(routed[:, row, :length], np.stack(logits), atol=2e-5)


def test_plain_states_keep_no_routing():
    """A training pass hands nothing of a layer on but its state."""
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), MIXTRAL))
    run = functools.partial(transformer.hidden, cfg=MIXTRAL)
    (loop,) = named(jax.make_jaxpr(run)(params, jnp.zeros((1, 9), jnp.int32), jnp.array([9])), "scan")
    assert len(loop.outvars) == loop.params["num_carry"]


def test_a_router_decides_alike_in_training_and_in_decoding():
    """Decoding holds it in bf16, training in f32: the product is f32 of numbers that are rounded in both."""
    cfg = dataclasses.replace(MIXTRAL, dtype="bfloat16")
    params, x = oracle.parameters(cfg), inputs(4, 50).astype(jnp.bfloat16)
    for index, decoding in enumerate(transformer.unstack(params, cfg)):
        assert decoding["router"].dtype == jnp.bfloat16
        trained, decoded = (experts.route(x, each, cfg) for each in (layer_of(cfg, index), decoding))
        assert trained[0].dtype == trained[1].dtype == jnp.float32
        jax.tree.map(np.testing.assert_array_equal, trained, decoded)
    exact = np.asarray(x, np.float64) @ np.asarray(decoding["router"], np.float64)
    np.testing.assert_allclose(decoded[0], exact, atol=1e-5)


def test_work_grows_with_the_experts_used():
    """Each of the three products meets a row for every token and expert that it goes to, and no more."""
    layer, x = layer_of(PLAIN), inputs(2, 10)
    products = named(jax.make_jaxpr(lambda x: experts.mlp(x, layer, jax.nn.silu, PLAIN))(x), "ragged_dot_general")
    assert [each.invars[0].aval.shape[0] for each in products] == [2 * 10 * 3] * 3


# --- devices --------------------------------------------------------------------------------------------------------------


SMALL = dataclasses.replace(MIXTRAL, layers=1, heads=2, kv_heads=2, vocab_size=16)
TOKENS = np.random.RandomState(0).randint(0, 16, (8, 6)).astype(np.int32), np.array([6, 1, 5, 4, 3, 6, 2, 6], np.int32)


@jax.jit
@jax.value_and_grad
def objective(params, tokens, lengths):
    states, routed = transformer.hidden_and_routing(params, tokens, lengths, cfg=SMALL)
    real = jnp.arange(tokens.shape[1]) < lengths[:, None]
    balance = routing.load_balancing(routed, real, used=SMALL.experts_used)
    return jnp.sum(jnp.where(real[..., None], jnp.sin(states), 0)) + 10 * balance


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_invariant_22_eight_devices_compute_what_one_does(shape):
    """Loss and gradients, from experts that are cut along their width and tokens that stay where they are."""
    params, mesh = oracle.parameters(SMALL), sharding.make_mesh(*shape)
    wanted = objective(params, *TOKENS)
    axes = {path: spec.axes for path, spec in transformer.param_specs(SMALL).items()}
    with jax.set_mesh(mesh):
        args = sharding.place(params, axes, mesh), *sharding.place_rows(TOKENS, mesh)
        compiled = objective.lower(*args).compile()
        found = compiled(*args)
    cut = args[0]["layers/expert_up"].addressable_shards[0].data.size * mesh.shape["fsdp"] * mesh.shape["tensor"]
    assert cut == params["layers/expert_up"].size
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    for path, grad in wanted[1].items():
        np.testing.assert_allclose(found[1][path], grad, atol=1e-5 * max(1, np.abs(grad).max()), err_msg=path)
    assert shape != (8, 1, 1) or "all-gather" not in compiled.as_text(), "a device sorts the tokens of others"


def test_rows_that_fill_no_axis_are_computed_everywhere():
    layer, x, mesh = layer_of(MIXTRAL), inputs(3, 4), sharding.make_mesh(4, 1, 2)
    with jax.set_mesh(mesh):
        found = run(x, sharding.place(layer, {}, mesh), jax.nn.silu, MIXTRAL)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, run(x, layer, jax.nn.silu, MIXTRAL))


# --- balance --------------------------------------------------------------------------------------------------------------

BALANCE = {1: (1.2616285, 1.4018638), 2: (2.3771017, 2.4714851), 3: (3.2902660, 3.3998866)}
"""transformers 5.23.0, load_balancing_loss_func: of all tokens, of the masked ones."""


def balance_case():
    random = np.random.RandomState(3)
    logits = (2 * random.standard_normal((2, 3, 5, 6)) + np.arange(6) / 3).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(random.rand(3, 5) < 0.7)


@pytest.mark.parametrize("used", BALANCE)
def test_balance_is_that_of_transformers(used):
    logits, mask = balance_case()
    found = [routing.load_balancing(logits, each, used=used) for each in (jnp.ones_like(mask), mask)]
    np.testing.assert_allclose(found, BALANCE[used], rtol=1e-6)


def test_balance_by_hand_and_its_gradient():
    logits, mask = balance_case()
    kept = np.asarray(logits, np.float64)[:, np.asarray(mask)].reshape(-1, 6)
    probs = np.array([oracle.softmax(row) for row in kept])
    often = np.zeros(6)
    for row in probs:
        often[np.argsort(-row)[:2]] += 1 / len(probs)
    value, slope = jax.value_and_grad(routing.load_balancing)(logits, mask, used=2)
    np.testing.assert_allclose(value, 6 * sum(often * probs.mean(axis=0)), rtol=1e-5)
    wanted = 6 / len(probs) * probs * (often - (probs * often).sum(axis=1, keepdims=True))  # of a softmax, f constant
    np.testing.assert_allclose(np.asarray(slope)[:, np.asarray(mask)].reshape(-1, 6), wanted, atol=1e-6)
    assert not np.asarray(slope)[:, ~np.asarray(mask)].any()


def test_balance_of_even_use_of_one_expert_and_of_nothing():
    even = jnp.asarray(np.eye(6, dtype=np.float32)[None, None] * 1e-4)
    np.testing.assert_allclose(routing.load_balancing(even, jnp.ones((1, 6), bool), used=1), 1, rtol=1e-4)
    one = jnp.zeros((1, 1, 6, 6)).at[..., 2].set(50.0)
    np.testing.assert_allclose(routing.load_balancing(one, jnp.ones((1, 6), bool), used=1), 6, rtol=1e-6)
    assert float(routing.load_balancing(one, jnp.zeros((1, 6), bool), used=1)) == 0


def test_fine_tuning_adds_the_balance_of_all_real_tokens():
    logits, _ = balance_case()
    length = jnp.array([5, 2, 4])
    tokens = jnp.zeros((3, 5), jnp.int32)
    batch = Demonstrations(tokens, length, jnp.arange(5)[None] >= jnp.array([2, 1, 3])[:, None])
    logprobs = -jnp.asarray(np.random.RandomState(0).rand(3, 4), jnp.float32)
    share = weights.token_mean(sft.learnt(batch))
    plain, _ = sft.loss({}, batch, share, forward=lambda *_: (logprobs, -logprobs))
    how = dict(forward=lambda *_: (logprobs, -logprobs, logits), coef=0.3, used=2)
    total, metrics = sft.balanced_loss({}, batch, share, **how)
    balance = routing.load_balancing(logits, jnp.arange(5)[None] < length[:, None], used=2)
    assert float(total) == pytest.approx(float(plain + 0.3 * balance), rel=1e-6)
    assert float(metrics["sft/loss"]) == float(plain) and float(metrics["sft/balance"]) == float(balance)


# --- files ----------------------------------------------------------------------------------------------------------------


def document(case, **changes):
    found = json.loads((checkpoints.FOLDER / case / "config.5.json").read_text()) | changes
    return {key: value for key, value in found.items() if value is not ...}


@pytest.mark.parametrize(("case", "family"), [("mixtral", "Mixtral"), ("qwen3_moe", "Qwen3Moe")])
def test_experts_fused_as_transformers_5_holds_them_are_read_and_written_so(tmp_path, case, family):
    cfg, params = hf.load(checkpoints.write(tmp_path / "hub", case))
    checkpoints.write(tmp_path / "fused", case)
    tensors = checkpoints.fuse_experts(family, load_file(tmp_path / "hub" / "model.safetensors"))
    assert len(tensors) == 3 + 2 * (9 if case == "mixtral" else 11)
    file = tmp_path / "fused" / "model.safetensors"
    save_file(dict(sorted(tensors.items())), file, metadata={"format": "pt"})
    other, same = hf.load(tmp_path / "fused", mesh=sharding.make_mesh(2, 2, 2))
    assert other == cfg and all((same[path] == params[path]).all() for path in params)
    hf.save(tmp_path / "again", other, same)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == file.read_bytes()


def test_each_device_reads_its_part_of_each_expert(tmp_path):
    folder = checkpoints.write(tmp_path, "qwen3_moe")
    (_, params), (_, placed) = hf.load(folder), hf.load(folder, mesh=sharding.make_mesh(1, 2, 4))
    for path in params:
        np.testing.assert_array_equal(placed[path], params[path], err_msg=path)
    assert placed["layers/expert_down"].addressable_shards[0].data.shape == (2, 6, 24 // 4, 64 // 2)


def test_keys_of_experts():
    cfg = hf_config.read(document("mixtral", num_local_experts=..., num_experts_per_tok=...))
    assert (cfg.experts, cfg.experts_used, cfg.renormalise, cfg.d_ff) == (8, 2, True, 40)
    assert hf_config.read(document("mixtral", sliding_window=...)).window is None
    assert (
        hf_config.read(document("qwen3_moe")).experts
        == 6
        != hf_config.read(document("qwen3_moe", num_local_experts=...)).experts
    )
    cfg = hf_config.read(document("qwen3_moe", num_local_experts=..., num_experts=12, norm_topk_prob=True))
    assert (cfg.experts, cfg.experts_used, cfg.renormalise, cfg.d_ff) == (12, 3, True, 24)
    assert hf_config.read(document("qwen3_moe", mlp_only_layers=None)) == hf_config.read(document("qwen3_moe"))
    cfg = hf_config.read(document("qwen3_moe", use_sliding_window=True, sliding_window=7))
    assert (cfg.window, cfg.window_layers) == (7, ())
    assert hf_config.remarks(document("qwen3_moe"), None, cfg) == []
    assert hf_config.remarks(document("mixtral"), None, hf_config.read(document("mixtral"))) == []


@pytest.mark.parametrize(
    ("case", "changes", "told"),
    [
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2, not supported for qwen3_moe"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\], not supported for qwen3_moe"),
        ("qwen3_moe", {"num_experts": 7}, "num_experts is 7, but num_local_experts, which means it too, 6"),
        ("qwen3_moe", {"num_local_experts": 0}, "num_local_experts is 0; it must be a positive whole number"),
        ("mixtral", {"num_experts_per_tok": 5}, "5 experts a token are more than the 4 there are"),
    ],
)
def test_mixtures_that_are_refused(case, changes, told):
    with pytest.raises(UserError, match=told):
        hf_config.read(document(case, **changes))


def test_missing_and_countless_experts_are_named(tmp_path):
    folder = checkpoints.write(tmp_path, "mixtral")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    gone = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    save_file({name: x for name, x in tensors.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"missing tensors for this config.json: {gone}"):
        hf.load(folder)
    (folder / "config.json").write_text(json.dumps(document("mixtral", num_local_experts=10**5)))
    with pytest.raises(UserError, match="2 layers of 100000 experts are asked for; there are 40 tensors"):
        hf.load(folder)


# --- costs and adapters ---------------------------------------------------------------------------------------------------

HUB = {
    "mixtral": dict(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, num_local_experts=8, num_experts_per_tok=2,
    ),
    "qwen3_moe": dict(
        vocab_size=151936, hidden_size=2048, moe_intermediate_size=768, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, head_dim=128, num_local_experts=128, num_experts_per_tok=8,
    ),
}  # fmt: skip
"""Sizes of mistralai/Mixtral-8x7B-v0.1 and Qwen/Qwen3-30B-A3B."""


def test_parameters_of_models_of_the_hub():
    found, active = {}, {}
    for case, sizes in HUB.items():
        cfg = hf_config.read(document(case, **sizes))
        found[case] = cost.parameters(transformer.param_specs(cfg))
        active[case] = cost.matrix_parameters(cfg) + 2 * cfg.vocab_size * cfg.d_model
    assert found == {"mixtral": 46_702_792_704, "qwen3_moe": 30_532_122_624}
    # a layer's attention, router and used experts; embeddings and output matrix; no norms
    attention, used = 2 * 4096 * (4096 + 1024), 2 * 3 * 4096 * 14336
    assert active["mixtral"] == 32 * (attention + 4096 * 8 + used) + 2 * 32000 * 4096 == 12_879_659_008
    attention, used = 2 * 2048 * (4096 + 512), 8 * 3 * 2048 * 768
    assert active["qwen3_moe"] == 48 * (attention + 2048 * 128 + used) + 2 * 151936 * 2048 == 3_352_821_760


def test_adapters_stand_beside_attention_only():
    assert lora.targets_of(MIXTRAL, Lora(2)) == ("q", "k", "v", "o")
    for name in ("gate", "q,down", "router", "gate_up"):
        with pytest.raises(UserError, match="experts of a mixtral model and their router take no adapter; use q, k"):
            lora.targets_of(MIXTRAL, Lora(2, targets=name))
