import csv
import gzip
import io
import json

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.records import Comparison, as_messages, pairs

PANDALM = {
    "idx": 0,
    "instruction": "Name a city.",
    "input": "",
    "response1": "Lyon",
    "response2": "Rome",
    "annotator1": 1,
    "annotator2": 2,
}
LEAVES = [{"text": text, "role": "assistant", "rank": rank, "replies": []} for rank, text in enumerate("ab")]
OASST = {"message_tree_id": "t", "prompt": {"text": "hi", "role": "prompter", "replies": LEAVES}}
HH = {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b"}
EXPLICIT = {"prompt": "hi", "chosen": "a", "rejected": "b"}
IMPLICIT = {"chosen": "hi a", "rejected": "hi b"}
OWN = {"prompt": "hi", "responses": ["a", "b"], "ranks": [0, 1]}
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]
ROWS = {
    "pandalm": PANDALM,
    "oasst": OASST,
    "hh_rlhf": HH,
    "trl_explicit": EXPLICIT,
    "trl_implicit": IMPLICIT,
    "comparison": OWN,
}


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


def as_csv(*rows):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


@pytest.mark.parametrize("name", ROWS)
def test_every_form_is_recognised(write, name):
    for path in (write("a.jsonl", lines(ROWS[name])), write("a.json", json.dumps([ROWS[name]]))):
        records, report = formats.load(path)
        assert report.format == name and report.read == report.kept == 1 and report.records == len(records)
        assert report.dropped == {} and all(isinstance(record, Comparison) for record in records)
        assert {record.source for record in records} == {f"{name}:{path.name}"}
        assert formats.load(path, name)[0] == records
        preferred = [(pair.chosen.strip(), pair.rejected.strip()) for record in records for pair in pairs(record)]
        expected = {"pandalm": [("Lyon", "Rome"), ("Rome", "Lyon")]}.get(name, [("a", "b")])
        assert preferred == expected


@pytest.mark.parametrize("name", ["pandalm", "trl_explicit", "trl_implicit", "hh_rlhf"])
def test_text_forms_as_csv(write, name):
    plain, zipped = write("a.csv", as_csv(ROWS[name])), write("b.csv.gz", gzip.compress(as_csv(ROWS[name]).encode()))
    reference = formats.load(write("a.jsonl", lines(ROWS[name])))[0]
    for path in (plain, zipped):
        found, report = formats.load(path)
        assert report.format == name
        assert [(c.prompt, c.responses, c.ranks) for c in found] == [
            (c.prompt, c.responses, c.ranks) for c in reference
        ]


def test_bad_rows_are_counted_by_reason_and_located(write):
    rows = [EXPLICIT, '{"prompt": ', EXPLICIT | {"chosen": 1}, "", EXPLICIT | {"chosen": 2}, {"prompt": "hi"}, EXPLICIT]
    rows += [EXPLICIT | {"chosen": k} for k in range(5)]
    records, report = formats.load(write("a.jsonl", lines(*rows)))
    assert (report.read, report.kept, report.records, len(records)) == (11, 2, 2, 2)
    assert report.dropped == {"chosen_not_text": 7, "broken_json": 1, "no_chosen": 1}
    assert list(report.dropped) == ["chosen_not_text", "broken_json", "no_chosen"], "the most frequent first"
    assert report.examples["chosen_not_text"] == ["line 3", "line 5", "line 8"]
    assert report.examples["broken_json"] == ["line 2"] and report.examples["no_chosen"] == ["line 6"]
    assert report.kept + sum(report.dropped.values()) == report.read
    assert "chosen_not_text 7 (line 3, line 5, line 8)" in report.text() and "\n" not in report.text()


def test_notes_are_counted_and_located(write):
    row = PANDALM | {"response1": True, "response2": ""}
    _, report = formats.load(write("a.json", json.dumps([PANDALM, row, row | {"annotator1": 7, "annotator2": 8}])))
    assert report.notes == {"boolean_response": 1, "empty_response": 1}, "notes are on rows that were kept"
    assert report.examples["boolean_response"] == ["item 2"]
    assert report.dropped == {"no_usable_label": 1} and report.examples["no_usable_label"] == ["item 3"]


def test_a_comparison_that_is_malformed_says_how(write):
    _, report = formats.load(write("a.jsonl", lines(OWN, OWN | {"ranks": [1, 2]})))
    assert report.dropped == {"not_a_comparison": 1}
    assert report.examples["not_a_comparison"] == ["line 2: ranks must be plain ints, the best of them 0, got (1, 2)"]


def test_duplicates_are_kept(write):
    assert len(formats.load(write("a.jsonl", lines(EXPLICIT, EXPLICIT, EXPLICIT)))[0]) == 3


