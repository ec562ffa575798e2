"""What dpo.py builds before its loop: losses, data, the reference's log-probabilities; and how it evaluates. `cfg` is its
Experiment."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from rlhf_jax.algorithms import offline
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import baselines
from rlhf_jax.feedback import formats, records, selection
from rlhf_jax.model import heads
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives import preference
from rlhf_jax.runs import config, data, held_out, judged, judged_rows, preferences, ranges, who_judged
from rlhf_jax.types import Preferences


class Losses(NamedTuple):
    """What the configuration's losses come to."""

    kind: str
    """What they learn from: "pairs" or "verdicts"."""
    objectives: dict[str, tuple[Callable[..., Any], float]]
    beta: float
    """Of the implicit rewards that are logged: the first loss's own."""
    reference: bool
    """Whether they read a reference."""
    mismatched: bool
    """Whether they read responses to other prompts."""


def losses_of(cfg: Any) -> Losses:
    """`cfg.loss` and those of `cfg.also`, with their settings. UserError for losses that cannot be mixed, or settings that
    none would heed."""
    wanted = {cfg.loss: 1.0, **cfg.also}
    config.check(len(wanted) == 1 + len(cfg.also), f"also names {cfg.loss}, which is the loss already")
    given = dict(cfg.options) | ({} if cfg.beta is None else {"beta": cfg.beta})
    found: dict[str, tuple[Callable[..., Any], float]] = {}
    heeded: set[str] = set()
    for name, weight in wanted.items():
        objective = named(name, "loss" if name == cfg.loss else "also")
        own = {key: x for key, x in given.items() if key in settings_of(objective)}
        heeded |= own.keys()
        found[name] = functools.partial(objective, **own), weight
    kinds = {name: offline.kind_of(objective) for name, (objective, _) in found.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} from {kind}" for name, kind in kinds.items())
        raise UserError(f"also: losses that are mixed must learn from the same rows; {listed}")
    known = sorted({key for name in wanted for key in settings_of(found[name][0])})
    for key in sorted(given.keys() - heeded):
        where = "beta" if key == "beta" else f"options.{key}"
        raise UserError(
            f"{where}: no loss here takes it{ranges.nearest(key, known)}; {cfg.loss} takes {', '.join(known)}"
        )
    first, kind = found[cfg.loss][0], kinds[cfg.loss]
    beta = settings_of(first).get("beta", 1.0)
    if kind == "verdicts" and cfg.ld_alpha != 1:
        raise UserError("ld_alpha compares the lengths of two responses to a prompt; set it to 1 for single ones")
    asked = {key for objective, _ in found.values() for key in offline.takes(objective)}
    return Losses(kind, found, float(beta), offline.needs_reference(found), "mismatched" in asked)


def named(name: str, setting: str) -> Callable[..., Any]:
    """A function of `objectives.preference`, or the user's own."""
    if ":" in name:
        return config.resolve_function(name, setting)
    config.choice(setting, name, preference.LOSSES)
    return getattr(preference, name)


def settings_of(objective: Callable[..., Any]) -> dict[str, Any]:
    """A loss's numbers that may be set, with their defaults."""
    parameters = list(inspect.signature(objective).parameters.values())[2:]
    return {each.name: each.default for each in parameters if each.default is not each.empty}


class Data(NamedTuple):
    """What was read, encoded, and split by prompt."""

    rows: Preferences
    held_rows: Preferences | None
    """Pairs; None where the held-out part has none."""
    held_verdicts: Preferences | None
    pairs: list[records.Pair]
    """The training part as pairs, for the baselines."""
    held: list[records.Pair]
    window: int
    """R: tokens of the longest response."""


def load(cfg: Any, losses: Losses, tokenizer: Any, stops: Any = ()) -> Data:
    """Read, split by prompt, look for leaks between the parts, encode, and print what came of it."""
    path = data.find(cfg.comparisons, cfg.data)
    found, told, rated = read(path, cfg.format, losses.kind, cfg.source_kind)
    chosen = judged.of_axes(found, cfg.axes)
    kept, held = records.split_by_prompt(chosen, cfg.held_out, seed=cfg.seed)
    held = selection.fair(held_out.clean(kept, held, "held out", cfg.leaks)) if held else held
    sizes: dict[str, Any] = {"tokenizer": tokenizer, "window": cfg.window, "stops": stops}
    counts: Counter[str] = Counter()
    held_rows = held_verdicts = None
    if rated:
        pairs, held_pairs = judged_rows.rated_pairs(kept), judged_rows.rated_pairs(held)
        verdicts, counts = preferences.verdicts_of_ratings(kept)
    else:
        pairs, held_pairs = to_pairs(kept, cfg), to_pairs(held, cfg)
        verdicts = preferences.verdicts_of_pairs(pairs)
    if losses.kind == "pairs":
        rows, pairs, more = preferences.encode_preferences(pairs, **sizes)
        size = f"{len(pairs)} pairs"
    else:
        rows, verdicts, more = preferences.encode_verdicts(verdicts, **sizes, mismatched=losses.mismatched)
        good = sum(verdict.label for verdict in verdicts)
        size = f"{len(verdicts)} responses, {good:.0f} of them good,"
    counts += more
    if held_pairs:
        held_rows, held_pairs, more = preferences.encode_preferences(held_pairs, **sizes)
        counts += more
    elif rated and held:
        held_verdicts, _, more = preferences.encode_verdicts(preferences.verdicts_of_ratings(held)[0], **sizes)
        counts += more
    mix = who_judged.mix(chosen, told)
    told_of = f"{len(held)} judged responses" if held_verdicts is not None else f"{len(held_pairs)} pairs"
    print(f"{size} to learn, {told_of} held out by prompt; left out: {data.counted(counts)}; judged by: {mix}")
    all_rows = [each for each in (rows, held_rows, held_verdicts) if each is not None]
    longest = max(int(each.response_length.max()) for each in all_rows)
    return Data(rows, held_rows, held_verdicts, pairs, held_pairs, longest)


