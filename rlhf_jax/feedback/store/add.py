"""What goes into the store before anybody judges: prompts, responses, items, annotators, guidelines.

Adding the same thing again changes nothing, so that a script can be started again with the same files.
"""

import hashlib
import hmac
import json
import math
import secrets
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import SOURCE_KINDS, Message, as_messages, prompt_key
from rlhf_jax.feedback.store import writing
from rlhf_jax.feedback.store.verdict import Axis, canonical

KINDS = {"pair": (2, 2), "rank": (2, 9), "rate": (1, 1)}
"""The fewest and the most responses of each kind of item."""


@dataclass(frozen=True)
class Candidate:
    """A response, and where it came from."""

    text: str
    policy: str = ""
    checkpoint: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Temperature, top-p, seed, …"""
    n_tokens: int | None = None
    logprob_ref: int | float | None = None
    """Log-probability of the whole response under the reference policy, in nats."""


@dataclass(frozen=True)
class NewItem:
    """Something to judge. `add_items` says what it refuses."""

    prompt: str | Sequence[Mapping[str, str]]
    responses: Sequence[str | Candidate]
    """2 of a pair, 2 to 9 of a ranking, 1 to be rated."""
    kind: str = "pair"
    axes: Sequence[str] = ("overall",)
    """On what a pair or a ranking is judged (one name); the axes a rating asks for, () for all that the page has."""
    target_n: int = 1
    """How many people shall judge it. Gold items are for everybody, whatever this says."""
    gold: Mapping[str, Any] | None = None
    """The right verdict of a hidden test item, in the order of `responses`: {"strength": -2} (the first is better; how
    strongly does not matter), {"both_bad": True}, {"ranks": [1, 0, 0]} (ties leave the order open) or {"ratings":
    {"helpful": 4}}. `quality.same` compares."""
    round: int = 0
    selection: str = "random"
    """How it was chosen: "random", or "active:<method>". Reward models are evaluated on random items only."""
    score: int | float | None = None
    """The selection's own number."""
    source: str = ""
    tags: Sequence[str] = ()


def add_items(con: sqlite3.Connection, items: Iterable[NewItem], *, now: int | float | None = None) -> list[int]:
    """Their numbers in the store, in the order given. An item that is there already keeps its number; a larger
    `target_n` counts.

    Raises UserError, and adds nothing, for a malformed prompt, a number of responses that the kind does not have,
    two responses of the same text, an answer of a gold item that does not fit it, or text that is not valid Unicode.
    """
    stamp = time.time() if now is None else now
    with writing(con):
        return [_add_item(con, item, f"item {place}", stamp) for place, item in enumerate(items, 1)]


