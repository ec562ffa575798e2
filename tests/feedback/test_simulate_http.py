"""Simulated annotators at a real server: what they say, that it is synthetic, and that no kill loses or doubles it."""

import json
import sqlite3
import threading
import time
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.server.simulated import Habits, annotate, answer
from rlhf_jax.feedback.simulate import Judge
from rlhf_jax.feedback.statistics.quality import self_consistency
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_items
from rlhf_jax.feedback.store.export import export, records
from rlhf_jax.feedback.store.read import judged, judgements
from tests.feedback.judging import pairs
from tests.feedback.serving import port_of, start, stop

SURE = Habits(Judge("sure", temperature=1e-6))


def gold(messages, response, axis):
    """The number that the response ends with."""
    return float(response.split()[-1])


def task(kind="pair", responses=("r 1", "r 2")):
    axes = [{"name": "helpful", "low": 1, "high": 5}] if kind == "rate" else []
    return {"kind": kind, "messages": [{"role": "user", "content": "q"}], "responses": list(responses), "axes": axes}


class TestAnswers:
    def test_who_never_errs_says_what_the_gold_score_says(self):
        rng = np.random.default_rng(0)
        for responses, better in ((("r 1", "r 2"), 1), (("r 2", "r 1"), -1)):
            verdict, ms = answer(rng, SURE, task(responses=responses), gold)
            assert verdict == {"strength": 3 * better} and ms > 0
        ranks, _ = answer(rng, SURE, task("rank", ("r 2", "r 0", "r 3", "r 1")), gold)
        assert ranks == {"ranks": [1, 3, 0, 2]}
        assert answer(rng, SURE, task("rate", ("r 9",)), gold)[0] == {"ratings": {"helpful": 5}}
        assert answer(rng, SURE, task("rate", ("r -9",)), gold)[0] == {"ratings": {"helpful": 1}}

    def test_strength_grows_with_the_gap(self):
        rng = np.random.default_rng(0)
        seen = {}
        for gap in (0.5, 2.0, 5.0):
            said = [
                answer(rng, Habits(Judge(temperature=1.0)), task(responses=("r 0", f"r {gap}")), gold)[0]
                for _ in range(400)
            ]
            seen[gap] = Counter(v["strength"] for v in said)
        assert (
            {s for s in seen[0.5]} == {1, -1}
            and {s for s in seen[2.0]} == {2, -1}
            and {s for s in seen[5.0]} == {3, -1}
        )
        share = {gap: sum(n for s, n in counts.items() if s > 0) / 400 for gap, counts in seen.items()}
        for gap, right in share.items():
            assert right == pytest.approx(1 / (1 + np.exp(-gap)), abs=0.07)

    def test_position_bias_follows_the_order_shown(self):
        rng = np.random.default_rng(0)
        first = Habits(Judge(temperature=1.0, position_bias=50.0))
        for responses in (("r 1", "r 2"), ("r 2", "r 1")):
            assert all(answer(rng, first, task(responses=responses), gold)[0]["strength"] < 0 for _ in range(20))

    def test_ties_skips_and_laziness(self):
        rng = np.random.default_rng(0)
        level = Habits(Judge(temperature=1.0, tie=100.0))
        assert answer(rng, level, task(), gold)[0] == {"strength": 0}
        assert answer(rng, Habits(skip=1.0), task(), gold)[0] == {"skip": True}
        lazy = [
            answer(rng, Habits(SURE.judge, lazy=1.0), task(responses=("r 1", "r 2" + " x" * 500 + " 9")), gold)
            for _ in range(20)
        ]
        assert {v["strength"] for v, _ in lazy} == {-3} and max(ms for _, ms in lazy) < 1000
        honest = answer(rng, SURE, task(responses=("r 1", "r 2" + " x" * 500 + " 9")), gold)
        assert honest[0] == {"strength": 3} and honest[1] > 30_000
        some = [answer(rng, Habits(SURE.judge, lazy=0.3), task(), gold)[0]["strength"] for _ in range(500)]
        assert Counter(some)[-3] / 500 == pytest.approx(0.3, abs=0.07)

    @pytest.mark.parametrize("wrong", [dict(lazy=-0.1), dict(skip=1.1), dict(words_a_minute=0)])
    def test_habits_are_checked(self, wrong):
        with pytest.raises(UserError, match="are shares"):
            Habits(**wrong)


@pytest.fixture
def served(tmp_path):
    """served(items, {name: source_kind}) -> (store, address, {name: token}); the server is killed at the end."""
    started = []

    def serve(items, people, rules='{"gold_rate": 0, "repeat_rate": 0}'):
        con = open_store(tmp_path / "judgements.sqlite")
        add_items(con, items)
        tokens = {name: add_annotator(con, name, source_kind=kind) for name, kind in people.items()}
        process, url = start(tmp_path / "judgements.sqlite", rules=rules)
        started.append(process)
        return con, url, tokens

    yield serve
    for process in started:
        stop(process)


