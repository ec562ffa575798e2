"""What reward_model.py learns from: its loss, its data, and the texts it is normalised on. `cfg` is its Experiment."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, records, selection
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives import reward
from rlhf_jax.objectives.rankings import MOST
from rlhf_jax.runs import config, data, held_out, judged, judged_rows, ranges, who_judged
from rlhf_jax.types import Pairs, Rankings, Ratings


def axes_of(cfg: Any, model: ModelConfig) -> tuple[str, ...]:
    """The names of what the model's outputs learn; () for a single one that learns whatever there is. UserError where the model
    has other axes already."""
    if cfg.axes and (len(cfg.axes) != model.axes or model.axis_names not in ((), cfg.axes)):
        named = ", ".join(model.axis_names) or f"{model.axes} without names"
        raise UserError(f"axes: {cfg.model} has {named}, not {', '.join(cfg.axes)}; its axes cannot be changed")
    if model.axes > 1 and not cfg.axes and not model.axis_names:
        raise UserError(f"axes: {cfg.model} has {model.axes} outputs without names; say what they are, axes: [NAME, …]")
    return cfg.axes or (model.axis_names if model.axes > 1 else ())


def count_tokens(batch: Pairs | Rankings | Ratings) -> int:
    """How many tokens of a batch are real."""
    if isinstance(batch, Pairs):
        return int(batch.chosen_length.sum() + batch.rejected_length.sum())
    if isinstance(batch, Rankings):
        return int(batch.length[batch.ranks >= 0].sum())
    return int(batch.length.sum())


class Data(NamedTuple):
    """What was read, encoded, and split by prompt."""

    kind: str
    """What is learnt from: "pairs", "rankings" or "ratings"."""
    rows: Pairs | Rankings | Ratings
    judges: tuple[str, ...]
    """By number, as in the rows."""
    grades: int
    """C, the highest grade of a rating."""
    pairs: list[records.Pair]
    """The training part as pairs, for the baselines."""
    held: list[records.Pair]
    held_rows: Pairs | None
    """None where the held-out part has no pair."""
    held_ratings: tuple[Ratings, list[records.Rating]] | None
    records: list[Any]
    """All of them."""


def objective_of(cfg: Any) -> tuple[Callable[..., Any], str]:
    """The loss that `cfg.loss` names, and what it learns from. UserError for settings that it would not heed."""
    if ":" in cfg.loss:
        objective = config.resolve_function(cfg.loss, "loss")
    else:
        config.choice("loss", cfg.loss, reward.LOSSES)
        objective = getattr(reward, cfg.loss)
    kind, taken = reward_model.kind_of(objective), reward_model.takes(objective)
    for name, given in (("label_smoothing", cfg.label_smoothing), ("margin", cfg.margin or cfg.strength_margins)):
        config.check(not given or name in taken, f"{name}: the loss {cfg.loss} takes none; set it to 0")
    if "reliability" in taken:
        config.check(cfg.judgements == "each", f"judgements must be each for {cfg.loss}, which weighs every judge")
    if kind == "rankings":
        config.check(cfg.judgements in ("votes", "each"), f"judgements must be votes or each for {cfg.loss}")
    return objective, kind


def load(cfg: Any, kind: str, tokenizer: Any, axes: Sequence[str], stops: Sequence[int] = ()) -> Data:
    """Read, split by prompt, encode (`stops` as in `runs.chat`), and print what came of it."""
    path = data.find(cfg.comparisons, cfg.data)
    load_file = formats.load_ratings if kind == "ratings" else formats.load
    found, told = who_judged.read(load_file, path, cfg.format, cfg.source_kind)
    chosen: list[Any] = judged.of_axes(found, axes)
    if kind != "ratings":
        chosen = judged.with_margins(chosen, cfg.strength_margins)
    kept, held = records.split_by_prompt(chosen, cfg.held_out, seed=cfg.seed)
    held = held_out.clean(kept, held, "held out", cfg.leaks)
    if unfair := len(held) - len(held := selection.fair(held)):
        print(f"{unfair} held-out rows were chosen by a reward model and are left out: only random ones test fairly")
    encode = functools.partial(data.encode_pairs, tokenizer=tokenizer, window=cfg.window, axes=axes, stops=stops)
    sizes: dict[str, Any] = {"window": cfg.window, "axes": axes, "stops": stops, "once": cfg.judgements != "each"}
    rows: Any
    names: tuple[str, ...] = ()
    grades, held_rows, held_ratings = 0, None, None
    if kind == "ratings":
        ordinal = "cuts" in reward_model.takes(objective_of(cfg)[0])
        grades = judged_rows.grades(kept) if ordinal else 0
        sizes["value"] = judged_rows.grade if ordinal else judged_rows.centred
        rows, kept, counts = judged_rows.encode_ratings(kept, tokenizer, **sizes)
        held_ratings = judged_rows.encode_ratings(held, tokenizer, **sizes)[:2]
        pairs, held_pairs = judged_rows.rated_pairs(kept), judged_rows.rated_pairs(held)
        size = f"{len(kept)} ratings"
        if held_pairs:
            held_rows, held_pairs, _ = encode(held_pairs)
    else:
        pairs, held_pairs = to_pairs(kept, cfg, "training"), to_pairs(held, cfg, "held-out")
        if kind == "rankings":
            rows, counts = judged_rows.encode_rankings(kept, tokenizer, most=MOST, ties=cfg.ties == "half", **sizes)
            size = f"{rows.weight.size} rankings of up to {rows.ranks.shape[1]} texts"
        else:
            names = tuple(sorted({pair.annotator for pair in pairs}))
            rows, pairs, counts = encode(pairs, judges=names)
            size = f"{len(pairs)} pairs"
        held_rows, held_pairs, held_counts = encode(held_pairs)
        counts += held_counts
    told_of = f"{len(held)} ratings" if kind == "ratings" else f"{len(held_pairs)}"
    mix = who_judged.mix(chosen, told)
    print(f"{size} to learn, {told_of} held out by prompt; left out: {data.counted(counts)}; judged by: {mix}")
    pooled = sorted({record.axis for record in chosen})
    if len(pooled) > 1 and not axes:
        print(f"one reward learns all axes alike; axes: [{', '.join(pooled)}] would give each its own")
    return Data(kind, rows, names, grades, pairs, held_pairs, held_rows, held_ratings, chosen)


def to_pairs(comparisons: Sequence[records.Comparison], cfg: Any, part: str = "") -> list[records.Pair]:
    """Pairs of these comparisons, with ties and margins as the configuration says; what is held out is judged by votes, or one
    by one. UserError where none has a winner."""
    judgements = cfg.judgements
    if part == "held-out" and judgements != "each":
        judgements = "votes"
    pairs = judged.pairs(comparisons, judgements)
    if all(pair.tie for pair in pairs):
        raise UserError(
            f"no {part} pair has a winner ({len(comparisons)} comparisons, {len(pairs)} ties): bring more, or change "
            f"held_out, which is {cfg.held_out}"
        )
    if cfg.ties == "drop":
        pairs = [replace(pair, equal=0.0) for pair in pairs if not pair.tie]
    return [replace(pair, margin=pair.margin + cfg.margin) for pair in pairs]


def reference_responses(
    cfg: Any, tokenizer: Any, rows: Pairs | Rankings | Ratings, stops: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and lengths of the texts whose raw scores the normalisation is fitted on."""
    if not cfg.reference:
        if isinstance(rows, Rankings):
            here = rows.ranks >= 0
            return rows.tokens[here], rows.length[here]
        if isinstance(rows, Ratings):
            return rows.tokens, rows.length
        both = np.concatenate([rows.chosen, rows.rejected])
        return both, np.concatenate([rows.chosen_length, rows.rejected_length])
    found, told = formats.load_prompts(data.find(cfg.reference, cfg.data))
    print(f"normalised on {told.text()}")
    for row, prompt in enumerate(found, 1):
        texts = prompt.meta.get("responses")
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise UserError(
                f"{cfg.reference}, prompt {row}: responses must be a list of one text or more, as generate.py writes it; got "
                f"{ranges.shown(texts)}"
            )
    prompts = [prompt.prompt for prompt in found for _ in prompt.meta["responses"]]
    texts = [text for prompt in found for text in prompt.meta["responses"]]
    return data.score_encoder(tokenizer, window=cfg.window, stops=stops)(prompts, texts)
