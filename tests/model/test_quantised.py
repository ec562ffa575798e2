"""A base in few bits against NumPy in float64: its numbers, the model on it, what is kept of it, where it lies."""

import dataclasses
import functools
import importlib.util
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from scipy.stats import norm

from rlhf_jax import sharding
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import cost, heads, hf, lora, quantised, transformer
from rlhf_jax.model.hf import place as hf_place
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import models, settings
from rlhf_jax.types import Sampling
from tests.model import decoder_oracle as oracle
from tests.model.test_lora import LENGTHS, TOKENS, drawn, forward, merged_by_hand, plainly
from tests.steps import ints, key

HELD = tuple(quantised.BITS)
CFGS = oracle.FAMILIES | {
    "mixtral": dataclasses.replace(oracle.LLAMA, family="mixtral", d_ff=24, experts=5, experts_used=2, layers=3)
}
ADAPTED = Lora(3, 12.0)


def some(*few):
    """Each family with each way to hold it: `few` of these by default, the rest long rows."""
    every = itertools.product(CFGS, HELD)
    return [each if each in few else pytest.param(*each, marks=pytest.mark.long) for each in every]


@pytest.fixture(autouse=True)
def _cheap_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def base(family, held):
    """The parameters of a family's tiny model, held so."""
    params = oracle.parameters(CFGS[family])
    return {path: quantised.quantise(x, path, held) if quantised.inputs(path) else x for path, x in params.items()}


@functools.cache
def numbers(family, held):
    """The same, each quantised matrix as the float64 numbers that it stands for."""
    return {path: by_hand(x) if quantised.is_quantised(x) else x for path, x in base(family, held).items()}


def normal_levels():
    """The levels of nf4 from the quantiles of a normal distribution, 8 above 0 and 7 below, as the authors' code has them
    (https://github.com/bitsandbytes-foundation/bitsandbytes, create_normal_map)."""
    above, below = (norm.ppf(np.linspace(0.9677083, 0.5, count))[:-1] for count in (9, 8))
    return np.sort(np.concatenate([above, [0.0], -below])) / above.max()


