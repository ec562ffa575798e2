"""Out of the store and back: records, files, manifests, and what never leaves."""

import hashlib
import json
from contextlib import closing
from dataclasses import replace

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.records import Comparison, Rating
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import Candidate, NewItem, add_annotator, add_items
from rlhf_jax.feedback.store.assign import Rules, next_task
from rlhf_jax.feedback.store.export import Which, export, records
from rlhf_jax.feedback.store.judge import undo
from rlhf_jax.feedback.store.read import judged, judgements
from tests.feedback.judging import PLAIN, asked, judge_all, pairs, say, shown, store

CHAT = [{"role": "user", "content": "hi \u00e9"}]


def verdict(task):
    """Likes the item's responses in the order in which they are listed, whatever the order shown."""
    order = shown(task)
    if len(order) == 2:
        return {"strength": -2 if order == [0, 1] else 2}
    return {"ranks": order} if len(order) > 2 else {"ratings": {"helpful": 4, "honest": 2}}


@pytest.fixture
def con(tmp_path):
    """A pair, a ranking and a rating of a conversation, judged by ann (human, with groups) and bot (synthetic)."""
    con = open_store(tmp_path / "judgements.sqlite")
    con.execute("PRAGMA synchronous = OFF")
    add_items(
        con,
        [
            NewItem(CHAT, [Candidate("a", "old"), Candidate("b", "new")], target_n=2, source="p.jsonl", round=1),
            NewItem("p", ["x", "y", "z"], kind="rank", target_n=2, axes=("style",), selection="active:bald", score=0.5),
            NewItem(CHAT, ["only"], kind="rate", axes=(), target_n=2),
        ],
    )
    add_annotator(con, "Ann Other", groups={"age": "30-39", "country": "secretland"})
    add_annotator(con, "bot", source_kind="synthetic")
    for row in con.execute("SELECT id FROM annotator ORDER BY rowid").fetchall():
        judge_all(con, row["id"], verdict)
    return con


class TestRecords:
    def test_have_what_was_said_in_the_items_own_order(self, con):
        found, left = records(con)
        assert not left and len(found) == 2 * (1 + 1 + 2)
        of = {(type(r).__name__, r.axis): r for r in found}
        pair, ranking = of["Comparison", "overall"], of["Comparison", "style"]
        assert (pair.responses, pair.ranks, pair.strength, pair.item) == (("a", "b"), (0, 1), 2, "1")
        assert pair.prompt == tuple(CHAT) and pair.source == "p.jsonl" and pair.meta["policies"] == ["old", "new"]
        assert (ranking.responses, ranking.ranks) == (("x", "y", "z"), (0, 1, 2))
        assert ranking.meta["selection"] == "active:bald" and ranking.meta["score"] == 0.5
        helpful, honest = of["Rating", "helpful"], of["Rating", "honest"]
        assert (helpful.value, honest.value, helpful.scale, helpful.response) == (4, 2, (1, 5), "only")

    def test_carry_how_they_were_shown(self, con):
        for record in records(con)[0]:
            if isinstance(record, Comparison) and len(record.responses) == 2:
                order, said = record.meta["shown"], record.meta["said"]["strength"]
                assert record.responses[order[int(said > 0)]] == "a"
            assert record.meta["guideline_version"] == asked(con).guideline_version
            assert record.meta["ui_version"] == "ui" and "ms" in record.meta

    def test_synthetic_words_are_synthetic(self, con):
        kinds = {name: kind for name, kind in con.execute("SELECT id, source_kind FROM annotator")}
        assert sorted(kinds.values()) == ["human", "synthetic"]
        assert all(record.source_kind == kinds[record.annotator] for record in records(con)[0])

    def test_groups_are_not_even_in_the_records(self, con):
        assert all("groups" not in record.meta for record in records(con)[0])
        told = [record.meta.get("groups") for record in records(con, include_groups=True)[0]]
        assert {"age": "30-39", "country": "secretland"} in told and None in told

    def test_both_bad_is_a_tie_that_says_so(self, tmp_path):
        (tmp_path / "b").mkdir()
        con, (ann,) = store(tmp_path / "b", pairs(1), "ann")
        say(con, ann, next_task(con, ann, PLAIN), {"both_bad": True})
        (record,) = records(con)[0]
        assert record.ranks == (0, 0) and record.meta["both_bad"] is True and record.strength is None

    @pytest.mark.parametrize(
        ("which", "left"),
        [
            (Which(rounds=[1]), {"round": 4}),
            (Which(source_kinds=["human"]), {"source_kind": 3}),
            (Which(selections=["random"]), {"selection": 2}),
            (Which(guideline_versions=["other"]), {"guideline_version": 6}),
        ],
    )
    def test_are_chosen_and_the_rest_is_counted(self, con, which, left):
        found, counted = records(con, which)
        assert counted == left
        for record in found:
            assert which.rounds is None or record.meta["round"] == 1
            assert which.source_kinds is None or record.source_kind == "human"
            assert which.selections is None or record.meta["selection"] == "random"

    def test_what_is_skipped_undone_flagged_gold_or_repeated_is_left_out(self, tmp_path):
        (tmp_path / "b").mkdir()
        gold = NewItem("gold", ["x", "y"], gold={"strength": -1})
        con, (ann,) = store(tmp_path / "b", [*pairs(40), gold], "ann")
        rules = Rules(gold_rate=0.4, repeat_rate=0.4, repeat_gap=2)  # none of either in 30: once in 10⁶
        judge_all(con, ann, verdict, rules, limit=30)
        for more in ({"verdict": {"skip": True}}, {"flags": ["personal data"]}, {"flags": ["unsafe"]}, {}):
            say(con, ann, next_task(con, ann, PLAIN), **{"verdict": {"strength": 0}, **more})
        undo(con, ann, asked(con).guideline_version, PLAIN)
        rows = judgements(con)
        repeats = sum(row["repeat_of"] is not None for row in rows)
        found, left = records(con)
        assert left == {"skipped": 1, "flagged personal data": 1, "gold": 1, "repeat": repeats} and repeats > 0
        assert len(found) == len(rows) - 3 - repeats
        assert len(records(con, Which(gold=True, repeats=True, without_flags=()))[0]) == len(rows) - 1