@pytest.mark.parametrize("name", ["trl_explicit", "trl_implicit", "comparison"])
def test_who_judged_is_never_assumed_in_silence(write, name):
    path = write("a.jsonl", lines(ROWS[name], ROWS[name] | {"source_kind": "synthetic"}))
    records, report = formats.load(path)
    assert [record.source_kind for record in records] == ["human", "synthetic"]
    assert report.notes["source_kind_assumed_human"] == 1
    records, report = formats.load(path, source_kind="ai")
    assert [record.source_kind for record in records] == ["ai", "synthetic"] and report.notes == {}


def test_published_human_data_need_no_assumption(write):
    for name in ("pandalm", "oasst", "hh_rlhf"):
        records, report = formats.load(write("a.jsonl", lines(ROWS[name])), source_kind="ai")
        assert {record.source_kind for record in records} == {"human"} and report.notes == {}


def test_dump_and_load_are_inverse(write, tmp_path):
    path = write("a.jsonl", lines(PANDALM, PANDALM | {"idx": 1, "response2": "Äpfel \u2028"}))
    records = formats.load(path)[0] + [
        Comparison(
            as_messages("plain"),
            ("a", "b", "c"),
            (0, 1, 1),
            source_kind="synthetic",
            axis="harmless",
            strength=2.0,
            margin=0.5,
            weight=0.25,
            split="test",
            meta={"deep": {"list": [1, None]}, "provenance": {"licence": "MIT", "sha256": "0"}},
        )
    ]
    formats.dump(tmp_path / "out.jsonl", records)
    again, report = formats.load(tmp_path / "out.jsonl")
    assert again == records and report.format == "comparison" and report.notes == {}


def test_no_row_of_a_csv_is_lost_without_a_count(write):
    """One quote that is never closed, in row 50 of 5,000."""
    body = [f"p{row},c{row},r{row}" for row in range(5000)]
    body[49] = 'p,"c,r'
    found, report = formats.load(write("a.csv", "\n".join(["prompt,chosen,rejected", *body])), source_kind="human")
    assert (report.read, report.kept, len(found), report.dropped) == (5000, 4999, 4999, {"broken_csv": 1})
    assert report.examples["broken_csv"] == ["line 51: 4951 lines, to line 5001; read on from line 52"]
    assert found[-1].responses == ("c4999", "r4999")


def test_a_damaged_beginning_is_no_damaged_file(write):
    """The form is told by what can be read, however late it comes."""
    found, report = formats.load(write("a.csv", 'prompt,chosen,rejected\np,"c,r\np2,c2,r2\n'))
    assert (
        report.format == "trl_explicit" and found[0].responses == ("c2", "r2") and report.dropped == {"broken_csv": 1}
    )
    found, report = formats.load(write("a.jsonl", "{\n" * 150 + lines(EXPLICIT, EXPLICIT)))
    assert len(found) == 2 and report.dropped == {"broken_json": 150} and report.read == 152


def test_a_row_of_very_many_lines_is_told(write):
    text = "\n".join(f"line {number}" for number in range(200))
    found, report = formats.load(write("a.csv", f'prompt,chosen,rejected\np,"{text}",r\np,c,r\n'))
    assert found[0].responses[0] == text and report.notes["row_of_many_lines"] == 1
    assert report.examples["row_of_many_lines"] == ["line 2: 200 lines, to line 201"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", "\n \n", "has no rows"),
        ("a.json", "[]", "has no rows"),
        ("a.csv", "prompt,chosen,rejected\n", "has no rows"),
        ("a.jsonl", lines({"question": 1, "answer": 2}), "its keys are answer, question; the formats are pandalm"),
        ("a.json", json.dumps({"data": [EXPLICIT]}), "its keys are data; the formats are pandalm"),
        ("a.jsonl", lines(EXPLICIT, OWN), "could be trl_explicit or comparison; name the format"),
        ("a.jsonl", lines(EXPLICIT | OWN), "could be"),
        ("a.jsonl", "{\n[\n", "none of its 2 rows can be read"),
        ("a.jsonl", lines(EXPLICIT | {"chosen": 1}), "no usable row"),
        ("a.jsonl", lines(EXPLICIT | {"margin": "much"}), "bad_margin 1 (line 1)"),
    ],
)
def test_files_of_which_nothing_can_be_used(write, name, content, words):
    path = write(name, content)
    with pytest.raises(UserError) as error:
        formats.load(path)
    assert words in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_unknown_names_and_missing_files(write, tmp_path):
    path = write("a.jsonl", lines(EXPLICIT))
    with pytest.raises(UserError, match="no format 'trl'; the formats are auto, pandalm"):
        formats.load(path, "trl")
    with pytest.raises(UserError, match="no format 'trl_messages'"):
        formats.load(path, "trl_messages")
    with pytest.raises(UserError, match="no file"):
        formats.load(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="is a folder"):
        formats.load_prompts(tmp_path)
    with pytest.raises(UserError, match="source_kind is one of human, ai, synthetic"):
        formats.load(path, source_kind="crowd")
    with pytest.raises(UserError, match='"keep" or "drop"'):
        formats.load(path, synthetic="maybe")