def blocks(path, shape, held):
    """Slices of a matrix that share a scale, from the definition, and the index of that scale."""
    name = path.removeprefix("layers/").removeprefix("expert_")
    stack = 2 if "expert_" in path else 1
    inputs = range(stack, stack + (2 if name == "o" else 1))
    size = {axis: 1 for axis in range(len(shape))}
    for axis in inputs:
        if held == "int8":
            size[axis] = shape[axis]
    if held != "int8":
        size[inputs[-1]] = max(d for d in range(1, 65) if shape[inputs[-1]] % d == 0)
    for index in itertools.product(*(range(shape[axis] // size[axis]) for axis in size)):
        yield index, tuple(slice(i * size[axis], (i + 1) * size[axis]) for axis, i in enumerate(index))


def by_hand(x):
    """level · scale in float64, the scales spread over their blocks."""
    levels = normal_levels() if x.qtype == "nf4" else None
    q = np.asarray(x.qvalue).astype(np.int64)
    scale = np.asarray(x.scale, np.float64)
    for axis, count in enumerate(scale.shape):
        scale = np.repeat(scale, q.shape[axis] // count, axis)
    return (q if levels is None else levels[q]) * scale


# --- numbers -------------------------------------------------------------------------------------------------------------

SHAPES = {
    "layers/q": (2, 192, 2, 8),
    "layers/o": (2, 3, 80, 6),
    "layers/down": (1, 128, 5),
    "layers/expert_up": (2, 3, 40, 5),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("path", SHAPES)
def test_each_number_is_the_nearest_level_of_its_block(path, held):
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, rng.uniform(0.01, 3, (SHAPES[path][0],) + (1,) * (len(SHAPES[path]) - 1)), SHAPES[path])
    matrix = matrix.astype(np.float32)
    matrix.reshape(-1)[:3] = 0
    found = quantised.quantise(jnp.asarray(matrix), path, held)
    assert found.qvalue.shape == matrix.shape and found.scale.dtype == jnp.float32
    made = np.asarray(quantised.plain(found), np.float64)
    np.testing.assert_allclose(made, by_hand(found), rtol=1e-6, atol=0)
    levels = {"int8": np.arange(-128, 128), "int4": np.arange(-8, 8), "nf4": normal_levels()}[held]
    divisor, bound = {"int8": (127.5, 1 / 255), "int4": (7.5, 1 / 15), "nf4": (1.0, 0.1520)}[held]
    seen = 0
    for index, block in blocks(path, matrix.shape, held):
        part = matrix[block].astype(np.float64)
        most = np.abs(part).max()
        np.testing.assert_allclose(found.scale[index], most / divisor, rtol=1e-6)
        nearest = np.abs(levels * (most / divisor) - part[..., None]).min(axis=-1)
        np.testing.assert_allclose(np.abs(made[block] - part), nearest, atol=1e-6 * most)
        assert nearest.max() <= bound * most * (1 + 1e-6)
        seen += part.size
    assert seen == matrix.size and found.scale.size == sum(1 for _ in blocks(path, matrix.shape, held))


def test_blocks_are_64_inputs_and_8_bits_have_a_scale_an_output():
    shape = functools.partial(quantised.scale_shape, "layers/q", (2, 128, 4, 8))
    assert shape("int8") == (2, 1, 4, 8) and shape("nf4") == (2, 2, 4, 8) and shape("int4", 32) == (2, 4, 4, 8)
    assert quantised.scale_shape("layers/o", (2, 4, 96, 7), "int8") == (2, 1, 1, 7)
    assert quantised.scale_shape("layers/o", (2, 4, 96, 7), "int4") == (2, 4, 2, 7), "48 divides 96, 64 does not"


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_matrices_of_the_layers_alone_are_quantised(family):
    specs = transformer.param_specs(CFGS[family])
    plain = {path for path, spec in quantised.specs(specs, "nf4").items() if spec.held == "float"}
    names = {path for path in specs if re.fullmatch(r"layers/(expert_)?(q|k|v|o|gate|up|down)", path)}
    assert names and plain == specs.keys() - names


# --- loading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "held"), [("llama", "int8"), ("gpt2", "int4"), ("mixtral", "nf4")])
def test_a_model_is_quantised_as_it_is_read_a_layer_at_a_time(tmp_path, monkeypatch, family, held):
    cfg = CFGS[family]
    hf.save(tmp_path, cfg, oracle.parameters(cfg))
    most, build = [], hf_place.build

    def watched(shape, *rest):
        most.append(shape)
        return build(shape, *rest)

    monkeypatch.setattr(hf_place, "build", watched)
    found = hf.load(tmp_path, held=held)[1]
    wanted = base(family, held)
    assert found.keys() == wanted.keys()
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
    matrices = [spec.shape for path, spec in transformer.param_specs(cfg).items() if quantised.inputs(path)]
    assert len(most) == len(found) + (cfg.layers - 1) * len(matrices) and not set(matrices) & set(most)


@pytest.mark.parametrize(("family", "held"), some(("llama", "nf4"), ("mixtral", "int8")))
def test_a_quantised_model_on_a_mesh_is_the_same_model(tmp_path, family, held):
    """The integers are cut as their matrix is, a scale of size 1 is not; bytes are those that a dry run tells."""
    mesh = (2, 2, 2) if family == "mixtral" else (1, 2, 2)
    cfg, there = CFGS[family], sharding.make_mesh(*mesh)
    hf.save(tmp_path, cfg, oracle.parameters(cfg))
    found = models.placed(hf.load(tmp_path, held=held, mesh=there)[1], there)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(base(family, held)), strict=True):
        assert np.array_equal(a, b)
    q = found["layers/k"]
    cut = (None, "fsdp", "tensor")
    assert tuple(q.qvalue.sharding.spec) == cut and tuple(q.scale.sharding.spec) == (None, None, "tensor")
    specs = quantised.specs(transformer.param_specs(cfg), held)
    bits = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * (quantised.BITS[held] if "int" in x.dtype.name else 32)
        for x in jax.tree.leaves(found)
    )
    assert cost.device_bytes(specs, cost.abstract_mesh(*mesh)) == bits // 8
    with jax.set_mesh(there):
        logits = jax.jit(plainly, static_argnames="cfg")(found, cfg)
    wanted = forward(base(family, held), cfg)
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(logits[row, :length], wanted[row, :length], atol=2e-5)


# --- the model -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "held"), some(*((family, "int8") for family in CFGS), ("gpt2", "int4"), ("llama", "nf4"))
)
def test_the_model_is_that_of_the_numbers_it_stands_for(family, held):
    cfg = CFGS[family]
    found = forward(base(family, held), cfg)
    for row, length in enumerate(LENGTHS):
        exact = oracle.logits(numbers(family, held), TOKENS[row, :length], cfg)
        np.testing.assert_allclose(found[row, :length], exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "held"), [("llama", "int8"), ("gpt2", "nf4")])
