"""How every test runs: on the CPU, in full precision, offline, with the shapes in rlhf_jax's signatures checked."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before JAX, transformers or matplotlib is imported by anything below.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

# Pretended devices share the cores: on a busy machine one may come to a collective minutes after the others, and XLA's
# patience of 40 s would end the process.
#
# Most programs here run once, so compiling them takes longer than running them: LLVM is told not to optimise, which saves
# a third of the time. What comes later in XLA_FLAGS wins, and `make parity` and `make long` ask there for the usual 3.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
        "--xla_cpu_collective_call_terminate_timeout_seconds=1200",
        "--xla_cpu_collective_timeout_seconds=1200",
    ]
)

# What one test compiles, the next one, the other worker and the scripts that tests start need not compile again: it
# halves the time. The folder lives for one run of the tests: none passes because of what an earlier run compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.mkdtemp(prefix="rlhf-jax-tests-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

import hypothesis
import jax
from jaxtyping import install_import_hook

# f32 products are TF32 on recent GPUs and bf16 on TPUs unless told otherwise (invariant 37).
jax.config.update("jax_default_matmul_precision", "highest")

# Eight pretended devices for the sharding tests; the others see device 0 and run no slower. Not set in XLA_FLAGS,
# so that the scripts which tests start as processes of their own see the machine as it is.
jax.config.update("jax_num_cpu_devices", 8)

# Compilation makes a first example slow, so no deadline; the same examples in every run.
hypothesis.settings.register_profile("rlhf_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rlhf_jax")


def _hooked_modules() -> list[str]:
    """Every wing and ground file but types.py: flax.struct rebuilds its dataclasses from tracers and placeholders."""
    root = Path(__file__).parent.parent / "rlhf_jax"
    names = sorted({path.stem for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()})
    return [f"rlhf_jax.{name}" for name in names if name not in ("__init__", "types")]


# Checks the shapes and dtypes named in every signature, whenever a function is called or traced.
install_import_hook(_hooked_modules(), "beartype.beartype")
