"""Simulated annotators at the real server: they speak the HTTP interface that the page speaks, and nothing else.

What they say is synthetic, whatever it is used for: they refuse a token that is not a synthetic annotator's, and the
store writes the kind beside every judgement. The verdicts are those of `simulate.judge`, which sees the responses in
the order in which the server shows them; `Habits` adds what shows only at a page: laziness and time.
"""

import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.simulate import Judge, judge

Task = Mapping[str, Any]
Score = Callable[[Sequence[Mapping[str, str]], str, str], float]
"""score(messages, response, axis) -> gold score; the axis is "" for pairs and rankings."""

STRENGTH_STEPS = (1.0, 2.5)
"""Logits between two responses from which a preference is called 2 and 3."""


@dataclass(frozen=True)
class Habits:
    """How a simulated person behaves at the page. UserError for a rate outside 0..1 or no speed."""

    judge: Judge = field(default_factory=Judge)
    lazy: int | float = 0.0
    """Share of tasks answered at once with the first key, whatever is shown."""
    skip: int | float = 0.0
    """Share of tasks skipped."""
    words_a_minute: int | float = 240.0

    def __post_init__(self) -> None:
        if not (0 <= self.lazy <= 1 and 0 <= self.skip <= 1 and self.words_a_minute > 0):
            raise UserError(f"{self.judge.name!r}: lazy and skip are shares, words_a_minute is above 0, got {self}")


@dataclass(frozen=True)
class Said:
    """A judgement that the server has acknowledged."""

    assignment: int
    verdict: Mapping[str, Any]
    """In the order shown."""


def annotate(
    url: str,
    token: str,
    habits: Habits,
    score: Score,
    *,
    seed: int,
    limit: int | None = None,
    patience_s: int | float = 30.0,
) -> list[Said]:
    """Judge until nothing is left, the server pauses this annotator, or `limit` tasks are judged.

    A request that got no answer is sent again for `patience_s` seconds: the server stores the same words once. The
    noise depends on the seed and the annotator's name. Raises UserError for a token that is wrong or not synthetic, a
    server that stays away, and for an answer that this client should never get (4xx but 409).
    """
    ask = _client(url, token, patience_s)
    status, body = ask("GET", "/api/task", None)
    if status != 200:
        raise UserError(f"{url} answers {status}: {body.get('error')}")
    if body["source_kind"] != "synthetic":
        raise UserError(f"the token of {body['annotator']!r} is not a synthetic annotator's; simulated judgements are")
    rng = np.random.default_rng([seed, *body["annotator"].encode()])
    said: list[Said] = []
    while body["task"] is not None and (limit is None or len(said) < limit):
        task = body["task"]
        verdict, ms = answer(rng, habits, task, score)
        sent = {"assignment": task["assignment"], "verdict": verdict, "flags": [], "rationale": "", "ms": ms}
        status, body = ask("POST", "/api/judgement", sent)
        if status == 200:
            said.append(Said(task["assignment"], verdict))
        elif status == 409:  # the lease is gone; go on with what there is
            status, body = ask("GET", "/api/task", None)
        if status != 200:
            raise UserError(f"{url} answers {status}: {body.get('error')}")
    return said


def answer(rng: np.random.Generator, habits: Habits, task: Task, score: Score) -> tuple[dict[str, Any], int]:
    """The verdict on a task, in the order shown, and the milliseconds that it took."""
    responses, messages = task["responses"], task["messages"]
    words = sum(len(text.split()) for text in (*(m["content"] for m in messages), *responses))
    reading = 60_000 * words / habits.words_a_minute * float(rng.lognormal(sigma=0.3))
    coin = rng.random()
    if coin < habits.skip:
        return {"skip": True}, round(reading)
    if coin < habits.skip + habits.lazy:
        return _first_key(task), 300 + int(rng.integers(200))
    who = habits.judge
    if task["kind"] == "rate":
        return {"ratings": {axis["name"]: _rate(rng, who, task, axis, score) for axis in task["axes"]}}, round(reading)
    scores = [score(messages, text, "") for text in responses]
    lengths = [len(text.split()) for text in responses]
    ranks = judge(rng, who, scores, lengths, shown=range(len(responses))).ranks
    if task["kind"] == "rank":
        return {"ranks": list(ranks)}, round(reading)
    return {"strength": _strength(who, scores, ranks)}, round(reading)


def _strength(who: Judge, scores: Sequence[float], ranks: Sequence[int]) -> int:
    """How strongly the preferred response is preferred: by the gap that the judge saw, 1 where it goes the other way."""
    side = int(ranks[0] > ranks[1]) - int(ranks[0] < ranks[1])
    gap = (scores[1] - scores[0]) / who.temperature * side
    return side * (1 + sum(gap >= step for step in STRENGTH_STEPS))


def _rate(rng: np.random.Generator, who: Judge, task: Task, axis: Mapping[str, Any], score: Score) -> int:
    """A value on the axis: the gold score in logits, with logistic noise and length bias, squashed onto the scale."""
    low, high = axis["low"], axis["high"]
    if rng.random() < who.lapse:
        return int(rng.integers(low, high + 1))
    text = task["responses"][0]
    liking = score(task["messages"], text, axis["name"]) / who.temperature + who.length_bias * len(text.split())
    share = 1 / (1 + np.exp(-np.clip(liking + rng.logistic(), -50, 50)))
    return low + min(int(share * (high - low + 1)), high - low)


def _first_key(task: Task) -> dict[str, Any]:
    if task["kind"] == "pair":
        return {"strength": -3}
    if task["kind"] == "rank":
        return {"ranks": list(range(len(task["responses"])))}
    return {"ratings": {axis["name"]: axis["low"] for axis in task["axes"]}}


def _client(url: str, token: str, patience_s: int | float) -> Callable[[str, str, Any], tuple[int, dict[str, Any]]]:
    """ask(method, path, body) -> (status, JSON): one kept connection, opened again while the server is away."""
    at = urlsplit(url)
    kept: list[http.client.HTTPConnection] = []
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        sent = None if body is None else json.dumps(body)
        until = time.monotonic() + patience_s
        while True:
            try:
                if not kept:
                    kept.append(http.client.HTTPConnection(at.hostname or "", at.port, timeout=patience_s))
                kept[0].request(method, path, sent, headers)
                reply = kept[0].getresponse()
                return reply.status, json.loads(reply.read())
            except (OSError, http.client.HTTPException) as error:
                if kept:
                    kept.pop().close()
                if time.monotonic() > until:
                    raise UserError(f"no answer from {url} for {patience_s:g} s: {error}") from None
                time.sleep(0.05)

    return ask
