"""The file of judgements: its versions, what it refuses, and that nothing in it is ever lost."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import store as store_module
from rlhf_jax.feedback.store import open_store, writing
from rlhf_jax.feedback.store.add import (
    Candidate,
    NewItem,
    add_annotator,
    add_guideline,
    add_items,
    annotator_of,
    new_token,
)
from rlhf_jax.feedback.store.assign import next_task
from rlhf_jax.feedback.store.read import annotators, judgements
from rlhf_jax.feedback.store.schema import APPLICATION_ID, STEPS
from tests.feedback.judging import PLAIN, judge_all, pairs, say, store


def tables(path) -> set[str]:
    with sqlite3.connect(path) as con:
        return {row[0] for row in con.execute("SELECT name FROM sqlite_master")}


class TestTheFile:
    def test_is_made_with_a_log_checks_and_a_version(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        pragmas = {name: con.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
        assert pragmas == {"journal_mode": "wal", "synchronous": 2}
        assert con.execute("PRAGMA foreign_keys").fetchone()[0] == 1
        assert con.execute("PRAGMA user_version").fetchone()[0] == len(STEPS)
        assert con.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID

    def test_is_its_owners_only(self, tmp_path):
        open_store(tmp_path / "a.sqlite")
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
        assert modes and set(modes.values()) == {0o600}, modes

    def test_a_missing_folder_a_folder_and_a_missing_file_are_told(self, tmp_path):
        for path, more, told in (
            (tmp_path / "no" / "a.sqlite", {}, "does not exist"),
            (tmp_path, {}, "is a folder"),
            (tmp_path / "a.sqlite", {"create": False}, "no such file"),
        ):
            with pytest.raises(UserError, match=told):
                open_store(path, **more)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_written_is_told(self, monkeypatch, tmp_path):
        def refuses(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(store_module.os, "open", refuses)
        with pytest.raises(UserError, match="cannot be made: Permission denied"):
            open_store(tmp_path / "a.sqlite")

    def test_another_programs_database_is_left_alone(self, tmp_path):
        path = tmp_path / "theirs.sqlite"
        with sqlite3.connect(path) as con:
            con.execute("CREATE TABLE theirs(x)")
        con.close()
        before = path.read_bytes()
        with pytest.raises(UserError, match="not one of judgements"):
            open_store(path)
        assert path.read_bytes() == before

    def test_a_file_that_is_no_database_is_told(self, tmp_path):
        (tmp_path / "a.sqlite").write_bytes(b"prompt,answer\n" * 100)
        with pytest.raises(UserError, match="not a database"):
            open_store(tmp_path / "a.sqlite")

    def test_a_newer_file_is_not_touched(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        con.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
        con.close()
        before = tables(tmp_path / "a.sqlite")
        with pytest.raises(UserError, match=f"version {len(STEPS) + 1}, and this rlhf-jax knows {len(STEPS)}"):
            open_store(tmp_path / "a.sqlite")
        assert tables(tmp_path / "a.sqlite") == before

    def test_two_processes_make_it_once(self, tmp_path):
        line = "import sys; from rlhf_jax.feedback.store import *; print(seed_of(open_store(sys.argv[1])))"
        command = [sys.executable, "-c", line, str(tmp_path / "a.sqlite")]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        seeds = {process.communicate(timeout=60)[0] for process in started}
        assert len(seeds) == 1 and len(seeds.pop().strip()) == 32

    def test_many_threads_open_and_write_it(self, tmp_path):
        path, faults = tmp_path / "a.sqlite", []

        def work(k):
            try:
                con = open_store(path)
                add_annotator(con, f"person {k}")
                con.close()
            except Exception as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(20)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not faults
        assert len(annotators(open_store(path))) == 20


class TestMigration:
    """A file of version 1 (tables, without the triggers that refuse changes) becomes one of today."""

    @pytest.fixture
    def old(self, tmp_path, monkeypatch):
        with monkeypatch.context() as past:
            past.setattr(store_module, "STEPS", STEPS[:1])
            con, (ann,) = store(tmp_path, pairs(3), "ann")
            judge_all(con, ann, lambda task: {"strength": 2})
            rows = judgements(con)
            con.close()
        assert len(rows) == 3
        return tmp_path / "judgements.sqlite", rows

    def test_keeps_every_row_and_takes_the_new_rules(self, old):
        path, rows = old
        with sqlite3.connect(path) as plain:
            assert plain.execute("PRAGMA user_version").fetchone()[0] == 1
            assert plain.execute("UPDATE judgement SET ms = ms WHERE id = 1").rowcount == 1  # version 1 let it happen
        con = open_store(path)
        assert con.execute("PRAGMA user_version").fetchone()[0] == len(STEPS)
        assert judgements(con) == rows
        for change in ("judgement SET ms = 1", "item SET gold = '{}'"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                con.execute(f"UPDATE {change} WHERE id = 1")

    def test_of_version_2_takes_the_third_step(self, tmp_path, monkeypatch):
        with monkeypatch.context() as past:
            past.setattr(store_module, "STEPS", STEPS[:2])
            con, (ann,) = store(tmp_path, pairs(3), "ann")
            judge_all(con, ann, lambda task: {"strength": 2})
            con.execute("UPDATE item SET score = 7 WHERE id = 1")  # version 2 let it happen
            rows = judgements(con)
            con.close()
        con = open_store(tmp_path / "judgements.sqlite")
        assert judgements(con) == rows and add_items(con, pairs(3)) == [1, 2, 3]
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            con.execute("UPDATE item SET score = 8 WHERE id = 1")

    def test_a_step_that_fails_leaves_the_old_file(self, old, monkeypatch):
        path, rows = old
        before = tables(path)
        with monkeypatch.context() as broken:
            broken.setattr(store_module, "STEPS", (*STEPS, ("CREATE TABLE more(x)", "CREATE NONSENSE")))
            with pytest.raises(UserError, match="syntax error"):
                open_store(path)
        assert tables(path) == before
        with sqlite3.connect(path) as plain:
            assert plain.execute("PRAGMA user_version").fetchone()[0] == 1
        assert judgements(open_store(path)) == rows

    def test_every_version_leads_to_the_same_tables(self, old, tmp_path):
        path, _ = old
        open_store(path).close()
        open_store(tmp_path / "new.sqlite").close()
        assert tables(path) == tables(tmp_path / "new.sqlite")


class TestNothingIsEverLost:
    @pytest.fixture
    def con(self, tmp_path):
        con, (ann,) = store(tmp_path, pairs(2), "ann")
        judge_all(con, ann, lambda task: {"strength": 1})
        return con

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE judgement SET value = '{}'",
            "DELETE FROM judgement",
            "INSERT OR REPLACE INTO judgement SELECT * FROM judgement WHERE id = 1",
            "DELETE FROM item",
            "DELETE FROM assignment",
            "DELETE FROM annotator",
            "UPDATE response SET text = 'other'",
            "DELETE FROM prompt",
            "UPDATE guideline SET text = 'other'",
            "INSERT OR REPLACE INTO prompt SELECT id, messages, 'other', tags, created_at FROM prompt LIMIT 1",
            "INSERT OR REPLACE INTO response SELECT id, prompt_id, 'other', policy, checkpoint, round, generation, "
            "n_tokens, logprob_ref, created_at FROM response LIMIT 1",
            "INSERT OR REPLACE INTO response SELECT 'other', prompt_id, text, policy, checkpoint, round, generation, "
            "n_tokens, logprob_ref, created_at FROM response LIMIT 1",
            "INSERT OR REPLACE INTO response(rowid, id, prompt_id, text, policy, checkpoint, round, generation, created_at) "
            "SELECT rowid, 'other', prompt_id, 'other', policy, checkpoint, round, generation, created_at FROM response",
            "UPDATE item SET response_ids = '[]'",
            "UPDATE item SET gold = '{}'",
            "UPDATE item SET selection = 'active:bald'",
            "UPDATE item SET target_n = 1 WHERE target_n = 2",
            "UPDATE item SET rowid = 70 WHERE id = 1",
            "INSERT OR REPLACE INTO item SELECT 90, key, prompt_id, kind, '[]', axes, round, target_n, gold, selection, "
            "score, created_at FROM item LIMIT 1",
            "INSERT OR REPLACE INTO item SELECT id, 'other', prompt_id, kind, '[]', axes, round, target_n, gold, selection, "
            "score, created_at FROM item LIMIT 1",
            "UPDATE assignment SET shown = '[]'",
            "UPDATE OR REPLACE assignment SET item_id = 1, annotator_id = annotator_id",
            "INSERT OR REPLACE INTO assignment SELECT 90, item_id, annotator_id, repeat_of, shown, 'open', 0, 0, 0 "
            "FROM assignment LIMIT 1",
            "UPDATE annotator SET source_kind = 'synthetic'",
            "UPDATE OR REPLACE annotator SET name = 'ann' WHERE name = 'bob'",
            "INSERT OR REPLACE INTO annotator SELECT 'other', name, token_hash, 1, source_kind, groups, consent_at, paused, "
            "gold_from, created_at FROM annotator",
            "INSERT OR REPLACE INTO guideline SELECT version, 'other', axes, created_at FROM guideline",
            "INSERT OR REPLACE INTO export SELECT id, 'other', filter, sha256, n_rows, created_at FROM export",
            "UPDATE meta SET value = 'other'",
            "DELETE FROM meta",
            "INSERT OR REPLACE INTO meta VALUES ('seed', 'other')",
        ],
    )
    def test_the_file_itself_refuses(self, con, statement):
        con.execute("INSERT INTO export VALUES (1, 'p', '{}', '', 2, 0.0)")
        con.execute("UPDATE item SET target_n = 2 WHERE id = 2")
        add_annotator(con, "bob")
        tables = "meta prompt response item annotator assignment judgement guideline export".split()

        def everything():
            return [[tuple(row) for row in con.execute(f"SELECT * FROM {table}")] for table in tables]

        before = everything()
        for key in ("ON", "OFF"):  # with the foreign keys off, as in another program
            con.execute(f"PRAGMA foreign_keys = {key}")
            con.execute(f"PRAGMA recursive_triggers = {key}")
            with pytest.raises(sqlite3.IntegrityError, match="append-only|nothing is deleted"):
                con.execute(statement)
        assert everything() == before and len(judgements(con)) == 2

    def test_what_may_change_still_does(self, con):
        for change in ("item SET target_n = 9", "assignment SET leased_until = 1, opened_at = 2, state = 'judged'"):
            assert con.execute(f"UPDATE {change}").rowcount == 2
        assert con.execute("UPDATE annotator SET token_hash = '', paused = 'x', admin = 1, gold_from = 4").rowcount == 1
        for text in ("1", "2"):
            con.execute("INSERT OR REPLACE INTO draft VALUES (1, ?, 0)", (text,))
        assert con.execute("SELECT draft FROM draft").fetchone()[0] == "2"

    def test_a_task_has_one_first_word_and_one_word_after_each(self, con):
        columns = "assignment_id, kind, said, value, tie, both_bad, flags, rationale, ms, guideline_version, ui_version"
        columns += ", created_at"
        for supersedes in ("NULL", "2"):  # a second first word; one that supersedes another task's
            with pytest.raises(sqlite3.IntegrityError, match="append-only|of the same task"):
                con.execute(
                    f"INSERT INTO judgement({columns}, supersedes) SELECT {columns}, {supersedes} FROM judgement WHERE id = 1"
                )

    def test_an_error_takes_the_whole_transaction_back(self, con):
        with pytest.raises(ZeroDivisionError), writing(con):
            con.execute("UPDATE annotator SET paused = 'other'")
            raise ZeroDivisionError
        assert annotators(con)[0]["paused"] is None
        with writing(con):  # and the next one is not held up
            pass


class TestAdding:
    def test_the_same_again_changes_nothing_and_a_larger_target_counts(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        first = add_items(con, pairs(3))
        assert add_items(con, pairs(3)) == first
        assert add_items(con, pairs(4, target_n=2))[:3] == first
        targets = [row[0] for row in con.execute("SELECT target_n FROM item ORDER BY id")]
        assert targets == [2, 2, 2, 2]
        assert add_items(con, pairs(1))[0] == first[0]
        assert con.execute("SELECT target_n FROM item ORDER BY id").fetchone()[0] == 2  # never fewer

    def test_where_a_response_came_from_is_kept(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        one = Candidate("hello", "policy-7", "step_100", {"temperature": 1.0, "seed": 3}, 2, -4.5)
        add_items(con, [NewItem([{"role": "user", "content": "hi"}], [one, "bye"], round=2, source="p.jsonl")])
        row = dict(con.execute("SELECT * FROM response WHERE text = 'hello'").fetchone())
        assert (row["policy"], row["checkpoint"], row["round"], row["n_tokens"]) == ("policy-7", "step_100", 2, 2)
        assert (row["generation"], row["logprob_ref"]) == ('{"seed":3,"temperature":1.0}', -4.5)

    @pytest.mark.parametrize(
        ("item", "told"),
        [
            (NewItem("p", ["a"]), "has 2 to 2 responses, got 1"),
            (NewItem("p", ["a", "b", "c"]), "has 2 to 2 responses, got 3"),
            (NewItem("p", [str(i) for i in range(10)], kind="rank"), "has 2 to 9 responses, got 10"),
            (NewItem("p", ["a", "b"], kind="rate"), "has 1 to 1"),
            (NewItem("p", ["a", "b"], kind="vote"), "kind is one of"),
            (NewItem("p", ["a", "a"]), "the same text"),
            (NewItem("p", ["a", "b"], axes=("helpful", "style")), "judged on one axis"),
            (NewItem("p", ["a", "b"], target_n=0), "at least 1 person"),
            (NewItem("p", ["a", "b"], gold={"skip": True}), "cannot be answered wrongly"),
            (NewItem("p", ["a", "b"], gold={"ranks": [0, 1]}), "gold: a pair's verdict"),
            (NewItem("p", ["a", "b"], kind="rank", gold={"ranks": [0, 0]}), "cannot be answered wrongly"),
            (NewItem("p", ["a"], kind="rate", gold={"ratings": {"helpful": "4"}}), "gold: helpful"),
            (NewItem("p", ["a\ud800", "b"]), "valid Unicode"),
            (NewItem("p", ["a", "b"], score=float("nan")), "score must be a finite number"),
        ],
    )
    def test_a_bad_item_is_told_by_its_place_and_nothing_is_added(self, tmp_path, item, told):
        con = open_store(tmp_path / "a.sqlite")
        with pytest.raises(UserError, match=f"item 2: .*{told}"):
            add_items(con, [*pairs(1), item])
        assert con.execute("SELECT count(*) FROM item").fetchone()[0] == 0

    def test_another_text_or_question_is_another_guideline(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        versions = [add_guideline(con, *what) for what in (("a",), ("b",), ("a", ["q"]), ("a",))]
        assert len(set(versions)) == 3 and versions[0] == versions[3]
        assert con.execute("SELECT count(*) FROM guideline").fetchone()[0] == 3


class TestTokens:
    def test_only_a_hash_is_stored(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        token = add_annotator(con, "ann")
        con.close()
        secret = token.partition(".")[2]
        assert len(secret) >= 43  # 256 bits
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert secret.encode() not in stored and b"ann" in stored

    def test_opens_for_its_owner_only(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        ann, bob = add_annotator(con, "ann"), add_annotator(con, "bob")
        assert annotator_of(con, ann)["name"] == "ann" and annotator_of(con, bob)["name"] == "bob"
        mixed = ann.partition(".")[0] + "." + bob.partition(".")[2]
        for wrong in ("", ".", "ann", mixed, ann[:-1], ann + "A", ann.upper(), "\ud800", "a" * 10_000):
            assert annotator_of(con, wrong) is None, wrong

    def test_a_new_one_ends_the_old(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        old = add_annotator(con, "ann")
        new = new_token(con, "ann")
        assert annotator_of(con, old) is None and annotator_of(con, new)["name"] == "ann"
        with pytest.raises(UserError, match="no annotator 'bob'"):
            new_token(con, "bob")

    @pytest.mark.parametrize(
        ("name", "more", "told"),
        [
            ("ann", {}, "already"),
            (" ", {}, "1 to 80 letters"),
            ("x" * 81, {}, "1 to 80 letters"),
            ("bob", {"source_kind": "robot"}, "source_kind"),
        ],
    )
    def test_names_are_checked(self, tmp_path, name, more, told):
        con = open_store(tmp_path / "a.sqlite")
        add_annotator(con, "ann")
        with pytest.raises(UserError, match=told):
            add_annotator(con, name, **more)

    def test_groups_are_kept_with_the_time_of_consent_and_not_without(self, tmp_path):
        con = open_store(tmp_path / "a.sqlite")
        add_annotator(con, "ann", groups={"age": "30-39"}, now=5.0)
        add_annotator(con, "bob")
        rows = [tuple(row) for row in con.execute("SELECT name, groups, consent_at FROM annotator ORDER BY name")]
        assert rows == [("ann", '{"age":"30-39"}', 5.0), ("bob", None, None)]
        with pytest.raises(sqlite3.IntegrityError):
            con.execute("UPDATE annotator SET groups = '{}' WHERE name = 'bob'")


def test_a_task_that_asks_for_an_axis_that_is_gone_is_told(tmp_path):
    con, (ann,) = store(tmp_path, [NewItem("p", ["a"], kind="rate", axes=("depth",))], "ann")
    with pytest.raises(UserError, match="axes that the page does not have: depth"):
        say(con, ann, next_task(con, ann, PLAIN), {"ratings": {"depth": 1}})


def test_where_the_umask_is_wide_the_file_is_still_private(tmp_path):
    before = os.umask(0)
    try:
        open_store(tmp_path / "a.sqlite").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.sqlite").stat().st_mode) == 0o600
