"""The tables of the judgement store, as the steps from one version of the file to the next.

A step, once released, is never edited: a change of the tables is a new step at the end. A new file takes all of them.
Times are seconds since 1970 (UTC), sets and messages JSON text. `shown` is a permutation: shown[k] is the place, in
the item's own (canonical) order, of the response that stood k-th on the page.
"""

APPLICATION_ID = 0x524C4846
"""Marks the file as ours in its header ("RLHF"), for `file` and for `open_store`."""

TABLES = (
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE prompt(
        id TEXT PRIMARY KEY,            -- records.prompt_key(messages)
        messages TEXT NOT NULL, source TEXT NOT NULL, tags TEXT NOT NULL, created_at REAL NOT NULL)""",
    """CREATE TABLE response(
        id TEXT PRIMARY KEY,            -- sha256 of the columns in UNIQUE
        prompt_id TEXT NOT NULL REFERENCES prompt(id), text TEXT NOT NULL, policy TEXT NOT NULL,
        checkpoint TEXT NOT NULL, round INTEGER NOT NULL, generation TEXT NOT NULL,
        n_tokens INTEGER, logprob_ref REAL, created_at REAL NOT NULL,
        UNIQUE(prompt_id, text, policy, round))""",
    """CREATE TABLE item(
        id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, prompt_id TEXT NOT NULL REFERENCES prompt(id),
        kind TEXT NOT NULL CHECK(kind IN ('pair', 'rank', 'rate')),
        response_ids TEXT NOT NULL, axes TEXT NOT NULL, round INTEGER NOT NULL,
        target_n INTEGER NOT NULL CHECK(target_n >= 1), gold TEXT,   -- a gold item has the answer here
        selection TEXT NOT NULL, score REAL, created_at REAL NOT NULL)""",
    """CREATE TABLE annotator(
        id TEXT PRIMARY KEY,            -- a pseudonym: the only name that leaves the file
        name TEXT NOT NULL UNIQUE, token_hash TEXT NOT NULL, admin INTEGER NOT NULL,
        source_kind TEXT NOT NULL CHECK(source_kind IN ('human', 'ai', 'synthetic')),
        groups TEXT, consent_at REAL,   -- self-declared, and only with consent
        paused TEXT, gold_from INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL,
        CHECK(groups IS NULL OR consent_at IS NOT NULL))""",
    """CREATE TABLE assignment(
        id INTEGER PRIMARY KEY, item_id INTEGER NOT NULL REFERENCES item(id),
        annotator_id TEXT NOT NULL REFERENCES annotator(id),
        repeat_of INTEGER REFERENCES assignment(id),
        shown TEXT NOT NULL, state TEXT NOT NULL CHECK(state IN ('open', 'judged', 'skipped')),
        leased_until REAL NOT NULL, opened_at REAL NOT NULL, created_at REAL NOT NULL)""",
    # The same item reaches one person twice only as a repeat.
    "CREATE UNIQUE INDEX once ON assignment(item_id, annotator_id) WHERE repeat_of IS NULL",
    "CREATE INDEX places ON assignment(item_id, state, leased_until) WHERE repeat_of IS NULL",
    # Only of the repeats: an index that held the others too would be taken for a way to find them.
    "CREATE UNIQUE INDEX repeated ON assignment(repeat_of) WHERE repeat_of IS NOT NULL",
    "CREATE INDEX assignments_of ON assignment(annotator_id, state)",
    """CREATE TABLE judgement(
        id INTEGER PRIMARY KEY, assignment_id INTEGER NOT NULL REFERENCES assignment(id),
        kind TEXT NOT NULL CHECK(kind IN ('verdict', 'skip', 'undo')),
        said TEXT NOT NULL,             -- as posted, in the order shown
        value TEXT NOT NULL,            -- the same in the item's own order
        strength INTEGER, tie INTEGER NOT NULL, both_bad INTEGER NOT NULL,
        flags TEXT NOT NULL, rationale TEXT NOT NULL, ms INTEGER NOT NULL,
        guideline_version TEXT NOT NULL REFERENCES guideline(version), ui_version TEXT NOT NULL,
        created_at REAL NOT NULL, supersedes INTEGER UNIQUE REFERENCES judgement(id))""",
    # One chain a task: a second first word is refused by the file itself.
    "CREATE UNIQUE INDEX first_word ON judgement(assignment_id) WHERE supersedes IS NULL",
    "CREATE INDEX judgements_of ON judgement(assignment_id)",
    """CREATE VIEW current_judgement AS SELECT * FROM judgement AS said WHERE kind != 'undo'
        AND NOT EXISTS (SELECT 1 FROM judgement AS later WHERE later.supersedes = said.id)""",
    """CREATE TABLE draft(assignment_id INTEGER PRIMARY KEY REFERENCES assignment(id),
        draft TEXT NOT NULL, updated_at REAL NOT NULL)""",
    "CREATE TABLE guideline(version TEXT PRIMARY KEY, text TEXT NOT NULL, axes TEXT NOT NULL, created_at REAL NOT NULL)",
    """CREATE TABLE export(id INTEGER PRIMARY KEY, path TEXT NOT NULL, filter TEXT NOT NULL, sha256 TEXT NOT NULL,
        n_rows INTEGER NOT NULL, created_at REAL NOT NULL)""",
)

_APPEND_ONLY = ("judgement", "prompt", "response", "guideline", "export")
_KEPT = ("item", "annotator", "assignment")

GUARDS = (
    *(
        f"CREATE TRIGGER {table}_is_never_{done} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in _APPEND_ONLY
        for verb, done in (("UPDATE", "changed"), ("DELETE", "deleted"))
    ),
    *(
        f"CREATE TRIGGER {table}_is_never_deleted BEFORE DELETE ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'nothing is deleted from {table}'); END"
        for table in _KEPT
    ),
    # INSERT OR REPLACE deletes without a word to the triggers above.
    """CREATE TRIGGER judgement_is_never_replaced BEFORE INSERT ON judgement
        WHEN EXISTS (SELECT 1 FROM judgement WHERE id = NEW.id
                     OR (supersedes IS NOT NULL AND supersedes = NEW.supersedes)
                     OR (NEW.supersedes IS NULL AND supersedes IS NULL AND assignment_id = NEW.assignment_id))
        BEGIN SELECT RAISE(ABORT, 'judgement is append-only'); END""",
    """CREATE TRIGGER judgement_supersedes_its_own BEFORE INSERT ON judgement WHEN NEW.supersedes IS NOT NULL
        AND (SELECT assignment_id FROM judgement WHERE id = NEW.supersedes) IS NOT NEW.assignment_id
        BEGIN SELECT RAISE(ABORT, 'a judgement supersedes one of the same task'); END""",
)

# What may change, and nothing else, in the tables that are not append-only: of an item how many shall judge it (never
# fewer), of a person their token, rights, pauses and what they told of themselves, of a task its state and its lease.
_FIXED = {
    "item": "key prompt_id kind response_ids axes round gold selection score created_at".split(),
    "annotator": "name source_kind created_at".split(),
    "assignment": "item_id annotator_id repeat_of shown created_at".split(),
    "meta": "key value".split(),
}

# By which columns a new row would take an old one's place in INSERT OR REPLACE, besides the row's own number.
_UNIQUE = {
    "meta": ("key = NEW.key",),
    "prompt": ("id = NEW.id",),
    "response": (
        "id = NEW.id",
        "(prompt_id = NEW.prompt_id AND text = NEW.text AND policy = NEW.policy AND round = NEW.round)",
    ),
    "item": ("id = NEW.id", "key = NEW.key"),
    "annotator": ("id = NEW.id", "name = NEW.name"),
    "assignment": (
        "id = NEW.id",
        "(item_id = NEW.item_id AND annotator_id = NEW.annotator_id AND repeat_of IS NULL AND NEW.repeat_of IS NULL)",
        "repeat_of = NEW.repeat_of",
    ),
    "guideline": ("version = NEW.version",),
    "export": ("id = NEW.id",),
}


def _same_row(table: str) -> str:
    return "key = NEW.key" if table == "meta" else "rowid = NEW.rowid"  # meta has no row numbers


LASTING = (
    *(
        f"CREATE TRIGGER {table}_stays_as_it_was BEFORE UPDATE ON {table} WHEN "
        + " OR ".join(
            f"NEW.{column} IS NOT OLD.{column}" for column in (*columns, *(["id"] if table != "meta" else ()))
        )
        + (" OR NEW.target_n < OLD.target_n" if table == "item" else "")
        + ("" if table == "meta" else " OR NEW.rowid IS NOT OLD.rowid")
        + f" BEGIN SELECT RAISE(ABORT, '{table} is append-only: this part of a row never changes'); END"
        for table, columns in _FIXED.items()
    ),
    *(
        f"CREATE TRIGGER {table}_is_not_replaced BEFORE INSERT ON {table} WHEN "
        + " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {way})" for way in dict.fromkeys((*ways, _same_row(table))))
        + f" BEGIN SELECT RAISE(ABORT, '{table} is append-only: there is such a row'); END"
        for table, ways in _UNIQUE.items()
    ),
    "CREATE TRIGGER meta_is_never_deleted BEFORE DELETE ON meta BEGIN SELECT RAISE(ABORT, 'nothing is deleted from meta'); END",
)

STEPS: tuple[tuple[str, ...], ...] = (TABLES, GUARDS, LASTING)
"""STEPS[k] leads from version k to k + 1."""
