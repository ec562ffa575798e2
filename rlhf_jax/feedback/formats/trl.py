"""The data forms of TRL (huggingface.co/docs/trl/dataset_formats), each as plain text or as lists of messages.

As in `feedback.importers`: one pure function per form, a row -> (records, notes), BadRow for a row that cannot be used.
A plain-text prompt stays plain (one message of role "text": TRL applies no chat template to it either), unless a
completion beside it is given as messages: then it is what the user said. The columns of `formats.carried` (axis,
annotator, weight ...) are read into the record's fields; those that neither names are kept in `meta`.
"""

import hashlib
import json
import math
from os.path import commonprefix
from typing import Any

from rlhf_jax.feedback.formats import carried
from rlhf_jax.feedback.formats.rows import BadRow, JsonObject, boolean, messages, response_notes, text, whole_number
from rlhf_jax.feedback.records import (
    SOURCE_KINDS,
    Comparison,
    Demonstration,
    Messages,
    Prompt,
    Rating,
    as_messages,
)


def explicit(row: JsonObject, *, source: str, source_kind: str) -> tuple[list[Comparison], list[str]]:
    """{"prompt", "chosen", "rejected"}, optionally a number `margin`. A completion that repeats the prompt loses it."""
    prompt, notes = _prompt(row, "chosen", "rejected")
    responses = []
    for key in ("chosen", "rejected"):
        response, more = _completion(row, key, prompt)
        responses.append(response)
        notes += [note for note in more if note not in notes]
    return _pair(row, prompt, responses[0], responses[1], source, source_kind, notes)


def implicit(row: JsonObject, *, source: str, source_kind: str) -> tuple[list[Comparison], list[str]]:
    """{"chosen", "rejected"} that both begin with the prompt, with an optional number `margin`.

    Text: the prompt is the longest common prefix, less one space at its end, as TRL takes it. That may cut a word in
    two when the completions begin alike; such rows are noted, and explicit prompts are better. A column
    `prompt_length` (characters; `feedback.exports` writes it, TRL passes over it) says where the prompt ends instead.
    Messages: the prompt is the messages that lead both, and one assistant message must follow in each. Raises BadRow
    when nothing, or everything, is shared.
    """
    if isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str):
        chosen, rejected = row["chosen"], row["rejected"]
        shared = commonprefix([chosen, rejected])
        if "prompt_length" in row:
            length = whole_number(row["prompt_length"])
            if length is None or not 0 < length <= len(shared) or not shared[:length].strip():
                raise BadRow("bad_prompt_length")
            rest = [chosen[length:], rejected[length:]]
            return _pair(row, as_messages(shared[:length]), rest[0], rest[1], source, source_kind, [])
        if chosen == rejected:
            raise BadRow("identical_texts")
        shared = shared.removesuffix(" ")
        if not shared.strip():
            raise BadRow("no_shared_prompt")
        rest = [chosen[len(shared) :], rejected[len(shared) :]]
        inside = shared[-1].isalnum() and any(left[:1].isalnum() for left in rest)
        notes = ["prompt_ends_inside_a_word"] * inside
        return _pair(row, as_messages(shared), rest[0], rest[1], source, source_kind, notes)
    one, notes = messages(row, "chosen")
    other, more = messages(row, "rejected")
    count = 0
    while count < min(len(one), len(other)) - 1 and one[count] == other[count]:
        count += 1
    if count == 0:
        raise BadRow("no_shared_prompt")
    notes += [note for note in more if note not in notes]
    return _pair(row, one[:count], _answer(one[count:]), _answer(other[count:]), source, source_kind, notes)


def prompt_only(row: JsonObject, *, source: str) -> tuple[list[Prompt], list[str]]:
    """{"prompt"}, whatever other columns there are."""
    prompt, notes = _prompt(row)
    return [Prompt(prompt, source=source, meta=_rest(row, "prompt"))], notes


def dialogue_prompt(row: JsonObject, *, source: str) -> tuple[list[Prompt], list[str]]:
    """{"messages"}: the conversation without the assistant's last answer, if it ends with one."""
    dialogue, notes = messages(row, "messages")
    prompt = dialogue[:-1] if dialogue[-1]["role"] == "assistant" else dialogue
    if not prompt:
        raise BadRow("no_prompt")
    return [Prompt(prompt, source=source, meta=_rest(row, "messages"))], notes


def prompt_completion(row: JsonObject, *, source: str, source_kind: str) -> tuple[list[Demonstration], list[str]]:
    """{"prompt", "completion"}. With a boolean `label` (TRL's unpaired preference) only if that is true."""
    if row.get("label") is False:
        raise BadRow("labelled_undesirable")
    prompt, notes = _prompt(row, "completion")
    completion, more = _completion(row, "completion", prompt)
    kind = _kind(row, source_kind)
    meta = _rest(row, "prompt", "completion", "source_kind")
    notes += more + response_notes([completion])
    return [Demonstration(prompt, completion, source=source, source_kind=kind, meta=meta)], notes


