"""The files that the quickstart begins with, made up: a random model, texts of the playground's people, simulated judges.

A real project has these from elsewhere: a downloaded checkpoint, demonstrations, prompts, people's comparisons.
`cfg` is the quickstart's configuration.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.feedback import formats, simulate
from rlhf_jax.model import hf, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf import config as hf_config
from rlhf_jax.model.hf import families as hf_families
from rlhf_jax.playground import gold, grammar, prompts, texts, tokenizer

PROMPT, RESPONSE = 24, 32
"""Windows in tokens: the longest prompt and response of the world fit."""

PROMPTS = 12_000
"""Different prompts that a seed's training draws on."""


def message(row: dict[str, Any]) -> list[dict[str, str]]:
    """A prompt of the world as a conversation, so that the chat template applies."""
    return [{"role": "user", "content": row["prompt"]}]


def answer(row: dict[str, Any]) -> list[dict[str, str]]:
    """A response of the world as the turn that follows."""
    return [{"role": "assistant", "content": row["response"]}]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def model_config(cfg: Any, words: Any) -> ModelConfig:
    """A small model of the family that `cfg` names, by way of the config.json that such a model would have."""
    told, heads = hf_families.FAMILIES[cfg.family], cfg.width // 16
    sizes = {"vocab_size": len(words), "d_model": cfg.width, "layers": cfg.layers, "heads": heads, "kv_heads": heads}
    sizes |= {
        "head_dim": 16,
        "d_ff": 4 * cfg.width,
        "max_positions": PROMPT + RESPONSE + 1,
        "norm_eps": 1e-5,
        "tied": True,
    }
    document = {"architectures": [told.causal], "model_type": cfg.family}
    document |= {key.key: sizes[key.field] for key in told.keys if key.field in sizes}
    document |= {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if told.window:
        document["sliding_window"] = RESPONSE
    return hf_config.read(document)


def made_files(cfg: Any, folder: Path) -> dict[str, str]:
    """The files that a real project would start from: a random checkpoint, a corpus, demonstrations, prompts."""
    rng = np.random.default_rng(cfg.seed)

    def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"prompt": message(row), "completion": answer(row), "source_kind": "synthetic"} for row in rows]

    asked = prompts.draw(cfg.seed, max(PROMPTS, cfg.judged, cfg.demonstrations))
    corpus = texts.corpus(rng, [asked[i] for i in rng.integers(len(asked), size=cfg.corpus)])
    words = tokenizer.train_tokenizer([row["prompt"] for row in corpus] + [row["response"] for row in corpus])
    model = model_config(cfg, words)
    hf.save(folder / "start", model, transformer.init(jax.random.key(cfg.seed), model), words)

    def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "prompt": message(row)} for row in rows]

    held_out = prompts.draw(cfg.seed, cfg.evaluated, split="held out")
    return {
        "start": str(folder / "start"),
        "corpus": write_rows(folder / "corpus.jsonl", told(corpus)),
        "demonstrations": write_rows(
            folder / "demonstrations.jsonl", told(texts.demonstrations(rng, asked[-cfg.demonstrations :]))
        ),
        "prompts": write_rows(folder / "prompts.jsonl", plain(asked[: cfg.judged])),
        "held_out": write_rows(folder / "held_out.jsonl", plain(held_out)),
    }


def judge(cfg: Any, responses: str, out: Path) -> str:
    """A panel of simulated people, noisy and biased, rank the responses to each prompt; a file of comparisons."""
    rng = np.random.default_rng((cfg.seed, 1))
    found, _ = formats.load_prompts(responses)
    items = [
        simulate.Item(
            prompt.prompt,
            prompt.meta["responses"],
            [gold.gold(prompt.meta, text)[0] for text in prompt.meta["responses"]],
        )
        for prompt in found
    ]
    formats.dump(out, simulate.collect(rng, items, simulate.panel(rng, cfg.judges, temperature=0.03)))
    return str(out)


def parses(prompts: Sequence[Any], responses: Sequence[str], meta: Any) -> list[float]:
    """1 where the grammar of the world makes the response."""
    return [float(grammar.parses(text)) for text in responses]
