"""Adapters against a float64 decoder with merged weights, and what must not change where there is none."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.model import heads, hf, lora, low_rank, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.lora import Lora
from tests.model import decoder_oracle as oracle

KEY = jax.random.key(0)
new = jax.jit(lora.init, static_argnums=(1, 2))
merge = jax.jit(lora.merge)
TOKENS = np.random.default_rng(7).integers(0, 20, (2, 9), dtype=np.int32)
LENGTHS = np.array([9, 6])

LLAMA = oracle.FAMILIES["llama"]
UNTIED = dataclasses.replace(LLAMA, tied=False)
TIED = dataclasses.replace(LLAMA, tied=True)
CASES = {
    "llama-all": (UNTIED, Lora(3, 12.0)),
    "llama-q,v": (UNTIED, Lora(2, 4.0, "q,v")),
    "llama-groups": (UNTIED, Lora(4, 8.0, "qkv,gate_up,o", rank_stabilised=True)),
    "untied-ends": (UNTIED, Lora(3, 6.0, "embed,unembed")),
    "tied-embed": (TIED, Lora(3, 6.0, "embed")),
    "gpt2-all": (oracle.FAMILIES["gpt2"], Lora(2, 16.0)),
}


@pytest.fixture(autouse=True)
def _cheap_compilation():
    """Nothing here runs for long, so XLA need not take the time to make fast code."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def drawn(cfg, settings, seed=5):
    """An adapter with no zeros in it, from NumPy; the scales stay."""
    rng = np.random.default_rng(seed)
    made = new(KEY, cfg, settings)
    return {
        path: x if path.endswith("_lora_scale") else jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32)
        for path, x in made.items()
    }


def merged_by_hand(base, adapter, settings):
    """W + s · A B in float64, matrix by matrix, the scale from the formula."""
    divisor = np.sqrt(settings.rank) if settings.rank_stabilised else settings.rank
    made = {path: np.asarray(x, np.float64) for path, x in base.items()}
    for path in adapter:
        if not path.endswith("_lora_b"):
            continue
        matrix = path.removesuffix("_lora_b")
        group = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}.get(
            matrix.removeprefix("layers/")
        )
        owner = matrix if f"{matrix}_lora_a" in adapter else f"layers/{group}"
        a, b = (np.asarray(adapter[name], np.float64) for name in (f"{owner}_lora_a", path))
        if matrix.startswith("layers/"):
            a, b = a.reshape(len(a), -1, a.shape[-1]), b.reshape(*b.shape[:2], -1)
        made[matrix] = made[matrix] + settings.alpha / divisor * (a @ b).reshape(made[matrix].shape)
    return made


def plainly(params, cfg, tokens=TOKENS, lengths=LENGTHS):
    states = transformer.hidden(params, jnp.asarray(tokens), jnp.asarray(lengths), cfg=cfg)
    return transformer.logits(params, states, cfg=cfg)


forward = jax.jit(plainly, static_argnames="cfg")


@functools.cache
def case(name):
    cfg, settings = CASES[name]
    base, adapter = oracle.parameters(cfg), drawn(cfg, settings)
    return cfg, settings, base, adapter, np.asarray(forward({**base, **adapter}, cfg))


@pytest.mark.parametrize("name", CASES)
def test_an_adapted_model_is_the_one_with_merged_weights(name):
    cfg, settings, base, adapter, found = case(name)
    by_hand = merged_by_hand(base, adapter, settings)
    for row, length in enumerate(LENGTHS):
        exact = oracle.logits(by_hand, TOKENS[row, :length], cfg)
        np.testing.assert_allclose(found[row, :length], exact, atol=1e-4, rtol=1e-4)
        plain = oracle.logits(base, TOKENS[row, :length], cfg)
        assert np.abs(plain - exact).max() > 0.05, "the adapter must be seen"


@pytest.mark.parametrize("name", CASES)
def test_merge_gives_a_plain_model(name):
    cfg, settings, base, adapter, found = case(name)
    merged = merge({**base, **adapter})
    assert merged.keys() == base.keys()
    by_hand = merged_by_hand(base, adapter, settings)
    for path in base:
        np.testing.assert_allclose(merged[path], by_hand[path], atol=1e-6, err_msg=path)
    np.testing.assert_allclose(forward(merged, cfg), found, atol=1e-5, rtol=1e-5)


def test_a_merged_model_is_saved_and_loaded_as_any_other(tmp_path):
    cfg, _, base, adapter, found = case("llama-all")
    hf.save(tmp_path, cfg, merge({**base, **adapter}))
    again, params = hf.load(tmp_path)
    np.testing.assert_allclose(forward(params, again), found, atol=1e-5, rtol=1e-5)


def test_without_an_adapter_the_program_is_that_of_the_base(monkeypatch):
    """The same program, operation by operation, as without the code that adds adapters: so the same bits."""

    def program(cfg):
        return str(jax.make_jaxpr(functools.partial(plainly, cfg=cfg))(oracle.parameters(cfg)))

    with_hooks = [program(cfg) for cfg in (UNTIED, TIED, oracle.FAMILIES["gpt2"])]
    monkeypatch.setattr(low_rank, "add", lambda y, *rest, **how: y)
    monkeypatch.setattr(low_rank, "look_up", lambda weights, name, ids: weights[name][ids])
    jax.clear_caches()
    assert with_hooks == [program(cfg) for cfg in (UNTIED, TIED, oracle.FAMILIES["gpt2"])]


