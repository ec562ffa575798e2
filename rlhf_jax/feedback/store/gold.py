"""How well a person answers the hidden gold items, and when to ask them to stop."""

import json
import sqlite3

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics.quality import Share, same, wilson
from rlhf_jax.feedback.store import writing
from rlhf_jax.feedback.store.assign import Rules


def gold_accuracy(con: sqlite3.Connection, who: str) -> Share:
    """Share of gold items answered right since the person began (or was resumed), with its 95 % Wilson interval.

    Skips do not count; `quality.same` says what is right.
    """
    rows = con.execute(
        "SELECT value, gold FROM assignment JOIN item ON item.id = item_id "
        "JOIN current_judgement AS said ON said.assignment_id = assignment.id JOIN annotator ON annotator.id = annotator_id "
        "WHERE annotator_id = ? AND gold IS NOT NULL AND said.id > annotator.gold_from",
        (who,),
    )
    right = [same(json.loads(row["value"]), json.loads(row["gold"])) for row in rows]
    return wilson(sum(r is True for r in right), sum(r is not None for r in right))


def notice(con: sqlite3.Connection, who: str, rules: Rules) -> str | None:
    """What to tell a person whose accuracy on gold is surely below `rules.warn_below`; None for the others."""
    share = gold_accuracy(con, who)
    if share.high is None or share.high >= rules.warn_below:
        return None
    return "Some of your answers differ from what the guidelines say. Please read them again."


def pause_if_careless(con: sqlite3.Connection, who: str, rules: Rules) -> None:
    """Inside a write transaction: pause a person whose accuracy on gold is surely below `rules.pause_below`."""
    share = gold_accuracy(con, who)
    if share.high is not None and share.high < rules.pause_below:
        reason = "Many of your answers differ from what the guidelines say. Please speak with whoever invited you."
        con.execute("UPDATE annotator SET paused = ? WHERE id = ? AND paused IS NULL", (reason, who))


def pause(con: sqlite3.Connection, name: str, reason: str) -> None:
    """Give this annotator no more tasks; they are shown the reason. UserError for an unknown name."""
    _set(con, name, "paused = ?, gold_from = gold_from", reason)


def resume(con: sqlite3.Connection, name: str) -> None:
    """Tasks again, and their accuracy on gold counts from now on. UserError for an unknown name."""
    _set(con, name, "paused = ?, gold_from = (SELECT coalesce(max(id), 0) FROM judgement)", None)


def _set(con: sqlite3.Connection, name: str, change: str, value: str | None) -> None:
    with writing(con):
        if not con.execute(f"UPDATE annotator SET {change} WHERE name = ?", (value, name)).rowcount:
            known = ", ".join(row["name"] for row in con.execute("SELECT name FROM annotator ORDER BY name"))
            raise UserError(f"there is no annotator {name!r}; there are: {known or 'none'}")
