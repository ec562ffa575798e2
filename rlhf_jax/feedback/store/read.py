"""What the store holds, as plain rows: for statistics, for exports, for looking at.

People appear under their pseudonyms. What was taken back, or said differently later, is left out.
"""

import json
import sqlite3
from typing import Any

from rlhf_jax.feedback.statistics.quality import Judged

_CURRENT = """SELECT said.*, assignment.item_id, assignment.annotator_id, assignment.repeat_of,
        assignment.shown, item.kind AS item_kind, item.axes, item.response_ids, item.round, item.gold, item.selection, item.score,
        item.prompt_id, prompt.messages, prompt.source, annotator.source_kind, annotator.groups
    FROM current_judgement AS said JOIN assignment ON assignment.id = said.assignment_id
    JOIN item ON item.id = assignment.item_id JOIN prompt ON prompt.id = item.prompt_id
    JOIN annotator ON annotator.id = assignment.annotator_id ORDER BY said.id"""


def judgements(con: sqlite3.Connection) -> list[dict[str, Any]]:
    """Every judgement and skip that stands, in the order in which they were made.

    Keys: id, assignment, item, kind (pair, rank, rate), annotator, source_kind, axes, verdict (in the item's own order;
    of a rating also its `scales`), said (as posted), shown, strength, tie, both_bad, skipped, flags, rationale, ms,
    guideline_version, ui_version, created_at, supersedes, repeat_of (assignment), gold, round, selection, score,
    prompt (messages), prompt_id, source, responses, policies, groups (what the person chose to tell, or None).
    """
    texts = {row["id"]: (row["text"], row["policy"]) for row in con.execute("SELECT id, text, policy FROM response")}
    return [_plain(row, texts) for row in con.execute(_CURRENT)]


def judged(con: sqlite3.Connection) -> list[Judged]:
    """The same as rows for `feedback.quality`."""
    return [
        Judged(
            annotator=row["annotator"],
            item=str(row["item"]),
            kind=row["kind"],
            verdict={name: value for name, value in row["verdict"].items() if name != "scales"},
            shown=tuple(row["shown"]),
            ms=row["ms"],
            characters=sum(len(text) for text in (*(m["content"] for m in row["prompt"]), *row["responses"])),
            gold=row["gold"],
            repeat=row["repeat_of"] is not None,
            created=row["created_at"],
            source_kind=row["source_kind"],
            axis="overall" if row["kind"] == "rate" else row["axes"][0],
        )
        for row in judgements(con)
    ]


def annotators(con: sqlite3.Connection) -> list[dict[str, Any]]:
    """Everybody who may judge: id (the pseudonym), name, source_kind, admin, paused (why, or None), created_at.

    The names stay with whoever runs the labelling: no export holds them.
    """
    rows = con.execute("SELECT id, name, source_kind, admin, paused, created_at FROM annotator ORDER BY created_at, id")
    return [{**dict(row), "admin": bool(row["admin"])} for row in rows]


def _plain(row: sqlite3.Row, texts: dict[str, tuple[str, str]]) -> dict[str, Any]:
    responses = [texts[key] for key in json.loads(row["response_ids"])]
    return {
        "id": row["id"],
        "assignment": row["assignment_id"],
        "item": row["item_id"],
        "kind": row["item_kind"],
        "annotator": row["annotator_id"],
        "source_kind": row["source_kind"],
        "axes": json.loads(row["axes"]),
        "verdict": json.loads(row["value"]),
        "said": json.loads(row["said"])["verdict"],
        "shown": json.loads(row["shown"]),
        "strength": row["strength"],
        "tie": bool(row["tie"]),
        "both_bad": bool(row["both_bad"]),
        "skipped": row["kind"] == "skip",
        "flags": json.loads(row["flags"]),
        "rationale": row["rationale"],
        "ms": row["ms"],
        "guideline_version": row["guideline_version"],
        "ui_version": row["ui_version"],
        "created_at": row["created_at"],
        "supersedes": row["supersedes"],
        "repeat_of": row["repeat_of"],
        "gold": None if row["gold"] is None else json.loads(row["gold"]),
        "round": row["round"],
        "selection": row["selection"],
        "score": row["score"],
        "prompt": json.loads(row["messages"]),
        "prompt_id": row["prompt_id"],
        "source": row["source"],
        "responses": [text for text, _ in responses],
        "policies": [policy for _, policy in responses],
        "groups": None if row["groups"] is None else json.loads(row["groups"]),
    }
