"""Sets in which each response was rated by itself: UltraFeedback, HelpSteer2, OpenAI's summaries, PKU-SafeRLHF.

As in `feedback.importers`: a row -> (ratings, notes), BadRow for a row that cannot be used. Ratings carry the data
set's own name of the axis; `feedback.axes` translates it.
"""

from typing import Any

from rlhf_jax.feedback.formats.rows import (
    BadRow,
    JsonObject,
    boolean,
    name_of,
    number,
    response_notes,
    rest,
    text,
    user,
)
from rlhf_jax.feedback.importers.strengths import helpsteer_prompt, summary_prompt
from rlhf_jax.feedback.records import Messages, Rating

Rated = tuple[list[Rating], list[str]]

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def ultrafeedback(row: JsonObject, *, source: str) -> Rated:
    """UltraFeedback (arXiv 2310.01377): GPT-4's ratings of four completions, hence "ai".

    `annotations` holds an aspect's `Rating` as text, 1 to 5, or "N/A" (noted and left out); `overall_score` is 1 to 10.
    Copies from before December 2023 have wrong 10s there. `fine-grained_score`, the mean of the aspects, stays in meta.
    """
    prompt = user(text(row, "instruction"))
    completions = row.get("completions")
    if not isinstance(completions, list) or not completions:
        raise BadRow("no_completions")
    found: list[Rating] = []
    notes: list[str] = []
    common = rest(row, ("instruction", "completions", "source", "models"))
    common |= {"subset": row["source"]} if "source" in row else {}
    for completion in completions:
        if not isinstance(completion, dict) or not isinstance(completion.get("response"), str):
            notes.append("malformed_completion")
            continue
        given = completion.get("annotations")
        values = {
            name: (aspect.get("Rating") if isinstance(aspect, dict) else None, (1, 5))
            for name, aspect in (given.items() if isinstance(given, dict) else ())
        }
        if "overall_score" in completion:
            values["overall_score"] = (completion["overall_score"], (1, 10))
        meta = common | rest(completion, ("response", "annotations", "overall_score"))
        fields = {"annotator": "gpt-4", "source": source, "source_kind": "ai"}
        ratings, more = _ratings(prompt, completion["response"], values, meta, fields)
        found += ratings
        notes += more + response_notes([completion["response"]])
    if not found:
        raise BadRow("no_usable_rating")
    return found, notes


def helpsteer2(row: JsonObject, *, source: str) -> Rated:
    """HelpSteer and HelpSteer2 (arXiv 2406.08673): five attributes of one response, 0 to 4.

    A number is a consensus; the `disagreements` release has a list of single annotators' values instead: one rating
    each, without a name, since the release does not tell who is who.
    """
    prompt = helpsteer_prompt(text(row, "prompt"))
    response = text(row, "response")
    found: list[Rating] = []
    notes = response_notes([response])
    for name in HELPSTEER:
        for value in row[name] if isinstance(row.get(name), list) else [row.get(name)]:
            meta = rest(row, ("prompt", "response", "split", *HELPSTEER))
            fields = {"source": source, "source_kind": "human", "split": name_of(row.get("split"))}
            ratings, more = _ratings(prompt, response, {name: (value, (0, 4))}, meta, fields)
            found += ratings
            notes += more
    if not found:
        raise BadRow("no_usable_rating")
    return found, notes


def summary_axes(row: JsonObject, *, source: str) -> Rated:
    """OpenAI's axis evaluations of summaries (arXiv 2009.01325): Likert 1 to 7 by one worker.

    A truth value (`compatible`) is a rating of 0 or 1. An axis that was not asked (null) is noted.
    """
    summary = row.get("summary")
    axes = summary.get("axes") if isinstance(summary, dict) else None
    if not isinstance(summary, dict) or not isinstance(axes, dict):
        raise BadRow("no_axes")
    prompt, item, told = summary_prompt(row)
    response = text(summary, "text")
    meta = rest(row, ("info", "summary", "worker", "split")) | {"info": told} | rest(summary, ("text", "axes"))
    fields = {
        "annotator": name_of(row.get("worker")),
        "split": name_of(row.get("split")),
        "item": item,
        "source": source,
        "source_kind": "human",
    }
    values = {
        name: (int(value), (0, 1)) if isinstance(value, bool) else (value, (1, 7)) for name, value in axes.items()
    }
    found, notes = _ratings(prompt, response, values, meta, fields)
    if not found:
        raise BadRow("no_usable_rating")
    return found, notes + response_notes([response])


def pku_safety(row: JsonObject, *, source: str) -> Rated:
    """PKU-SafeRLHF (arXiv 2406.15513): whether each of the two responses is safe, as a rating of 0 or 1."""
    prompt = user(text(row, "prompt"))
    found: list[Rating] = []
    notes: list[str] = []
    for index in (0, 1):
        response = text(row, f"response_{index}")
        safe = boolean(row.get(f"is_response_{index}_safe"))
        if safe is None:
            notes.append("bad_label")
            continue
        meta = {key: value for key, value in row.items() if f"response_{index}_" in key and not key.startswith("is_")}
        found.append(Rating(prompt, response, "safe", int(safe), (0, 1), source=source, source_kind="human", meta=meta))
        notes += response_notes([response])
    if not found:
        raise BadRow("no_usable_label")
    return found, notes


def _ratings(
    prompt: Messages, response: str, values: dict[Any, Any], meta: JsonObject, fields: dict[str, str]
) -> Rated:
    """One rating for each {axis: (value, scale)} whose value lies on its scale; the others are noted."""
    found: list[Rating] = []
    notes: list[str] = []
    for name, (given, scale) in values.items():
        value = number(given)
        if value is None:
            notes.append("not_rated" if given in (None, "N/A") else "bad_rating")
        elif not scale[0] <= value <= scale[1]:
            notes.append("rating_outside_scale")
        else:
            value = int(value) if value.is_integer() else value
            found.append(Rating(prompt, response, str(name), value, scale, meta=dict(meta), **fields))  # type: ignore[arg-type]
    return found, notes
