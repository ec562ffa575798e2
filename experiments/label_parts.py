"""What label.py is made of: responses to judge, items made of them, gold items, and everybody's token."""

import itertools
import json
import os
import socket
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import generate
import jax

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, records
from rlhf_jax.feedback.diverse import diverse
from rlhf_jax.feedback.store.add import (
    Candidate,
    NewItem,
    add_annotator,
    add_items,
    annotator_of,
    make_admin,
    new_token,
    set_groups,
)
from rlhf_jax.runs import config, data, ranges, session

MOST = 9
"""Responses of one ranking at most: each has a digit key on the page."""


def sample(cfg: Any, path: Path, *, policy: str = "") -> None:
    """Bring the file of sampled responses up to date: prompts that it has from this policy already are not sampled again,
    whatever else has changed. Rows as generate.py writes them, and "policy", which is `policy` where given; a prompt that
    does not fit the window has no responses. `cfg` is label.py's Experiment."""
    policy = policy or cfg.policy
    found, told = formats.load_prompts(data.find(cfg.prompts, cfg.data), cfg.format)
    print(told.text())
    found = found[: cfg.first or None]
    before = rows_of(path) if path.exists() else []
    known = {prompt.prompt_id for prompt in before if prompt.meta.get("policy") == policy}
    asked = {prompt.prompt_id: prompt for prompt in found}
    wanted = [prompt for key, prompt in asked.items() if key not in known]
    if others := known - asked.keys():
        print(
            f"{path} has responses of {policy} to {len(asked) - len(wanted)} of these {len(asked)} prompts, and to {len(others)} "
            "others, which stay and are asked about too"
        )
    if not wanted:
        print(f"{path} has responses of {policy} to all of these prompts: nothing to sample")
        return
    opened, tokenizer = session.language_model(cfg.policy, cfg.compute)
    prompts, counts = data.encode_prompts(wanted, tokenizer, window=cfg.prompt_window, long=cfg.long_prompts)
    print(f"sampling {cfg.samples} responses to {prompts.length.size} prompts; left out: {data.counted(counts)}")
    rows = generate.respond(
        opened.params,
        prompts,
        tokenizer,
        model=opened.cfg,
        samples=cfg.samples,
        window=cfg.response_window,
        sampling=cfg.sampling,
        batch=min(cfg.batch, prompts.length.size),
        key=jax.random.key(cfg.seed),
        quiet=False,
    )
    answered = {records.prompt_key(row["prompt"]) for row in rows}
    rows += [{"prompt": each.prompt, "responses": []} for each in wanted if each.prompt_id not in answered]
    drawn = {"temperature": cfg.sampling.temperature, "top_k": cfg.sampling.top_k, "top_p": cfg.sampling.top_p}
    said = {"policy": policy, "generation": drawn | {"min_p": cfg.sampling.min_p, "seed": cfg.seed}}
    with generate.written_whole(str(path)) as file:
        old = [prompt.meta | {"prompt": prompt.prompt} for prompt in before]
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in [*old, *(row | said for row in rows)])


def rows_of(path: str | Path) -> list[records.Prompt]:
    """Prompts with their responses in `meta`, from a file as generate.py writes it. UserError where there are none."""
    found, told = formats.load_prompts(path, "trl_prompt")
    if told.dropped:
        print(told.text())
    for row, prompt in enumerate(found, 1):
        texts = prompt.meta.get("responses")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{path}, prompt {row}: responses must be a list of texts, as generate.py writes it; got "
                f"{ranges.shown(texts)}"
            )
    return found


def items(found: Iterable[records.Prompt], cfg: Any, *, policy: str) -> tuple[list[NewItem], Counter[str]]:
    """What is to be judged, and what was left out, by reason. Each response that is kept is in one item: two by two
    (pair), all of a prompt (rank), one by one (rate), in the order in which they were sampled. With `cfg.select`, all pairs
    of a prompt's responses, for `label_select.chosen` to choose from."""
    made: list[NewItem] = []
    left: Counter[str] = Counter()
    for prompt in found:
        told = prompt.meta
        texts = told["responses"]
        kept = diverse(texts, similar=cfg.similar)
        left["near-duplicates of another response"] += len(texts) - len(kept)
        lengths = told.get("tokens")
        if not isinstance(lengths, list) or not all(type(n) is int for n in lengths) or len(lengths) != len(texts):
            lengths = [None] * len(texts)
        author, drawn = told.get("policy"), told.get("generation")
        candidates = [
            Candidate(
                texts[i],
                policy=author if isinstance(author, str) else policy,
                generation=drawn if isinstance(drawn, dict) else {},
                n_tokens=lengths[i],
            )
            for i in kept
        ]
        groups = list(itertools.combinations(candidates, 2)) if cfg.select else grouped(candidates, cfg.kind)
        left["responses without another one to compare with"] += len(candidates) - len(
            {c.text for g in groups for c in g}
        )
        made += [
            NewItem(prompt.prompt, group, cfg.kind, axes_of(cfg), cfg.overlap, source=prompt.source) for group in groups
        ]
    return made, +left


def add(con: sqlite3.Connection, made: Sequence[NewItem], what: str, left: Counter[str]) -> int:
    """How many items these are, once they are in the store; printed with how many of them are new to it."""
    before = con.execute("SELECT count(*) FROM item").fetchone()[0]
    count = len(set(add_items(con, made)))
    new = con.execute("SELECT count(*) FROM item").fetchone()[0] - before
    told = f" ({new} new, {count - new} there before)" if before else ""
    print(f"{count} {what}{told}; left out: {data.counted(left)}")
    return count


