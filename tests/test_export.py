"""Every jitted step lowers to StableHLO for accelerators that this machine need not have."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax import export

from tests.model import decoder_oracle as oracle
from tests.steps import NAMES, steps

CFG = replace(oracle.LLAMA, dtype="bfloat16", remat="full", eos_ids=(3,))


def lowered(function, args, platform):
    """The module exported for one platform. A callback to the host is refused by the export itself."""
    exported = export.export(function, platforms=(platform,))(*args)
    assert exported.platforms == (platform,)
    wanted = jax.tree.leaves(jax.eval_shape(function, *args))
    assert [(x.shape, x.dtype) for x in exported.out_avals] == [(x.shape, x.dtype) for x in wanted]
    return exported.mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_exports_for_an_accelerator(name, platform):
    module = lowered(*steps(CFG)[name], platform)
    assert "stablehlo" in module
    assert "callback" not in module, "a step must not wait for the host"
    assert not re.search(r"[<x]f64>", module), "float64 is emulated on accelerators"


def test_every_step_is_exported():
    assert set(steps(CFG)) == set(NAMES)


@pytest.mark.parametrize(
    ("platform", "error", "why"),
    [
        ("tpu", ValueError, "specified backend {here} is different from the lowering platform tpu"),
        ("cuda", ValueError, "specified backend {here} is different from the lowering platform cuda"),
        ("", NotImplementedError, "serialization of host_callbacks is not yet implemented"),
    ],
)
def test_a_step_that_calls_the_host_would_be_seen(platform, error, why):
    """jax 0.10 and 0.11 export none: for another platform its lowering is refused, for this one its serialization. In a
    module that is not exported the callback stands by that name."""
    here = jax.default_backend()
    assert here == "cpu", "the tests run there: tests/conftest.py"

    @jax.jit
    def step(x):
        jax.debug.callback(lambda x: None, x)
        return x

    with pytest.raises(error, match=why.format(here=here)):
        lowered(step, (jnp.ones(2),), platform or here)
    assert "callback" in step.lower(jnp.ones(2)).as_text()
