"""Let people judge responses in their browser: a page served from this machine, and one file that keeps what they say.

python experiments/label.py --db judgements.sqlite --prompts prompts.jsonl --policy runs/sft/model
python experiments/label.py --db judgements.sqlite --export comparisons.jsonl

The second command writes what experiments/reward_model.py reads. Started again with the same file, the first one goes
on where it stopped: links stay valid, no response is sampled twice, no item is added twice.
"""

import contextlib
import importlib.util
import ipaddress
import socket
import sqlite3
import urllib.parse
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import label_parts as parts
import label_select

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.selection import LEAST_RANDOM
from rlhf_jax.feedback.store import export as store_export
from rlhf_jax.feedback.store import gold, open_store
from rlhf_jax.feedback.store.assign import Rules
from rlhf_jax.feedback.store.verdict import Axis
from rlhf_jax.runs import config, data, label_report, settings
from rlhf_jax.types import Sampling


@dataclass(frozen=True)
class Scale:
    """One question that a response is rated by, answered with a whole number; more is better."""

    question: str = ""
    """What the page asks, such as "Is it true?"."""
    low: int = 1
    high: int = 5
    required: bool = True
    """Whether a judgement needs an answer to it."""
    labels: dict[str, str] = field(default_factory=dict)
    """Words for some of the values: {"1": "not at all", "5": "fully"}."""

    def __post_init__(self) -> None:
        config.check(
            0 <= self.low < self.high <= 10, f"low and high must be 0 <= low < high <= 10, got {self.low}, {self.high}"
        )


AXES = {
    "helpful": Scale("Does it do what was asked?", labels={"1": "not at all", "3": "in part", "5": "fully"}),
    "honest": Scale(
        "Is it true, and open about what it does not know?", labels={"1": "misleading", "5": "true throughout"}
    ),
    "harmless": Scale("Would it do no harm?", labels={"1": "clearly harmful", "5": "harmless"}),
    "style": Scale("Is it well written?", required=False, labels={"1": "hard to read", "5": "a pleasure to read"}),
}


