"""The table of axes, and that nothing is translated in silence."""

import json

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import axes, formats
from rlhf_jax.feedback.importers import ratings as importers_ratings
from rlhf_jax.feedback.records import Rating, as_messages
from tests.feedback.published import AXES, LABELS, RATED, ULTRA, aspect, tree


def rating(axis, value=3, scale=(1, 5), **fields):
    return Rating(as_messages("hi"), "a", axis, value, scale, **{"source_kind": "human"} | fields)


@pytest.fixture
def load(write):
    def get(*rows, read=formats.load_ratings, **keywords):
        return read(write("a.jsonl", "\n".join(map(json.dumps, rows))), **keywords)

    return get


def test_every_axis_of_the_table_is_one_of_ours():
    for form, table in axes.TABLE.items():
        for theirs, (name, sign) in table.items():
            assert name in axes.OURS and sign in (-1, 0, 1), (form, theirs)
            assert (sign == 0) == (name in axes.WITHOUT_ORDER), "what has no better end gives no comparison"


@pytest.mark.parametrize(
    ("form", "axis", "value", "scale", "ours", "mirrored"),
    [
        ("ultrafeedback", "honesty", 4, (1, 5), "honest", 4),
        ("ultrafeedback", "truthfulness", 1, (1, 5), "honest", 1),
        ("ultrafeedback", "instruction_following", 2, (1, 5), "helpful", 2),
        ("ultrafeedback", "overall_score", 8.5, (1, 10), "overall", 8.5),
        ("helpsteer2", "helpfulness", 4, (0, 4), "helpful", 4),
        ("helpsteer2", "correctness", 4, (0, 4), "honest", 4),
        ("helpsteer2", "coherence", 0, (0, 4), "style", 0),
        ("helpsteer2", "verbosity", 3, (0, 4), "other", 3),
        ("helpsteer2", "complexity", 3, (0, 4), "other", 3),
        ("summary_axes", "accuracy", 7, (1, 7), "honest", 7),
        ("summary_axes", "coverage", 7, (1, 7), "helpful", 7),
        ("oasst", "quality", 0.75, (0, 1), "overall", 0.75),
        ("oasst", "toxicity", 0.25, (0, 1), "harmless", 0.75),
        ("oasst", "fails_task", 1, (0, 1), "helpful", 0),
        ("oasst", "humor", 0.5, (0, 1), "other", 0.5),
        ("hh_red_team", "attack_success", 4, (0, 4), "harmless", 0),
        ("hh_red_team", "attack_success", 1, (0, 4), "harmless", 3),
        ("pku_safe_rlhf", "safe", 1, (0, 1), "harmless", 1),
    ],
)
def test_what_the_axes_mean(form, axis, value, scale, ours, mirrored):
    found = axes.ours(form, rating(axis, value, scale))
    assert (found.axis, found.value, found.scale, found.meta) == (ours, mirrored, scale, {"axis": axis})


def test_an_unmapped_axis_is_refused_unless_kept(load):
    with pytest.raises(UserError, match="axis 'wit' of a helpsteer2 file is not mapped .*helpfulness -> helpful"):
        axes.ours("helpsteer2", rating("wit"))
    kept = axes.ours("helpsteer2", rating("wit"), keep=True)
    assert (kept.axis, kept.value, kept.meta) == ("wit", 3, {"axis": "wit"})
    more = {**ULTRA["completions"][0], "annotations": {"wit": aspect("3")}}
    row = ULTRA | {"completions": [more]}
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: axis 'wit' of a ultrafeedback file is not mapped"):
        load(ULTRA, row)
    found, _ = load(ULTRA, row, unmapped="keep")
    assert [r.axis for r in found if r.value == 3 and r.meta["axis"] == "wit"] == ["wit"]
    with pytest.raises(UserError, match='unmapped must be "refuse" or "keep"'):
        load(ULTRA, unmapped="drop")


def test_our_own_axes_are_the_users(load):
    row = {"prompt": "hi", "response": "a", "axis": "sparkle", "value": 1, "scale": [0, 1], "source_kind": "human"}
    (found,), report = load(row)
    assert (found.axis, found.meta.keys(), report.format) == ("sparkle", {"provenance"}, "rating")


