"""Which item a person sees next, and in which order its responses stand.

The order is drawn at random for each item and person. Gold items (with a known answer) and repeats (an item judged
before, in the opposite order) come at set rates, in places drawn for each person, and look like any other task. All
of it follows from the store's own random seed, so that nobody can foretell it and a restart changes nothing.

An open task is a lease: it holds one of the item's `target_n` places until it is judged or the time is over. It may
still be judged after that, as long as nobody else has taken the place.
"""

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.store import seed_of, writing


@dataclass(frozen=True)
class Rules:
    """How tasks are handed out.

    Raises UserError for rates outside 0..1 or together above 0.9.
    """

    gold_rate: int | float = 0.1
    """Share of places at which a gold item that the person has not seen is shown."""
    repeat_rate: int | float = 0.05
    """Share of places at which something the person has judged is shown again, in the opposite order."""
    repeat_gap: int = 10
    """How many tasks lie between an item and its repeat, at least."""
    lease_s: int | float = 1800.0
    """Seconds for which an open task keeps its place."""
    warn_below: int | float = 0.85
    """A person whose accuracy on gold is surely below this (95 % Wilson interval) is asked to read the guidelines."""
    pause_below: int | float = 0.7
    """A person whose accuracy on gold is surely below this gets no more tasks until `resume`."""

    def __post_init__(self) -> None:
        for name in ("gold_rate", "repeat_rate", "warn_below", "pause_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share, 0 to 1, got {getattr(self, name)}")
        if self.gold_rate + self.repeat_rate > 0.9:
            raise UserError("gold_rate and repeat_rate leave less than a tenth of the places to what is to be judged")
        if self.repeat_gap < 1 or not self.lease_s > 0:
            raise UserError("repeat_gap is at least 1 task and lease_s more than 0 seconds")


TAKEN = """(SELECT count(*) FROM assignment AS other WHERE other.item_id = item.id AND other.repeat_of IS NULL
    AND other.id IS NOT :mine AND (other.state = 'judged' OR (other.state = 'open' AND other.leased_until > :now)))"""
"""Places of `item` that are judged or leased, the assignment :mine (or NULL) left out."""

AVAILABLE = f"""SELECT item.id, item.round, {TAKEN} AS taken FROM item WHERE item.gold IS NULL AND taken < item.target_n
    AND NOT EXISTS (SELECT 1 FROM assignment AS mine
                    WHERE mine.item_id = item.id AND mine.annotator_id = :who AND mine.repeat_of IS NULL)"""

_UNSEEN_GOLD = """SELECT id FROM item WHERE gold IS NOT NULL AND NOT EXISTS (SELECT 1 FROM assignment
    WHERE item_id = item.id AND annotator_id = ? AND repeat_of IS NULL) ORDER BY id"""


def current(con: sqlite3.Connection, who: str, *, now: int | float) -> sqlite3.Row | None:
    """The task this person has open: the one they opened last among those whose place is still theirs."""
    rows = con.execute(
        "SELECT * FROM assignment WHERE annotator_id = ? AND state = 'open' ORDER BY opened_at DESC, id DESC", (who,)
    )
    return next((row for row in rows if holds(con, row, now=now)), None)


def holds(con: sqlite3.Connection, assignment: sqlite3.Row, *, now: int | float) -> bool:
    """Whether an open task can still be judged: nobody else has its place. A running lease sees to that.

    The lease is not asked, only the place: two clocks that disagree must not give one place to two people.
    """
    if assignment["repeat_of"] is not None:
        return True
    row = con.execute(
        f"SELECT gold IS NOT NULL OR {TAKEN} < target_n FROM item WHERE id = :item",
        {"item": assignment["item_id"], "mine": assignment["id"], "now": now},
    ).fetchone()
    return bool(row[0])


def next_task(con: sqlite3.Connection, who: str, rules: Rules, *, now: int | float | None = None) -> sqlite3.Row | None:
    """The row of `assignment` that this person has open, else a new one; None when paused or nothing is left."""
    stamp = time.time() if now is None else now
    row = current(con, who, now=stamp)
    if row and row["leased_until"] > stamp + rules.lease_s / 2:
        return None if _paused(con, who) else row
    with writing(con):
        stamp = time.time() if now is None else now  # the turn to write may have come late
        if _paused(con, who):
            return None
        row = current(con, who, now=stamp)
        if row:
            con.execute("UPDATE assignment SET leased_until = ? WHERE id = ?", (stamp + rules.lease_s, row["id"]))
            return row
        return _draw(con, who, rules, stamp)