class TestFiles:
    def test_raw_comes_back_as_it_went(self, con, tmp_path):
        manifest = export(con, tmp_path / "out.jsonl")
        found, _ = records(con)
        comparisons, _ = formats.load(tmp_path / "out.jsonl", "comparison")
        ratings, _ = formats.load_ratings(tmp_path / "out.jsonl", "rating")
        assert [bare(r) for r in comparisons] == [bare(r) for r in found if isinstance(r, Comparison)]
        assert [bare(r) for r in ratings] == [bare(r) for r in found if isinstance(r, Rating)]
        assert manifest["rows"] == manifest["records"] == len(found) == 8

    @pytest.mark.parametrize("form", ["trl_explicit", "trl_implicit", "trl_conversational", "ranking"])
    def test_an_export_of_what_was_imported_is_the_same_file(self, tmp_path, form):
        """Out, in, and out again: not a byte differs."""
        (tmp_path / "b").mkdir()
        items = [NewItem(CHAT, [f"a {i}", f"b {i}"]) for i in range(5)]
        con, (ann,) = store(tmp_path / "b", items, "ann")
        judge_all(con, ann, verdict)
        export(con, tmp_path / "one.jsonl", form)
        back, report = formats.load(tmp_path / "one.jsonl", form.replace("conversational", "explicit"))
        assert len(back) == 5 and not report.dropped
        from rlhf_jax.feedback.formats.write import write

        write(tmp_path / "two.jsonl", back, form)
        again, _ = formats.load(tmp_path / "two.jsonl", form.replace("conversational", "explicit"))
        assert [(r.prompt, r.responses, r.ranks) for r in again] == [(r.prompt, r.responses, r.ranks) for r in back]
        lines = [[json.loads(line) for line in open(tmp_path / name)] for name in ("one.jsonl", "two.jsonl")]
        columns = {"prompt", "chosen", "rejected", "ranking"}
        assert [cut(row, columns) for row in lines[0]] == [cut(row, columns) for row in lines[1]] != []
        assert {r.responses[r.ranks.index(0)][0] for r in back} == {"a"}

    def test_unpaired_has_the_best_and_the_worst(self, tmp_path):
        (tmp_path / "b").mkdir()
        con, (ann,) = store(tmp_path / "b", pairs(3), "ann")
        judge_all(con, ann, verdict)
        export(con, tmp_path / "out.jsonl", "trl_unpaired")
        rows = [json.loads(line) for line in open(tmp_path / "out.jsonl")]
        assert len(rows) == 6 and all(row["label"] == row["completion"].startswith("a") for row in rows)

    def test_the_manifest_tells_what_is_in_the_file(self, con, tmp_path):
        manifest = export(con, tmp_path / "out.jsonl", which=Which(source_kinds=["synthetic"]), now=9.0)
        assert json.loads((tmp_path / "out.jsonl.manifest.json").read_text()) == json.loads(json.dumps(manifest))
        content = (tmp_path / "out.jsonl").read_bytes()
        assert manifest["sha256"] == hashlib.sha256(content).hexdigest() and manifest["rows"] == 4
        assert manifest["source_kinds"] == {"synthetic": 4} and manifest["which"]["source_kinds"] == ["synthetic"]
        assert manifest["left_out"] == {"source_kind": 3}
        assert manifest["guideline_versions"] == [asked(con).guideline_version]
        row = dict(con.execute("SELECT * FROM export").fetchone())
        assert (row["sha256"], row["n_rows"], row["created_at"]) == (manifest["sha256"], 4, 9.0)
        assert json.loads(row["filter"])["source_kinds"] == ["synthetic"]

    def test_groups_and_names_stay_unless_asked_for(self, con, tmp_path):
        export(con, tmp_path / "out.jsonl")
        export(con, tmp_path / "asked.jsonl", include_groups=True)
        quiet, told = ((tmp_path / name).read_text() for name in ("out.jsonl", "asked.jsonl"))
        for word in ("groups", "30-39", "secretland"):
            assert word not in quiet and word in told
        for text in (quiet, told, (tmp_path / "out.jsonl.manifest.json").read_text()):
            assert "Ann" not in text and "bot" not in text.replace("both", "")
        assert json.loads((tmp_path / "asked.jsonl.manifest.json").read_text())["include_groups"] is True

    @pytest.mark.parametrize("form", ["trl_explicit", "ranking"])
    def test_ratings_are_left_out_of_forms_that_have_none_and_counted(self, con, tmp_path, form):
        manifest = export(con, tmp_path / "out.jsonl", form)
        assert manifest["left_out"] == {"rating": 4} and manifest["records"] == 4

    def test_nothing_to_export_writes_nothing(self, con, tmp_path):
        with pytest.raises(UserError, match=r"none of the 6 judgements counts \(round 6\); nothing is written"):
            export(con, tmp_path / "out.jsonl", which=Which(rounds=[99]))
        for form in ("raw", "trl_explicit"):
            with (
                closing(open_store(tmp_path / f"{form}.sqlite")) as empty,
                pytest.raises(
                    UserError, match="nobody has judged anything yet: open a link .* export again; nothing is"
                ),
            ):
                export(empty, tmp_path / "out.jsonl", form)
        assert not (tmp_path / "out.jsonl").exists()
        assert con.execute("SELECT count(*) FROM export").fetchone()[0] == 0


def test_rows_for_the_statistics_are_the_judgements(con):
    rows, plain = judged(con), judgements(con)
    assert len(rows) == len(plain) == 6
    for row, source in zip(rows, plain, strict=True):
        assert (row.annotator, row.item, row.kind) == (source["annotator"], str(source["item"]), source["kind"])
        assert row.shown == tuple(source["shown"]) and row.source_kind == source["source_kind"]
        texts = [*source["responses"], *(message["content"] for message in source["prompt"])]
        assert row.characters == sum(map(len, texts)) and "scales" not in row.verdict


def bare(record):
    """Without what a file of records adds on its way back: where it was read from."""
    meta = {name: value for name, value in record.meta.items() if name != "provenance"}
    return replace(record, meta=meta, source="")


def cut(row, columns):
    return {name: value for name, value in row.items() if name in columns}
