"""Sample n responses to each prompt of a file, as JSON lines.

python experiments/generate.py --model runs/ppo/model --prompts prompts.jsonl --out responses.jsonl --samples 4
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from tqdm import tqdm

from rlhf_jax.algorithms.rewards import Score
from rlhf_jax.algorithms.rollout import response_ids
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.generate import engine
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs import config, data, session, settings
from rlhf_jax.types import Params, Prompts, Sampling

STOPS = ("eos", "length", "stop sequence")


@dataclass(frozen=True)
class Experiment:
    """What to sample, from what."""

    model: str
    """Folder or hub name of a causal language model."""
    prompts: str
    """File of prompts."""
    out: str
    """File to write: one JSON object a prompt, with its columns and a list of responses."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the prompts' file, where its keys do not tell."""
    samples: int = 1
    """Responses a prompt."""
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
    mesh: settings.Layout = settings.Layout()

    def __post_init__(self) -> None:
        for name in ("samples", "prompt_window", "response_window", "batch"):
            config.at_least(name, getattr(self, name), 1)
        config.non_negative("seed", self.seed)
        config.choice("long_prompts", self.long_prompts, ("drop", "truncate", "refuse"))


def load_prompts(path: str, tokenizer: Any, *, window: int, long: str, format: str = "auto", root: str = "") -> Prompts:
    """Prompts of a file as arrays; what was dropped is printed."""
    found, told = formats.load_prompts(data.find(path, root), format)
    prompts, counts = data.encode_prompts(found, tokenizer, window=window, long=long)
    print(f"{told.text()}\n{prompts.length.size} prompts; left out: {data.counted(counts)}")
    return prompts


def decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """ids -> the text a reader sees, without special tokens."""
    return functools.partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def respond(
    params: Params,
    prompts: Prompts,
    tokenizer: Any,
    *,
    model: ModelConfig,
    samples: int,
    window: int,
    sampling: Sampling,
    batch: int,
    key: jax.Array,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """One row a prompt: {"prompt", "responses", "tokens", "stop", and the prompt's columns}.

    The last batch is filled up with its first prompt, so that one program serves all.
    """
    engine.check(prompts.tokens, prompts.length, window=window, cfg=model, stop=sampling.stop)
    decode, rows = decoder(tokenizer), []
    for start in tqdm(range(0, prompts.length.size, batch), disable=quiet or None, unit="batch"):
        real = np.arange(start, min(start + batch, prompts.length.size))
        picked = np.concatenate([real, np.full(batch - real.size, start)])
        uids = np.arange(start, start + batch)[:, None] * samples + np.arange(samples)
        tokens, length = prompts.tokens[picked], prompts.length[picked]
        found = engine.generate(params, tokens, length, uids, key, window=window, cfg=model, sampling=sampling)
        texts = [decode(ids) for ids in response_ids(np.asarray(found.responses), np.asarray(found.length))]
        lengths, stops = np.asarray(found.length).tolist(), np.asarray(found.stop).tolist()
        for place, index in enumerate(real):
            own = slice(place * samples, (place + 1) * samples)
            row = {"prompt": prompts.texts[index], "responses": texts[own], "tokens": lengths[own]}
            rows.append(prompts.meta[index] | row | {"stop": [STOPS[stop] for stop in stops[own]]})
    return rows


def scored(
    params: Params,
    *,
    prompts: Prompts,
    tokenizer: Any,
    score: Score,
    model: ModelConfig,
    window: int,
    sampling: Sampling,
    key: jax.Array,
    iteration: int,
    stage: str,
) -> list[dict[str, Any]]:
    """One response to each prompt with its score, as rows of samples.jsonl. The same key gives the same noise."""
    size = prompts.length.size
    if not size:
        return []
    rows = respond(
        params, prompts, tokenizer, model=model, samples=1, window=window, sampling=sampling, batch=size, key=key
    )
    responses = [row["responses"][0] for row in rows]
    scores, parts = score(prompts.texts, responses, prompts.meta)
    return [
        {
            "iteration": iteration,
            "stage": stage,
            "prompt": data.readable(prompts.texts[i]),
            "response": responses[i],
            "score": float(scores[i]),
            "parts": {name: float(values[i]) for name, values in parts.items()},
        }
        for i in range(size)
    ]


def check_out(out: str, prompts: str) -> None:
    """UserError for an output that is something else than a file, or the file of the prompts."""
    path = Path(out)
    config.check(not path.is_dir(), f"out is a folder, {out}; name the file to write")
    config.check(not path.exists() or path.is_file(), f"out is no regular file, {out}; name the file to write")
    config.check(
        not path.exists() or not path.samefile(prompts), f"out is the file of the prompts, {out}; name another to write"
    )


@contextlib.contextmanager
def written_whole(out: str) -> Iterator[TextIO]:
    """A file beside `out` that takes its place at the end, and is removed after an error. UserError, before anything is
    written, where none can be made."""
    target = Path(out).resolve()  # a link stays a link
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, "w", encoding="utf-8", errors="backslashreplace")  # a lone surrogate: legal in JSON so
    except OSError as error:
        raise UserError(f"out cannot be written, {out}: {error.strerror}") from None
    try:
        with file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main(cfg: Experiment) -> dict[str, Any]:
    """Write the file; how many responses it holds and how they ended."""
    source = data.find(cfg.prompts, cfg.data)
    mesh = settings.make_mesh(cfg.mesh, cfg.batch)
    check_out(cfg.out, source)
    opened, tokenizer = session.language_model(cfg.model, cfg.compute, mesh)
    prompts = load_prompts(
        cfg.prompts, tokenizer, window=cfg.prompt_window, long=cfg.long_prompts, format=cfg.format, root=cfg.data
    )
    replaced = sorted({name for meta in prompts.meta for name in meta} & {"responses", "tokens", "stop"})
    if replaced:
        print(f"{source}: columns that are replaced in the file to write: {', '.join(replaced)}")
    # rows that divide over the mesh as cfg.batch does, even where there are fewer prompts
    devices = cfg.mesh.data * cfg.mesh.fsdp
    batch = min(cfg.batch, math.ceil(prompts.length.size / devices) * devices)
    with settings.within(mesh), written_whole(cfg.out) as file:
        rows = respond(
            opened.params,
            prompts,
            tokenizer,
            model=opened.cfg,
            samples=cfg.samples,
            window=cfg.response_window,
            sampling=cfg.sampling,
            batch=batch,
            key=jax.random.key(cfg.seed),
            quiet=False,
        )
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    lengths = [count for row in rows for count in row["tokens"]]
    ended = sum(stop == "eos" for row in rows for stop in row["stop"]) / len(lengths)
    print(f"{len(lengths)} responses of {np.mean(lengths):.1f} tokens on average, {ended:.0%} ended by EOS: {cfg.out}")
    return {"responses": len(lengths), "length": float(np.mean(lengths)), "eos": ended}


if __name__ == "__main__":
    config.command(main, Experiment)