def dialogue(row: JsonObject, *, source: str, source_kind: str) -> tuple[list[Demonstration], list[str]]:
    """{"messages"} that end with the assistant, whose last message is the completion; earlier ones are prompt."""
    dialogue, notes = messages(row, "messages")
    if len(dialogue) < 2:
        raise BadRow("no_prompt")
    completion = _answer(dialogue[-1:])
    kind = _kind(row, source_kind)
    meta = _rest(row, "messages", "source_kind")
    notes += response_notes([completion])
    return [Demonstration(dialogue[:-1], completion, source=source, source_kind=kind, meta=meta)], notes


def unpaired(row: JsonObject, *, source: str, source_kind: str) -> tuple[list[Rating], list[str]]:
    """{"prompt", "completion", "label"}: a rating of 1 (desirable) or 0, on the axis overall unless a column says another."""
    label = boolean(row.get("label"))
    if label is None:
        raise BadRow("bad_label")
    prompt, notes = _prompt(row, "completion")
    completion, more = _completion(row, "completion", prompt)
    kind = _kind(row, source_kind)
    said = carried.fields(row, carried.RATING)
    meta = _rest(row, "prompt", "completion", "label", "source_kind", *said)
    said.setdefault("axis", "overall")
    rating = Rating(
        prompt, completion, value=int(label), scale=(0, 1), source=source, source_kind=kind, meta=meta, **said
    )
    return [rating], notes + more + response_notes([completion])


def stepwise(row: JsonObject, *, source: str, source_kind: str) -> tuple[list[Rating], list[str]]:
    """{"prompt", "completions", "labels"}: one rating for each step, of all the steps so far, as for `unpaired`.

    The response is the steps up to this one, a line break between them (TRL's separator); `meta["steps"]` lists them,
    and `item` is the same for all ratings of one solution.
    """
    steps, labels = row.get("completions"), row.get("labels")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise BadRow("completions_not_texts")
    values = [boolean(label) for label in labels] if isinstance(labels, list) else []
    if len(values) != len(steps) or None in values:
        raise BadRow("bad_label")
    prompt, notes = _prompt(row)
    kind = _kind(row, source_kind)
    said = carried.fields(row, carried.STEPS)
    meta = _rest(row, "prompt", "completions", "labels", "source_kind", *said)
    solution = json.dumps([prompt, steps, values, meta | said], sort_keys=True)
    item = hashlib.sha256(solution.encode()).hexdigest()[:16]
    said.setdefault("axis", "overall")
    found = [
        Rating(
            prompt,
            "\n".join(steps[: step + 1]),
            value=int(bool(value)),
            scale=(0, 1),
            item=item,
            meta=meta | {"steps": steps[: step + 1]},
            source=source,
            source_kind=kind,
            **said,
        )
        for step, value in enumerate(values)
    ]
    return found, notes


def _pair(
    row: JsonObject, prompt: Messages, chosen: str, rejected: str, source: str, source_kind: str, notes: list[str]
) -> tuple[list[Comparison], list[str]]:
    said = carried.fields(row, carried.COMPARISON) | {"margin": _margin(row)}
    comparison = Comparison(
        prompt,
        (chosen, rejected),
        (0, 1),
        source=source,
        source_kind=_kind(row, source_kind),
        meta=_rest(row, "prompt", "chosen", "rejected", "source_kind", "prompt_length", *said),
        **said,
    )
    return [comparison], notes + response_notes(comparison.responses)


def _prompt(row: JsonObject, *completions: str) -> tuple[Messages, list[str]]:
    if isinstance(row.get("prompt"), list):
        prompt, notes = messages(row, "prompt")
    else:
        spoken = any(isinstance(row.get(key), list) for key in completions)
        prompt, notes = ({"role": "user" if spoken else "text", "content": text(row, "prompt")},), []
    if not any(message["content"].strip() for message in prompt):
        raise BadRow("empty_prompt")
    return prompt, notes


def _completion(row: JsonObject, key: str, prompt: Messages) -> tuple[str, list[str]]:
    if not isinstance(row.get(key), list):
        return text(row, key), []
    said, notes = messages(row, key)
    if len(said) > len(prompt) and said[: len(prompt)] == prompt:  # UltraFeedback's binarised form does this
        said, notes = said[len(prompt) :], [*notes, "prompt_repeated_in_completion"]
    return _answer(said), notes


def _answer(said: Messages) -> str:
    if len(said) != 1:
        raise BadRow("completion_of_several_messages")
    if said[0]["role"] != "assistant":
        raise BadRow("completion_not_by_assistant")
    return said[0]["content"]


def _margin(row: JsonObject) -> float:
    value = row.get("margin")
    if value is None or value == "":
        return 0.0
    try:
        margin = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin):
        raise BadRow("bad_margin")
    return margin


def _kind(row: JsonObject, default: str) -> str:
    kind = row.get("source_kind", default)
    if kind not in SOURCE_KINDS:
        raise BadRow("unknown_source_kind")
    return str(kind)


def _rest(row: JsonObject, *read: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in read}