def grouped(candidates: Sequence[Candidate], kind: str) -> list[Sequence[Candidate]]:
    """The candidates of each item."""
    if kind == "rate":
        return [[candidate] for candidate in candidates]
    size = 2 if kind == "pair" else MOST
    groups = [candidates[i : i + size] for i in range(0, len(candidates), size)]
    return [group for group in groups if len(group) > 1]


def axes_of(cfg: Any) -> tuple[str, ...]:
    """The axes of an item: the one on which responses are compared, or all that the page rates."""
    return () if cfg.kind == "rate" else (cfg.axis,)


def gold_items(path: str, cfg: Any) -> tuple[list[NewItem], Counter[str]]:
    """Hidden items with a known answer, from a file of comparisons (or ratings, for kind "rate") on which all of the
    file's judges agree; and what was left out, by reason."""
    if cfg.kind == "rate":
        return rated_gold(path, cfg)
    comparisons, told = formats.load(path)
    print(f"gold: {told.text()}")
    made: list[NewItem] = []
    left: Counter[str] = Counter()
    for group in records.by_item(comparisons):
        first = group[0]
        if len({records.aligned_ranks(first.responses, each) for each in group}) > 1:
            left["gold on which its judges differ"] += 1
        elif cfg.kind == "pair":
            decided = [p for p in records.pairs(first) if not p.tie and p.chosen != p.rejected]
            left["gold that is a tie"] += not decided
            made += [gold(p.prompt, (p.chosen, p.rejected), {"strength": -2}, cfg) for p in decided]
        elif len(first.ranks) > MOST or len(set(first.responses)) < len(first.responses) or not any(first.ranks):
            left[f"gold with a text twice, more than {MOST} responses, or all of them tied"] += 1
        else:
            made.append(gold(first.prompt, first.responses, {"ranks": list(first.ranks)}, cfg))
    return checked_gold(path, made, left)


def rated_gold(path: str, cfg: Any) -> tuple[list[NewItem], Counter[str]]:
    """Gold items of ratings on the page's axes and scales."""
    given, told = formats.load_ratings(path)
    print(f"gold: {told.text()}")
    scales = {axis.name: (axis.low, axis.high) for axis in cfg.asked()}
    left: Counter[str] = Counter()
    answers: dict[tuple[str, str], dict[str, int]] = {}
    prompts: dict[str, records.Messages] = {}
    unclear = set()
    for rating in given:
        key = rating.prompt_id, rating.response
        if scales.get(rating.axis) != rating.scale or rating.value != int(rating.value):
            left["gold on an axis or a scale that the page does not have"] += 1
            continue
        if answers.setdefault(key, {}).setdefault(rating.axis, int(rating.value)) != rating.value:
            unclear.add(key)
        prompts[rating.prompt_id] = rating.prompt
    left["gold on which its judges differ"] += len(unclear)
    made = [
        gold(prompts[key[0]], (key[1],), {"ratings": answer}, cfg)
        for key, answer in answers.items()
        if key not in unclear
    ]
    return checked_gold(path, made, left)


def gold(prompt: records.Messages, responses: Sequence[str], answer: Mapping[str, Any], cfg: Any) -> NewItem:
    """One hidden item."""
    return NewItem(prompt, responses, cfg.kind, axes_of(cfg), gold=answer, source="gold")


def checked_gold(path: str, made: list[NewItem], left: Counter[str]) -> tuple[list[NewItem], Counter[str]]:
    """The same, or a UserError where no gold item is left."""
    config.check(bool(made), f"gold: {path} gives no item with a clear answer ({data.counted(+left)})")
    return made, +left


def listen(cfg: Any) -> socket.socket:
    """The page's address, taken before anything is sampled: a port in use is told at once, and so is a missing file."""
    from rlhf_jax.feedback.server import run as server_run

    for file in (cfg.prompts, cfg.responses, cfg.gold, cfg.guidelines, cfg.groups):
        if file:
            data.find(file, cfg.data)
    host = "0.0.0.0" if cfg.public and cfg.host == "127.0.0.1" else cfg.host
    return server_run.bind(host, cfg.port, every_interface=cfg.public)


def tokens(con: sqlite3.Connection, names: Sequence[str], path: Path, *, admin: str = "") -> dict[str, str]:
    """Everybody's token, by name: the one they have, as long as it stands in `path`, a file that only its owner may read;
    a new one otherwise. The store holds no token, so that it can be handed on."""
    kept = read_tokens(path)
    known = {row["name"] for row in con.execute("SELECT name FROM annotator")}
    found = {}
    for name in names:
        row = annotator_of(con, kept.get(name, ""))
        if row is not None and row["name"] == name:
            found[name] = kept[name]
        else:
            found[name] = new_token(con, name) if name in known else add_annotator(con, name)
    if admin:
        make_admin(con, admin)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(kept | found, file, indent=1, ensure_ascii=False)
    partial.replace(path)
    return found


def keep_groups(con: sqlite3.Connection, path: Path) -> None:
    """Keep what people told about themselves; UserError for a file of something else, or somebody unknown."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"groups: {path} cannot be read: {error}") from None
    good = isinstance(told, dict) and all(
        said is None or (isinstance(said, dict) and all(isinstance(word, str) for word in said.values()))
        for said in told.values()
    )
    config.check(good, f'groups: {path} must hold {{"NAME": {{"age": "30-39", …}} or null, …}}')
    for name, said in told.items():
        set_groups(con, name, said)


def read_tokens(path: Path) -> dict[str, str]:
    """The tokens of a file as `tokens` writes it; none where there is no such file."""
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, and everybody gets a new link") from None
    good = isinstance(kept, dict) and all(isinstance(token, str) for token in kept.values())
    config.check(good, f"{path} is not a file of links; remove it, and everybody gets a new one")
    return dict(kept)
