"""Applies every row of table.py to a copy of the tree, one at a time, and sees whether the named tests fail.

python -m tests.mutations.run --jobs 2            every row, two at a time; writes tests/mutations/result.json
python -m tests.mutations.run --stale             those whose file or tests changed since result.json, which it completes
python -m tests.mutations.run --only 9 --only ID  the rows of invariant 9, and the row of that id; writes nothing

Exit code 0 when every row was killed, 1 otherwise.
"""

import argparse
import ast
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from tests.mutations import warm
from tests.mutations.table import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent.parent
RESULT = ROOT / "tests" / "mutations" / "result.json"
TIMEOUT = 300
"""Seconds that the tests of a row may take. A test that hangs has not failed."""

# Left out of the copies; the second list at the top folder only, for rlhf_jax/runs is source.
EVERYWHERE = ("__pycache__", ".*_cache", ".ipynb_checkpoints")
AT_THE_TOP = (".git", ".venv*", ".cache", ".hypothesis", "runs", "wandb", "build", "dist", "*.egg-info")

STARTED = {
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "rlhf_jax_mutations"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""Read when libraries are imported. Most programs of a row are those of the row before: each is compiled once."""

# A failure that begins so says that the mutation broke the file, not that a test saw wrong behaviour.
BROKEN = re.compile(r"(ImportError|ModuleNotFoundError|SyntaxError|NameError|AttributeError: module)\b")


@functools.cache
def _dumped(source: str) -> str:
    return ast.dump(ast.parse(source))


def mutated(source: str, mutation: Mutation) -> str:
    """The file's text with the mistake in it. ValueError unless `find` stands in it once and the code changes."""
    count = source.count(mutation.find)
    if count != 1:
        raise ValueError(f"{mutation.id}: the text to find stands {count} times in {mutation.file}, must be once")
    changed = source.replace(mutation.find, mutation.replace)
    if mutation.file.endswith(".py") and ast.dump(ast.parse(changed)) == _dumped(source):
        raise ValueError(f"{mutation.id}: the replacement changes only comments or layout of {mutation.file}")
    return changed


def copy_tree(folder: Path) -> Path:
    """A copy of the source tree below `folder`, without environments, caches and runs."""

    def left_out(directory: str, names: list[str]) -> set[str]:
        patterns = EVERYWHERE + (AT_THE_TOP if Path(directory) == ROOT else ())
        return shutil.ignore_patterns(*patterns)(directory, names)

    return Path(shutil.copytree(ROOT, folder / "tree", ignore=left_out, symlinks=True))


def environment(tree: Path) -> dict[str, str]:
    """What every process on the copy starts with.

    The copy comes first on the path, for the tests and for the processes they start. No byte code is written: that of
    the original could pass for that of a mutation of the same size and second.
    """
    path = os.pathsep.join([str(tree), str(tree / "experiments")])
    return {**os.environ, **STARTED, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}


def run_tests(
    tree: Path, tests: Sequence[str], *, first_failure: bool, jobs: int = 1, file: str | None = None
) -> tuple[str, str]:
    """Run the named tests on the tree, whose `file` is the one that was broken. Returns (outcome, detail); outcome is

    passed     every test passed
    failed     a test failed; detail names it
    broken     nothing was shown: a test could not be found, collected, set up or finished, or the file not imported
    """
    report, log = tree / "report.xml", tree / "pytest.log"
    report.unlink(missing_ok=True)
    options = ["-p", "no:cacheprovider", "-m", "", f"--junitxml={report}", "--tb=short", *tests]
    options += ["-x"] if first_failure else []
    timeout = TIMEOUT * len(tests)
    if jobs > 1:
        code = in_processes(tree, [*options, "-n", str(jobs)], log, timeout)
    else:
        code = warm.run(tree, options, log, file if file and file.endswith(".py") else None, timeout)
    if code is None:
        return "broken", f"not finished after {timeout} s"
    if code == 0:
        return "passed", ""
    if code != 1 or not report.exists():
        return "broken", log.read_text(errors="replace").strip()[-600:]
    broken = ""
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        failure, error = case.find("failure"), case.find("error")
        if failure is not None and not BROKEN.match(str(failure.get("message"))):
            return "failed", f"{name}: {failure.get('message')}"
        for part in (failure, error):
            if part is not None:
                broken = f"{name}: {part.get('message')}"
    return "broken", broken


def in_processes(tree: Path, options: Sequence[str], log: Path, timeout: float) -> int | None:
    """pytest's exit code, from a fresh process and its workers; None when it is not done after `timeout` seconds."""
    try:
        with log.open("wb") as out:
            command = [sys.executable, "-m", "pytest", *options]
            return subprocess.run(
                command, cwd=tree, env=environment(tree), stdout=out, stderr=out, timeout=timeout
            ).returncode
    except subprocess.TimeoutExpired:
        return None


def imported_from(tree: Path, file: str) -> str:
    """Where a process started like the tests finds the module that `file` is, or the error that importing it raises."""
    name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    command = [sys.executable, "-c", f"import {name} as module; print(module.__file__)"]
    done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True)
    return (done.stdout if done.returncode == 0 else done.stderr).strip().rpartition("\n")[2]