def test_an_adapter_adds_to_a_quantised_base_and_a_merge_is_their_sum(family, held):
    cfg, adapter = CFGS[family], drawn(CFGS[family], ADAPTED)
    params = {**base(family, held), **adapter}
    whole = merged_by_hand(numbers(family, held), adapter, ADAPTED)
    np.testing.assert_allclose(forward(params, cfg)[0], oracle.logits(whole, TOKENS[0], cfg), atol=1e-4, rtol=1e-4)
    merged = lora.merge(params)
    assert merged.keys() == transformer.param_specs(cfg).keys()
    for path, x in merged.items():
        np.testing.assert_allclose(x, whole[path], atol=1e-5, err_msg=path)


def test_a_matrix_without_an_adapter_is_made_numbers_in_a_merge(tmp_path):
    cfg = CFGS["llama"]
    params = {**base("llama", "int8"), **drawn(cfg, Lora(2, 4.0, "q,v"))}
    merged = lora.merge(params)
    np.testing.assert_allclose(merged["layers/down"], numbers("llama", "int8")["layers/down"], rtol=1e-6)
    hf.save(tmp_path, cfg, merged)
    np.testing.assert_allclose(forward(hf.load(tmp_path)[1], cfg), forward(params, cfg), atol=1e-5)
    with pytest.raises(UserError, match="parameter layers/.* is quantised; save what lora.merge makes"):
        hf.save(tmp_path, cfg, base("llama", "int8"))


@pytest.mark.parametrize("held", HELD)
def test_a_new_adapter_gives_the_very_logits_of_its_base(held):
    cfg = CFGS["llama"]
    adapter = lora.init(jax.random.key(0), cfg, ADAPTED)
    assert np.array_equal(forward({**base("llama", held), **adapter}, cfg), forward(base("llama", held), cfg))


@pytest.mark.parametrize(("family", "held"), some(("llama", "nf4"), ("mixtral", "int8")))
@pytest.mark.long
def test_gradients_of_the_adapter_are_those_on_the_float_numbers(family, held):
    remat = {"llama": "none", "gpt2": "full", "qwen2": "none", "mixtral": "dots"}[family]
    cfg = dataclasses.replace(CFGS[family], remat=remat)
    adapter = drawn(cfg, ADAPTED)

    def loss(trained, frozen):
        return jnp.mean(jnp.square(plainly({**frozen, **trained}, cfg)))

    floats = {path: jnp.asarray(x, jnp.float32) for path, x in numbers(family, held).items()}
    slope = jax.jit(jax.grad(loss))
    found, wanted = (slope(*lora.split(below, adapter)) for below in (base(family, held), floats))
    assert found.keys() == {path for path in adapter if not path.endswith("_scale")}
    for path, x in wanted.items():
        assert np.abs(x).max() > 0
        np.testing.assert_allclose(found[path], x, atol=1e-4 * np.abs(x).max(), err_msg=path)


