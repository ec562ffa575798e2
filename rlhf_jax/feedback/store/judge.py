"""What a person does with a task: judge it, take the last word back, keep a draft. Every word is a new row.

Each function is one write transaction. A judgement is acknowledged when it returns: it is then on disk.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.store import writing
from rlhf_jax.feedback.store.add import plain
from rlhf_jax.feedback.store.assign import Rules, holds
from rlhf_jax.feedback.store.gold import pause_if_careless
from rlhf_jax.feedback.store.verdict import Axis, canonical


class Conflict(UserError):
    """The task is not this person's to judge any more; nothing was stored."""


@dataclass(frozen=True)
class Words:
    """What was said of a task, in the order shown."""

    verdict: Mapping[str, Any]
    flags: Sequence[str] = ()
    rationale: str = ""
    ms: int = 0
    """Milliseconds from the task's appearance to the verdict, as the page measured them."""


@dataclass(frozen=True)
class Asked:
    """Under which guidelines, by which page, and on which axes a judgement is made."""

    guideline_version: str
    ui_version: str = ""
    axes: Sequence[Axis] = field(default_factory=tuple)


def submit(
    con: sqlite3.Connection,
    who: str,
    assignment: int,
    words: Words,
    asked: Asked,
    rules: Rules,
    *,
    now: int | float | None = None,
) -> int:
    """Store a judgement; its number. The same words again (the answer was lost on the way) are stored once.

    Raises UserError for a verdict that does not fit the item, and Conflict where the task is not this person's, is
    judged in other words, or was given to somebody else after its lease.
    """
    with writing(con):
        stamp = time.time() if now is None else now
        task = _own(con, who, assignment)
        item = con.execute("SELECT kind, axes, gold FROM item WHERE id = ?", (task["item_id"],)).fetchone()
        value = canonical(item["kind"], words.verdict, json.loads(task["shown"]), axes_of(item, asked.axes))
        said = plain({"verdict": words.verdict, "flags": list(words.flags), "rationale": words.rationale}, "judgement")
        last = _last(con, assignment)
        if task["state"] != "open":
            if last is not None and last["said"] == said:
                return int(last["id"])
            raise Conflict("this task is judged already; undo it to say something else")
        if con.execute("SELECT paused FROM annotator WHERE id = ?", (who,)).fetchone()["paused"] is not None:
            raise Conflict("you are paused; nothing was stored")
        if not holds(con, task, now=stamp):
            raise Conflict("this task was open for too long and somebody else has it now")
        skipped = "skip" in value
        row = con.execute(
            "INSERT INTO judgement(assignment_id, kind, said, value, strength, tie, both_bad, flags, rationale, ms, "
            "guideline_version, ui_version, created_at, supersedes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "RETURNING id",
            (
                *(assignment, "skip" if skipped else "verdict", said, plain(value, "verdict"), value.get("strength")),
                *(_is_tie(value), int("both_bad" in value), plain(list(words.flags), "flags"), words.rationale),
                *(words.ms, asked.guideline_version, asked.ui_version, stamp, None if last is None else last["id"]),
            ),
        ).fetchone()
        state = "skipped" if skipped else "judged"
        con.execute("UPDATE assignment SET state = ? WHERE id = ?", (state, assignment))
        if item["gold"] is not None:
            pause_if_careless(con, who, rules)
        return int(row["id"])


def undo(
    con: sqlite3.Connection,
    who: str,
    guideline_version: str,
    rules: Rules,
    *,
    judgement: int | None = None,
    now: int | float | None = None,
) -> sqlite3.Row:
    """Take back this person's last word: a row that supersedes it, and the task is open again, with the words as its
    draft. The task's row of `assignment`.

    `judgement` is the number of the word to take back: the same request again (the answer was lost on the way) then takes
    back no other. Who holds a place keeps it: a skip whose place somebody else has stands. Raises Conflict for such a skip,
    where there is nothing to take back, where `last_word` is not `judgement`, or when paused.
    """
    with writing(con):
        stamp = time.time() if now is None else now
        if judgement is not None and (task := _undone(con, who, judgement)) is not None:
            return task
        if con.execute("SELECT paused FROM annotator WHERE id = ?", (who,)).fetchone()["paused"] is not None:
            raise Conflict("you are paused; nothing can be taken back")
        last = last_word(con, who, now=stamp)
        if last is None or judgement not in (None, last["id"]):
            meant = next((row for row in _words(con, who) if judgement in (None, row["id"])), None)
            if meant is not None and not _free(con, meant, stamp):
                raise Conflict("somebody else has this item now; your skip stands")
            raise Conflict(
                "there is nothing to undo" if last is None else "that is not your last answer; nothing was taken back"
            )
        con.execute(
            "INSERT INTO judgement(assignment_id, kind, said, value, tie, both_bad, flags, rationale, ms, "
            "guideline_version, ui_version, created_at, supersedes) "
            "VALUES (?, 'undo', 'null', 'null', 0, 0, '[]', '', 0, ?, '', ?, ?)",
            (last["assignment_id"], guideline_version, stamp, last["id"]),
        )
        draft = {**json.loads(last["said"]), "ms": last["ms"]}
        _put_draft(con, last["assignment_id"], plain(draft, "draft"), stamp)
        return con.execute(
            "UPDATE assignment SET state = 'open', opened_at = ?, leased_until = ? WHERE id = ? RETURNING *",
            (stamp, stamp + rules.lease_s, last["assignment_id"]),
        ).fetchone()


