"""What must hold for every family: decoding from the cache, causality, windows, programs for accelerators."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf, transformer
from rlhf_jax.model.hf import config as hf_config
from tests.fixtures.hf import checkpoints
from tests.jaxprs import named
from tests.model import decoder_oracle as oracle
from tests.model.test_transformer import cached_and_full, hidden, logits, tokens_of


def config_of(case, **changes):
    document = json.loads((checkpoints.FOLDER / case / "config.5.json").read_text())
    cfg = hf_config.read(document)
    return dataclasses.replace(cfg, **{"long_context": case == "phi4_mini", **changes})


CFGS = {case: config_of(case) for case in checkpoints.FAMILIES}


def test_the_families_have_the_knobs_that_are_tested():
    """Which config does what, so that a table that loses a knob does not go unseen in what follows."""
    told = {
        case: {
            field.name
            for field in dataclasses.fields(cfg)
            if field.default is not dataclasses.MISSING and getattr(cfg, field.name) != field.default
        }
        for case, cfg in CFGS.items()
    }
    common = {"bos_id", "eos_ids", "pad_id", "rope_theta", "rope_scaling", "tied", "gated_mlp", "activation"}
    told = {case: names - common for case, names in told.items()}
    gemma = {"window", "window_layers", "norms", "norm_offset", "embed_scale", "query_scale"}
    assert told == {
        "gpt_neox": {"rotary_fraction", "parallel", "qkv_bias", "out_bias", "mlp_bias"},
        "gpt_neox_sequential": {"rotary_fraction", "mlp_bias"},
        "mistral": {"window"},
        "qwen2_window": {"window", "window_layers", "qkv_bias"},
        "qwen3": {"qk_norm"},
        "gemma2": gemma | {"attention_softcap", "logit_softcap"},
        "gemma3": gemma | {"qk_norm", "rope_local_theta"},
        "olmo2": {"norms", "qk_norm"},
        "smollm3": {"rope_layers"},
        "phi3": {"window"},
        "phi4_mini": {"rotary_fraction", "long_context"},
        "mixtral": {"window", "experts", "experts_used"},
        "qwen3_moe": {"qk_norm", "experts", "experts_used", "renormalise"},
    }
    assert CFGS["gemma3"].window_layers == (True, True, False, True)
    assert CFGS["gemma2"].window_layers == (True, False, True)
    assert CFGS["qwen2_window"].window_layers == (False, True, True)
    assert CFGS["smollm3"].rope_layers == (True, False, True, False)
    assert {case: cfg.qk_norm for case, cfg in CFGS.items() if cfg.qk_norm} == {
        "qwen3": "head",
        "gemma3": "head",
        "olmo2": "full",
        "qwen3_moe": "head",
    }


@pytest.mark.parametrize("case", CFGS)
def test_invariant_43_cached_decoding_equals_the_whole_row(case):
    """From prompts of 1 and 64 tokens, past the windows (29, and 200 of phi3) and past the 128 of phi4_mini."""
    checked = set()
    for (cached, full), start in zip(cached_and_full(CFGS[case], [1, 64], 1, 64, 511), (0, 63)):
        for position in {0, 1, 63, 64, 511} & set(range(start, start + 512)):
            np.testing.assert_allclose(cached[position - start], full[position - start], atol=1e-4)
            checked.add(position)
        np.testing.assert_allclose(cached, full, atol=1e-4)
    assert checked == {0, 1, 63, 64, 511}


def reach(cfg, length):
    """[position, token at position s]: how much the hidden state depends on that token's embedding."""
    cfg = dataclasses.replace(cfg, vocab_size=length)
    params, tokens = oracle.parameters(cfg), np.arange(length, dtype=np.int32)[None]

    def one(embed):
        return hidden(params | {"embed": embed}, tokens, np.array([length]), cfg=cfg)[0].sum(axis=-1)

    _, back = jax.vjp(one, params["embed"])
    rows = jax.lax.map(lambda one_hot: back(one_hot)[0], jnp.eye(length))  # jax.vmap knows no backward ragged_dot
    return np.abs(rows).sum(axis=-1)


@pytest.mark.parametrize("case", CFGS)
def test_invariant_13_a_token_reaches_no_earlier_position(case):
    found = reach(CFGS[case], 12)
    assert np.all(found[np.triu_indices(12, 1)] == 0)
    assert np.all(np.diag(found) > 0) and np.all(np.diag(found, -1) > 0)


@pytest.mark.parametrize("slides", [True, False])
@pytest.mark.parametrize("case", ["mistral", "gemma3"])
def test_a_window_is_as_wide_as_it_says(case, slides):
    """One layer with a window of 5 sees the last 5 tokens, its own included; one without sees all."""
    windowed = (slides,) if case != "mistral" else ()
    one = dataclasses.replace(CFGS[case], layers=1, window=5 if slides else None, window_layers=windowed)
    distance = np.subtract.outer(np.arange(12), np.arange(12))
    np.testing.assert_array_equal(reach(one, 12) > 0, (distance >= 0) & (distance < (5 if slides else 12)))


