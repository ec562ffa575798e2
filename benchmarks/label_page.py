"""How long the labelling page takes to load: GET / and GET /api/task at a real server. Prints one line of JSON.

python benchmarks/label_page.py --items 2000 --people 20 --loads 500

The store has that many items, each for three people, and is a third judged. One person loads the page `loads` times,
over one kept connection, then judges as many tasks; then loads it again while `others` simulated annotators judge as
fast as the server lets them. Milliseconds, seen by the client.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rlhf_jax.feedback.server.simulated import Habits, annotate
from rlhf_jax.feedback.simulate import Judge
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_guideline, add_items
from rlhf_jax.feedback.store.assign import Rules, next_task
from rlhf_jax.feedback.store.judge import Asked, Words, submit

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.feedback.serving import port_of, start, stop

WORDS = "the page shows a prompt of some length and two answers of some length each".split()


def fill(db: Path, items: int, people: int, gold: int) -> tuple[str, list[str]]:
    """A store with items of about 150 words each, a third of the places judged; the tokens of a person and of bots."""
    con = open_store(db)
    con.execute("PRAGMA synchronous = OFF")
    text = " ".join(WORDS * 10)
    ordinary = [NewItem(f"{k} {text[:300]}", [f"a {k} {text}", f"b {k} {text}"], target_n=3) for k in range(items)]
    hidden = [NewItem(f"gold {k}", ["x", "y"], gold={"strength": -1}) for k in range(gold)]
    add_items(con, ordinary + hidden)
    asked = Asked(add_guideline(con, "fill"))
    for k in range(people):
        add_annotator(con, f"earlier {k}", source_kind="synthetic")
    rules = Rules(gold_rate=0, repeat_rate=0)
    for (who,) in con.execute("SELECT id FROM annotator").fetchall():
        for _ in range(items // people):
            task = next_task(con, who, rules)
            if task is not None:
                submit(con, who, task["id"], Words({"strength": 1}, ms=4000), asked, rules)
    person = add_annotator(con, "person")
    return person, [add_annotator(con, f"bot {k}", source_kind="synthetic") for k in range(8)]


def load(port: int, token: str, loads: int) -> dict[str, list[float]]:
    """Milliseconds of each page load, the two requests apart."""
    page = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    took: dict[str, list[float]] = {"GET /": [], "GET /api/task": []}
    for _ in range(loads):
        for name, times in took.items():
            times.append(timed(page, token, name)[0])
    return took


def judge(port: int, token: str, count: int) -> list[float]:
    """Milliseconds of each judgement, the next task included."""
    page = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = timed(page, token, "GET /api/task")[1]
    times = []
    while body["task"] is not None and len(times) < count:
        first = body["task"]["responses"].index(min(body["task"]["responses"]))  # the right one, of a gold item too
        sent = {"assignment": body["task"]["assignment"], "verdict": {"strength": -1 if first == 0 else 1}, "ms": 4000}
        took, body = timed(page, token, "POST /api/judgement", sent)
        times.append(took)
    return times


def timed(page: http.client.HTTPConnection, token: str, what: str, sent: object = None) -> tuple[float, Any]:
    """Milliseconds of one request, and its answer."""
    method, path = what.split()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    begun = time.perf_counter()
    page.request(method, path, None if sent is None else json.dumps(sent), headers)
    reply = page.getresponse()
    content = reply.read()
    took = 1000 * (time.perf_counter() - begun)
    if reply.status != 200:
        raise SystemExit(f"{what} answers {reply.status}: {content[:200]!r}")
    return took, json.loads(content) if path.startswith("/api") else content


def summary(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    at = statistics.quantiles(times, n=20, method="inclusive")
    return {"median": round(at[9], 2), "p95": round(at[18], 2), "max": round(max(times), 2), "n": len(times)}


def below(took: dict[str, list[float]], limit: float = 100) -> bool:
    """Whether the 95th percentile of every kind of request is below `limit` milliseconds."""
    return all(summary(times)["p95"] < limit for times in took.values())


def main() -> None:
    """Measure, print."""
    told = argparse.ArgumentParser(description="Time of a load of the labelling page.")
    told.add_argument("--items", type=int, default=2000)
    told.add_argument("--people", type=int, default=20)
    told.add_argument("--loads", type=int, default=500)
    told.add_argument("--others", type=int, default=8)
    given = told.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "judgements.sqlite"
        person, bots = fill(db, given.items, given.people, gold=50)
        process, url = start(db, rules="{}")
        try:
            alone = load(port_of(url), person, given.loads)
            alone["POST /api/judgement"] = judge(port_of(url), person, given.loads)
            over = threading.Event()

            def score(messages: object, response: str, axis: str) -> float:
                if over.is_set():
                    raise SystemExit
                return float(len(response))

            def work(token: str) -> None:
                annotate(url, token, Habits(Judge(temperature=1.0)), score, seed=0)

            threads = [threading.Thread(target=work, args=(token,), daemon=True) for token in bots[: given.others]]
            [thread.start() for thread in threads]
            busy = load(port_of(url), person, given.loads)
            over.set()
            [thread.join() for thread in threads]
        finally:
            stop(process)
    found = {
        "items": given.items,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "alone_ms": {name: summary(times) for name, times in alone.items()},
        f"beside_{given.others}_ms": {name: summary(times) for name, times in busy.items()},
        "p95_below_100_ms": {name: below(took) for name, took in {"alone": alone, "beside_others": busy}.items()},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