@pytest.mark.parametrize(("family", "held"), some(("llama", "int4"), ("mixtral", "int8")))
def test_decoding_on_a_quantised_base_is_the_full_forward_pass(family, held):
    cfg, params = CFGS[family], base(family, held)
    found = forward(params, cfg)
    prompts, lengths = jnp.asarray(TOKENS[:1, :5]), jnp.array([5])
    state, cache = jax.jit(functools.partial(transformer.prefill, n=1, window=4, cfg=cfg))(params, prompts, lengths)
    decode = jax.jit(functools.partial(transformer.decode, cfg=cfg))
    layers = transformer.unstack(params, cfg)
    for step in range(3):
        logits = transformer.logits(params, state.reshape(1, -1), cfg=cfg)[0]
        np.testing.assert_allclose(logits, found[0, 4 + step], atol=1e-4, rtol=1e-4)
        token = jnp.asarray(TOKENS[:1, 5 + step : 6 + step])
        state, cache = decode(params, layers, token, jnp.int32(step), lengths, cache)


def test_in_bfloat16_scales_are_not_rounded():
    """The numbers are made in f32 and then cast, in training and in decoding alike."""
    cfg = dataclasses.replace(CFGS["llama"], dtype="bfloat16")
    layer = transformer.unstack(base("llama", "int8"), cfg)[0]
    assert layer["q"].scale.dtype == jnp.float32 and layer["q"].qvalue.dtype == jnp.int8
    x = jnp.eye(32, dtype=jnp.bfloat16)
    found = transformer.linear(x, layer, "up", "...d,df->...f")
    assert found.dtype == jnp.bfloat16
    wanted = jnp.asarray(numbers("llama", "int8")["layers/up"][0], jnp.float32).astype(jnp.bfloat16)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_without_the_setting_the_program_is_as_it_was(monkeypatch, family):
    cfg = CFGS[family]

    def program():
        jax.clear_caches()
        prompts = oracle.parameters(cfg), jnp.ones((2, 3), jnp.int32), jnp.array([3, 2]), jnp.zeros((2, 1), jnp.int32)
        sample = functools.partial(engine.generate, window=3, cfg=cfg, sampling=Sampling())
        return str(jax.make_jaxpr(functools.partial(plainly, cfg=cfg))(oracle.parameters(cfg))), str(
            jax.make_jaxpr(sample)(*prompts, jax.random.key(0))
        )

    found = program()
    monkeypatch.setattr(quantised, "meet", lambda product, x, weight: product(x, weight.astype(x.dtype)))
    assert found == program()


# --- memory --------------------------------------------------------------------------------------------------------------

WIDE = dataclasses.replace(oracle.LLAMA, d_model=64, d_ff=160, layers=3, head_dim=24, vocab_size=32)
LONG = pytest.mark.long


def shapes_of(cfg, held):
    """(an adapter, its base with the scales), as shapes."""
    specs = quantised.specs(transformer.param_specs(cfg), held)
    new = lora.specs(cfg, ADAPTED)
    own = {path: spec for path, spec in new.items() if not path.endswith("_scale")}
    return cost.shapes(own), cost.shapes(specs | {path: spec for path, spec in new.items() if path not in own})


def loss_of(cfg):
    def loss(trained, frozen, tokens, lengths):
        return jnp.mean(jnp.square(transformer.hidden({**frozen, **trained}, tokens, lengths, cfg=cfg)))

    return loss