@pytest.mark.parametrize("name", CASES)
def test_a_new_adapter_changes_nothing_and_can_learn(name):
    """B = 0 (for the embedding, A = 0): the very logits of the base; and a gradient that is not 0."""
    cfg, settings = CASES[name]
    base = oracle.parameters(cfg)
    adapter = new(KEY, cfg, settings)
    assert np.array_equal(forward({**base, **adapter}, cfg), forward(base, cfg))
    trained, frozen = lora.split(base, adapter)
    gradient = jax.jit(jax.grad(lambda trained: jnp.sum(plainly({**frozen, **trained}, cfg) ** 2)))(trained)
    moving = {path for path, x in gradient.items() if np.abs(x).max() > 0}
    assert moving == {path for path in trained if path.endswith("_lora_a" if "embed_" in path[:6] else "_lora_b")}


def test_a_starts_uniform_by_its_fan_in_and_no_two_alike():
    settings = Lora(8, 16.0)
    adapter = new(KEY, UNTIED, settings)
    fans = {"q": UNTIED.d_model, "o": UNTIED.heads * UNTIED.head_dim, "down": UNTIED.d_ff}
    for name, fan in fans.items():
        a = np.asarray(adapter[f"layers/{name}_lora_a"])
        assert 0.9 * fan**-0.5 < np.abs(a).max() <= fan**-0.5
        assert abs(a.mean()) < 0.1 * fan**-0.5
    assert not np.array_equal(adapter["layers/q_lora_a"], adapter["layers/k_lora_a"])
    assert not np.array_equal(adapter["layers/q_lora_a"][0], adapter["layers/q_lora_a"][1])
    other = new(jax.random.key(1), UNTIED, settings)
    assert not np.array_equal(adapter["layers/q_lora_a"], other["layers/q_lora_a"])


@pytest.mark.parametrize("name", ["llama-all", "gpt2-all", "tied-embed"])
def test_gradients_are_those_of_the_merged_weights(name):
    """dL/dA = s · G Bᵀ and dL/dB = s · Aᵀ G, G being the gradient of the merged matrix; a shared A has the sum of them."""
    cfg, settings, base, adapter, _ = case(name)
    weigh = np.random.default_rng(3).normal(0, 1, (*TOKENS.shape, cfg.vocab_size)).astype(np.float32)
    trained, frozen = lora.split(base, adapter)
    found = jax.jit(jax.grad(lambda trained: jnp.sum(weigh * plainly({**frozen, **trained}, cfg))))(trained)
    merged = {path: jnp.float32(x) for path, x in merged_by_hand(base, adapter, settings).items()}
    whole = jax.jit(jax.grad(lambda params: jnp.sum(weigh * plainly(params, cfg))))(merged)
    scale = settings.alpha / (np.sqrt(settings.rank) if settings.rank_stabilised else settings.rank)
    expected = {path: np.zeros(x.shape) for path, x in trained.items()}
    for target in lora.targets_of(cfg, settings):
        for path in lora.adaptable(cfg)[target]:
            layered = path.startswith("layers/")
            a_path = f"layers/{target}_lora_a" if layered else f"{target}_lora_a"
            a, b = (np.asarray(adapter[x], np.float64) for x in (a_path, f"{path}_lora_b"))
            g = np.asarray(whole[path], np.float64)
            for index in np.ndindex(g.shape[:1] if layered else ()):
                flat_a, flat_b = a[index].reshape(-1, settings.rank), b[index].reshape(settings.rank, -1)
                flat_g = g[index].reshape(len(flat_a), -1)
                expected[a_path][index] += (scale * flat_g @ flat_b.T).reshape(a[index].shape)
                expected[f"{path}_lora_b"][index] += (scale * flat_a.T @ flat_g).reshape(b[index].shape)
    assert found.keys() == expected.keys()
    for path in found:
        size = np.abs(expected[path]).max()
        np.testing.assert_allclose(found[path] / size, expected[path] / size, atol=2e-4, err_msg=path)


def test_adapters_of_different_rank_and_scale_stand_on_one_base():
    """Each is its own merged model; the base's arrays are in both, not copies of them."""
    base = oracle.parameters(UNTIED)
    models = []
    for seed, settings in enumerate((Lora(2, 2.0, "q,v"), Lora(5, 40.0, "up,down,o"))):
        adapter = drawn(UNTIED, settings, seed)
        models.append({**base, **adapter})
        exact = oracle.logits(merged_by_hand(base, adapter, settings), TOKENS[0], UNTIED)
        np.testing.assert_allclose(forward(models[-1], UNTIED)[0], exact, atol=1e-4, rtol=1e-4)
    assert all(models[0][path] is models[1][path] is base[path] for path in base)


