"""convert.py: one form in, another out, and what it says about it."""

import json
import sys
from pathlib import Path

import convert
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.runs import config
from tests.experiments.conftest import lines

ROW = {
    "idx": 0,
    "instruction": "Name a city.",
    "input": "",
    "response1": "Lyon",
    "response2": "Rome",
    "annotator1": 1,
    "annotator2": 2,
    "annotator3": 1,
    "annotator_age": 31,
}


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "votes.json"
    path.write_text(json.dumps([ROW, ROW | {"idx": 1, "instruction": "Name a river.", "annotator1": 0}]))
    return str(path)


def settings(given, tmp_path, **changes):
    return convert.Experiment(given, str(tmp_path / "out.jsonl"), **changes)


def test_pandalm_becomes_pairs_for_trl(given, tmp_path, capsys):
    told = convert.main(settings(given, tmp_path, form="trl_explicit"))
    rows = lines(tmp_path / "out.jsonl")
    asked = [[{"role": "user", "content": text}] for text in ("Name a city.", "Name a river.")]
    assert [row["prompt"] for row in rows] == [asked[0]] * 3 + [asked[1]] * 2
    assert [row["chosen"][0]["content"] for row in rows] == ["Lyon", "Rome", "Lyon", "Rome", "Lyon"]
    assert told == json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert told["left_out"] == {"tie": 1} and told["fields_left_out"] == {"annotator_age": 5}
    shown = capsys.readouterr().out
    assert "(pandalm; the set published in this form is under Apache-2.0): 2 rows read, 2 kept as 6 records." in shown
    assert "5 rows of trl_explicit from 6 records (6 human); left out: tie 1." in shown


def test_what_is_kept(given, tmp_path):
    loaded = formats.load(given)[0]
    assert convert.main(settings(given, tmp_path))["rows"] == 6
    assert formats.load(tmp_path / "out.jsonl")[0][0].ranks == loaded[0].ranks
    Path(given).write_text(json.dumps([ROW, ROW]))
    assert convert.main(settings(given, tmp_path, repeats="drop"))["rows"] == 3
    with pytest.raises(UserError, match="none of 6 records"):
        convert.main(settings(given, tmp_path, source_kinds=("ai",)))
    assert convert.main(settings(given, tmp_path, axes=("overall",), source_kinds=("human",)))["rows"] == 6
    told = convert.main(settings(given, tmp_path, include_groups=True))
    assert told["fields_left_out"] == {} and lines(tmp_path / "out.jsonl")[0]["meta"]["annotator_age"] == 31


def test_what_evaluation_has_is_left_out(given, tmp_path, capsys):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "name a city"}))
    told = convert.main(settings(given, tmp_path, against=str(held)))
    assert told["rows"] == 3 and {row["prompt"][0]["content"] for row in lines(tmp_path / "out.jsonl")} == {
        "Name a river."
    }
    assert "3 of 6" in capsys.readouterr().out
    Path(given).write_text(json.dumps([ROW]))
    with pytest.raises(UserError, match="every record of .* shares a prompt"):
        convert.main(settings(given, tmp_path, against=str(held)))


def test_prompts_demonstrations_and_ratings(given, tmp_path):
    assert convert.main(settings(given, tmp_path, records="prompts", form="trl_prompt"))["rows"] == 2
    shown = convert.main(settings(given, tmp_path, records="demonstrations", form="trl_prompt_completion"))
    assert shown["rows"] == 1, "one to one in the second item"
    rated = tmp_path / "rated.jsonl"
    scores = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    rated.write_text(json.dumps({"prompt": "p", "response": "r", "helpfulness": 3} | scores))
    told = convert.main(settings(str(rated), tmp_path, records="ratings"))
    assert told["axes"] == {"helpful": 1, "honest": 1, "style": 1, "other": 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"form": "csv"}, "form must be one of raw, ranking"),
        ({"records": "votes"}, "records must be one of comparisons, ratings"),
        ({"repeats": "maybe"}, "repeats must be one of keep, drop"),
        ({"repeats": "drop", "records": "ratings"}, "only comparisons can be repeated"),
    ],
)
def test_settings_that_are_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        settings("a.json", tmp_path, **change)


def test_from_the_command_line(given, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.jsonl"
    command = ["convert.py", "--out", str(out), "--form", "trl_implicit", "--axes", '["overall"]', "--given"]
    monkeypatch.setattr(sys, "argv", [*command, given])
    config.command(convert.main, convert.Experiment)
    assert len(lines(out)) == 5
    monkeypatch.setattr(sys, "argv", [*command, "none.json"])
    with pytest.raises(SystemExit) as caught:
        config.command(convert.main, convert.Experiment)
    assert caught.value.code == 2 and "no data at none.json" in capsys.readouterr().err


def test_who_judged_where_the_file_does_not_say(tmp_path, given, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Name a city.", "chosen": "Lyon", "rejected": "Rome"}))
    assert convert.main(settings(str(pairs), tmp_path))["source_kinds"] == {"human": 1}
    assert "does not say who judged 1 of its rows: TAKEN AS HUMAN" in capsys.readouterr().out
    for kind in ("human", "ai", "synthetic"):
        assert convert.main(settings(str(pairs), tmp_path, source_kind=kind))["source_kinds"] == {kind: 1}
        assert "TAKEN AS HUMAN" not in capsys.readouterr().out
        assert lines(tmp_path / "out.jsonl")[0]["source_kind"] == kind
    for records in ("comparisons", "demonstrations"):
        with pytest.raises(UserError, match="itself says who judged: human"):
            convert.main(settings(given, tmp_path, source_kind="ai", records=records))
    with pytest.raises(UserError, match="source_kind"):
        settings(given, tmp_path, source_kind="robot")
    with pytest.raises(UserError, match="nobody judges a prompt"):
        settings(given, tmp_path, source_kind="ai", records="prompts")