def test_the_loop_without_people(served, tmp_path):
    """Three kinds of item, two judges, one of whom goes by position: through the server and out into files."""
    items = [NewItem(f"q {i}", ["good 2", "bad 1"], target_n=2) for i in range(30)]
    items += [
        NewItem("q", [f"r {k}" for k in range(4)], kind="rank", target_n=2),
        NewItem("q", ["r 2"], kind="rate", axes=(), target_n=2),
    ]
    rules = '{"gold_rate": 0, "repeat_rate": 0.4, "repeat_gap": 2}'
    con, url, tokens = served(items, {"sure": "synthetic", "first": "synthetic"}, rules)
    bots = {"sure": SURE, "first": Habits(Judge("first", temperature=1.0, position_bias=1e6))}
    for name, habits in bots.items():
        said = annotate(url, tokens[name], habits, gold, seed=1)
        assert len(said) >= 32
    names = {row["id"]: row["name"] for row in con.execute("SELECT id, name FROM annotator")}
    rows = judged(con)
    agree = {n: self_consistency([r for r in rows if names[r.annotator] == n]).same for n in bots}
    assert agree["sure"].share == 1.0 and agree["first"].share == 0.0 and min(a.n for a in agree.values()) > 5
    found, _ = records(con)
    mine = [r for r in found if names[r.annotator] == "sure" and hasattr(r, "ranks")]
    assert {r.ranks for r in mine} == {(0, 1), (3, 2, 1, 0)}
    assert {record.source_kind for record in found} == {"synthetic"}
    for form in ("raw", "trl_explicit", "trl_unpaired"):
        manifest = export(con, tmp_path / f"{form}.jsonl", form)
        assert set(manifest["source_kinds"]) == {"synthetic"}
        for line in open(tmp_path / f"{form}.jsonl"):
            assert json.loads(line)["source_kind"] == "synthetic"


def test_a_persons_token_a_wrong_one_and_a_limit(served):
    con, url, tokens = served(pairs(5), {"ann": "human", "bot": "synthetic"})
    with pytest.raises(UserError, match="not a synthetic annotator's"):
        annotate(url, tokens["ann"], SURE, gold, seed=0)
    with pytest.raises(UserError, match="401"):
        annotate(url, "wrong", SURE, gold, seed=0)
    with pytest.raises(UserError, match="no answer"):
        annotate("http://127.0.0.1:1/", tokens["bot"], SURE, gold, seed=0, patience_s=0.2)
    assert judgements(con) == []


def test_a_seed_gives_the_same_words(served):
    items = [NewItem(f"q {i}", [f"r {i % 3}", "r 1.5"], target_n=2) for i in range(12)]
    con, url, tokens = served(items, {"bot": "synthetic"})
    said = annotate(url, tokens["bot"], Habits(Judge(temperature=1.0)), gold, seed=3, limit=5)
    assert len(said) == 5 and len(judgements(con)) == 5
    more = annotate(url, tokens["bot"], Habits(Judge(temperature=1.0)), gold, seed=3)
    assert len(more) == 7
    # The same noise again, for the same tasks: a judge draws alike whoever asks.
    rng = np.random.default_rng([3, *b"bot"])
    row = judgements(con)[0]
    seen = task(responses=[row["responses"][k] for k in row["shown"]])
    assert answer(rng, Habits(Judge(temperature=1.0)), {**seen, "messages": row["prompt"]}, gold)[0] == row["said"]


def stormed(folder, *, people: int, items: int, target_n: int, kills: int) -> None:
    """People judge at once while the server is killed: what was acknowledged is there, once, and no item too often."""
    db = folder / "judgements.sqlite"
    con = open_store(db)
    add_items(con, [NewItem(f"q {i}", ["r 1", "r 2"], target_n=target_n) for i in range(items)])
    tokens = [add_annotator(con, f"bot {k}", source_kind="synthetic") for k in range(people)]
    process, url = start(db)
    said: dict[int, list] = {}
    faults: list[BaseException] = []

    def work(k):
        try:
            said[k] = annotate(url, tokens[k], Habits(Judge(f"bot {k}", temperature=1.0)), gold, seed=k, patience_s=120)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(people)]
    [thread.start() for thread in threads]
    total, killed_at = items * target_n, []
    try:
        for kill in range(1, kills + 1):
            while count(con) < total * kill // (kills + 1) and not faults:
                time.sleep(0.01)
            stop(process)
            killed_at.append(count(con))
            process, again = start(db, port_of(url))
            assert again == url
        [thread.join() for thread in threads]
    finally:
        stop(process)
    assert not faults, faults[0]
    assert len(killed_at) == kills and max(killed_at) < total, killed_at
    acknowledged = [(one.assignment, dict(one.verdict)) for words in said.values() for one in words]
    rows = judgements(con)
    assert sorted(number for number, _ in acknowledged) == sorted(row["assignment"] for row in rows)
    assert dict(acknowledged) == {row["assignment"]: row["said"] for row in rows}
    assert con.execute("SELECT count(*) FROM judgement").fetchone()[0] == len(rows) == total
    assert set(Counter(row["item"] for row in rows).values()) == {target_n}
    assert set(Counter((row["item"], row["annotator"]) for row in rows).values()) == {1}
    assert con.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert con.execute("PRAGMA foreign_key_check").fetchall() == []


def count(con: sqlite3.Connection) -> int:
    return con.execute("SELECT count(*) FROM judgement").fetchone()[0]


def test_eight_annotators_and_a_kill(tmp_path):
    stormed(tmp_path, people=8, items=40, target_n=4, kills=1)


@pytest.mark.long
def test_fifty_annotators_two_thousand_judgements_and_three_kills(tmp_path):
    stormed(tmp_path, people=50, items=400, target_n=5, kills=3)
