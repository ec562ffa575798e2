"""Best-of-n: sample n responses a prompt, score them, keep the best; as demonstrations for SFT and as pairs for DPO.

python experiments/best_of_n.py --model runs/sft/model --prompts prompts.jsonl --rewards.judged.model runs/reward_model/model
python experiments/sft.py --model runs/sft/model --demonstrations runs/best_of_n/best.jsonl --out runs/rejection_sampling
python experiments/dpo.py --model runs/sft/model --comparisons runs/best_of_n/pairs.jsonl --out runs/dpo
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from generate import load_prompts, respond
from ppo_parts import build_reward

from rlhf_jax.evaluation import best_of_n, intervals
from rlhf_jax.feedback import formats, records
from rlhf_jax.runs import config, models, session, settings
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling

CAVEAT = "an upper bound on the KL to the model sampled, met only where no two samples are alike (arXiv 2401.01879)"


@dataclass(frozen=True)
class Experiment:
    """What to sample, and who chooses."""

    model: str
    """Folder or hub name of a causal language model."""
    prompts: str
    """File of prompts; its other columns reach reward functions."""
    rewards: dict[str, Reward]
    """The parts of the score, by name; the best has the highest weighted sum. A part of weight 0 is only told of."""
    out: str = "runs/best_of_n"
    """Folder to write: best.jsonl (demonstrations), pairs.jsonl (best and worst), scored.jsonl, results.json."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the prompts' file, where its keys do not tell."""
    samples: int = 8
    """n: responses a prompt."""
    finished: bool = True
    """Responses cut at the window are scored but never written: who learns from them would learn to break off."""
    kind: str = "ai"
    """Who judged, as the pairs say it: "ai" for a model, "synthetic" for a made-up reward."""
    prompt_window: int = 256
    """Tokens of a prompt at most."""
    long_prompts: str = "drop"
    """What happens to longer prompts: "drop", "truncate" or "refuse"."""
    response_window: int = 128
    """Tokens of a response at most."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))
    batch: int = 32
    """Prompts at a time."""
    seed: int = 0
    """Decides every sample."""
    compute: settings.Compute = settings.Compute()
    mesh: settings.Layout = settings.Layout()

    def __post_init__(self) -> None:
        for name in ("prompt_window", "response_window", "batch"):
            config.at_least(name, getattr(self, name), 1)
        config.at_least("samples", self.samples, 2)
        config.non_negative("seed", self.seed)
        config.choice("long_prompts", self.long_prompts, ("drop", "truncate", "refuse"))
        config.choice("kind", self.kind, records.SOURCE_KINDS)
        config.check(bool(self.rewards), "rewards must name a part, as in rewards: {helpful: {model: FOLDER}}")
        config.check(self.sampling.temperature > 0, "sampling.temperature must be > 0: n equal samples have no best")

    @property
    def rows(self) -> int:
        """Responses scored at one time."""
        return self.batch * self.samples


def main(cfg: Experiment) -> dict[str, Any]:
    """Write the files and print what best-of-k is worth for k up to n; {score: {k: (mean, low, high)}}, and what was kept."""
    mesh = settings.make_mesh(cfg.mesh, cfg.batch)
    out = Path(cfg.out)
    config.check(not out.is_file(), f"out is a file, {cfg.out}; name a folder")
    bases: models.Bases = {}
    opened, tokenizer = session.language_model(cfg.model, cfg.compute, mesh, bases)
    prompts = load_prompts(
        cfg.prompts, tokenizer, window=cfg.prompt_window, long=cfg.long_prompts, format=cfg.format, root=cfg.data
    )
    score = build_reward(cfg, mesh, bases)
    devices = cfg.mesh.data * cfg.mesh.fsdp
    with settings.within(mesh):
        rows = respond(
            opened.params,
            prompts,
            tokenizer,
            model=opened.cfg,
            samples=cfg.samples,
            window=cfg.response_window,
            sampling=cfg.sampling,
            batch=min(cfg.batch, math.ceil(prompts.length.size / devices) * devices),
            key=jax.random.key(cfg.seed),
            quiet=False,
        )
        texts, meta = prompts.repeat(cfg.samples)
        total, parts = score(texts, [text for row in rows for text in row["responses"]], meta)
    scores = total.reshape(len(rows), cfg.samples)
    told = {"score": scores} | {name: values.reshape(scores.shape) for name, values in parts.items()}
    curves = {name: curve(scores, values) for name, values in told.items()}
    out.mkdir(parents=True, exist_ok=True)
    write(out / "scored.jsonl", [row | {"scores": each.tolist()} for row, each in zip(rows, scores, strict=True)])
    best, pairs = chosen(rows, scores, cfg)
    write(out / "best.jsonl", best)
    formats.dump(out / "pairs.jsonl", pairs)
    kept = {"prompts": len(rows), "best": len(best), "pairs": len(pairs)}
    (out / "results.json").write_text(json.dumps(kept | {"expected": curves}, indent=1) + "\n")
    print(table(curves))
    print(f"KL: {CAVEAT}")
    print(f"{len(best)} demonstrations and {len(pairs)} pairs of {len(rows)} prompts: {cfg.out}")
    return kept | {"expected": curves}


def curve(scores: np.ndarray, values: np.ndarray) -> dict[int, tuple[float, float, float]]:
    """{k: expected value of the best of k by score, with its 95 % interval over prompts} (the mean alone of one prompt)."""
    found = best_of_n.expected_best(scores, values)
    several = len(found) > 1
    return {
        k: intervals.paired(column) if several else (float(column[0]),) * 3 for k, column in enumerate(found.T, start=1)
    }


def chosen(
    rows: Sequence[dict[str, Any]], scores: np.ndarray, cfg: Experiment
) -> tuple[list[dict[str, Any]], list[records.Comparison]]:
    """The best finished response of each prompt as a demonstration, and best and worst as a comparison where their scores and
    texts differ."""
    best: list[dict[str, Any]] = []
    pairs: list[records.Comparison] = []
    for row, own in zip(rows, scores, strict=True):
        ended = [place for place, stop in enumerate(row["stop"]) if stop != "length" or not cfg.finished]
        if not ended:
            continue
        top, low = max(ended, key=lambda place: own[place]), min(ended, key=lambda place: own[place])
        texts = row["responses"][top], row["responses"][low]
        best.append(demonstration(row["prompt"], texts[0]))
        if own[top] > own[low] and texts[0] != texts[1]:
            source = {"scores": [float(own[top]), float(own[low])], "n": cfg.samples}
            pairs.append(
                records.Comparison(records.as_messages(row["prompt"]), texts, (0, 1), source_kind=cfg.kind, meta=source)
            )
    return best, pairs


def demonstration(prompt: Any, text: str) -> dict[str, Any]:
    """A row of TRL's prompt-completion form; a plain text stays plain."""
    if prompt[0]["role"] == "text":
        return {"prompt": prompt[0]["content"], "completion": text, "source_kind": "ai"}
    answer = [{"role": "assistant", "content": text}]
    return {"prompt": list(prompt), "completion": answer, "source_kind": "ai"}


def table(curves: dict[str, dict[int, tuple[float, float, float]]]) -> str:
    """One line for each k that is a power of two, and for n."""
    n = max(curves["score"])
    lines = ["best of" + "".join(f"{name:>20}" for name in curves) + "  KL at most, nats"]
    for k in sorted({2**power for power in range(n.bit_length())} | {n}):
        cells = [f"{each[k][0]:.3f} ± {(each[k][2] - each[k][1]) / 2:.3f}" for each in curves.values()]
        lines.append(f"{k:>7}" + "".join(f"{cell:>20}" for cell in cells) + f"{best_of_n.kl_bound(k):>19.3f}")
    return "\n".join(lines)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    config.command(main, Experiment)
