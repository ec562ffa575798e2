"""What the page is told of a task. Nothing in it says whether the item is gold, or a repeat, or how it was chosen."""

import json
import sqlite3
from dataclasses import asdict
from typing import Any

from rlhf_jax.feedback.server.settings import Settings
from rlhf_jax.feedback.store.gold import notice
from rlhf_jax.feedback.store.judge import axes_of, last_word
from rlhf_jax.feedback.store.progress import progress


def body(
    con: sqlite3.Connection,
    who: str,
    assignment: sqlite3.Row | None,
    settings: Settings,
    guideline_version: str,
) -> dict[str, Any]:
    """The answer to GET /api/task: the task (or null), and how this person stands."""
    person = con.execute("SELECT name, paused, source_kind FROM annotator WHERE id = ?", (who,)).fetchone()
    last = last_word(con, who) if person["paused"] is None else None
    can_undo = last is not None
    task = None
    if assignment is not None:
        task = {**task_view(con, assignment, settings), "flags": list(settings.flags), "can_undo": can_undo}
    return {
        "task": task,
        "progress": asdict(progress(con, who, settings.rules)),
        "guideline_version": guideline_version,
        "annotator": person["name"],
        "source_kind": person["source_kind"],
        "paused": person["paused"],
        "notice": notice(con, who, settings.rules),
        "can_undo": can_undo,
        "undoes": None if last is None else last["id"],
    }


def task_view(con: sqlite3.Connection, assignment: sqlite3.Row, settings: Settings) -> dict[str, Any]:
    """The prompt, the responses in the order shown, the question and the draft of one open task."""
    item = con.execute(
        "SELECT item.*, messages FROM item JOIN prompt ON prompt.id = prompt_id WHERE item.id = ?",
        (assignment["item_id"],),
    ).fetchone()
    ids = json.loads(item["response_ids"])
    texts = [con.execute("SELECT text FROM response WHERE id = ?", (i,)).fetchone()["text"] for i in ids]
    draft = con.execute("SELECT draft FROM draft WHERE assignment_id = ?", (assignment["id"],)).fetchone()
    asked = axes_of(item, settings.axes) if item["kind"] == "rate" else []
    axis = json.loads(item["axes"])[0] if item["kind"] != "rate" else ""
    return {
        "assignment": assignment["id"],
        "kind": item["kind"],
        "messages": json.loads(item["messages"]),
        "responses": [texts[k] for k in json.loads(assignment["shown"])],
        "axes": [{**asdict(a), "labels": dict(a.labels or {})} for a in asked],
        "question": settings.questions.get(axis, f"Which response is more {axis}?")
        if axis
        else "How good is this response?",
        "draft": None if draft is None else json.loads(draft["draft"]),
    }
