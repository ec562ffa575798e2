"""A sweep in a page of documentation: what the committed numbers say, to the last digit, and nothing else changed."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.runs.sweep import compare, page, publish, results, spec
from tests.runs.sweeps import ROOT
from tests.runs.test_sweep_page import made

LOSSES = ["experiments/ppo.py", "experiments/sweeps/ppo_details.yaml", "experiments/results/ppo_details.csv"]
PAGE = "# Words\n\nbefore\n\n<!-- rollout/score -->\nold\n<!-- /rollout/score -->\n\nafter\n"


def sweep_of(found):
    return spec.Sweep("", Path(), dict.fromkeys(found.arms, {}), found.seeds, found.metrics, found.baseline)


def written(found, tmp_path):
    results.write_csv(tmp_path / "summary.csv", results.summary(found))
    return publish.from_csv(sweep_of(found), tmp_path / "summary.csv")


def test_the_csv_alone_gives_the_same_comparison(tmp_path):
    found = made()
    broken = found.outcomes[-1]._replace(status="failed", values={}, error="x")
    for each in (found, found._replace(outcomes=(*found.outcomes[:-1], broken))):
        assert compare.table(written(each, tmp_path)) == compare.table(each)


def test_a_page_is_filled_and_filling_it_again_changes_nothing():
    text, drawings = publish.fill(PAGE, made(), "sweep")
    assert text.startswith("# Words\n\nbefore\n\n<!-- rollout/score -->\n![") and text.endswith("\n\nafter\n")
    assert "old" not in text and publish.fill(text, made(), "sweep") == (text, drawings)
    assert list(drawings) == ["sweep.rollout_score.svg"] and "](sweep.rollout_score.svg)" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and lines[0].startswith("| arm | seeds | IQM |") and lines[1].count("---") == 6
    row = page.cells(compare.compare(made(), made().metrics[0])[1], "base")
    assert row["paired difference"].replace("\u00a0", " ") in lines[3] and lines[3].startswith("| mine | 5 | ")


def test_a_drawing_is_a_whole_svg_that_needs_no_page():
    svg = publish.drawing(made(), made().metrics[0])
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("width") and root.get("aria-label")
    style = root.find("{http://www.w3.org/2000/svg}style").text
    used = set(re.findall(r"var\((--\w+)\)", style))
    assert used and used <= set(re.findall(r"(--\w+):", style)), "a colour that only the page knows"
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "rollout/score (points per response)" in texts and "mine" in texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Words\n", "the page has no passage between"),
        (PAGE.replace("score", "scroe"), "the sweep compares no such metric; did you mean 'rollout/score'?"),
    ],
)
def test_a_page_without_a_place_is_told(text, words):
    with pytest.raises(UserError, match=re.escape(words)):
        publish.fill(text, made(), "sweep")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rollout/score", "reward", "has no column 'rollout/score'; is it the summary.csv of this sweep?"),
        ("mine,0", "mien,0", "the sweep has no arm 'mien'; did you mean 'mine'?"),
        ("mine,4", "mine,5", "has no row of 'mine', seed 4, which the sweep has"),
        ("mine,4", "mine,3", "has two rows of 'mine', seed 3: keep one"),
        ("mine,4", "mine,x", "row 10: seed must be a whole number, got 'x'"),
        ("mine4,", "mine4,abc", "row 10: rollout/score must be a number, got 'abc"),
        ("mine4,", "mine4,nan,", "row 10 has not as many cells as the first line has columns"),
        ("mine,4,done", "mine,4", "row 10 has not as many cells as the first line has columns"),
        ("mine", "\udcff", "summary.csv: not UTF-8 text (byte "),
    ],
)
def test_a_csv_of_another_sweep_is_told(tmp_path, old, new, words):
    found = made()
    written(found, tmp_path)
    path = tmp_path / "summary.csv"
    path.write_text(path.read_text().replace(old, new), errors="surrogateescape")
    with pytest.raises(UserError, match=re.escape(words)):
        publish.from_csv(sweep_of(found), path)


def test_the_command_says_in_one_line_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = ["experiments/ppo.py", "experiments/sweeps/kl.yaml"]
    assert publish.main([*sweep, str(tmp_path / "no.csv"), "PAGE.md"]) == 2
    assert (
        capsys.readouterr().err == f"error: cannot read the summary: {tmp_path / 'no.csv'}: No such file or directory\n"
    )
    (tmp_path / "page.md").write_bytes(b"\xff")
    assert publish.main([*LOSSES, str(tmp_path / "page.md")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'page.md'}: not UTF-8 text (byte 0)\n"
    assert publish.main([*LOSSES, str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"