@pytest.mark.parametrize("case", ["mistral", "gemma3"])
def test_windows_hold_for_short_prompts_of_unequal_length(case):
    cfg = dataclasses.replace(CFGS[case], window=5)
    for cached, full in cached_and_full(cfg, [3, 7, 1], 3, 7, 9):
        np.testing.assert_allclose(cached, full, atol=5e-5)


def test_layers_of_one_kind_run_the_program_of_a_uniform_model():
    def scanned(cfg):
        params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), cfg))
        run = functools.partial(transformer.hidden, cfg=cfg)
        (loop,) = named(jax.make_jaxpr(run)(params, jnp.zeros((1, 9), jnp.int32), jnp.array([9])), "scan")
        arrays = len(loop.invars) - loop.params["num_consts"] - loop.params["num_carry"]
        return arrays - sum(path.startswith("layers/") for path in params)

    assert [scanned(CFGS[case]) for case in ("mistral", "qwen3", "phi4_mini", "gpt_neox", "olmo2", "mixtral")] == [
        0
    ] * 6
    assert scanned(CFGS["smollm3"]) == 1  # angles
    assert scanned(CFGS["gemma2"]) == scanned(CFGS["gemma3"]) == 2  # angles and windows


@pytest.mark.parametrize("case", CFGS)
def test_hidden_and_decode_export_for_accelerators(case):
    cfg = dataclasses.replace(CFGS[case], dtype="bfloat16", remat="full")
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), cfg))
    rows, lengths = jax.ShapeDtypeStruct((2, 40), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)
    run = functools.partial(transformer.prefill, n=3, window=8, cfg=cfg)
    _, cache = jax.eval_shape(run, params, rows, lengths)
    assert {x.dtype for x in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}

    @jax.jit
    def whole(params, rows, lengths):
        return transformer.hidden(params, rows, lengths, cfg=cfg)

    @jax.jit
    def step(params, tokens, step, lengths, cache):
        layers = transformer.unstack(params, cfg)
        return transformer.decode(params, layers, tokens, step, lengths, cache, cfg=cfg)

    tokens, place = jax.ShapeDtypeStruct((2, 3), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    for function, args in ((whole, (params, rows, lengths)), (step, (params, tokens, place, lengths, cache))):
        exported = export.export(function, platforms=("tpu", "cuda"))(*args)
        wanted = jax.tree.leaves(jax.eval_shape(function, *args))
        assert [(x.shape, x.dtype) for x in exported.out_avals] == [(x.shape, x.dtype) for x in wanted]
        assert "f64" not in exported.mlir_module()


def test_an_embedding_is_scaled_in_the_compute_dtype():
    """√48 = 6.928 is 6.9375 in bf16, and that is what Gemma was trained with."""
    cfg = CFGS["gemma2"]
    params, tokens = oracle.parameters(cfg), jnp.array([[3, 200]])
    for dtype, scale in (("float32", np.float32(48**0.5)), ("bfloat16", 6.9375)):
        found = transformer.embed(params, tokens, tokens, dataclasses.replace(cfg, dtype=dtype))
        assert found.dtype == jnp.dtype(dtype)
        expected = (params["embed"][tokens].astype(dtype).astype(jnp.float32) * scale).astype(dtype)
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(expected, np.float32))


def test_rows_too_long_for_the_short_factors_are_refused():
    cfg = config_of("phi4_mini", long_context=False)
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), cfg))
    ids = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)

    def run(length, cfg):
        whole = functools.partial(transformer.hidden, cfg=cfg)
        return jax.eval_shape(whole, params, ids((1, length)), ids((1,))).shape

    assert run(128, cfg) == (1, 128, 64)
    with pytest.raises(UserError, match=r"rows of 129 tokens.*128.*long_context"):
        run(129, cfg)
    assert run(129, CFGS["phi4_mini"]) == (1, 129, 64)
    with pytest.raises(UserError, match="rows of 130 tokens"):
        jax.eval_shape(
            functools.partial(transformer.prefill, n=1, window=30, cfg=cfg), params, ids((1, 100)), ids((1,))
        )


def test_short_rows_of_a_longrope_model_are_those_of_transformers(tmp_path):
    cfg, params = hf.load(checkpoints.write(tmp_path, "phi4_mini"))
    told = checkpoints.numbers("phi4_mini")
    tokens = told["tokens"][None, :128].astype(np.int32)
    found = logits(params, hidden(params, tokens, np.array([128]), cfg=cfg), cfg=cfg)[0]
    np.testing.assert_allclose(found[:, told["columns"]], told["short_logits"], rtol=0, atol=1e-4)
    assert np.abs(told["short_logits"] - told["logits"][:128]).max() > 0.1


@pytest.mark.parametrize("case", ["gemma2", "smollm3", "phi4_mini", "mixtral", "qwen3_moe"])
def test_remat_unroll_and_padding_change_nothing(case):
    cfg, tokens = CFGS[case], tokens_of(CFGS[case], 2, 40)
    params, lengths = oracle.parameters(cfg), np.array([40, 33])
    found = hidden(params, tokens, lengths, cfg=cfg)
    other = dataclasses.replace(cfg, remat="dots", unroll=2)
    wide = hidden(params, np.pad(tokens, ((0, 0), (0, 9)), constant_values=7), lengths, cfg=other)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(wide[row, :length], found[row, :length], atol=3e-5)