def _undone(con: sqlite3.Connection, who: str, judgement: int) -> sqlite3.Row | None:
    """This person's open task whose latest row takes `judgement` back."""
    row: sqlite3.Row | None = con.execute(
        "SELECT assignment.* FROM judgement JOIN assignment ON assignment.id = assignment_id WHERE supersedes = ? "
        "AND kind = 'undo' AND annotator_id = ? AND state = 'open'",
        (judgement, who),
    ).fetchone()
    return row


def last_word(con: sqlite3.Connection, who: str, *, now: int | float | None = None) -> sqlite3.Row | None:
    """This person's last judgement or skip that stands, the one that `undo` takes back; a skip whose place somebody else has
    is passed over."""
    stamp = time.time() if now is None else now
    return next((row for row in _words(con, who) if _free(con, row, stamp)), None)


def _words(con: sqlite3.Connection, who: str) -> Iterator[sqlite3.Row]:
    """This person's judgements and skips that stand, the last one first."""
    yield from con.execute(
        "SELECT said.* FROM assignment JOIN current_judgement AS said ON said.assignment_id = assignment.id "
        "WHERE annotator_id = ? AND state != 'open' ORDER BY said.id DESC",
        (who,),
    )


def _free(con: sqlite3.Connection, word: sqlite3.Row, now: int | float) -> bool:
    """Whether the task of this word would have its place, were it open again."""
    return holds(
        con, con.execute("SELECT * FROM assignment WHERE id = ?", (word["assignment_id"],)).fetchone(), now=now
    )


def save_draft(
    con: sqlite3.Connection, who: str, assignment: int, draft: Any, *, now: int | float | None = None
) -> None:
    """Keep an unfinished judgement (any JSON); the latest counts. Raises Conflict unless the task is open and theirs."""
    text = plain(draft, "draft")
    with writing(con):
        if _own(con, who, assignment)["state"] != "open":
            raise Conflict("this task is judged already; the draft was not kept")
        _put_draft(con, assignment, text, time.time() if now is None else now)


def axes_of(item: sqlite3.Row, axes: Sequence[Axis]) -> list[Axis]:
    """The axes that an item asks for: those it names, in its order, or all. UserError for one that there is not."""
    names = json.loads(item["axes"])
    if item["kind"] != "rate" or not names:
        return list(axes)
    known = {axis.name: axis for axis in axes}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"the item asks for axes that the page does not have: {', '.join(missing)}")
    return [known[name] for name in names]


def _own(con: sqlite3.Connection, who: str, assignment: int) -> sqlite3.Row:
    row: sqlite3.Row | None = con.execute(
        "SELECT * FROM assignment WHERE id = ? AND annotator_id = ?", (assignment, who)
    ).fetchone()
    if row is None:
        raise Conflict("this task is not yours")
    return row


def _last(con: sqlite3.Connection, assignment: int) -> sqlite3.Row | None:
    row: sqlite3.Row | None = con.execute(
        "SELECT * FROM judgement WHERE assignment_id = ? ORDER BY id DESC LIMIT 1", (assignment,)
    ).fetchone()
    return row


def _is_tie(value: Mapping[str, Any]) -> int:
    return int(value.get("strength") == 0 or len(set(value.get("ranks", (0, 1)))) == 1)


def _put_draft(con: sqlite3.Connection, assignment: int, text: str, now: int | float) -> None:
    con.execute(
        "INSERT INTO draft VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET draft = excluded.draft, updated_at = excluded.updated_at",
        (assignment, text, now),
    )
