"""Tests in a process forked from one that has imported the libraries already, which takes longer than most rows' tests.

Only libraries are imported beforehand, and none that starts threads: what is tested, and the tests, are read from the tree.
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

LIBRARIES = ["jax", "jax.numpy", "numpy", "optax", "flax.struct", "transformers", "pytest", "beartype", "jaxtyping"]
OURS = ("rlhf_jax", "tests", "experiments")
NOT_IMPORTED = 70
"""Exit code where the file that was to be broken cannot be imported, or is not the tree's."""


def run(tree: Path, options: Sequence[str], log: Path, file: str | None, timeout: float) -> int | None:
    """pytest's exit code, NOT_IMPORTED, or None when it is not done after `timeout` seconds; what it said is in `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    child = context.Process(target=_child, args=(tree, list(options), log, file))
    child.start()
    child.join(timeout)
    if child.exitcode is None:
        child.kill()
        child.join()
        return None
    return child.exitcode


def _child(tree: Path, options: list[str], log: Path, file: str | None) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(tree)
    root = str(Path(__file__).parent.parent.parent)
    paths = [str(tree), str(tree / "experiments")]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
    sys.dont_write_bytecode = True
    sys.path[:] = paths + [path for path in sys.path if path not in ("", root, os.path.join(root, "experiments"))]
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    code = int(pytest.main(options))
    if code == 1 and file:
        code = _imported(tree, file)
    sys.stdout.flush()
    os._exit(code)


def _imported(tree: Path, file: str) -> int:
    """1 where the file can be imported as the tests do, else NOT_IMPORTED: a failure of its importers shows nothing."""
    name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    try:
        found = str(importlib.import_module(name).__file__)
    except BaseException as error:
        found = f"{type(error).__name__}: {error}"
    if Path(found).is_relative_to(tree):
        return 1
    print(f"{file} cannot be imported: {found}")
    return NOT_IMPORTED
