"""PandaLM, OpenAssistant, HH-RLHF: a row of the published file -> its comparisons or ratings, and notes on oddities.

As in every file of importers: pure functions, nothing is read or kept here. A row that cannot be used raises BadRow
with the reason, under which `feedback.formats` counts it. Notes are short names, which it counts too. Ratings carry
the data set's own name of the axis; `feedback.axes` translates it.
"""

import hashlib
import re
from typing import Any

from rlhf_jax.feedback.formats.rows import BadRow, Found, JsonObject, number, response_notes, rest, text, whole_number
from rlhf_jax.feedback.records import Comparison, Messages, Rating


def pandalm(row: JsonObject, *, source: str) -> Found:
    """PandaLM's human-labelled test set (github.com/WeOpenML/PandaLM): one comparison per annotator of the item.

    The prompt is one user message: `instruction`, an empty line, `input`; just the one where the other is empty.
    `annotatorN` is 0 (tie), 1 or 2 (that response is better). A response that is a JSON boolean becomes the text
    "True" or "False". Empty responses are kept and noted: people judged them. A label that is none of these costs
    that judgement only, and is noted.
    """
    asked = [text(row, "instruction"), "" if row.get("input") is None else text(row, "input")]
    prompt = "\n\n".join(part for part in asked if part.strip())  # item 466 has an input only
    if not prompt:
        raise BadRow("empty_prompt")
    notes = []
    if any(isinstance(row.get(name), bool) for name in ("response1", "response2")):
        row = row | {name: str(row[name]) for name in ("response1", "response2") if isinstance(row.get(name), bool)}
        notes.append("boolean_response")
    responses = (text(row, "response1"), text(row, "response2"))
    notes += response_notes(responses)
    annotators = [key for key in row if re.fullmatch(r"annotator\d+", key)]
    read = {"instruction", "input", "response1", "response2", *annotators}
    found = []
    for name in annotators:
        label = whole_number(row[name])
        if label is None or not 0 <= label <= 2:
            notes.append("bad_label")
            continue
        found.append(
            Comparison(
                ({"role": "user", "content": prompt},),
                responses,
                ((0, 0), (0, 1), (1, 0))[label],
                annotator=name,
                item=str(row.get("idx", "")),
                source=source,
                source_kind="human",
                meta=rest(row, read),
            )
        )
    if not found:
        raise BadRow("no_usable_label")
    return found, notes


def oasst(row: JsonObject, *, source: str, synthetic: str = "keep") -> Found:
    """An OpenAssistant conversation tree (arXiv 2304.07327): one comparison per set of ranked assistant replies.

    The prompt is the whole path from the root. The file lists replies sorted by rank, which would leak the label
    through their position: here the order is that of a hash of message id and text. Replies that have no usable rank,
    are deleted or malformed are left out (not taken for the worst) and noted. The ranks are a consensus, hence no
    annotator. People ranked, so `source_kind` is "human" even where a model wrote a message; `meta` says which, and
    synthetic="drop" leaves out such replies and every set below such a message. Raises BadRow for a tree that gives
    no set.
    """
    found: list[Comparison] = []
    notes: list[str] = []
    waiting: list[tuple[list[JsonObject], Any]] = [([], row.get("prompt"))]  # a stack: trees from outside may be deep
    while waiting:
        path, message = waiting.pop()
        if not _is_message(message):
            notes.append("malformed_message")
            continue
        if message.get("deleted") is True:
            notes.append("deleted_message")
            continue
        path = [*path, message]
        replies = message.get("replies")
        replies = replies if isinstance(replies, list) else []
        waiting += [(path, reply) for reply in reversed(replies)]
        ranked = [
            reply for reply in replies if _is_message(reply) and reply["role"] == "assistant" and _has_rank(reply)
        ]
        if len(ranked) < 2:
            continue
        notes += ["unranked_reply"] * sum(_is_message(reply) and not _has_rank(reply) for reply in replies)
        synthetic_prompt = any(turn.get("synthetic") is True for turn in path)
        if synthetic == "drop" and synthetic_prompt:
            notes.append("synthetic_prompt_dropped")
            continue
        if synthetic == "drop":
            written = [reply for reply in ranked if reply.get("synthetic") is not True]
            notes += ["synthetic_reply_dropped"] * (len(ranked) - len(written))
            ranked = written
        if len(ranked) < 2:
            notes.append("fewer_than_2_replies_left")
            continue
        comparison = _ranked_set(path, ranked, source, synthetic_prompt)
        found.append(comparison)
        notes += response_notes(comparison.responses)
    if not found:
        raise BadRow("synthetic_only" if any(note.startswith("synthetic") for note in notes) else "no_ranked_set")
    return found, notes


def _ranked_set(path: list[JsonObject], ranked: list[JsonObject], source: str, synthetic_prompt: bool) -> Comparison:
    ranked = sorted(
        ranked, key=lambda reply: hashlib.sha256(f"{reply.get('message_id')}\n{reply['text']}".encode()).digest()
    )
    order = sorted({reply["rank"] for reply in ranked})  # ranks close up where a sibling was left out
    return Comparison(
        _as_prompt(path),
        tuple(reply["text"] for reply in ranked),
        tuple(order.index(reply["rank"]) for reply in ranked),
        item=str(path[-1].get("message_id", "")),
        source=source,
        source_kind="human",
        meta={
            "message_tree_id": path[0].get("message_id"),
            "message_ids": [reply.get("message_id") for reply in ranked],
            "lang": path[-1].get("lang"),
            "synthetic_prompt": synthetic_prompt,
            "synthetic_responses": [reply.get("synthetic") is True for reply in ranked],
        },
    )