def read(path: str, format: str, kind: str, source_kind: str = "") -> tuple[list[Any], Any, bool]:
    """(records, what became of the file's rows, whether they are ratings). Losses of single responses read comparisons too:
    then each pair is two of them. UserError for a file that gives neither."""
    try:
        return *who_judged.read(formats.load, path, format, source_kind), False
    except UserError as error:
        if kind == "pairs":
            raise
        try:
            return *who_judged.read(formats.load_ratings, path, format, source_kind), True
        except UserError:
            raise error from None


def to_pairs(comparisons: list[Any], cfg: Any) -> list[records.Pair]:
    """Pairs of these comparisons as the configuration says."""
    found = judged.pairs(comparisons, cfg.judgements) if comparisons else []
    return [pair for pair in found if not (pair.tie and cfg.ties == "drop")]


def build_forward(cfg: Any, model: ModelConfig, window: int) -> offline.Forward:
    """The policy's log-probabilities of each response token, a chunk of positions at a time."""

    def forward(params: Any, tokens: jax.Array, prompt_length: jax.Array, length: jax.Array) -> jax.Array:
        sizes: dict[str, Any] = {"window": window, "cfg": model, "chunk": cfg.compute.chunk}
        return heads.policy(params, tokens, prompt_length, length, **sizes)[0]

    return forward


def in_batches(function: Callable[..., Any], params: Any, rows: Preferences, size: int) -> np.ndarray:
    """function(params, rows) -> [B, K], `size` rows at a time through one program; the last batch is filled up."""
    total = rows.weight.size
    found = []
    for start in range(0, total, size):
        batch = data.take(rows, np.arange(start, start + size) % total)
        found.append(np.asarray(function(params, jax.tree.map(jnp.asarray, batch))))
    return np.concatenate(found)[:total]


def readable(metrics: dict[str, float], kind: str) -> dict[str, float]:
    """Metrics of a step, the sums over good and over bad responses as means of each."""
    if kind == "pairs":
        return metrics
    share, found = metrics["preference/good"], dict(metrics)
    if 0 < share < 1:
        found["preference/good_reward"] /= share
        found["preference/bad_reward"] /= 1 - share
        found["preference/margin"] = found["preference/good_reward"] - found["preference/bad_reward"]
    return found


def evaluate(rewards_of: Callable[[Preferences], np.ndarray], found: Data) -> dict[str, Any]:
    """On held-out pairs with a winner: the share whose better response has the higher implicit reward, beside a length-only
    model and a bag of words. On held-out judged responses: how often a good one is above a bad one. rewards_of(rows) -> [B, K].
    """
    if found.held_rows is not None:
        decided = np.array([not pair.tie for pair in found.held])
        strict = [pair for pair in found.pairs if not pair.tie]
        if not decided.any():
            return {}
        rewards = rewards_of(found.held_rows)
        sign = np.where(found.held_rows.label > 0.5, 1, -1)
        told: dict[str, Any] = {
            "implicit reward": baselines.accuracy((sign * (rewards[:, 0] - rewards[:, 1]))[decided])
        }
        if strict:
            tested = [pair for pair, kept in zip(found.held, decided, strict=True) if kept]
            told["longer or shorter"] = baselines.length_only(strict, tested)
            told["bag of words"] = baselines.bag_of_words(strict, tested)
        return told
    if found.held_verdicts is not None:
        rewards, good = rewards_of(found.held_verdicts)[:, 0], found.held_verdicts.label > 0.5
        if good.any() and not good.all():
            wins = stats.mannwhitneyu(rewards[good], rewards[~good]).statistic / (good.sum() * (~good).sum())
            return {"good above bad": float(wins)}
    return {}
