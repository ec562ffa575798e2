"""Records out and in again: TRL's forms, rankings, raw; and the manifest beside them."""

import hashlib
import json
from dataclasses import asdict, replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.formats import exports
from rlhf_jax.feedback.formats import write as formats_export
from rlhf_jax.feedback.records import Comparison, Demonstration, Pair, Prompt, Rating, as_messages, pairs, ranking
from tests.feedback.published import ROWS, assistant, user

TALK = (user("A city?"), assistant("Lyon?"), user("Another."))


def compare(responses=("a", "b"), ranks=(0, 1), prompt="hi", **fields):
    asked = as_messages(prompt) if isinstance(prompt, str) else prompt
    return Comparison(asked, tuple(responses), tuple(ranks), **{"source_kind": "human"} | fields)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


UNSHRUNK = (Phase.explicit, Phase.generate)
"""Every example writes files: to look for a smaller one that fails takes minutes."""

# What a tokenizer may be given: any text but halves of surrogate pairs; prompts with something in them.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ASKED = (st.text("ab \n", max_size=5) | TEXTS).filter(lambda text: bool(text.strip()))
CONVERSATIONS = st.lists(
    st.tuples(st.sampled_from(("user", "assistant", "system")), ASKED), min_size=1, max_size=4
).map(lambda turns: tuple({"role": role, "content": text} for role, text in turns))
PROMPTS = ASKED.map(lambda text: ({"role": "text", "content": text},)) | CONVERSATIONS
KINDS = st.sampled_from(("human", "ai", "synthetic"))
META = st.dictionaries(st.sampled_from(("id", "lang", "deep")), st.none() | st.integers() | st.lists(TEXTS, max_size=2))
STRICT = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "responses": st.tuples(TEXTS, TEXTS),
        "ranks": st.just((0, 1)),
        "source_kind": KINDS,
        "margin": st.floats(-9, 9),
        "meta": META,
    }
)
"""Fields and not records: the shape checker draws lots, which no strategy may."""
SETS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "judged": st.lists(st.tuples(TEXTS, st.integers(0, 3)), min_size=2, max_size=9),
        "source_kind": KINDS,
        "meta": META,
        "axis": st.sampled_from(("overall", "style")),
        "annotator": st.sampled_from(("", "ann")),
    }
)


def judged_sets(drawn):
    """Comparisons of 2 to 9 responses, ties among them."""
    found = []
    for fields in drawn:
        texts, ranks = zip(*fields["judged"], strict=True)
        rest = {name: value for name, value in fields.items() if name not in ("judged", "prompt")}
        found.append(compare(texts, [rank - min(ranks) for rank in ranks], fields["prompt"], **rest))
    return found


def again(folder, records, form, read=formats.load):
    """Written in a form and read back by its keys; where the records came from is not part of the form."""
    path = folder / "a.jsonl"
    formats_export.write(path, records, form)
    found, report = read(path)
    assert report.dropped == {}
    return [plain(record) for record in found], report.format


def plain(record, **changes):
    meta = {name: value for name, value in record.meta.items() if name != "provenance"}
    return replace(record, source="", meta=meta, **changes)