def try_one(mutation: Mutation) -> dict[str, object]:
    """One row of the result: whether a test saw the mistake."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = copy_tree(Path(folder))
        target = tree / mutation.file
        target.write_text(mutated(target.read_text(), mutation))
        outcome, detail = run_tests(tree, mutation.tests, first_failure=True, file=mutation.file)
    told = {"failed": "killed", "passed": "SURVIVED", "broken": "BROKEN"}[outcome]
    print(f"{told:9} {mutation.invariant or '-':>3}  {mutation.id:36} {' '.join(detail.split())[:140]}", flush=True)
    return {
        "id": mutation.id,
        "invariant": mutation.invariant,
        "file": mutation.file,
        "reason": mutation.reason,
        "tests": list(mutation.tests),
        "outcome": told.lower(),
        "digest": digest(mutation),
    }


def digest(mutation: Mutation) -> str:
    """What a row's outcome was found on: the row itself, the file that it breaks, and the files of its tests."""
    files = {mutation.file, *(test.split("::")[0] for test in mutation.tests)}
    read = "".join((ROOT / file).read_text() for file in sorted(files))
    return hashlib.sha256((repr(mutation) + read).encode()).hexdigest()[:16]


def chosen(only: Sequence[str]) -> list[Mutation]:
    """The rows with one of these invariant numbers or ids; all of them when none is named."""
    known = {row.id for row in MUTATIONS} | {str(row.invariant) for row in MUTATIONS if row.invariant}
    if unknown := sorted(set(only) - known):
        raise SystemExit(f"error: no mutation has the id or the invariant {', '.join(unknown)}")
    return [row for row in MUTATIONS if not only or row.id in only or (row.invariant and str(row.invariant) in only)]


def main() -> int:
    """Run the chosen rows, print a line for each, and keep the outcomes."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations.run", description=str(__doc__).split("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="N|ID", help="an invariant, or the id of a row")
    parser.add_argument("--stale", action="store_true", help="only what changed since the last result")
    parser.add_argument("--jobs", type=int, default=1, help="rows tried at the same time")
    arguments = parser.parse_args()
    os.environ |= STARTED
    rows = chosen(arguments.only)
    known = {}
    if arguments.stale:
        before = json.loads(RESULT.read_text())["mutations"]
        known = {row["id"]: row for row in before if row["outcome"] == "killed"}
        known = {row.id: known[row.id] for row in rows if known.get(row.id, {}).get("digest") == digest(row)}
        rows = [row for row in rows if row.id not in known]

    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = copy_tree(Path(folder))
        if not Path(found := imported_from(tree, "rlhf_jax/__init__.py")).is_relative_to(tree):
            raise SystemExit(f"error: the tests would import {found}, not the mutated copy")
        for row in rows:
            try:
                mutated((tree / row.file).read_text(), row)
            except (ValueError, OSError) as error:
                raise SystemExit(f"error: {error}") from None
        tests = sorted({test for row in rows for test in row.tests})
        print(f"{len(rows)} mutations; first their {len(tests)} tests, unmutated", flush=True)
        outcome, detail = ("passed", "")
        if tests:
            outcome, detail = run_tests(tree, tests, first_failure=False, jobs=arguments.jobs)
        if outcome != "passed":
            raise SystemExit(f"error: the tests must pass before anything is broken: {detail}")

    found = dict(known)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(try_one, rows):
            found[str(result["id"])] = result
            if not arguments.only:
                record(found)
    killed = sum(result["outcome"] == "killed" for result in found.values())
    print(f"{killed} of {len(found)} killed")
    return 0 if killed == len(found) else 1


def record(found: dict[str, dict[str, object]]) -> None:
    """Write what is known so far: a run that is interrupted goes on with --stale."""
    results = [found[row.id] for row in MUTATIONS if row.id in found]
    outcomes = [result["outcome"] for result in results]
    packages = ("jax", "jaxlib", "numpy", "pytest")
    summary = {
        "command": "python -m tests.mutations.run",
        "total": len(MUTATIONS),
        "killed": outcomes.count("killed"),
        "not killed": [result["id"] for result in results if result["outcome"] != "killed"],
        "not tried": [row.id for row in MUTATIONS if row.id not in found],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "mutations": results,
    }
    RESULT.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