def shuffled(rows: str) -> str:
    """A query of the rows of query `rows`, with their place in an order that the parameters of `order_of` decide.

    The place is a permutation of the 31-bit numbers applied to `id`: products with odd numbers, between them the upper
    bits mixed into the lower ones. One product alone would leave ids in arithmetic progression, ascending for one person in
    twenty or so. (SQLite has no exclusive or: a | b less a & b.)
    """
    steps = {
        "x0": "(id * :first + :start) & 0x7fffffff",
        "x1": "(x0 | (x0 >> 15)) - (x0 & (x0 >> 15))",
        "x2": "(x1 * :second) & 0x7fffffff",
        "x3": "(x2 | (x2 >> 13)) - (x2 & (x2 >> 13))",
        "place": "(x3 * :third) & 0x7fffffff",
    }
    for name, value in steps.items():
        rows = f"SELECT *, {value} AS {name} FROM ({rows})"
    return rows


def order_of(seed: str, who: str) -> dict[str, int]:
    """The parameters of `shuffled` for one person."""
    draw = random.Random(f"{seed}/{who}/items")
    odd = {name: 2 * draw.getrandbits(30) + 1 for name in ("first", "second", "third")}
    return odd | {"start": draw.getrandbits(31)}


def kinds_of_place(seed: str, who: str, rules: Rules, first: int) -> Iterator[str]:
    """ "gold", "repeat" or "item" for this person's places from number `first` (0-based) on, without end."""
    draw = random.Random(f"{seed}/{who}/places")
    for place in range(2**62):
        u = draw.random()
        if place >= first:
            yield "gold" if u < rules.gold_rate else "repeat" if u < rules.gold_rate + rules.repeat_rate else "item"


def _paused(con: sqlite3.Connection, who: str) -> bool:
    return con.execute("SELECT paused FROM annotator WHERE id = ?", (who,)).fetchone()["paused"] is not None


def _draw(con: sqlite3.Connection, who: str, rules: Rules, now: int | float) -> sqlite3.Row | None:
    """A new assignment, inside a write transaction."""
    seed = seed_of(con)
    # Everyone meets the items in another order, so that practice and fatigue do not fall on the same ones. Items that
    # others have begun come first, so that their overlap completes.
    regular = con.execute(
        f"SELECT id FROM ({shuffled(AVAILABLE)}) ORDER BY round, taken DESC, place LIMIT 1",
        {"who": who, "now": now, "mine": None} | order_of(seed, who),
    ).fetchone()
    if regular is None:
        return None
    place = con.execute("SELECT count(*) FROM assignment WHERE annotator_id = ?", (who,)).fetchone()[0]
    kind = next(kinds_of_place(seed, who, rules, place))
    choose = random.Random(f"{seed}/{who}/{place}")
    if kind == "gold" and (unseen := con.execute(_UNSEEN_GOLD, (who,)).fetchall()):
        return _assign(con, who, choose.choice(unseen)["id"], None, now + rules.lease_s, now)
    if kind == "repeat" and (ready := repeatable(con, who, place - rules.repeat_gap)):
        first = choose.choice(ready)
        return _assign(con, who, first["item_id"], first, now + rules.lease_s, now)
    return _assign(con, who, regular["id"], None, now + rules.lease_s, now)


def repeatable(con: sqlite3.Connection, who: str, latest: int) -> list[sqlite3.Row]:
    """What this person judged (no gold, no skip) at their places up to number `latest`, and has not met again."""
    return con.execute(
        "SELECT first.* FROM (SELECT assignment.*, row_number() OVER (ORDER BY assignment.id) - 1 AS place "
        "FROM assignment WHERE annotator_id = ?) AS first JOIN item ON item.id = first.item_id "
        "WHERE state = 'judged' AND repeat_of IS NULL AND gold IS NULL AND place <= ? "
        "AND NOT EXISTS (SELECT 1 FROM assignment AS again WHERE again.repeat_of = first.id) ORDER BY first.id",
        (who, latest),
    ).fetchall()


def _assign(
    con: sqlite3.Connection, who: str, item: int, first: sqlite3.Row | None, until: int | float, now: int | float
) -> sqlite3.Row:
    count = len(json.loads(con.execute("SELECT response_ids FROM item WHERE id = ?", (item,)).fetchone()[0]))
    shown = list(range(count))
    random.Random(f"{seed_of(con)}/{who}/{item}/order").shuffle(shown)
    if first is not None:
        shown = json.loads(first["shown"])[::-1]
    return con.execute(
        "INSERT INTO assignment(item_id, annotator_id, repeat_of, shown, state, leased_until, opened_at, created_at) "
        "VALUES (?, ?, ?, ?, 'open', ?, ?, ?) RETURNING *",
        (item, who, None if first is None else first["id"], json.dumps(shown), until, now, now),
    ).fetchone()