def test_explicit_to_implicit_to_explicit_is_the_identity(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trip")

    @settings(max_examples=40, phases=UNSHRUNK)
    @given(st.lists(STRICT, min_size=1, max_size=4).filter(alike))
    def run(drawn):
        records = [Comparison(**fields, source="x") for fields in drawn]
        first, form = again(folder, records, "trl_explicit")
        assert form == "trl_explicit"
        rows = (folder / "a.jsonl").read_bytes()
        second, form = again(folder, first, "trl_implicit")
        assert form == "trl_implicit" and second == first == [plain(record) for record in records]
        again(folder, second, "trl_explicit")
        assert (folder / "a.jsonl").read_bytes() == rows

    run()


def alike(records):
    """Of one kind, text or conversation, as a file of TRL is; no text that begins as HH-RLHF's transcripts do."""
    asked = [fields["prompt"] for fields in records]
    texts = {prompt[0]["role"] == "text" for prompt in asked}
    return len(texts) == 1 and not any(prompt[0]["content"].startswith("\n\nHuman:") for prompt in asked)


@settings(max_examples=40)
@given(STRICT)
def test_implicit_rows_are_prompt_and_response_joined(fields):
    comparison = Comparison(**fields)
    (row,), left = exports.implicit([comparison])
    assert left == {} and "prompt" not in row
    for side, text in zip(("chosen", "rejected"), comparison.responses, strict=True):
        if comparison.prompt[0]["role"] == "text":
            assert row[side] == comparison.prompt[0]["content"] + text
            assert row[side][row["prompt_length"] :] == text
        else:
            assert row[side] == [*comparison.prompt, assistant(text)] and "prompt_length" not in row


def test_rankings_come_back(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trip")

    @settings(max_examples=40, phases=UNSHRUNK)
    @given(st.lists(SETS, min_size=1, max_size=3))
    def run(drawn):
        records = judged_sets(drawn)
        found, form = again(folder, records, "ranking")
        assert form == "ranking" and [ranking(c) for c in found] == [ranking(c) for c in records]
        names = ("prompt", "axis", "annotator", "source_kind", "meta")
        assert [[getattr(c, n) for n in names] for c in found] == [[getattr(c, n) for n in names] for c in records]
        assert again(folder, found, "ranking")[0] == found

    run()


def test_raw_comparisons_and_ratings_come_back_whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trip")
    provenance = {"provenance": {"licence": "MIT", "sha256": "ab"}}

    @settings(max_examples=40, phases=UNSHRUNK)
    @given(st.lists(SETS, min_size=1, max_size=3), st.floats(0, 1), TEXTS, PROMPTS)
    def run(drawn, value, text, prompt):
        records = [replace(c, meta=c.meta | provenance, weight=0.5, item="7") for c in judged_sets(drawn)]
        path = folder / "a.jsonl"
        manifest = formats_export.write(path, records)
        assert formats.load(path)[0] == records and manifest["rows"] == len(records)
        rated = [Rating(prompt, text, "style", value, (0, 1), source_kind="ai", annotator="x", meta=provenance)]
        formats_export.write(path, rated)
        assert formats.load_ratings(path)[0] == rated

    run()


@pytest.mark.parametrize("name", ["trl_unpaired", "trl_stepwise"])
def test_forms_of_single_responses_come_back(write, tmp_path, name):
    given = [row | {"id": k} for k, row in enumerate(ROWS[name])]
    rated, _ = formats.load_ratings(write("in.jsonl", "\n".join(map(json.dumps, given))), source_kind="human")
    formats_export.write(tmp_path / "out.jsonl", rated, name)
    assert lines(tmp_path / "out.jsonl") == [row | {"source_kind": "human"} for row in given]
    assert [plain(r) for r in formats.load_ratings(tmp_path / "out.jsonl")[0]] == [plain(r) for r in rated]


def test_steps_that_are_missing_or_there_twice(write, tmp_path):
    rated, _ = formats.load_ratings(write("in.jsonl", json.dumps(ROWS["trl_stepwise"][0])))
    rows, left = exports.stepwise([*rated, *rated])
    assert len(rows) == 1 and left == {"repeated_step": 2} and rows[0]["labels"] == [True, False]
    assert exports.stepwise(rated[::-1])[0] == rows, "in whatever order they come"
    with pytest.raises(UserError, match="has ratings of 1 of its 2 steps"):
        exports.stepwise(rated[1:])


def test_conversations_and_plain_prompts(tmp_path):
    spoken, plain_one = compare(prompt=TALK), compare()
    (row,), _ = exports.explicit([spoken])
    assert row["prompt"] == list(TALK) and row["chosen"] == [assistant("a")] and row["rejected"] == [assistant("b")]
    assert exports.conversational([spoken])[0] == [row]
    assert exports.explicit([plain_one])[0] == [
        {"source_kind": "human", "prompt": "hi", "chosen": "a", "rejected": "b"}
    ]
    assert exports.conversational([plain_one])[0][0]["prompt"] == [user("hi")]
    formats_export.write(tmp_path / "a.jsonl", [plain_one], "trl_conversational")
    assert formats.load(tmp_path / "a.jsonl")[0][0].prompt == (user("hi"),)


def test_pairs_of_a_set_and_what_is_left_out():
    given = compare("abc", (0, 0, 1), margin=0.5, axis="style", annotator="ann", meta={"id": 3, "chosen": "?"})
    rows, left = exports.explicit([given])
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("a", "c"), ("b", "c")] and left == {"tie": 1}
    told = {"id": 3, "source_kind": "human", "annotator": "ann", "axis": "style", "margin": 0.5, "prompt": "hi"}
    told["weight"] = 1 / 3
    assert exports.lost(given, "trl_explicit") == ["chosen"]
    assert rows[0] == told | {"chosen": "a", "rejected": "c"}, "a column of the form's own name is the form's"
    voted = Pair(as_messages("hi"), "a", "b", label=0.25, source_kind="human")
    assert exports.explicit([voted])[0][0] | {"source_kind": ""} == {
        "source_kind": "",
        "soft_label": 0.75,
        "prompt": "hi",
        "chosen": "b",
        "rejected": "a",
    }
    assert exports.explicit([replace(voted, label=0.5)]) == ([], {"tie": 1})


SAID = {
    "axis": "style",
    "annotator": "ann",
    "weight": 0.25,
    "strength": 2,
    "margin": -0.5,
    "item": "7",
    "split": "test",
}
NAMED = {"label": 1, "ranking": ["x"], "completion": "c", "labels": [0], "completions": "d", "value": 3, "id": 5}


@pytest.mark.parametrize("form", ["trl_explicit", "trl_conversational", "trl_implicit", "ranking"])
@pytest.mark.parametrize("kind", ["human", "ai", "synthetic"])
def test_what_a_comparison_says_is_read_back(tmp_path, form, kind):
    meta = {"id": 5, "value": 3} if form == "ranking" else NAMED
    given = [compare(prompt=TALK, **SAID, source_kind=kind, meta=meta), compare(prompt=TALK, source_kind=kind)]
    told = formats_export.write(tmp_path / "a.jsonl", given, form)
    found, report = formats.load(tmp_path / "a.jsonl")
    assert report.dropped == report.notes == told["left_out"] == told["fields_left_out"] == {}
    assert [plain(record) for record in found] == given


@pytest.mark.parametrize("name", ["trl_unpaired", "trl_stepwise"])
def test_what_a_rating_says_is_read_back(write, tmp_path, name):
    said = {"axis": "style", "annotator": "ann", "weight": 0.25, "split": "test", "source_kind": "ai"}
    said |= {"item": "7"} if name == "trl_unpaired" else {}
    given = [row | said | {"id": k} for k, row in enumerate(ROWS[name])]
    path = write("in.jsonl", "\n".join(map(json.dumps, given)))
    rated, report = formats.load_ratings(path)
    assert report.notes == {} and all({k: getattr(r, k) for k in said} == said for r in rated)
    assert not any(said.keys() & r.meta.keys() for r in rated)
    told = formats_export.write(tmp_path / "out.jsonl", rated, name)
    assert lines(tmp_path / "out.jsonl") == given and told["fields_left_out"] == {}


def test_what_a_form_cannot_carry_is_counted(tmp_path):
    given = [compare(**SAID, meta=NAMED | {"axis": "helpfulness"}), compare(meta={"axis": "helpfulness"})]
    told = formats_export.write(tmp_path / "a.jsonl", given, "trl_explicit")
    assert told["fields_left_out"] == {"axis": 2}, "the data set's own name of the axis would be read as ours"
    assert [record.axis for record in formats.load(tmp_path / "a.jsonl")[0]] == ["style", "overall"]
    told = formats_export.write(tmp_path / "a.jsonl", given, "trl_unpaired")
    lost = {"label", "ranking", "completion", "labels", "completions", "strength", "margin"}
    assert told["fields_left_out"] == dict.fromkeys(lost, 1) | {"axis": 2}
    voted = Pair(as_messages("hi"), "a", "b", label=0.75, equal=0.2, margin=1.0, annotator="x", source_kind="human")
    assert exports.lost(voted, "trl_explicit") == ["equal"]
    assert sorted(exports.lost(voted, "trl_unpaired")) == ["equal", "label", "margin"]
    (row,), _ = exports.explicit([replace(voted, label=0.25, weight=0.5)])
    assert (row["chosen"], row["soft_label"], row["weight"], row["annotator"]) == ("b", 0.75, 0.5, "x")
    shown = Demonstration(as_messages("hi"), "Rome", source_kind="human", meta={"label": 1, "axis": "style"})
    assert exports.lost(shown, "trl_prompt_completion") == ["label"]


def test_columns_of_another_kind_stay_the_data_sets_own(write, tmp_path):
    own = {"axis": 3, "weight": "heavy", "strength": None, "item": 7, "annotator": "", "split": ["x"], "id": 1}
    row = {"prompt": "hi", "chosen": "a", "rejected": "b", "source_kind": "human"} | own
    (found,), _ = formats.load(write("a.jsonl", json.dumps(row)))
    assert plain(found) == compare(meta=own)
    formats_export.write(tmp_path / "b.jsonl", [found], "trl_explicit")
    assert lines(tmp_path / "b.jsonl") == [row]
    (found,), _ = formats.load(write("a.csv", "prompt,chosen,rejected,weight,strength\nhi,a,b,0.5,-1\n"))
    assert (found.weight, found.strength) == (0.5, -1.0)
    (found,), _ = formats.load(write("b.csv", "prompt,chosen,rejected,weight,strength\nhi,a,b,-1,2\n"))
    assert (found.weight, found.strength, found.meta["weight"]) == (1.0, 2.0, "-1")


def test_unpaired_labels():
    rows, left = exports.unpaired([compare("abcd", (1, 0, 2, 0)), compare(ranks=(0, 0))])
    assert [(row["completion"], row["label"]) for row in rows] == [("b", True), ("c", False), ("d", True)]
    assert left == {"neither_best_nor_worst": 1, "tie": 1}
    likert = [Rating(as_messages("hi"), str(v), "style", v, (1, 3), source_kind="ai") for v in (1, 2, 3)]
    rows, left = exports.unpaired(likert)
    assert [(row["completion"], row["label"]) for row in rows] == [("1", False), ("3", True)]
    assert left == {"neither_best_nor_worst": 1}
    pair = Pair(as_messages("hi"), "a", "b", label=0.75, source_kind="human")
    flipped, tied = replace(pair, label=0.25), replace(pair, label=0.5, tie=True)
    rows, left = exports.unpaired([pair, flipped, tied])
    assert [(row["completion"], row["label"]) for row in rows] == [("a", True), ("b", False), ("a", False), ("b", True)]
    assert left == {"tie": 1}


def test_prompts_and_demonstrations(tmp_path):
    asked = [Prompt(as_messages("hi"), meta={"answer": 3}), Prompt(TALK), Prompt(as_messages("hi"), meta={"answer": 4})]
    assert exports.prompts(asked) == ([{"prompt": "hi", "answer": 3}, {"prompt": list(TALK)}], {"repeated_prompt": 1})
    assert exports.prompts([compare(meta={"id": 3})])[0] == [{"prompt": "hi"}]
    shown = [Demonstration(p, "Rome", source_kind="human", meta={"id": 1}) for p in (as_messages("hi"), TALK)]
    found, form = again(tmp_path, shown, "trl_prompt_completion", formats.load_demonstrations)
    assert form == "trl_prompt_completion" and found == shown


@pytest.mark.parametrize(
    ("form", "record"),
    [
        ("raw", Prompt(as_messages("hi"))),
        ("raw", Demonstration(as_messages("hi"), "a", source_kind="human")),
        ("trl_explicit", Prompt(as_messages("hi"))),
        ("trl_unpaired", Prompt(as_messages("hi"))),
        ("trl_prompt_completion", compare()),
        ("ranking", Pair(as_messages("hi"), "a", "b", source_kind="human")),
        ("trl_stepwise", Rating(as_messages("hi"), "a", "style", 1, (0, 1), source_kind="human")),
    ],
)
def test_records_that_a_form_cannot_hold(tmp_path, form, record):
    with pytest.raises(UserError, match=f"a {type(record).__name__} cannot be written as"):
        formats_export.write(tmp_path / "a.jsonl", [record], form)
    assert list(tmp_path.iterdir()) == []


def test_a_raw_file_may_hold_comparisons_and_ratings(tmp_path):
    """As the labelling store writes them: each of the two ways to read it takes its own and counts the others."""
    path, provenance = tmp_path / "a.jsonl", {"provenance": {"licence": "", "sha256": "ab"}}
    rated = [
        Rating(as_messages("hi"), text, "style", 1, (1, 5), source_kind="human", source="x", meta=provenance)
        for text in "abc"
    ]
    judged = [compare(source="x", meta=provenance)]
    formats_export.write(path, [*rated, *judged])
    found, report = formats.load(path)
    assert found == judged and report.dropped == {"not_a_comparison": 3}
    found, report = formats.load_ratings(path)
    assert found == rated and report.dropped == {"not_a_rating": 1}


def test_the_manifest(tmp_path):
    sourced = {"provenance": {"licence": "MIT", "sha256": "ab"}, "guideline_version": "g1"}
    given = [
        compare(source="one", annotator="x", meta=sourced),
        compare(source="one", annotator="y", meta=sourced | {"guideline_version": "g2"}),
        compare(ranks=(0, 0), annotator="x"),
        compare(source_kind="synthetic", axis="style"),
        compare(source_kind="ai"),
    ]
    path = tmp_path / "a.jsonl"
    told = formats_export.write(path, given, "trl_explicit", where={"source_kind": ["human", "synthetic"]})
    assert told == json.loads((tmp_path / "a.jsonl.manifest.json").read_text())
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == formats.load(path)[1].sha256
    assert told["bytes"] == path.stat().st_size and told["rows"] == len(lines(path)) == 3 and told["records"] == 4
    assert told["left_out"] == {"filter": 1, "tie": 1}
    assert told["filter"] == {"source_kind": ["human", "synthetic"]}
    assert told["source_kinds"] == {"human": 3, "synthetic": 1} and told["axes"] == {"overall": 3, "style": 1}
    assert told["sources"][0] == {
        "source": "one",
        "licence": "MIT",
        "sha256": "ab",
        "source_kind": "human",
        "records": 2,
    }
    assert (told["form"], told["file"], told["annotators"]) == ("trl_explicit", "a.jsonl", 2)
    assert told["guideline_versions"] == ["g1", "g2"] and told["include_groups"] is False
    assert formats_export.write(path, given, "trl_explicit", where={"source_kind": ["human", "synthetic"]}) == told
    assert {row["source_kind"] for row in lines(path)} == {"human", "synthetic"}, "made-up judgements say so"


def test_filters(tmp_path):
    given = [compare(axis=axis, annotator=name, split=axis) for axis in ("style", "helpful") for name in "xy"]
    for where, count in (({"axis": ["style"]}, 2), ({"axis": ["style"], "annotator": ["y"]}, 1), ({}, 4)):
        assert formats_export.write(tmp_path / "a.jsonl", given, where=where)["rows"] == count
    with pytest.raises(UserError, match="no filter weight; filters are source_kind, axis"):
        formats_export.write(tmp_path / "b.jsonl", given, where={"weight": ["1"]})
    with pytest.raises(UserError, match="none of 4 records gives a row of raw"):
        formats_export.write(tmp_path / "b.jsonl", given, where={"axis": ["none"]})
    with pytest.raises(UserError, match=r"none of 1 records gives a row of trl_explicit \(tie 1\)"):
        formats_export.write(tmp_path / "b.jsonl", [compare(ranks=(0, 0))], "trl_explicit")
    with pytest.raises(UserError, match="no form 'csv'; the forms are raw, ranking"):
        formats_export.write(tmp_path / "b.jsonl", given, "csv")
    assert not (tmp_path / "b.jsonl").exists(), "nothing is written when nothing is left"


PERSONAL = {
    "groups": {"age": "30-39"},
    "annotator_gender": "f",
    "Ethnicity": "x",
    "age": 31,
    "ip": "10.0.0.1",
    "deep": {"worker_name": "Ann", "lang": "en", "list": [{"e-mail": "a@b.c", "id": 3}]},
}


@pytest.mark.parametrize(
    "form", ["raw", "ranking", "trl_explicit", "trl_implicit", "trl_conversational", "trl_unpaired"]
)
def test_who_the_annotators_are_stays_out_unless_asked_for(tmp_path, form):
    given = [compare(annotator="ann@example.org", meta=PERSONAL | {"id": 1})]
    told = formats_export.write(tmp_path / "a.jsonl", given, form)
    text = (tmp_path / "a.jsonl").read_text()
    for gone in ("groups", "30-39", "gender", "thnicity", '"age"', "10.0.0.1", "Ann", "mail", "@"):
        assert gone not in text, gone
    (row,) = lines(tmp_path / "a.jsonl")[:1]
    kept = row["meta"] if form == "raw" else row
    assert kept["id"] == 1 and kept["deep"] == {"lang": "en", "list": [{"id": 3}]}
    assert row["annotator"].startswith("annotator ") and told["include_groups"] is False
    assert told["fields_left_out"].keys() == {
        "groups",
        "annotator_gender",
        "Ethnicity",
        "age",
        "ip",
        "worker_name",
        "e-mail",
    }
    told = formats_export.write(tmp_path / "a.jsonl", given, form, include_groups=True)
    (row,) = lines(tmp_path / "a.jsonl")[:1]
    kept = row["meta"] if form == "raw" else row
    assert {name: kept[name] for name in PERSONAL} == PERSONAL and row["annotator"] == "ann@example.org"
    assert told["include_groups"] is True and told["fields_left_out"] == {}


@pytest.mark.parametrize("name", ["page", "model_name", "language", "named", "engine", "sexual_content", "name", "id"])
def test_fields_that_describe_no_person_stay(name):
    assert not formats_export.is_group(name) and formats_export.is_group("annotator_name")


def test_every_form_of_the_documents_is_there():
    assert exports.FORMS.keys() == {
        *("raw", "ranking", "trl_explicit", "trl_implicit", "trl_conversational", "trl_unpaired", "trl_prompt"),
        *("trl_prompt_completion", "trl_stepwise"),
    }
    assert exports.raw([compare()])[0] == [asdict(compare())]
    assert sum(not pair.tie for pair in pairs(compare("abcd", (0, 1, 1, 2)))) == len(
        exports.explicit([compare("abcd", (0, 1, 1, 2))])[0]
    )
