"""Sets in which a judge named the better of two answers: Arena and MT-bench, AlpacaEval, Auto-J, LLMBar, RM-Bench, Label Studio.

As in `feedback.importers`: a row -> (comparisons, notes), BadRow for a row that cannot be used. Every set has its own
way of writing "the first is better"; the tables below say which.
"""

from typing import Any

from rlhf_jax.feedback.formats.rows import (
    FIRST,
    SECOND,
    TIE,
    BadRow,
    Found,
    JsonObject,
    messages,
    name_of,
    number,
    pseudonym,
    response_notes,
    rest,
    text,
    two,
    user,
    whole_number,
)
from rlhf_jax.feedback.records import Comparison

AUTO_J = {0: FIRST, 1: SECOND, 2: TIE}
LLMBAR = {1: FIRST, 2: SECOND}
ARENA = {"model_a": FIRST, "model_b": SECOND, "tie": TIE, "tie (bothbad)": TIE}
LABEL_STUDIO = {"left": FIRST, "right": SECOND}


def auto_j(row: JsonObject, *, source: str) -> Found:
    """Auto-J's pairwise test set (github.com/GAIR-NLP/auto-j): `label` 0 first, 1 second, 2 tie, by people."""
    ranks = AUTO_J.get(_label(row))
    if ranks is None:
        raise BadRow("bad_label")
    prompt = user(text(row, "prompt"))
    read = ("prompt", "label")
    return two(row, prompt, ("response 1", "response 2"), ranks, read=read, source=source, source_kind="human")


def llmbar(row: JsonObject, *, source: str) -> Found:
    """LLMBar (arXiv 2310.07641): `label` 1 or 2 is the objectively better output, checked by experts. Not for training."""
    ranks = LLMBAR.get(_label(row))
    if ranks is None:
        raise BadRow("bad_label")
    read = ("input", "label")
    return two(
        row, user(text(row, "input")), ("output_1", "output_2"), ranks, read=read, source=source, source_kind="human"
    )


def arena(row: JsonObject, *, source: str) -> Found:
    """A vote of Chatbot Arena, or a judgement of MT-bench (arXiv 2306.05685): `winner` names the better conversation.

    `turn`, where given, says after how many turns was judged. Raises BadRow when the conversations differ before the
    last answer (conversations_diverge): then there is no one prompt that both continue. "tie (bothbad)" is a tie with
    `both_bad` in meta. A `judge` that is a model makes the judgement "ai".
    """
    winner = row.get("winner")
    ranks = ARENA.get(winner) if isinstance(winner, str) else None
    if ranks is None:
        raise BadRow("bad_label", str(winner)[:40])
    first, notes = messages(row, "conversation_a")
    second, more = messages(row, "conversation_b")
    turn = whole_number(row.get("turn"))
    if turn is not None and turn > 0:
        led = first[0]["role"] == "system"
        first, second = first[: 2 * turn + led], second[: 2 * turn + led]
    if len(first) < 2 or first[-1]["role"] != "assistant" or second[-1]["role"] != "assistant":
        raise BadRow("no_answer")
    if first[:-1] != second[:-1]:
        raise BadRow("conversations_diverge")
    judge = row.get("judge")
    judge = str(judge[0] if isinstance(judge, list) and judge else judge or "")
    responses = (first[-1]["content"], second[-1]["content"])
    comparison = Comparison(
        first[:-1],
        responses,
        ranks,
        annotator=judge,
        item=name_of(row.get("question_id")),
        source=source,
        source_kind="ai" if judge.lower().startswith(("gpt", "claude")) else "human",
        meta=rest(row, ("conversation_a", "conversation_b", "winner", "judge", "question_id"))
        | ({"both_bad": True} if winner == "tie (bothbad)" else {}),
    )
    return [comparison], [*notes, *more, *response_notes(responses)]


