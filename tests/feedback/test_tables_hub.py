"""Data sets on the hub, through a stand-in for the `datasets` library."""

import datetime
import sys
import types

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.formats import hub as tables_hub
from rlhf_jax.runs import data
from tests.feedback.published import AUTO_J, RATED


@pytest.fixture
def hub(monkeypatch):
    """hub(rows or error) puts a stand-in library in place; returns the calls it gets."""

    def put(rows):
        calls = []

        def load_dataset(name, config=None, *, split, revision, streaming):
            calls.append((name, config, split, revision, streaming))
            if isinstance(rows, Exception):
                raise rows
            return iter(rows)

        module = types.ModuleType("datasets")
        module.load_dataset = load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    return put


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("hub:nvidia/HelpSteer2", ("nvidia/HelpSteer2", None, None, "train")),
        ("hub:nvidia/HelpSteer2:validation", ("nvidia/HelpSteer2", None, None, "validation")),
        ("hub:a/b/conf:test[:5%]", ("a/b", "conf", None, "test[:5%]")),
        ("hub:a/b@5f3c:test", ("a/b", None, "5f3c", "test")),
        ("hub:a/b/c@refs/pr/1:test", ("a/b", "c", "refs/pr/1", "test")),
    ],
)
def test_names_of_data_sets(path, expected):
    assert tables_hub.names(path) and tuple(tables_hub.place(path)) == expected
    assert data.find(path, "/nowhere") == path


@pytest.mark.parametrize("path", ["hub:", "hub:HelpSteer2", "hub:a/b :train", "hub:/b"])
def test_names_that_are_none(path):
    with pytest.raises(UserError, match="write hub:owner/name:split"):
        formats.load(path)


def test_a_data_set_is_read_like_a_file(hub, write):
    calls = hub([AUTO_J, AUTO_J | {"label": 5}, AUTO_J | {"label": 2, "at": datetime.date(2024, 1, 2)}])
    found, report = formats.load("hub:owner/set/conf@main:test")
    assert calls == [("owner/set", "conf", "test", "main", True)]
    assert [c.ranks for c in found] == [(0, 1), (0, 0)] and found[1].meta["at"] == "2024-01-02"
    assert (report.format, report.read, report.kept, report.dropped) == ("auto_j", 3, 2, {"bad_label": 1})
    assert report.examples["bad_label"] == ["row 2"]
    assert found[0].source == "auto_j:owner/set/conf@main:test"
    assert len(report.sha256) == 64 and found[0].meta["provenance"]["sha256"] == report.sha256
    sums = []
    for rows in ([AUTO_J], [AUTO_J | {"label": 2}], [AUTO_J]):
        hub(rows)
        sums.append(formats.load("hub:owner/set:test")[1].sha256)
    assert sums[0] == sums[2] != sums[1], "it is of what the rows say"


def test_ratings_prompts_and_demonstrations_too(hub):
    hub([RATED, RATED | {"response": "A note.", "helpfulness": 1}])
    assert len(formats.load_ratings("hub:nvidia/HelpSteer2")[0]) == 10
    hub([RATED, RATED | {"response": "A note.", "helpfulness": 1}])
    assert len(formats.load_prompts("hub:nvidia/HelpSteer2")[0]) == 1
    hub([{"prompt": "p", "completion": "c"}])
    assert formats.load_demonstrations("hub:o/d")[0][0].completion == "c"


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(UserError, match=r'need the extra "hub": pip install "rlhf-jax\[hub\]"'):
        formats.load("hub:nvidia/HelpSteer2")


def test_whatever_the_library_raises_is_one_line(hub):
    hub(RuntimeError("no such\nsplit"))
    with pytest.raises(UserError) as error:
        formats.load("hub:a/b:nope")
    assert "hub:a/b:nope" in str(error.value) and "no such split" in str(error.value) and "\n" not in str(error.value)
    hub([])
    with pytest.raises(UserError, match="has no rows"):
        formats.load("hub:a/b")