def add_annotator(
    con: sqlite3.Connection,
    name: str,
    *,
    admin: bool = False,
    source_kind: str = "human",
    groups: Mapping[str, str] | None = None,
    now: int | float | None = None,
) -> str:
    """A new annotator's token, which is not stored (its sha256 is) and cannot be shown again: see `new_token`.

    `groups` is what a person chose to say about themselves ({"age": "30-39"}); giving it records their consent now.
    It leaves the file only where an export asks for it. Simulated annotators are "synthetic", and so is everything
    they say. Raises UserError for an empty name, one that is taken, or an unknown source_kind.
    """
    if not name.strip() or len(name) > 80:
        raise UserError(f"an annotator's name has 1 to 80 letters, got {name!r:.100}")
    if source_kind not in SOURCE_KINDS:
        raise UserError(f"source_kind is one of {', '.join(SOURCE_KINDS)}, got {source_kind!r}")
    stamp = time.time() if now is None else now
    said = None if groups is None else plain(dict(groups), f"groups of {name!r}")
    pseudonym = f"a{secrets.token_hex(6)}"
    token = f"{pseudonym}.{secrets.token_urlsafe(32)}"
    row = (pseudonym, name, _hashed(token), int(admin), source_kind, said, None if said is None else stamp, stamp)
    with writing(con):
        if con.execute("SELECT 1 FROM annotator WHERE name = ?", (name,)).fetchone():
            raise UserError(f"there is an annotator {name!r} already; give another name, or a new token to this one")
        con.execute(
            "INSERT INTO annotator(id, name, token_hash, admin, source_kind, groups, consent_at, created_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
    return token


def make_admin(con: sqlite3.Connection, name: str) -> None:
    """Let this annotator fetch the report. UserError for an unknown name."""
    with writing(con):
        if not con.execute("UPDATE annotator SET admin = 1 WHERE name = ?", (name,)).rowcount:
            raise UserError(f"there is no annotator {name!r}")


def set_groups(
    con: sqlite3.Connection, name: str, groups: Mapping[str, str] | None, *, now: int | float | None = None
) -> None:
    """What this person chose to say about themselves, with their consent as of now; None takes both back. UserError for an
    unknown name."""
    said = None if groups is None else plain(dict(groups), f"groups of {name!r}")
    stamp = None if groups is None else time.time() if now is None else now
    with writing(con):
        change = "UPDATE annotator SET groups = ?, consent_at = ? WHERE name = ?"
        if not con.execute(change, (said, stamp, name)).rowcount:
            raise UserError(f"there is no annotator {name!r}")


def new_token(con: sqlite3.Connection, name: str) -> str:
    """Another token for an annotator who lost theirs; the old one no longer works. UserError for an unknown name."""
    with writing(con):
        row = con.execute("SELECT id FROM annotator WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise UserError(f"there is no annotator {name!r}")
        token = f"{row['id']}.{secrets.token_urlsafe(32)}"
        con.execute("UPDATE annotator SET token_hash = ? WHERE id = ?", (_hashed(token), row["id"]))
    return token


def annotator_of(con: sqlite3.Connection, token: str) -> sqlite3.Row | None:
    """Whose token it is; None for one that is wrong. The comparison takes the same time wherever they differ."""
    if not token.isascii():
        return None
    row = con.execute("SELECT * FROM annotator WHERE id = ?", (token.partition(".")[0],)).fetchone()
    stored = row["token_hash"] if row else _hashed("")
    same = hmac.compare_digest(stored, _hashed(token))
    return row if row and same else None


def add_guideline(con: sqlite3.Connection, text: str, asked: Any = (), *, now: int | float | None = None) -> str:
    """The version of these guidelines (12 hex digits), stored with every judgement made under them.

    `asked` is what else the annotators read: axes and questions. Other text or other questions, another version.
    """
    axes = plain(asked, "the axes")
    version = hashlib.sha256(plain([text, axes], "the guidelines").encode()).hexdigest()[:12]
    known = "SELECT 1 FROM guideline WHERE version = ?"
    if con.execute(known, (version,)).fetchone() is None:
        with writing(con):
            if con.execute(known, (version,)).fetchone() is None:  # another process may have been faster
                row = (version, text, axes, time.time() if now is None else now)
                con.execute("INSERT INTO guideline VALUES (?, ?, ?, ?)", row)
    return version


def plain(value: Any, what: str) -> str:
    """Canonical JSON text of the value. UserError where it is no JSON, or holds half a surrogate pair."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
        text.encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}; only JSON values of valid Unicode can be stored") from None
    return text


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _add_item(con: sqlite3.Connection, item: NewItem, where: str, now: int | float) -> int:
    candidates = [Candidate(r) if isinstance(r, str) else r for r in item.responses]
    _check_item(item, [c.text for c in candidates], where)
    prompt = as_messages(item.prompt)
    prompt_id = _add_prompt(con, prompt, item, where, now)
    ids = [_add_response(con, prompt_id, candidate, item.round, where, now) for candidate in candidates]
    answer = _answer(item, where)
    gold = None if answer is None else plain(answer, where)
    what = plain([item.kind, prompt_id, ids, list(item.axes), item.round, gold], where)
    key = hashlib.sha256(what.encode()).hexdigest()
    known = con.execute("SELECT id FROM item WHERE key = ?", (key,)).fetchone()
    if known is not None:
        con.execute("UPDATE item SET target_n = max(target_n, ?) WHERE id = ?", (item.target_n, known["id"]))
        return int(known["id"])
    row = con.execute(
        "INSERT INTO item(key, prompt_id, kind, response_ids, axes, round, target_n, gold, selection, score, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            *(key, prompt_id, item.kind, plain(ids, where), plain(list(item.axes), where), item.round),
            *(item.target_n, gold, item.selection, item.score, now),
        ),
    ).fetchone()
    return int(row["id"])


def _check_item(item: NewItem, texts: list[str], where: str) -> None:
    if item.kind not in KINDS:
        raise UserError(f"{where}: kind is one of {', '.join(KINDS)}, got {item.kind!r}")
    least, most = KINDS[item.kind]
    if not least <= len(texts) <= most:
        raise UserError(f"{where}: a {item.kind} item has {least} to {most} responses, got {len(texts)}")
    if len(set(texts)) < len(texts):
        raise UserError(f"{where}: two of its responses are the same text; leave one out")
    if item.kind != "rate" and len(item.axes) != 1:
        raise UserError(f"{where}: a {item.kind} item is judged on one axis, got {list(item.axes)}")
    if item.score is not None and not math.isfinite(item.score):
        raise UserError(f"{where}: score must be a finite number, got {item.score}")
    if item.target_n < 1:
        raise UserError(f"{where}: target_n is {item.target_n}; at least 1 person judges an item")


def _answer(item: NewItem, where: str) -> dict[str, Any] | None:
    """The right verdict, checked: one that can be wrong."""
    if item.gold is None:
        return None
    ratings = item.gold.get("ratings")
    asked = [Axis(str(n), "", _int(v), _int(v) + 1) for n, v in ratings.items()] if isinstance(ratings, Mapping) else []
    try:
        value = canonical(item.kind, dict(item.gold), range(len(item.responses)), asked)
    except UserError as error:
        raise UserError(f"{where}: gold: {error}") from None
    if "skip" in value or set(value.get("ranks", (0, 1))) == {0}:
        raise UserError(f"{where}: gold {dict(item.gold)!r:.100} cannot be answered wrongly; give a clear verdict")
    value.pop("scales", None)
    return value


def _int(value: object) -> int:
    return value if type(value) is int else 0


def _add_prompt(
    con: sqlite3.Connection, prompt: tuple[Message, ...], item: NewItem, where: str, now: int | float
) -> str:
    key = prompt_key(prompt)
    if con.execute("SELECT 1 FROM prompt WHERE id = ?", (key,)).fetchone() is None:
        row = (key, plain(list(prompt), where), item.source, plain(list(item.tags), where), now)
        con.execute("INSERT INTO prompt VALUES (?, ?, ?, ?, ?)", row)
    return key


def _add_response(
    con: sqlite3.Connection, prompt_id: str, candidate: Candidate, round: int, where: str, now: int | float
) -> str:
    identity = plain([prompt_id, candidate.text, candidate.policy, round], where)
    key = hashlib.sha256(identity.encode()).hexdigest()
    if con.execute("SELECT 1 FROM response WHERE id = ?", (key,)).fetchone() is None:
        drawn = plain(dict(candidate.generation), where)
        row = (key, prompt_id, candidate.text, candidate.policy, candidate.checkpoint, round, drawn)
        places = ", ".join("?" * 10)
        con.execute(f"INSERT INTO response VALUES ({places})", (*row, candidate.n_tokens, candidate.logprob_ref, now))
    return key