def floats_in(text):
    """The shapes of all floating-point arrays in optimised HLO."""
    return {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b(?:bf16|f16|f32|f64)\[([\d,]+)\]", text)}


def whole(matrices, found):
    """Shapes among `found` that hold as many numbers as a whole stacked matrix, in any order or folding of its dimensions."""
    sizes = {math.prod(shape) for shape in matrices}
    return {shape for shape in found if math.prod(shape) in sizes}


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("held", HELD)
def test_the_backward_pass_keeps_no_matrix_as_floats(held, remat):
    """What `jax.vjp` keeps of a quantised base are its integers and scales. Of a float base it keeps the matrices."""
    cfg = dataclasses.replace(WIDE, remat=remat, dtype="bfloat16")

    def kept(held):
        own, frozen = shapes_of(cfg, held)
        matrices = {spec.shape for path, spec in transformer.param_specs(cfg).items() if quantised.inputs(path)}
        back = jax.eval_shape(
            lambda own, *rest: jax.vjp(lambda own: loss_of(cfg)(own, *rest), own)[1], own, frozen, ints(3, 7), ints(3)
        )
        return {x.shape for x in jax.tree.leaves(back) if jnp.issubdtype(x.dtype, jnp.floating)} & matrices

    assert kept("float") and not kept(held)


@pytest.mark.parametrize(
    ("held", "unroll"),
    [("int8", 1), *(pytest.param(*case, marks=LONG) for case in (("int8", 3), ("int4", 1), ("nf4", 1)))],
)
@pytest.mark.long
def test_no_float_copy_of_a_stacked_matrix_is_compiled(held, unroll):
    """Not in the update's loop over micro-batches either, for all of which the base is the same."""
    jax.config.update("jax_disable_most_optimizations", False)
    cfg = dataclasses.replace(WIDE, unroll=unroll)

    def program(held):
        own, frozen = shapes_of(cfg, held)

        def summed(own, frozen, tokens, lengths):
            slope = jax.grad(loss_of(cfg))
            add = lambda total, row: (jax.tree.map(jnp.add, total, slope(own, frozen, *row)), None)  # noqa: E731
            return jax.lax.scan(add, own, (tokens, lengths))[0]

        return jax.jit(summed).lower(own, frozen, ints(2, 3, 7), ints(2, 3)).compile()

    matrices = {spec.shape for path, spec in transformer.param_specs(cfg).items() if quantised.inputs(path)}
    small, large = program(held), program("float")
    assert whole(matrices, floats_in(large.as_text())), "the search must find them where they are"
    assert not whole(matrices, floats_in(small.as_text()))
    floats = sum(4 * math.prod(shape) for shape in matrices)
    ours, theirs = (x.memory_analysis().argument_size_in_bytes for x in (small, large))
    assert theirs - ours > 0.6 * floats


@pytest.mark.parametrize("held", ["int4", pytest.param("int8", marks=LONG), pytest.param("nf4", marks=LONG)])
def test_the_decoding_loop_carries_integers(held):
    """A compiler would make the numbers once, ahead of the loop: then all of the base would lie there as floats."""
    jax.config.update("jax_disable_most_optimizations", False)

    cfg = dataclasses.replace(WIDE, layers=1)

    def carried(held):
        params = cost.shapes(quantised.specs(transformer.param_specs(cfg), held))
        sample = functools.partial(engine.generate, window=4, cfg=cfg, sampling=Sampling())
        text = jax.jit(sample).lower(params, ints(2, 3), ints(2), ints(2, 1), key()).compile().as_text()
        loops = [line.split(" while(")[0] for line in text.splitlines() if " while(" in line]
        return floats_in("\n".join(loops))

    specs = transformer.param_specs(cfg)
    layers = {spec.shape[1:] for path, spec in specs.items() if quantised.inputs(path)}
    assert whole(layers, carried("float")) and not whole(layers, carried(held))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(("family", "held"), some(("llama", "int4"), ("llama", "nf4"), ("mixtral", "int8")))
@pytest.mark.long
def test_the_steps_export_for_an_accelerator(family, held, platform):
    cfg = dataclasses.replace(CFGS[family], dtype="bfloat16", remat="full", eos_ids=(3,))
    own, frozen = shapes_of(cfg, held)
    row = ints(4, 6), ints(4)

    def update(own, frozen, tokens, length):
        def loss(own):
            return jnp.sum(heads.policy({**frozen, **own}, tokens, length, length, window=2, cfg=cfg)[0])

        return jax.grad(loss)(own)

    sample = functools.partial(engine.generate, window=3, cfg=cfg, sampling=Sampling())
    params = {**frozen, **own}
    for function, args in ((update, (own, frozen, *row)), (sample, (params, ints(2, 4), ints(2), ints(2, 2), key()))):
        module = export.export(jax.jit(function), platforms=(platform,))(*args).mlir_module()
        assert {"int8": "xi8>", "int4": "xi4>", "nf4": "xui4>"}[held] in module and "callback" not in module


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_an_unknown_kind_and_a_missing_library_are_told(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="one of float, int8, int4, nf4; got 'int3'"):
        settings.Compute(base="int3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings.Compute()
    for refused in (lambda: settings.Compute(base="nf4"), lambda: hf.load(tmp_path, held="nf4")):
        with pytest.raises(UserError, match=r"held as nf4 needs the extra quant: pip install -e '.\[quant\]'"):
            refused()
