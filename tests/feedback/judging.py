"""What the tests of store, assignment and server share: a store with items and people, and verdicts for any task."""

import json
import sqlite3
from pathlib import Path

from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_guideline, add_items
from rlhf_jax.feedback.store.assign import Rules, next_task
from rlhf_jax.feedback.store.judge import Asked, Words, submit
from rlhf_jax.feedback.store.verdict import Axis

PLAIN = Rules(gold_rate=0, repeat_rate=0)
AXES = (Axis("helpful", "?"), Axis("honest", "?", required=False))
RATED = {"ratings": {"helpful": 4}}
ASKED = Asked("", "ui", AXES)


def pairs(n: int, *, target_n: int = 1, start: int = 0, **more) -> list[NewItem]:
    return [NewItem(f"prompt {i}", [f"a {i}", f"b {i}"], target_n=target_n, **more) for i in range(start, start + n)]


def store(folder: Path, items: list[NewItem], *names: str, kind: str = "human") -> tuple[sqlite3.Connection, list[str]]:
    """A new store, and the pseudonyms of the people in it."""
    con = open_store(folder / "judgements.sqlite")
    con.execute("PRAGMA synchronous = OFF")  # no test cuts the power, and the disk is slow
    add_items(con, items)
    for name in names:
        add_annotator(con, name, source_kind=kind)
    return con, [row["id"] for row in con.execute("SELECT id FROM annotator ORDER BY rowid")]


def asked(con: sqlite3.Connection, axes=AXES) -> Asked:
    return Asked(add_guideline(con, "be fair"), "ui", axes)


def say(con, who, task, verdict, rules=PLAIN, **more) -> int:
    return submit(con, who, task["id"], Words(verdict, **more), asked(con), rules)


def judge_all(con, who, verdict_of, rules=PLAIN, limit=10_000) -> list[sqlite3.Row]:
    """Judge until nothing is left; the assignments, in order. `verdict_of(task)` says what, in the order shown."""
    seen = []
    while len(seen) < limit and (task := next_task(con, who, rules)) is not None:
        seen.append(task)
        say(con, who, task, verdict_of(task), rules)
    return seen


def shown(task: sqlite3.Row) -> list[int]:
    return json.loads(task["shown"])
