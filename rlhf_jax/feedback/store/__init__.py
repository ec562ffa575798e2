"""One SQLite file that holds what was asked and what was said. Nothing in it is ever deleted or overwritten.

    con = open_store("judgements.sqlite")
    with writing(con):
        con.execute(...)

Write-ahead log, so that readers never wait; `BEGIN IMMEDIATE` for every write, so that two annotators never take the
same last place; synchronous=FULL, so that what was acknowledged outlives a power cut. A connection belongs to one
thread.
"""

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.store.schema import APPLICATION_ID, STEPS

BUSY_MS = 20_000
"""How long a connection waits for another process that writes."""

# SQLite's own waiting is polling, which lets one of many threads starve; between processes there is nothing better.
_QUEUE = threading.Lock()


def open_store(path: str | os.PathLike[str], *, create: bool = True) -> sqlite3.Connection:
    """A connection to the store, in autocommit mode, rows by name; an older file is brought up to date first.

    A new file is readable by its owner only. Raises UserError for a folder that does not exist or cannot be
    written, a missing file without `create`, a file that is no store, or one written by a newer version.
    """
    file = Path(path)
    if not file.parent.is_dir():
        raise UserError(f"{file}: the folder {file.parent} does not exist")
    if file.is_dir():
        raise UserError(f"{file} is a folder; name the file that holds the judgements")
    if not file.exists():
        if not create:
            raise UserError(f"{file}: no such file of judgements")
        try:
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise UserError(f"{file} cannot be made: {error.strerror}") from None
    con = None
    try:
        con = sqlite3.connect(file, timeout=BUSY_MS / 1000, isolation_level=None)
        con.row_factory = sqlite3.Row
        _check(con, file)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
            con.execute(f"PRAGMA {pragma}")
        _migrate(con, file)
        return con
    except BaseException as error:
        if con is not None:
            con.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise UserError(f"{file}: {error}; name a file of judgements, or a new one") from None
        raise


@contextmanager
def writing(con: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One write transaction: all of it happens, or, after an error, nothing. The writer is alone while it lasts."""
    with _QUEUE:
        con.execute("BEGIN IMMEDIATE")
        try:
            yield con
            con.execute("COMMIT")
        except BaseException:
            if con.in_transaction:
                con.execute("ROLLBACK")
            raise


def seed_of(con: sqlite3.Connection) -> str:
    """The random text, drawn when the file was made, that the orders and the places of hidden items depend on."""
    return str(con.execute("SELECT value FROM meta WHERE key = 'seed'").fetchone()[0])


def _version(con: sqlite3.Connection) -> int:
    return int(con.execute("PRAGMA user_version").fetchone()[0])


def _check(con: sqlite3.Connection, file: Path) -> None:
    """UserError unless the file is empty, or ours and not from the future."""
    # In this order: another process may make the file ours, tables and mark in one go, between the two lines.
    tables = con.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    owner = con.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION_ID and (owner or tables):
        raise UserError(f"{file} is a database, but not one of judgements; name another file")
    if _version(con) > len(STEPS):
        raise UserError(
            f"{file} has version {_version(con)}, and this rlhf-jax knows {len(STEPS)}; update it: pip install -U rlhf-jax"
        )


def _migrate(con: sqlite3.Connection, file: Path) -> None:
    """The steps that are missing, all in one transaction: a file is at one version or another, never between."""
    if _version(con) == len(STEPS):
        return
    with writing(con):
        _check(con, file)  # another process may have been here first
        for version in range(_version(con), len(STEPS)):
            for statement in STEPS[version]:
                con.execute(statement)
            if version == 0:
                con.execute("INSERT INTO meta VALUES ('seed', ?)", (secrets.token_hex(16),))
        con.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        con.execute(f"PRAGMA user_version = {len(STEPS)}")
