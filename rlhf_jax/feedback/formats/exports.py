"""Records as the rows of a file: TRL's forms (huggingface.co/docs/trl/dataset_formats), rankings, and raw records.

Pure functions: records -> (rows, how many records or pairs gave none, by reason). `formats.write` writes them.
A plain prompt (role "text") becomes text, a conversation becomes messages, as TRL tells the two apart; `conversational`
makes every prompt messages. What else a judgement says goes along in the columns of `formats.carried`, and the data
set's own columns (`meta`) where no column of the form has their name; `lost` says what does not.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.formats import carried
from rlhf_jax.feedback.records import Comparison, Demonstration, Messages, Pair, Prompt, Rating, pairs, ranking

Row = dict[str, Any]
Rows = tuple[list[Row], Counter[str]]
Record = Comparison | Rating | Pair | Prompt | Demonstration


def raw(records: Iterable[Record]) -> Rows:
    """All fields of comparisons and ratings: the one form that loses nothing."""
    given = list(records)
    for record in given:
        if not isinstance(record, Comparison | Rating):
            raise _not(record, "raw")
    return [asdict(record) for record in given], Counter()


def explicit(records: Iterable[Record]) -> Rows:
    """{"prompt", "chosen", "rejected"}, and "margin" where there is one. Ties are left out: the form has none.

    A set of K responses gives a row for each of its ordered pairs, with its share of the set's `weight`. The share of votes
    for `chosen` of a Pair that not all agreed on is in the column `soft_label`, which TRL passes over.
    """
    return _pairs(records, "trl_explicit", lambda pair, other: _explicit(pair, pair.prompt, other))


def conversational(records: Iterable[Record]) -> Rows:
    """As `explicit`, with every prompt as messages: a plain one becomes what the user said."""
    return _pairs(
        records, "trl_conversational", lambda pair, other: _explicit(pair, as_conversation(pair.prompt), other)
    )


def implicit(records: Iterable[Record]) -> Rows:
    """{"chosen", "rejected"} that both begin with the prompt. For plain texts `prompt_length` (characters) is where the
    prompt ends, which the texts alone do not say: TRL passes over it, `feedback.trl` reads it."""

    def row(pair: Pair, other: Row) -> Row:
        if pair.prompt[0]["role"] != "text":
            told = [dict(message) for message in pair.prompt]
            sides = {side: [*told, _said(getattr(pair, side))] for side in ("chosen", "rejected")}
            return other | sides
        asked = pair.prompt[0]["content"]
        texts = {"chosen": asked + pair.chosen, "rejected": asked + pair.rejected, "prompt_length": len(asked)}
        return other | texts

    return _pairs(records, "trl_implicit", row)


def unpaired(records: Iterable[Record]) -> Rows:
    """{"prompt", "completion", "label"}: true for the best responses of a comparison, false for the worst.

    Those between are neither, and sets that are all one tie say nothing: left out. Of ratings, the highest value of a
    scale is true, the lowest false, the others are left out.
    """
    rows: list[Row] = []
    left: Counter[str] = Counter()
    for record in records:
        match record:
            case Comparison() if max(record.ranks) == 0:
                left["tie"] += 1
                continue
            case Comparison():
                labels = [{0: True, max(record.ranks): False}.get(rank) for rank in record.ranks]
                judged = list(zip(record.responses, labels, strict=True))
            case Rating():
                judged = [(record.response, {record.scale[1]: True, record.scale[0]: False}.get(record.value))]
            case Pair() if record.tie:
                left["tie"] += 1
                continue
            case Pair():
                judged = [(record.chosen, record.label >= 0.5), (record.rejected, record.label < 0.5)]
            case _:
                raise _not(record, "unpaired")
        left["neither_best_nor_worst"] += sum(label is None for _, label in judged)
        other = _other(record, "trl_unpaired")
        for text, label in judged:
            if label is not None:
                asked = {"prompt": _prompt(record.prompt), "completion": _answer(record.prompt, text), "label": label}
                rows.append(other | asked)
    return rows, +left


def prompts(records: Iterable[Record]) -> Rows:
    """{"prompt"}: each prompt once, with the columns of its first record (of judgements only the prompt)."""
    rows: dict[str, Row] = {}
    given = list(records)
    for record in given:
        other = dict(record.meta) if isinstance(record, Prompt) else {}
        other.pop("provenance", None)
        rows.setdefault(record.prompt_id, other | {"prompt": _prompt(record.prompt)})
    return list(rows.values()), +Counter(repeated_prompt=len(given) - len(rows))


def prompt_completion(records: Iterable[Record]) -> Rows:
    """{"prompt", "completion"} of demonstrations."""
    rows = []
    for record in records:
        if not isinstance(record, Demonstration):
            raise _not(record, "prompt_completion")
        completion = _answer(record.prompt, record.completion)
        other = _other(record, "trl_prompt_completion")
        rows.append(other | {"prompt": _prompt(record.prompt), "completion": completion})
    return rows, Counter()


def rankings(records: Iterable[Record]) -> Rows:
    """{"prompt", "ranking", "axis", "annotator"}: groups of equally good responses, the best group first."""
    rows = []
    for record in records:
        if not isinstance(record, Comparison):
            raise _not(record, "ranking")
        groups = [list(group) for group in ranking(record)]
        other = _other(record, "ranking")
        rows.append(other | {"prompt": _prompt(record.prompt), "ranking": groups, "axis": record.axis})
    return rows, Counter()


def stepwise(records: Iterable[Record]) -> Rows:
    """{"prompt", "completions", "labels"} of the ratings that `feedback.trl.stepwise` makes: one row a solution.

    Raises UserError for a solution of which a step's rating is missing.
    """
    solutions: dict[tuple[str, str], dict[int, Rating]] = {}
    repeated = 0
    for record in records:
        if not isinstance(record, Rating) or not isinstance(record.meta.get("steps"), list):
            raise _not(record, "stepwise")
        steps = solutions.setdefault((record.prompt_id, record.item), {})
        repeated += len(record.meta["steps"]) in steps
        steps[len(record.meta["steps"])] = record
    rows = []
    for steps in solutions.values():
        last = steps[max(steps)]
        if len(steps) < max(steps):
            raise UserError(
                f"solution {last.item} has ratings of {len(steps)} of its {max(steps)} steps; give them all"
            )
        other = _other(last, "trl_stepwise")
        labels = [steps[count].value == last.scale[1] for count in sorted(steps)]
        rows.append(other | {"prompt": _prompt(last.prompt), "completions": last.meta["steps"], "labels": labels})
    return rows, +Counter(repeated_step=repeated)


FORMS: dict[str, Callable[[Sequence[Any]], Rows]] = {
    "raw": raw,
    "ranking": rankings,
    "trl_explicit": explicit,
    "trl_implicit": implicit,
    "trl_conversational": conversational,
    "trl_unpaired": unpaired,
    "trl_prompt": prompts,
    "trl_prompt_completion": prompt_completion,
    "trl_stepwise": stepwise,
}


def as_conversation(prompt: Messages) -> Messages:
    """A plain prompt as one message of the user; a conversation as it is."""
    if prompt[0]["role"] != "text":
        return prompt
    return ({"role": "user", "content": prompt[0]["content"]},)


def _pairs(records: Iterable[Record], form: str, row: Callable[[Pair, Row], Row]) -> Rows:
    rows = []
    left: Counter[str] = Counter()
    for record in records:
        if not isinstance(record, Comparison | Pair):
            raise _not(record, "preference")
        other = _other(record, form)
        if record.weight != 1:
            other.pop("weight")
        for pair in pairs(record) if isinstance(record, Comparison) else [record]:
            if pair.tie or pair.label == 0.5:
                left["tie"] += 1
                continue
            share = max(pair.label, 1 - pair.label)
            if pair.label < 0.5:
                pair = replace(pair, chosen=pair.rejected, rejected=pair.chosen, label=share)
            said = carried.columns(pair, ("weight",)) | ({"soft_label": share} if share < 1 else {})
            rows.append(row(pair, other | said))
    return rows, left


def _explicit(pair: Pair, prompt: Messages, other: Row) -> Row:
    chosen, rejected = _answer(prompt, pair.chosen), _answer(prompt, pair.rejected)
    return other | {"prompt": _prompt(prompt), "chosen": chosen, "rejected": rejected}


def _prompt(prompt: Messages) -> Any:
    return prompt[0]["content"] if prompt[0]["role"] == "text" else [dict(message) for message in prompt]


def _answer(prompt: Messages, text: str) -> Any:
    return text if prompt[0]["role"] == "text" else [_said(text)]


def _said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def lost(record: Record, form: str) -> list[str]:
    """The names of the record's fields and own columns that a row of the form does not carry, or not as they are.

    Not the ranks and values that the form is there to simplify; of a file of prompts, nothing.
    """
    if form not in CARRIED:
        return []
    gone = [name for name in _own(record) if not _fits(record, name, form)]
    said = carried.columns(record, carried.COMPARISON if form != "trl_stepwise" else carried.RATING)
    gone += [name for name in said if name not in (*CARRIED[form], "item" if form == "trl_stepwise" else "")]
    if isinstance(record, Pair):
        gone += ["equal"] * (record.equal > 0) + ["label"] * (form == "trl_unpaired" and 0 < record.label < 1)
    return gone


def _other(record: Comparison | Rating | Pair | Demonstration, form: str) -> Row:
    """Who judged, on what axis and so on, and the data set's own columns, but not where those came from: the manifest says."""
    told: Row = {"source_kind": record.source_kind} | carried.columns(record, CARRIED[form])
    return {name: value for name, value in _own(record).items() if _fits(record, name, form)} | told