def alpaca_eval(row: JsonObject, *, source: str) -> Found:
    """AlpacaEval's annotations (github.com/tatsu-lab/alpaca_eval): `preference` from 1 (the first is better) to 2.

    1.5 is a tie, and so is 0, as the project reads it. `strength` is the distance from the tie, 0 to 1. Judged by a
    model ("ai") unless an `annotator_index` shows that it is one of the crowd's cross-annotations.
    """
    value = number(row.get("preference"))
    if value is None or not (value == 0 or 1 <= value <= 2):
        raise BadRow("bad_preference")
    value = value or 1.5
    asked = [text(row, "instruction"), row.get("input") or ""]
    prompt = user("\n\n".join(part for part in asked if isinstance(part, str) and part.strip()))
    person = name_of(row.get("annotator_index"))
    return two(
        row,
        prompt,
        ("output_1", "output_2"),
        FIRST if value < 1.5 else SECOND if value > 1.5 else TIE,
        read=("instruction", "input", "preference", "annotator", "annotator_index"),
        strength=abs(2 * value - 3),
        annotator=f"annotator {person}" if person else name_of(row.get("annotator")),
        source=source,
        source_kind="human" if person else "ai",
    )


STYLES = ("concise", "detailed", "detailed_markdown")


def rm_bench(row: JsonObject, *, source: str) -> Found:
    """RM-Bench (arXiv 2410.16184): three right and three wrong answers, each in three styles -> 9 comparisons.

    `meta` names both styles. Which answer is right was settled when they were made, so `source_kind` is "synthetic".
    Answers of the same side were never compared: no ties.
    """
    sides = []
    for key in ("chosen", "rejected"):
        texts = row.get(key)
        if not isinstance(texts, list) or len(texts) != len(STYLES) or not all(isinstance(t, str) for t in texts):
            raise BadRow(f"{key}_not_three_texts")
        sides.append(texts)
    prompt = user(text(row, "prompt"))
    other = rest(row, ("id", "prompt", "chosen", "rejected"))
    found = [
        Comparison(
            prompt,
            (right, wrong),
            FIRST,
            item=f"{name_of(row.get('id'))}:{style}:{wrong_style}",
            source=source,
            source_kind="synthetic",
            meta={**other, "id": row.get("id"), "chosen_style": style, "rejected_style": wrong_style},
        )
        for style, right in zip(STYLES, sides[0], strict=True)
        for wrong_style, wrong in zip(STYLES, sides[1], strict=True)
    ]
    return found, response_notes([text for side in sides for text in side])


def label_studio(row: JsonObject, *, source: str) -> Found:
    """A task of Label Studio's JSON export (labelstud.io/guide/task_format) with its tag Pairwise over two answers.

    `data` has prompt, answer1 and answer2; each annotation that was not cancelled gives a comparison, by the `selected`
    side of its pairwise result. An annotator whose name is an e-mail address is named by a hash of it. Predictions of
    models are not read.
    """
    data = row.get("data")
    if not isinstance(data, dict):
        raise BadRow("no_data")
    prompt = user(text(data, "prompt"))
    responses = (text(data, "answer1"), text(data, "answer2"))
    found, notes = [], response_notes(responses)
    given = row.get("annotations", row.get("completions"))
    for annotation in given if isinstance(given, list) else []:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled") is True:
            notes.append("cancelled")
            continue
        ranks = _selected(annotation.get("result"))
        if ranks is None:
            notes.append("bad_label")
            continue
        who = annotation.get("completed_by")
        who = who.get("id", who.get("email")) if isinstance(who, dict) else who
        found.append(
            Comparison(
                prompt,
                responses,
                ranks,
                annotator=pseudonym(name_of(who)),
                item=name_of(row.get("id")),
                source=source,
                source_kind="human",
                meta=rest(data, ("prompt", "answer1", "answer2"))
                | {key: annotation[key] for key in ("lead_time", "ground_truth") if key in annotation},
            )
        )
    if not found:
        raise BadRow("no_usable_label")
    return found, notes


def _selected(result: Any) -> tuple[int, int] | None:
    for part in result if isinstance(result, list) else []:
        value = part.get("value") if isinstance(part, dict) and part.get("type") == "pairwise" else None
        if isinstance(value, dict) and isinstance(value.get("selected"), str):
            return LABEL_STUDIO.get(value["selected"])
    return None


def _label(row: JsonObject) -> int:
    found = whole_number(row.get("label"))
    return -1 if found is None else found
