"""Which pairs of sampled responses to have judged: those that an ensemble of reward models is least sure of.

A fifth of them at least is drawn evenly from all candidates, and every item says how it was chosen: reward models are
evaluated on the random part alone. The same responses, reward models and seed give the same pairs. `cfg` is label.py's
Experiment.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from reward_scores import ensemble, open_reader, raw_scores

from rlhf_jax.feedback import records, selection
from rlhf_jax.feedback.store.add import NewItem
from rlhf_jax.masks import last_token
from rlhf_jax.model import transformer
from rlhf_jax.runs import config

METHODS = ("random", "disagreement", "bald", "d_optimal")


def check(cfg: Any) -> None:
    """UserError for settings that cannot be meant together."""
    if not cfg.select:
        config.check(not cfg.reward_models, "reward_models choose what is asked about: say how, with select")
        return
    config.check(cfg.kind == "pair", f"select chooses pairs: kind must be pair, got {cfg.kind}")
    fewest = {"random": 0, "d_optimal": 1}.get(cfg.select, 2)
    config.check(
        len(folders(cfg)) >= fewest,
        f"select {cfg.select} needs {fewest} reward_models at least, trained with another `member` each; got {len(folders(cfg))}",
    )


def folders(cfg: Any) -> list[str]:
    """The reward models, each once."""
    return list(dict.fromkeys(name.strip() for name in cfg.reward_models.split(",") if name.strip()))


def chosen(made: Sequence[NewItem], cfg: Any) -> list[NewItem]:
    """Those of the candidate pairs to ask about, each with how it was chosen and its score. UserError for more than there are."""
    check(cfg)
    texts: dict[tuple[str, str], Any] = {}
    for item in made:
        prompt = records.as_messages(item.prompt)
        texts |= {(records.prompt_key(prompt), text_of(each)): prompt for each in item.responses}
    count = cfg.ask or sum(kept // 2 for kept in Counter(key for key, _ in texts).values())
    config.check(count <= len(made), f"ask is {count}, and there are {len(made)} pairs to choose from")
    rng, scores = np.random.default_rng((cfg.seed, 7)), np.zeros(len(made))
    if cfg.select == "random":
        found = selection.choose(scores, count, rng, random_share=1.0)
    else:
        place = {name: number for number, name in enumerate(texts)}
        keys = [records.prompt_key(records.as_messages(item.prompt)) for item in made]
        first, second = (
            np.array([place[key, text_of(item.responses[side])] for key, item in zip(keys, made, strict=True)])
            for side in (0, 1)
        )
        read = list(texts.values()), [text for _, text in texts]
        window = cfg.prompt_window + cfg.response_window + 1
        said = ensemble(folders(cfg), window=window, rows=2 * cfg.batch, compute=cfg.compute)(*read, [{}] * len(texts))
        margins = said[:, first] - said[:, second]
        scores = selection.bald(margins) if cfg.select == "bald" else selection.disagreement(margins)
        if cfg.select == "d_optimal":
            states = features(folders(cfg)[0], *read, window=window, cfg=cfg)
            order = selection.d_optimal(states[first] - states[second], margins, count)
            found = selection.after(order, len(made), count, rng, random_share=cfg.random_share)
        else:
            found = selection.choose(scores, count, rng, random_share=cfg.random_share)
    drawn = int(found.random.sum())
    print(f"{count} of {len(made)} pairs are asked about: {drawn} drawn at random, the others by {cfg.select}")
    by_model = cfg.select not in ("random", "d_optimal")  # what a pair adds to a design depends on the others
    return [
        replace(made[at], selection=label, score=float(scores[at]) if by_model else None)
        for at, label in zip(found.index, found.labels(cfg.select), strict=True)
    ]


def features(folder: str, prompts: Sequence[Any], texts: Sequence[str], *, window: int, cfg: Any) -> np.ndarray:
    """f64 [B, D]: what the reward model's score is linear in, its state at the last token, scaled to a mean square of 1."""
    model, params, encode = open_reader(folder, window=window, compute=cfg.compute)

    def forward(params: Any, tokens: Any, length: Any) -> Any:
        return last_token(transformer.hidden(params, tokens, length, cfg=model), length)

    tokens, length = encode(prompts, texts)
    found = raw_scores(jax.jit(forward), params, tokens, length, min(2 * cfg.batch, len(length))).astype(np.float64)
    return found / max(float(np.sqrt(np.mean(found**2))), 1e-12)


def text_of(candidate: Any) -> str:
    """Of a response, with or without where it came from."""
    return candidate if isinstance(candidate, str) else candidate.text
