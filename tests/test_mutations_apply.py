"""Every row of the mutation table still fits the code, and the runner tells a killed mutation from a broken one."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.mutations.run import BROKEN, ROOT, chosen, copy_tree, imported_from, mutated, run_tests
from tests.mutations.table import MUTATIONS, Mutation

EXAMPLE = Mutation("example", 0, "a.py", find="a + b", replace="a - b", tests=("test_a.py::test_a",), reason="sign")


@cache
def names_in(path: Path) -> frozenset[str]:
    """What pytest could be asked to run in the file, as node ids below it: `test_a`, `TestB::test_c`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return frozenset(names)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.id for mutation in MUTATIONS])
def test_the_mutation_applies_and_its_tests_exist(mutation):
    assert (ROOT / mutation.file).is_file(), f"{mutation.file}: no such file"
    assert mutated((ROOT / mutation.file).read_text(), mutation)
    assert mutation.tests, "no test is named that must fail"
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), f"{test}: no such file"
        assert name.split("[")[0] in names_in(ROOT / path), f"{test}: no such test in {path}"


def test_ids_are_unique_and_reasons_given():
    ids = [mutation.id for mutation in MUTATIONS]
    assert len(set(ids)) == len(ids), "two rows share an id"
    assert all(mutation.reason for mutation in MUTATIONS)


@pytest.mark.parametrize(
    ("source", "told"),
    [("a = 1", "stands 0 times"), ("c = a + b\nd = a + b", "stands 2 times"), ("# a + b", "only comments")],
)
def test_a_mutation_that_does_not_fit_is_refused(source, told):
    with pytest.raises(ValueError, match=told):
        mutated(source, EXAMPLE)


def test_rows_are_chosen_by_invariant_or_id():
    with pytest.raises(SystemExit, match="no mutation has"):
        chosen(["no such row"])
    assert chosen([MUTATIONS[0].id]) == [MUTATIONS[0]]
    assert chosen([]) == list(MUTATIONS)


def test_the_copy_is_what_gets_imported(tmp_path):
    tree = copy_tree(tmp_path)
    copied = tree / "rlhf_jax" / "runs" / "__init__.py"
    assert imported_from(tree, "rlhf_jax/runs/__init__.py") == str(copied)
    copied.write_text("import no_such_module")
    assert "ModuleNotFoundError" in imported_from(tree, "rlhf_jax/runs/__init__.py")


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("def test_a():\n    assert 1 + 1 == 2", "passed"),
        ("def test_a():\n    assert 1 + 1 == 3", "failed"),
        ("def test_a():\n    import no_such_module", "broken"),
        ("import no_such_module\ndef test_a():\n    pass", "broken"),
        ("import pytest\n@pytest.fixture\ndef x():\n    raise ValueError\ndef test_a(x):\n    pass", "broken"),
        ("def test_b():\n    pass", "broken"),
    ],
    ids=["passes", "fails", "cannot import in the test", "cannot be collected", "cannot be set up", "is not there"],
)
def test_only_a_failing_test_counts(tmp_path, source, outcome):
    (tmp_path / "test_a.py").write_text(source)
    assert run_tests(tmp_path, ["test_a.py::test_a"], first_failure=True)[0] == outcome


@pytest.mark.parametrize(("source", "outcome"), [("x = 1", "failed"), ("import no_such_module", "broken")])
def test_a_failure_counts_only_where_the_file_can_be_imported(tmp_path, source, outcome):
    (tmp_path / "rlhf_jax").mkdir()
    (tmp_path / "rlhf_jax" / "__init__.py").write_text("")
    (tmp_path / "rlhf_jax" / "a.py").write_text(source)
    (tmp_path / "test_a.py").write_text("def test_a():\n    assert False")
    assert run_tests(tmp_path, ["test_a.py::test_a"], first_failure=True, file="rlhf_jax/a.py")[0] == outcome


def test_what_breaks_a_file_is_told_from_what_breaks_its_behaviour():
    assert BROKEN.match("NameError: name 'x' is not defined")
    assert BROKEN.match("AttributeError: module 'a' has no attribute 'b'")
    assert not BROKEN.match("AttributeError: 'int' object has no attribute 'b'")
    assert not BROKEN.match("ValueError: a NameError is only mentioned")