@pytest.mark.parametrize("name", ["llama-groups", "gpt2-all"])
def test_decoding_over_a_cache_sees_the_adapter(name):
    cfg, _, base, adapter, found = case(name)
    params = {**base, **adapter}
    prompts, lengths = jnp.asarray(TOKENS[:1, :5]), jnp.array([5])
    state, cache = jax.jit(functools.partial(transformer.prefill, n=1, window=4, cfg=cfg))(params, prompts, lengths)
    decode = jax.jit(functools.partial(transformer.decode, cfg=cfg))
    layers = transformer.unstack(params, cfg)
    for step in range(3):
        np.testing.assert_allclose(
            transformer.logits(params, state.reshape(1, -1), cfg=cfg)[0], found[0, 4 + step], atol=1e-4, rtol=1e-4
        )
        token = jnp.asarray(TOKENS[:1, 5 + step : 6 + step])
        state, cache = decode(params, layers, token, jnp.int32(step), lengths, cache)


def test_in_bfloat16_the_scale_is_not_rounded():
    """alpha / √rank has no short binary form: training and decoding must use the same one, the exact one."""
    cfg = dataclasses.replace(UNTIED, dtype="bfloat16")
    settings = Lora(3, 5.0, rank_stabilised=True)
    adapter = drawn(cfg, settings)
    assert adapter["layers/q_lora_scale"][0] == np.float32(5 / np.sqrt(3))
    layer = transformer.unstack({**oracle.parameters(cfg), **adapter}, cfg)[0]
    assert layer["q_lora_scale"] == np.float32(5 / np.sqrt(3)) and layer["q_lora_a"].dtype == jnp.bfloat16


def test_rank_8_of_a_model_of_a_billion_trains_less_than_a_fiftieth_of_its_bytes():
    """The sizes of Llama 3.2 1B, its default targets: every matrix inside the layers."""
    cfg = ModelConfig("llama", 128256, 2048, 16, 32, 8, 64, 8192, 131072, "rms", 1e-5, "rope", tied=True)

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    base = jax.eval_shape(lambda: transformer.init(KEY, cfg))
    trained, frozen = jax.eval_shape(lambda: lora.split(transformer.init(KEY, cfg), lora.init(KEY, cfg, Lora(8))))
    assert size(base) == 4 * 1_235_814_400
    # (in + out) · rank of q, k, v, o, gate, up, down, in 16 layers
    by_hand = 16 * 8 * 4 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert size(trained) == by_hand and size(trained) / size(base) < 0.02
    assert size(frozen) == size(base) + 7 * 16 * 4


def test_targets_are_named_once_and_exist():
    def refused(targets, *words, cfg=UNTIED):
        with pytest.raises(UserError) as error:
            lora.specs(cfg, Lora(2, targets=targets))
        assert all(word in str(error.value) for word in words), error.value

    refused("q,w", "no w", "gate_up")
    refused("q,qkv", "q is in qkv already")
    refused("unembed", "no unembed", cfg=TIED)
    refused("gate", "no gate", cfg=oracle.FAMILIES["gpt2"])
    assert lora.targets_of(UNTIED, Lora(2)) == ("q", "k", "v", "o", "gate", "up", "down")
    assert lora.targets_of(oracle.FAMILIES["gpt2"], Lora(2)) == ("o", "up", "down", "qkv")
    assert lora.targets_of(UNTIED, Lora(2, targets=" v, q")) == ("q", "v")
    for wrong in ({"rank": -1}, {"alpha": 0.0}, {"alpha": float("nan")}, {"targets": "q,,v"}, {"merge": True}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Lora(**wrong)


def test_a_shared_trunk_gives_both_heads_in_one_pass(monkeypatch):
    """The numbers of the two heads apart, from one pass; the value loss moves the trunk, and through an adapter too."""
    cfg, _, base, adapter, _ = case("llama-all")
    head = {"value": jnp.float32(np.random.default_rng(1).normal(0, 1, cfg.d_model)), "value_bias": jnp.float32(0.3)}
    params = {**base, **adapter, **head}
    row = jnp.asarray(TOKENS), jnp.array([4, 3]), jnp.array([5, 3])
    sizes = {"window": 5, "cfg": cfg}
    policy = jax.jit(functools.partial(heads.policy, **sizes, temperature=0.7))
    apart = *policy(params, *row), jax.jit(functools.partial(heads.value, **sizes))(params, *row)
    passes = []
    hidden = transformer.hidden
    monkeypatch.setattr(transformer, "hidden", lambda *given, **named: passes.append(1) or hidden(*given, **named))
    together = jax.jit(functools.partial(heads.policy_and_value, **sizes, temperature=0.7))(params, *row)
    assert len(passes) == 1 and len(together) == 3
    for one, other in zip(together, apart, strict=True):
        assert one.dtype == jnp.float32 and np.array_equal(one, other)

    def value_loss(params):
        return jnp.sum(heads.policy_and_value(params, *row, **sizes)[2] ** 2)

    moved = {path for path, x in jax.jit(jax.grad(value_loss))(params).items() if np.abs(x).max() > 0}
    assert {"value", "value_bias", "embed", "layers/q", "layers/down", "final_norm", "layers/q_lora_a"} <= moved