def _own(record: Record) -> Row:
    steps = ("steps",) * isinstance(record, Rating)
    return {name: value for name, value in getattr(record, "meta", {}).items() if name not in ("provenance", *steps)}


def _fits(record: Record, name: str, form: str) -> bool:
    """Whether a row has room for a column of the data set's own: none that would be read as something else has."""
    read = carried.fields(_own(record), CARRIED[form]) | carried.columns(record, CARRIED[form])
    shared = ("weight",) * (TAKEN[form] == _PAIR and len(getattr(record, "responses", ())) > 2)
    return name not in (*TAKEN[form], "source_kind", *read, *shared)


_PAIR = ("prompt", "chosen", "rejected", "margin", "prompt_length")
_SINGLE = (*_PAIR[:3], "completion", "completions", "label", "labels", "ranking", "responses", "ranks")

TAKEN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("trl_explicit", "trl_conversational", "trl_implicit"), _PAIR),
    **dict.fromkeys(("ranking", "trl_unpaired", "trl_stepwise", "trl_prompt_completion"), _SINGLE),
}
"""The columns of a form, and those by which a row of it would be taken for one of another."""
CARRIED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("trl_explicit", "trl_conversational", "trl_implicit", "ranking"), carried.COMPARISON),
    "trl_unpaired": carried.RATING,
    "trl_stepwise": carried.STEPS,
    "trl_prompt_completion": (),
}


def _not(record: Record, form: str) -> UserError:
    fits = {Prompt: "trl_prompt", Demonstration: "trl_prompt_completion", Pair: "trl_explicit"}.get(type(record), "raw")
    return UserError(f"a {type(record).__name__} cannot be written as {form}; write it as {fits}")