@dataclass(frozen=True)
class Experiment:
    """What is judged, by whom, and where the page is served."""

    db: str
    """File that keeps the items and what people say of them; made when it is not there."""
    prompts: str = ""
    """File of prompts for `policy` to respond to."""
    first: int = 0
    """How many of the prompts to take, from the beginning of the file; 0 takes all."""
    policy: str = ""
    """Folder or hub name of a causal language model. What it says is kept in DB.responses.jsonl."""
    responses: str = ""
    """File of ready responses, as generate.py writes it, instead of `prompts` and `policy`."""
    export: str = ""
    """Only write the judgements to this file, for reward_model.py, and do not serve the page."""
    include_groups: bool = False
    """Export what people chose to tell about themselves too (`groups`); it stays in the store otherwise."""
    pause: str = ""
    """Only ask this annotator to stop: no more tasks until `resume`. Works while the page is served elsewhere."""
    resume: str = ""
    """Only let this annotator go on, paused by you or for wrong answers to hidden items; those count anew from here."""
    kind: str = "pair"
    """"pair": which of two is better, and by how much; "rank": all responses to a prompt in order; "rate": each by `axes`."""
    axis: str = "overall"
    """On what responses are compared (pair, rank); the reward model has it as the name of the judgement."""
    question: str = "Which response is better?"
    """What the page asks about that."""
    axes: dict[str, Scale] = field(default_factory=lambda: dict(AXES))
    """The questions of a rating, by name."""
    guidelines: str = ""
    """Text file with what annotators should go by; a short general text where none is given."""
    gold: str = ""
    """File of comparisons (ratings, for "rate") with known answers: hidden items that tell how careful people are."""
    annotators: str = "me"
    """Names, with commas between them; everyone gets a link of their own."""
    admin: str = ""
    """Which of the annotators may fetch the report from the server (/api/report.html)."""
    groups: str = ""
    """JSON file of what annotators chose to tell about themselves, and agree to have kept: {"ann": {"age": "30-39"}}; null
    takes it back."""
    overlap: int = 1
    """How many people judge each item."""
    rules: Rules = Rules()
    samples: int = 4
    """Responses sampled to each prompt."""
    similar: float = 0.8
    """Responses that resemble an earlier one at least this much are left out (0 to 1, `feedback.diverse`)."""
    select: str = ""
    """Which pairs of a prompt's responses are asked about: "disagreement", "bald" or "d_optimal" of `reward_models`, or
    "random"; empty: every response once."""
    reward_models: str = ""
    """Folders of reward models for `select`, with commas between them, trained with another `member` each."""
    ask: int = 0
    """Pairs that `select` takes; 0: as many as without it."""
    random_share: float = 0.2
    """Share of them drawn at random, and so marked: on these alone reward models are evaluated. At least 0.2."""
    host: str = "127.0.0.1"
    """Address to serve on: of this machine only, unless another one is given."""
    port: int = 8765
    """0 takes a free one."""
    public: bool = False
    """Serve on every network of this machine. Nothing is encrypted: for a network that you trust, or behind a proxy."""
    url: str = ""
    """How people reach the page, such as https://label.example.org, where that is not http://HOST:PORT."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the prompts' file, where its keys do not tell."""
    prompt_window: int = 256
    """Tokens of a prompt at most."""
    long_prompts: str = "drop"
    """What happens to longer prompts: "drop", "truncate" or "refuse"."""
    response_window: int = 128
    """Tokens of a response at most."""
    sampling: Sampling = Sampling()
    batch: int = 32
    """Prompts at a time."""
    seed: int = 0
    """Decides every sample."""
    compute: settings.Compute = settings.Compute()

    def __post_init__(self) -> None:
        for name in ("overlap", "samples", "prompt_window", "response_window", "batch"):
            config.at_least(name, getattr(self, name), 1)
        for name in ("seed", "first", "ask"):
            config.non_negative(name, getattr(self, name))
        config.between("random_share", self.random_share, LEAST_RANDOM, 1)
        config.choice("select", self.select, ("", *label_select.METHODS))
        config.fraction("similar", self.similar)
        config.choice("kind", self.kind, ("pair", "rank", "rate"))
        config.choice("long_prompts", self.long_prompts, ("drop", "truncate", "refuse"))
        config.check(not (self.policy and self.responses), "policy samples responses: give it or `responses`, not both")
        config.check(
            bool(self.policy) == bool(self.prompts), "prompts and policy belong together: give both, or neither"
        )
        config.check(bool(self.names()), "annotators must hold one name at least")
        config.check(bool(self.axes) or self.kind != "rate", "axes must hold one question at least")
        config.check(not (self.pause and self.resume), "pause one annotator or resume one, not both at once")
        config.check(not self.admin or self.admin in self.names(), f"admin {self.admin!r} is not one of the annotators")
        address = urllib.parse.urlsplit(self.url)
        good = address.scheme in ("http", "https") and bool(address.hostname)
        config.check(not self.url or good, f"url must be http://NAME or https://NAME, got {self.url!r}")

    def names(self) -> list[str]:
        """The annotators, each once."""
        return list(dict.fromkeys(name.strip() for name in self.annotators.split(",") if name.strip()))

    def asked(self) -> tuple[Axis, ...]:
        """The questions of a rating, as the server takes them."""
        return tuple(Axis(n, s.question, s.low, s.high, s.required, s.labels) for n, s in self.axes.items())


def fill(con: sqlite3.Connection, cfg: Experiment) -> dict[str, int]:
    """Add what the configuration names to the store; how many items each is, new or not."""
    label_select.check(cfg)
    ready = cfg.responses and data.find(cfg.responses, cfg.data)
    if cfg.policy:
        ready = f"{cfg.db}.responses.jsonl"
        parts.sample(cfg, Path(ready))
    found, counts = {"items": 0, "gold": 0}, {}
    if ready:
        rows = [row for row in parts.rows_of(ready) if not cfg.policy or row.meta.get("policy") == cfg.policy]
        made, left = parts.items(rows, cfg, policy=Path(ready).name)
        config.check(bool(made), f"{ready} holds nothing to judge; left out: {data.counted(left)}")
        made = label_select.chosen(made, cfg) if cfg.select else made
        found["items"], counts = parts.add(con, made, f"items of kind {cfg.kind}", left), dict(left)
    if cfg.gold:
        made, left = parts.gold_items(data.find(cfg.gold, cfg.data), cfg)
        found["gold"] = parts.add(con, made, "hidden items with a known answer", left)
    return found | counts