def test_a_few_rows_of_another_form_do_not_decide(write):
    records, report = formats.load(write("a.jsonl", lines(IMPLICIT, EXPLICIT, {"x": 1}, EXPLICIT, "{")))
    assert report.format == "trl_explicit" and len(records) == 2
    assert report.dropped == {"no_prompt": 2, "broken_json": 1}


def test_a_named_form_is_believed(write):
    path = write("a.jsonl", lines(HH, HH))
    assert formats.load(path, "trl_implicit")[0][0].prompt[0]["content"] == "\n\nHuman: hi\n\nAssistant:"
    with pytest.raises(UserError, match="no usable row"):
        formats.load(path, "pandalm")


@pytest.mark.parametrize("names", [("pandalm", 2), ("oasst", 1)])
def test_prompts_of_comparisons_are_given_once(write, names):
    name, judgements = names
    path = write("a.jsonl", lines(ROWS[name], ROWS[name]))
    assert len(formats.load(path)[0]) == 2 * judgements
    found, report = formats.load_prompts(path)
    assert len(found) == report.records == 1 and found[0].prompt == formats.load(path)[0][0].prompt


def test_prompts_keep_order_and_other_columns(write):
    rows = [{"prompt": text, "answer": k} for k, text in enumerate(["b", "a", "b"])]
    found, report = formats.load_prompts(write("a.csv", as_csv(*rows)))
    assert [p.prompt[0]["content"] for p in found] == ["b", "a", "b"] and report.format == "trl_prompt"
    assert [p.meta for p in found] == [{"answer": "0"}, {"answer": "1"}, {"answer": "2"}]
    found, report = formats.load_prompts(write("a.jsonl", lines({"messages": TALK}, {"messages": []})))
    assert found[0].prompt == tuple(TALK[:1]) and report.dropped == {"messages_empty": 1}
    first = [EXPLICIT | {"prompt": text, "n": n} for n, text in enumerate("cbacb")]
    found, _ = formats.load_prompts(write("b.jsonl", lines(*first)))
    assert [p.prompt[0]["content"] for p in found] == ["c", "b", "a"]
    assert [p.meta for p in found] == [{"n": 0}, {"n": 1}, {"n": 2}] and found[0].source == "trl_explicit:b.jsonl"
    assert formats.load_prompts(write("c.jsonl", lines({"prompt": "a", "messages": TALK})))[1].format == "trl_prompt"
    with pytest.raises(UserError, match="the plainest is trl_prompt \\(prompt\\)"):
        formats.load_prompts(write("d.jsonl", lines({"text": "a"})))


def test_demonstrations(write):
    path = write("a.jsonl", lines({"prompt": "hi", "completion": "a"}, {"prompt": "hi"}))
    found, report = formats.load_demonstrations(path)
    assert [(d.prompt, d.completion) for d in found] == [(as_messages("hi"), "a")]
    assert report.dropped == {"no_completion": 1} and report.notes == {"source_kind_assumed_human": 1}
    found, report = formats.load_demonstrations(write("b.jsonl", lines({"messages": TALK})), source_kind="ai")
    assert [(d.completion, d.source_kind) for d in found] == [("a", "ai")] and report.format == "trl_messages"
    with pytest.raises(UserError, match="trl_prompt_completion"):
        formats.load_demonstrations(write("c.jsonl", lines({"prompt": "hi"})))


def test_the_best_responses_of_comparisons_are_demonstrations(write):
    rows = [PANDALM | {"annotator3": 2}, PANDALM | {"idx": 1}]
    found, report = formats.load_demonstrations(write("a.jsonl", lines(*rows)))
    assert [d.completion for d in found] == ["Rome"], "2 to 1 in the first item, 1 to 1 in the second"
    assert report.read == 2 and report.records == 1
    with pytest.raises(UserError, match="no item has a single best response"):
        formats.load_demonstrations(write("c.jsonl", lines(PANDALM)))
    made = OASST | {"prompt": OASST["prompt"] | {"synthetic": True}}
    path = write("b.jsonl", lines(OASST, made))
    assert len(formats.load_demonstrations(path)[0]) == 1, "two judgements of one item"
    assert len(formats.load(path, synthetic="drop")[0]) == 1 and len(formats.load(path)[0]) == 2
    assert len(formats.load_prompts(path, synthetic="drop")[0]) == 1
    assert formats.load_demonstrations(path, synthetic="drop")[1].dropped == {"synthetic_only": 1}


def test_lines_are_bounded(write):
    long = EXPLICIT | {"chosen": "x" * 1000}
    records, report = formats.load(write("a.jsonl", lines(EXPLICIT, long, EXPLICIT)), max_line=500)
    assert (
        len(records) == 2 and report.dropped == {"line_too_long": 1} and report.examples["line_too_long"] == ["line 2"]
    )


def test_rows_past_the_first_hundred_are_read_too(write):
    records, report = formats.load(write("a.jsonl", lines(*[EXPLICIT] * 250, {"x": 1})))
    assert len(records) == 250 and report.dropped == {"no_prompt": 1} and report.examples["no_prompt"] == ["line 251"]
