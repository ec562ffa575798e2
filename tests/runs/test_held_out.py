"""Evaluation data without leaks; and files of judgements with who judged."""

import json

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.records import Prompt, as_messages
from rlhf_jax.runs import held_out, who_judged

TEMPLATE = "please read the text below with care and then say in one word what it is about"


def asked(*texts):
    return [Prompt(as_messages(text)) for text in texts]


def test_leaks_are_told_and_left_out(capsys):
    train = asked("Name a city", f"{TEMPLATE}: rivers")
    held = asked("Name a river", "name a city!", f"{TEMPLATE}: lakes", "Why?")
    assert held_out.clean(train, held, "held out") == [held[0], held[3]]
    told = capsys.readouterr().out
    assert told == (
        "held out: 2 of 4 evaluation records (50.0%) are in the training data: 1 whole, 1 by 13 words in a row. They are "
        "left out.\n"
    )
    assert held_out.clean(train, held, "held out", "keep") == held
    assert "1 whole, 1 by 13 words in a row. They are kept" in capsys.readouterr().out
    assert held_out.clean(train, held[:1], "held out") == held[:1]
    assert capsys.readouterr().out.endswith("0 by 13 words in a row.\n")


def test_a_template_that_all_prompts_share_leaves_only_whole_copies_out(capsys):
    train, held = asked(f"{TEMPLATE}: rivers"), asked(f"{TEMPLATE}: lakes", f"{TEMPLATE}:  RIVERS")
    assert held_out.clean(train, held, "held out") == held[:1]
    assert "taken for a template" in capsys.readouterr().out


def test_nothing_to_evaluate_on(capsys):
    with pytest.raises(UserError, match="held out: every prompt is in the training data"):
        held_out.clean(asked("Name a city"), asked("name a city", "NAME A CITY"), "held out")
    assert held_out.clean(asked("a"), [], "held out") == []


ROW = {"prompt": "hi", "chosen": "a", "rejected": "b"}


def write(tmp_path, *rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_nobody_is_taken_for_human_in_silence(tmp_path, capsys):
    path = write(tmp_path, ROW, ROW, ROW | {"source_kind": "ai"})
    found, told = who_judged.read(formats.load, path, "auto")
    assert [each.source_kind for each in found] == ["human", "human", "ai"]
    lines = capsys.readouterr().out.splitlines()
    (warned,) = (line for line in lines if line.startswith("warning"))
    assert f"{path} does not say who judged 2 of its rows: TAKEN AS HUMAN" in warned and "source_kind" in warned
    assert who_judged.mix(found, told) == "human 2, ai 1 (human assumed in 2 rows, which do not say)"


@pytest.mark.parametrize("kind", ["human", "ai", "synthetic"])
def test_the_configuration_says_who_judged_where_the_file_does_not(tmp_path, capsys, kind):
    found, told = who_judged.read(formats.load, write(tmp_path, ROW, ROW), "auto", kind)
    assert {each.source_kind for each in found} == {kind} and who_judged.mix(found, told) == f"{kind} 2"
    assert "warning" not in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"source_kind is {kind}, but .* itself says who judged: .* 1; leave it out"):
        other = "ai" if kind == "human" else "human"
        who_judged.read(formats.load, write(tmp_path, ROW, ROW | {"source_kind": other}), "auto", kind)


def test_a_published_set_that_says_who_judged_is_believed(tmp_path):
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    with pytest.raises(UserError, match="itself says who judged: human 1"):
        who_judged.read(formats.load, write(tmp_path, row), "auto", "ai")
    assert who_judged.read(formats.load, write(tmp_path, row), "auto", "human")[0][0].source_kind == "human"