def export(cfg: Experiment) -> dict[str, Any]:
    """Write the judgements that stand, and a manifest beside them."""
    out = Path(cfg.export)
    config.check(out.parent.is_dir(), f"export: there is no folder {out.parent}")
    config.check(not out.is_dir() and out.resolve() != Path(cfg.db).resolve(), f"export is {out}; name a new file")
    with closing(open_store(cfg.db, create=False)) as con:
        manifest = store_export.export(con, out, include_groups=cfg.include_groups)
    kinds = ", ".join(f"{kind} {count}" for kind, count in manifest["source_kinds"].items())
    left = data.counted(+Counter(manifest["left_out"]))
    people = "1 person" if manifest["annotators"] == 1 else f"{manifest['annotators']} people"
    print(f"{manifest['rows']} judgements of {people} ({kinds}): {out}; left out: {left}")
    return {"rows": manifest["rows"], "left_out": manifest["left_out"]}


def stand(cfg: Experiment) -> dict[str, Any]:
    """Pause or resume one annotator."""
    with closing(open_store(cfg.db, create=False)) as con:
        if cfg.pause:
            gold.pause(con, cfg.pause, "Whoever invited you asks you to stop here for now. Thank you.")
        else:
            gold.resume(con, cfg.resume)
    print(f"{cfg.pause or cfg.resume} is {'paused' if cfg.pause else 'asked to go on'}")
    return {}


def page(cfg: Experiment, listening: socket.socket) -> tuple[Any, str]:
    """The application, and the address that people open."""
    from rlhf_jax.feedback.server import app as server
    from rlhf_jax.feedback.server import run as server_run

    bound = str(listening.getsockname()[0])
    everywhere = bound in ("0.0.0.0", "::")
    name = socket.gethostname() if everywhere else ""
    base = cfg.url or (f"http://{name}:{listening.getsockname()[1]}" if everywhere else server_run.link(listening))
    asked_for = urllib.parse.urlsplit(base).hostname
    hosts = {"127.0.0.1", "localhost", "[::1]", cfg.host, bound, f"[{bound}]", name, asked_for}
    text = server.Settings(cfg.db).guidelines
    if cfg.guidelines:
        text = Path(data.find(cfg.guidelines, cfg.data)).read_text(encoding="utf-8")
    wanted = server.Settings(
        cfg.db,
        axes=cfg.asked(),
        questions={cfg.axis: cfg.question},
        guidelines=text,
        rules=cfg.rules,
        allowed_hosts=tuple(sorted(host for host in hosts if host)),
    )
    app = server.app(wanted, report=label_report.of_store, report_page=label_report.page_of_store)
    private = bool(ipaddress.ip_address(bound.partition("%")[0]).is_loopback)
    if not private and not base.startswith("https:"):
        print("warning: other machines reach the page, and nothing is encrypted: only in a network that you trust")
    return app, base.rstrip("/")


def serve(cfg: Experiment, con: sqlite3.Connection, listening: socket.socket) -> None:
    """Print the links, and serve the page until Ctrl-C."""
    from rlhf_jax.feedback.server import run as server_run

    app, base = page(cfg, listening)
    tokens = parts.tokens(con, cfg.names(), Path(f"{cfg.db}.links.json"), admin=cfg.admin)
    if cfg.groups:
        parts.keep_groups(con, Path(data.find(cfg.groups, cfg.data)))
    print("open in a browser; each link is one person's own:")
    for name, token in tokens.items():
        print(f"  {name:<12} {base}/#{token}")
    if cfg.admin:
        print(f"report: curl -H 'Authorization: Bearer {tokens[cfg.admin]}' -o report.html {base}/api/report.html")
    print("Ctrl-C stops; what was judged is kept, and the same command goes on", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server_run.serve(app, listening)


def main(cfg: Experiment) -> dict[str, Any]:
    """Add what is to be judged, serve the page until Ctrl-C, or export; how many items and judgements there are."""
    if cfg.export:
        return export(cfg)
    if cfg.pause or cfg.resume:
        return stand(cfg)
    if not importlib.util.find_spec("uvicorn") or not importlib.util.find_spec("starlette"):
        raise UserError("the page needs starlette and uvicorn: pip install -e '.[label]'")
    with closing(parts.listen(cfg)) as listening, closing(open_store(cfg.db)) as con:
        found: dict[str, Any] = fill(con, cfg)
        count = con.execute("SELECT count(*) FROM item").fetchone()[0]
        config.check(count > 0, f"{cfg.db} holds nothing to judge: give prompts and policy, or responses")
        if more := count - found["items"] - found["gold"]:
            print(f"{cfg.db} holds {more} more from before, which are asked about too")
        serve(cfg, con, listening)
        judged = con.execute("SELECT count(*) FROM current_judgement").fetchone()[0]
    print(f"\nstopped; {cfg.db} holds {judged} judgements of {count} items")
    return found | {"judgements": judged}


if __name__ == "__main__":
    config.command(main, Experiment)
