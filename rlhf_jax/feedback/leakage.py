"""What must not be counted twice: repeated judgements in one set, and texts that training and evaluation share.

Word 13-grams are the measure of overlap of GPT-3's appendix C (arXiv 2005.14165): long enough that a shared one is
hardly ever chance. In scripts without spaces 26 characters stand for 13 words. Pure functions of records.
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import Comparison, Demonstration, Pair, Prompt, Rating, item_key
from rlhf_jax.feedback.wording import grams, words

Record = Comparison | Rating | Pair | Prompt | Demonstration

N = 13


def texts(record: Record, part: str = "prompt") -> list[str]:
    """The texts of a record to look for elsewhere: its prompt as one text, its responses, or "all".

    What a system or developer message says is left out: a whole data set has it in common.
    """
    said = ["\n".join(m["content"] for m in record.prompt if m["role"] not in ("system", "developer"))]
    match record:
        case Comparison():
            answers = list(record.responses)
        case Rating():
            answers = [record.response]
        case Pair():
            answers = [record.chosen, record.rejected]
        case Demonstration():
            answers = [record.completion]
        case _:
            answers = []
    if part not in ("prompt", "responses", "all"):
        raise UserError(f'part must be "prompt", "responses" or "all", got {part!r}')
    return {"prompt": said, "responses": answers, "all": said + answers}[part]


def without_repeats(comparisons: Iterable[Comparison]) -> tuple[list[Comparison], int]:
    """The comparisons without judgements that are there twice, and how many were left out. Order is kept.

    The same judgement is: the same item, annotator, source kind and ranks of the same texts. What annotators say of one
    item in contradiction, or in agreement, is all kept: those are votes (`records.votes`: 2 to 1 gives 0.667). Without
    an annotator's name two equal judgements may be two people's, so only a record that is equal in every field but its
    provenance is a repeat.
    """
    seen: set[Hashable] = set()
    kept = []
    given = list(comparisons)
    for comparison in given:
        ranked = tuple(sorted(zip(comparison.responses, comparison.ranks, strict=True)))
        key: Hashable = (item_key(comparison), comparison.annotator, comparison.source_kind, ranked)
        if not comparison.annotator:
            meta = {name: value for name, value in comparison.meta.items() if name != "provenance"}
            key = (key, comparison.strength, comparison.margin, comparison.weight, comparison.split, repr(meta))
        if key not in seen:
            seen.add(key)
            kept.append(comparison)
    return kept, len(given) - len(kept)


@dataclass(frozen=True)
class Leaks:
    """Which evaluation records have a text that training has too; indices into the evaluation records."""

    exact: list[int]
    """The whole text is in training, but for case, punctuation, white space and Unicode form."""
    overlapping: list[int]
    """Not exact, but `n` words in a row are in training."""
    records: int
    n: int
    clean: list[int] = field(default_factory=list)
    """All the others."""

    def text(self) -> str:
        """One line to print."""
        leaked = len(self.exact) + len(self.overlapping)
        share = f"{leaked / self.records:.1%}" if self.records else "none"
        return (
            f"{leaked} of {self.records} evaluation records ({share}) are in the training data: {len(self.exact)} whole, "
            f"{len(self.overlapping)} by {self.n} words in a row."
        )


def leaks(train: Iterable[Record], evaluation: Iterable[Record], *, n: int = N, part: str = "prompt") -> Leaks:
    """Which evaluation records share a text with training: exactly, or by `n` words in a row.

    `part` says which texts are looked at: the "prompt", the "responses" (each by itself), or "all". `words` and `grams` of
    `feedback.wording` say what a word is, also where none are written apart. A text of fewer than `n` words can only leak
    as a whole. A text without a word, which says nothing, never does.
    Raises UserError for n below 1.
    """
    if n < 1:
        raise UserError(f"n is a number of words, at least 1, got {n}")
    whole: set[bytes] = set()
    parts: set[int] = set()
    for record in train:
        for said in map(words, texts(record, part)):
            whole.add(_digest(said))
            parts.update(map(_hash, grams(said, n)))
    exact: list[int] = []
    overlapping: list[int] = []
    clean: list[int] = []
    for index, record in enumerate(given := list(evaluation)):
        spoken = [said for said in map(words, texts(record, part)) if said]
        if any(_digest(said) in whole for said in spoken):
            exact.append(index)
        elif any(_hash(gram) in parts for said in spoken for gram in grams(said, n)):
            overlapping.append(index)
        else:
            clean.append(index)
    return Leaks(exact, overlapping, len(given), n, clean)


def _digest(said: Sequence[str]) -> bytes:
    return hashlib.sha256(" ".join(said).encode("utf-8", "surrogatepass")).digest()


def _hash(gram: Sequence[str]) -> int:
    """64 bits: a data set has too many n-grams to keep as texts."""
    said = " ".join(gram).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big")
