"""How far a person has come, and how long the rest may take them.

The total counts the gold items and repeats that are still to come, found by walking the person's own places to the
end: a total that grew after each hidden item would show which tasks they were.
"""

import sqlite3
import statistics
import time
from collections import deque
from dataclasses import dataclass

from rlhf_jax.feedback.store import seed_of
from rlhf_jax.feedback.store.assign import AVAILABLE, Rules, holds, kinds_of_place

RECENT = 20
"""The person's pace is the median of their last judgements, this many."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` tasks; `seconds_left` is None until there are three judgements to tell the pace from."""

    done: int
    total: int
    seconds_left: int | None


def progress(con: sqlite3.Connection, who: str, rules: Rules, *, now: int | float | None = None) -> Progress:
    """Of one person, at this moment: others may take items, and their leases may end, so the total can change."""
    stamp = time.time() if now is None else now
    mine = con.execute(
        "SELECT mine.*, gold, EXISTS (SELECT 1 FROM assignment AS again WHERE again.repeat_of = mine.id) AS met "
        "FROM assignment AS mine JOIN item ON item.id = item_id WHERE annotator_id = ? ORDER BY mine.id",
        (who,),
    ).fetchall()
    done = sum(row["state"] != "open" for row in mine)
    ask = {"who": who, "now": stamp, "mine": None}
    left = con.execute(f"SELECT count(*) FROM ({AVAILABLE})", ask).fetchone()[0]
    gold = con.execute("SELECT count(*) FROM item WHERE gold IS NOT NULL").fetchone()[0]
    seen = sum(row["gold"] is not None for row in mine)
    fresh = deque(
        place
        for place, row in enumerate(mine)
        if row["state"] != "skipped" and row["gold"] is None and row["repeat_of"] is None and not row["met"]
    )
    coming = _walk(seed_of(con), who, rules, len(mine), left, gold - seen, fresh)
    rest = coming + sum(row["state"] == "open" and holds(con, row, now=stamp) for row in mine)
    times = con.execute(
        "SELECT ms FROM assignment JOIN current_judgement AS said ON said.assignment_id = assignment.id "
        "WHERE annotator_id = ? AND said.kind = 'verdict' ORDER BY said.id DESC LIMIT ?",
        (who, RECENT),
    ).fetchall()
    pace = statistics.median(row["ms"] for row in times) / 1000 if len(times) >= 3 else None
    return Progress(done, done + rest, None if pace is None else round(pace * rest))


def _walk(seed: str, who: str, rules: Rules, place: int, left: int, gold: int, fresh: deque[int]) -> int:
    """How many tasks it takes from this place until `left` ordinary items are judged, as `assign` hands them out."""
    if not left:
        return 0
    first = place
    for kind in kinds_of_place(seed, who, rules, place):
        if kind == "gold" and gold:
            gold -= 1
        elif kind == "repeat" and fresh and fresh[0] <= place - rules.repeat_gap:
            fresh.popleft()
        else:
            fresh.append(place)
            left -= 1
        place += 1
        if not left:
            break
    return place - first
