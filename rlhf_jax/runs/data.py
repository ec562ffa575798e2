"""From records to arrays: windows, padding, and an order that depends on (seed, epoch, index) alone."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.runs import ranges
from rlhf_jax.runs.chat import assistant_mask, encode_prompt, encode_response
from rlhf_jax.types import Demonstrations, Pairs, Prompts


def find(path: str, root: str = "") -> str:
    """The file or folder as given, or below `root`, or below RLHF_JAX_DATA; a UserError that says where was looked.

    A data set on the hub ("hub:owner/name:split") is no path, and comes back as given."""
    if path.startswith("hub:"):
        return path
    places = [Path(path), *(Path(base) / path for base in (root, os.environ.get("RLHF_JAX_DATA", "")) if base)]
    for place in places:
        if place.exists():
            return str(place)
    if Path(path).is_absolute():
        raise UserError(f"there is no {path}")
    looked = ", ".join(str(place) for place in places)
    raise UserError(f"no data at {looked}; give --data FOLDER or set RLHF_JAX_DATA to where '{path}' lies")


def pad(rows: Sequence[Sequence[int]], window: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded int32 [B, window] and lengths int32 [B]. Rows must fit."""
    tokens = np.zeros((len(rows), window), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def check_known(rows: Sequence[Sequence[int]], tokenizer: Any, what: str, texts: Iterable[str] = ()) -> None:
    """Print a warning where more than 1 % of the tokens in these rows, special ones not counted, are unknown to the
    tokenizer (<unk>), UserError where more than half are: it has not been made for such texts, or for this model. Both name
    the commonest unknown words of `texts`.

    Tokenizers that spell every text in bytes know no such token; where the token is also that of the end, as with GPT-2,
    it is not looked for.
    """
    unknown, ends = tokenizer.unk_token_id, (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    if unknown is None or unknown in ends:
        return
    ids = np.concatenate([np.asarray(row, np.int64) for row in rows])
    ids = ids[(ids == unknown) | ~np.isin(ids, tokenizer.all_special_ids)]
    share = float(np.mean(ids == unknown)) if ids.size else 0.0
    told = f"{share:.0%} of the tokens of the {what} are unknown to the tokenizer ({tokenizer.unk_token})"
    if share > 0.01:
        told += unknown_words(texts, tokenizer)
    if share > 0.5:
        raise UserError(f"{told}; use the tokenizer that the model was made with, and texts that it was made for")
    if share > 0.01:
        print(f"warning: {told}; is it the model's own?")


def said(prompt: records.Messages, *responses: str) -> tuple[str, ...]:
    """The texts of a conversation and of responses to it."""
    return *(message["content"] for message in prompt), *responses


def unknown_words(texts: Iterable[str], tokenizer: Any, most: int = 5) -> str:
    """ ": 'cat' 3, 'dog' 1 and 7 other words", the commonest first: what the tokenizer does not know in these texts, at most
    10,000 of them; "" where it cannot tell, as tokenizers in Python cannot."""
    if not getattr(tokenizer, "is_fast", False):
        return ""
    found: Counter[str] = Counter()
    for text in itertools.islice(texts, 10_000):
        told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = zip(told["input_ids"], told["offset_mapping"], strict=True)
        found.update(text[start:end].strip() for token, (start, end) in places if token == tokenizer.unk_token_id)
    del found[""]
    if not found:
        return ""
    rest = len(found) - most
    listed = ", ".join(f"{ranges.shown(word)} {count}" for word, count in found.most_common(most))
    return f": {listed}" + (f" and {rest} other word{'s' if rest > 1 else ''}" if rest > 0 else "")


def encode_prompts(
    prompts: Sequence[records.Prompt], tokenizer: Any, *, window: int, long: str = "drop"
) -> tuple[Prompts, Counter[str]]:
    """Prompts of at most `window` tokens, and how many were dropped or truncated. `long` says what happens to
    longer ones: "drop", "truncate" (the last tokens stay) or "refuse"."""
    counts: Counter[str] = Counter()
    kept, rows = [], []
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt.prompt)
        if not ids:
            counts["empty"] += 1
            continue
        if len(ids) > window:
            if long == "refuse":
                raise UserError(
                    f"a prompt has {len(ids)} tokens, the prompt window {window}; widen it or set long_prompts: drop"
                )
            counts[f"longer than {window} tokens: {'dropped' if long == 'drop' else 'truncated'}"] += 1
            if long == "drop":
                continue
            ids = ids[-window:]
        kept.append(prompt)
        rows.append(ids)
    if not rows:
        raise UserError(f"no prompt is left of {len(prompts)} ({dict(counts)}); the prompt window is {window} tokens")
    check_known(rows, tokenizer, "prompts", (text for each in kept for text in said(each.prompt)))
    plain = sum(prompt.prompt[0]["role"] == "text" for prompt in kept)
    if plain and tokenizer.chat_template:
        print(
            f"warning: {plain} prompts are plain text, and this model has a chat template: they are continued as they stand; "
            'write {"prompt": [{"role": "user", "content": "…"}]} to have them answered'
        )
    tokens, length = pad(rows, window)
    numbers = np.arange(len(rows), dtype=np.int32)
    return Prompts(tokens, length, numbers, [p.prompt for p in kept], [p.meta for p in kept]), counts


def encode_pairs(
    pairs: Sequence[records.Pair],
    tokenizer: Any,
    *,
    window: int,
    judges: Sequence[str] = (),
    axes: Sequence[str] = (),
    stops: Sequence[int] = (),
) -> tuple[Pairs, list[records.Pair], Counter[str]]:
    """Both texts of each pair as `encode_text` has them, the pairs kept, and how many did not fit the window. `judges` and
    `axes` say which number each has; a pair of one that is not among them has number 0."""
    counts: Counter[str] = Counter()
    kept, chosen, rejected = [], [], []
    for pair in pairs:
        texts = [encode_text(tokenizer, pair.prompt, text, stops=stops) for text in (pair.chosen, pair.rejected)]
        if max(map(len, texts)) > window:
            counts[f"longer than {window} tokens: dropped"] += 1
            continue
        kept.append(pair)
        chosen.append(texts[0])
        rejected.append(texts[1])
    if not kept:
        raise UserError(f"no pair is left of {len(pairs)} ({dict(counts)}); the window is {window} tokens")

    every = (text for pair in kept for text in said(pair.prompt, pair.chosen, pair.rejected))
    check_known(chosen + rejected, tokenizer, "pairs", every)

    def column(name: str) -> np.ndarray:
        return np.array([getattr(pair, name) for pair in kept], np.float32)

    return (
        Pairs(
            *pad(chosen, window),
            *pad(rejected, window),
            column("label"),
            column("margin"),
            column("weight"),
            column("equal"),
            numbered([pair.annotator for pair in kept], judges),
            numbered([pair.axis for pair in kept], axes),
        ),
        kept,
        counts,
    )


def encode_text(tokenizer: Any, prompt: records.Messages, response: str, *, stops: Sequence[int] = ()) -> list[int]:
    """Prompt and response, up to where a policy with these `stops` (see `chat`) ends it, as a reward model reads them."""
    return encode_prompt(tokenizer, prompt) + encode_response(tokenizer, prompt, response, stops=stops)


def numbered(names: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """int32 [B]: where each name stands among the known ones, 0 where it does not."""
    place = {name: number for number, name in reversed(list(enumerate(known)))}
    return np.array([place.get(name, 0) for name in names], np.int32)


LEARN = ("completion", "assistant", "all")
"""What a demonstration teaches: its completion, also the assistant's earlier turns in its prompt, or all but token 0."""


def encode_demonstrations(
    demonstrations: Sequence[records.Demonstration],
    tokenizer: Any,
    *,
    window: int,
    learn: str = "completion",
    stops: Sequence[int] = (),
) -> tuple[Demonstrations, Counter[str]]:
    """Prompt and completion a row, as `encode_text` has them, with the loss on what `learn` says (one of LEARN)."""
    counts: Counter[str] = Counter()
    rows, masks = [], []
    for example in demonstrations:
        prompt = encode_prompt(tokenizer, example.prompt)
        ids = prompt + encode_response(tokenizer, example.prompt, example.completion, stops=stops)
        if len(ids) > window:
            counts[f"longer than {window} tokens: dropped"] += 1
            continue
        mask = np.arange(len(ids)) >= (1 if learn == "all" else len(prompt))
        if learn == "assistant":
            mask[: len(prompt)] = assistant_mask(tokenizer, example.prompt, stops=stops)
            mask[0] = False
        rows.append(ids)
        masks.append(mask)
    if not rows:
        raise UserError(
            f"no demonstration is left of {len(demonstrations)} ({dict(counts)}); the window is {window} tokens"
        )
    check_known(
        rows, tokenizer, "demonstrations", (t for each in demonstrations for t in said(each.prompt, each.completion))
    )
    tokens, length = pad(rows, window)
    loss_mask = np.zeros(tokens.shape, bool)
    for row, mask in zip(loss_mask, masks, strict=True):
        row[: mask.size] = mask
    return Demonstrations(tokens, length, loss_mask), counts


def score_encoder(
    tokenizer: Any, *, window: int, stops: Sequence[int] = ()
) -> Callable[[Sequence[records.Messages], Sequence[str]], tuple[np.ndarray, np.ndarray]]:
    """encode(prompts, responses) -> tokens, lengths for a reward model: as in its training, with one token that ends the
    response whether or not it was cut. `stops` are the reward model's own. A text past the window loses the beginning of its
    prompt; a response past it alone is a UserError."""

    def encode(prompts: Sequence[records.Messages], responses: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for prompt, response in zip(prompts, responses, strict=True):
            answer = encode_response(tokenizer, prompt, response, stops=stops)
            if len(answer) >= window:
                raise UserError(
                    f"a response has {len(answer)} tokens for the reward model, whose window is {window}; widen it"
                )
            rows.append((encode_prompt(tokenizer, prompt) + answer)[-window:])
        return pad(rows, window)

    return encode


def counted(counts: Counter[str]) -> str:
    """What the encoders above left out, in words: "12 longer than 64 tokens: dropped; 1 empty", or "nothing"."""
    return "; ".join(f"{count} {reason}" for reason, count in counts.items()) or "nothing"


def batch_rows(rows: int, size: int, *, seed: int, step: int) -> np.ndarray:
    """int64 [size]: the rows of batch number `step`, dealt from one permutation an epoch that depends on (seed,
    epoch) alone. Batches run over the end of an epoch into the next: no row is lost, none is seen twice in an epoch."""
    positions = step * size + np.arange(size)
    epochs = positions // rows
    orders = {int(e): np.random.default_rng((seed, int(e))).permutation(rows) for e in np.unique(epochs)}
    return np.array([orders[int(epoch)][position % rows] for epoch, position in zip(epochs, positions, strict=True)])


def take(tree: Any, index: np.ndarray) -> Any:
    """These rows of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)


def take_prompts(prompts: Prompts, index: np.ndarray) -> Prompts:
    """These prompts."""
    texts, meta = [prompts.texts[i] for i in index], [prompts.meta[i] for i in index]
    return Prompts(prompts.tokens[index], prompts.length[index], prompts.ids[index], texts, meta)


def readable(prompt: records.Messages) -> str:
    """The prompt for a person's eyes: a single message's text, or the conversation turn by turn."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