def test_ultrafeedback_ratings_are_text_and_may_be_missing(load):
    found, report = load(ULTRA)
    assert len(found) == 9 and report.notes == {"not_rated": 1}
    assert all(r.source_kind == "ai" and r.annotator == "gpt-4" for r in found)
    lyon = {r.meta["axis"]: (r.value, r.scale) for r in found if r.response == "Lyon"}
    assert lyon == {
        "instruction_following": (5, (1, 5)),
        "honesty": (4, (1, 5)),
        "helpfulness": (5, (1, 5)),
        "overall_score": (8.5, (1, 10)),
    }
    assert found[0].meta["principle"] == "helpfulness" and found[0].meta["subset"] == "sharegpt"
    assert found[0].meta["correct_answers"] == ["None"] and found[0].meta["fine-grained_score"] == 4.0
    wild = {**ULTRA["completions"][0], "overall_score": 0, "annotations": {"honesty": aspect("six")}}
    assert load(ULTRA | {"completions": [wild, 3, ULTRA["completions"][1]]})[1].notes == {
        "bad_rating": 1,
        "rating_outside_scale": 1,
        "malformed_completion": 1,
    }
    for change, reason in (({"completions": []}, "no_completions"), ({"completions": [3]}, "no_usable_rating")):
        with pytest.raises(UserError, match=f"{reason} 1"):
            load(ULTRA | change)


def test_helpsteer_ratings_and_disagreements(load):
    found, _ = load(RATED)
    assert [(r.meta["axis"], r.axis, r.value) for r in found] == [
        ("helpfulness", "helpful", 3),
        ("correctness", "honest", 4),
        ("coherence", "style", 4),
        ("complexity", "other", 2),
        ("verbosity", "other", 1),
    ]
    assert all(r.scale == (0, 4) and r.annotator == "" and r.source_kind == "human" for r in found)
    several = {name: [0, 4, 2] for name in importers_ratings.HELPSTEER} | {"verbosity": [1]}
    found, _ = load(RATED | several)
    assert len(found) == 13 and [r.value for r in found if r.axis == "helpful"] == [0, 4, 2]
    assert load(RATED | {"verbosity": 5, "complexity": None})[1].notes == {"rating_outside_scale": 1, "not_rated": 1}


def test_axis_evaluations_of_summaries(load):
    found, report = load(AXES)
    assert report.notes == {"not_rated": 1}
    assert {r.meta["axis"]: (r.value, r.scale) for r in found} == {
        "overall": (3, (1, 7)),
        "accuracy": (5, (1, 7)),
        "coverage": (4, (1, 7)),
        "compatible": (1, (0, 1)),
    }
    first = found[0]
    assert (first.annotator, first.split, first.item, first.response) == ("qo6W", "test", "167f", "Sent off.")
    assert first.prompt[0]["content"] == "Article:\nThe skipper was sent off.\n\nTL;DR:"
    assert (
        first.meta["batch"] == "cnndm1" and first.meta["policy"] == "ref" and first.meta["info"]["site"] == "dailymail"
    )


def test_labels_of_a_tree(load):
    found, report = load(tree(LABELS), tree())
    assert report.dropped == {"no_labels": 1}
    assert [(r.response, r.axis, r.value, r.item) for r in found] == [
        ("Lyon", "overall", 0.75, "m0"),
        ("Lyon", "harmless", 0.75, "m0"),
    ]
    assert found[0].prompt == ({"role": "user", "content": "Name a city."},) and found[0].meta["count"] == 3
    odd = tree({"quality": {"value": 1.5}, "spam": 3, "humor": {"value": 0.5}})
    assert load(odd)[1].notes == {"bad_label": 2}
    made = tree(LABELS)
    made["prompt"]["synthetic"] = True
    assert load(tree(LABELS), made, synthetic="drop")[1].dropped == {"synthetic_only": 1}


def test_which_axis_decides_on_demonstrations(load):
    better = RATED | {"response": "A note.", "helpfulness": 4, "correctness": 0}
    for rows, best in (
        ([ULTRA], ["Lyon"]),  # overall: Lyon; honesty: Rome
        ([RATED, better], ["A note."]),  # no overall; helpful: the note; honest: the other
    ):
        found, _ = load(*rows, read=formats.load_demonstrations)
        assert [d.completion for d in found] == best
    styles = [
        {"prompt": "p", "responses": ["a", "b"], "ranks": ranks, "axis": axis, "source_kind": "human"}
        for axis, ranks in (("style", [0, 1]), ("honest", [1, 0]))
    ]
    assert [d.completion for d in load(*styles, read=formats.load_demonstrations)[0]] == ["a", "b"]