def _as_prompt(path: list[JsonObject]) -> Messages:
    return tuple(
        {"role": "user" if turn["role"] == "prompter" else "assistant", "content": turn["text"]} for turn in path
    )


def oasst_labels(row: JsonObject, *, source: str, synthetic: str = "keep") -> tuple[list[Rating], list[str]]:
    """What people said of each assistant message of an OpenAssistant tree: `labels` {name: {"value", "count"}}.

    Values lie in 0..1 and are means of `count` people, hence no annotator. Raises BadRow for a tree without labels
    (the staged sample has none; the full release, huggingface.co/datasets/OpenAssistant/oasst1, has them).
    """
    found: list[Rating] = []
    notes: list[str] = []
    waiting: list[tuple[list[JsonObject], Any]] = [([], row.get("prompt"))]
    while waiting:
        path, message = waiting.pop()
        if not _is_message(message) or message.get("deleted") is True:
            notes.append("malformed_message" if not _is_message(message) else "deleted_message")
            continue
        replies = message.get("replies")
        waiting += [([*path, message], reply) for reply in reversed(replies if isinstance(replies, list) else [])]
        labels = message.get("labels")
        if message["role"] != "assistant" or not path or not isinstance(labels, dict):
            continue
        if synthetic == "drop" and any(turn.get("synthetic") is True for turn in (*path, message)):
            notes.append("synthetic_reply_dropped")
            continue
        for name, label in labels.items():
            value = number(label.get("value")) if isinstance(label, dict) else None
            if value is None or not 0 <= value <= 1 or not name:
                notes.append("bad_label")
                continue
            found.append(
                Rating(
                    _as_prompt(path),
                    message["text"],
                    name,
                    value,
                    (0, 1),
                    item=str(message.get("message_id", "")),
                    source=source,
                    source_kind="human",
                    meta={"message_tree_id": path[0].get("message_id"), "count": label.get("count")},
                )
            )
    if not found:
        raise BadRow("synthetic_only" if "synthetic_reply_dropped" in notes else "no_labels")
    return found, notes


def _is_message(message: object) -> bool:
    if not isinstance(message, dict) or message.get("role") not in ("prompter", "assistant"):
        return False
    return isinstance(message.get("text"), str)


def _has_rank(reply: JsonObject) -> bool:
    return type(reply.get("rank")) is int and reply.get("deleted") is not True


def hh_rlhf(row: JsonObject, *, source: str) -> Found:
    """An HH-RLHF pair of transcripts (arXiv 2204.05862), each "\\n\\nHuman: ...\\n\\nAssistant: ..." and so on.

    Split at the last "\\n\\nAssistant:"; white space around a turn is dropped. Raises BadRow when a text is no
    transcript, when the two differ before that point (prefix_mismatch), when the last turn is not the assistant's, or
    when nothing follows it (empty_response: what was judged is lost). A role that speaks twice running is kept as it
    is, and noted.
    """
    chosen, rejected = text(row, "chosen"), text(row, "rejected")
    heads, replies = zip(*(_last_turn(transcript) for transcript in (chosen, rejected)), strict=True)
    if heads[0] != heads[1]:
        raise BadRow("prefix_mismatch")
    if any("\n\nHuman:" in reply for reply in replies):
        raise BadRow("last_turn_not_assistant")
    if not all(replies):
        raise BadRow("empty_response")
    prompt, notes = _turns(heads[0])
    comparison = Comparison(
        prompt, replies, (0, 1), source=source, source_kind="human", meta=rest(row, ("chosen", "rejected"))
    )
    return [comparison], notes + response_notes(comparison.responses)


def red_team(row: JsonObject, *, source: str) -> tuple[list[Rating], list[str]]:
    """An HH-RLHF red-team attempt (arXiv 2209.07858): how well the attacker thinks the attack worked, 0 to 4.

    The rating is of the whole conversation; it is given to the assistant's last turn, with the rest as the prompt.
    The scores of Anthropic's own preference model stay in `meta`: they are no judgement of a person.
    """
    head, reply = _last_turn(text(row, "transcript"))
    if "\n\nHuman:" in reply:
        raise BadRow("last_turn_not_assistant")
    if not reply:
        raise BadRow("empty_response")
    value = number(row.get("rating"))
    if value is None or not 0 <= value <= 4:
        raise BadRow("bad_rating")
    prompt, notes = _turns(head)
    who = row.get("red_team_member_id")
    rating = Rating(
        prompt,
        reply,
        "attack_success",
        value,
        (0, 4),
        annotator="" if who is None else str(who),
        source=source,
        source_kind="human",
        meta=rest(row, ("transcript", "rating", "red_team_member_id")),
    )
    return [rating], notes


def _last_turn(transcript: str) -> tuple[str, str]:
    head, found, reply = transcript.rpartition("\n\nAssistant:")
    if not found or not head.startswith("\n\nHuman:"):
        raise BadRow("not_a_transcript")
    return head, reply.strip()


def _turns(head: str) -> tuple[Messages, list[str]]:
    turns = re.split(r"\n\n(Human|Assistant):", head)[1:]  # role, text, role, text ...
    roles = ["user" if role == "Human" else "assistant" for role in turns[::2]]
    prompt = tuple({"role": role, "content": said.strip()} for role, said in zip(roles, turns[1::2], strict=True))
    repeated = any(role == after for role, after in zip(roles, [*roles[1:], "assistant"], strict=True))
    return prompt, ["repeated_role"] * repeated
