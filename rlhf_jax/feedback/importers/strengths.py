"""Sets of pairs with a signed strength or two scores: SHP, WebGPT, HelpSteer2 and 3, OpenAI's summaries, PKU-SafeRLHF.

As in `feedback.importers`: a row -> (comparisons, notes), BadRow for a row that cannot be used. Signs differ between
the sets; each docstring says which side wins. `strength` is the distance from a tie, without its sign.
"""

import re

from rlhf_jax.feedback.formats.rows import (
    FIRST,
    SECOND,
    TIE,
    BadRow,
    Found,
    JsonObject,
    by_sign,
    messages,
    name_of,
    number,
    response_notes,
    rest,
    signed,
    text,
    two,
    user,
    whole_number,
)
from rlhf_jax.feedback.records import Comparison, Messages

SHP = {1: FIRST, 0: SECOND}
WINNER = {0: FIRST, 1: SECOND}
"""The index of the better response: the summaries' `choice`, PKU's `better_response_id` and `safer_response_id`."""


def shp(row: JsonObject, *, source: str) -> Found:
    """Stanford Human Preferences (huggingface.co/datasets/stanfordnlp/SHP): `labels` 1: comment A has the better score.

    Reddit's votes: a consensus, hence no annotator. `strength` is `score_ratio`. A label that contradicts the two
    scores is kept and noted.
    """
    label = whole_number(row.get("labels"))
    if label not in SHP:
        raise BadRow("bad_label")
    scores = [number(row.get(key)) for key in ("score_A", "score_B")]
    wrong = None not in scores and scores[0] != scores[1] and (scores[0] > scores[1]) != (label == 1)  # type: ignore[operator]
    found, notes = two(
        row,
        user(text(row, "history")),
        ("human_ref_A", "human_ref_B"),
        SHP[label],
        read=("history", "labels", "post_id"),
        strength=number(row.get("score_ratio")),
        item=name_of(row.get("post_id")),
        source=source,
        source_kind="human",
    )
    return found, notes + ["label_contradicts_scores"] * wrong


def webgpt(row: JsonObject, *, source: str) -> Found:
    """WebGPT's comparisons (arXiv 2112.09332): `score_0` and `score_1` add up to 0, the higher wins, 0 is a tie.

    The prompt is the question alone; quotes stay in meta.
    """
    question = row.get("question")
    if not isinstance(question, dict):
        raise BadRow("no_question")
    first, second = number(row.get("score_0")), number(row.get("score_1"))
    if first is None or second is None:
        raise BadRow("bad_score")
    if abs(first + second) > 1e-6:
        raise BadRow("scores_not_opposite")
    return two(
        row,
        user(text(question, "full_text")),
        ("answer_0", "answer_1"),
        by_sign(second - first),
        read=("question", "score_0", "score_1"),
        strength=abs(first),
        item=name_of(question.get("id")),
        source=source,
        source_kind="human",
        meta={"question": rest(question, ("full_text", "id"))},
    )


def helpsteer2_preference(row: JsonObject, *, source: str) -> Found:
    """HelpSteer2's preferences (arXiv 2410.01257): `preference_strength` -3..3, below 0 the first response is better.

    A consensus of the three closest annotators; the single judgements stay in meta.
    """
    strength = signed(row.get("preference_strength"), -3, 3)
    return two(
        row,
        helpsteer_prompt(text(row, "prompt")),
        ("response_1", "response_2"),
        by_sign(strength),
        read=("prompt", "preference_strength", "split"),
        strength=abs(strength),
        split=name_of(row.get("split")),
        source=source,
        source_kind="human",
    )


def helpsteer3(row: JsonObject, *, source: str) -> Found:
    """HelpSteer3's preferences (arXiv 2505.11475): `overall_preference` -3..3, below 0 the first response is better."""
    prompt, notes = messages(row, "context")
    strength = signed(row.get("overall_preference"), -3, 3)
    found, more = two(
        row,
        prompt,
        ("response1", "response2"),
        by_sign(strength),
        read=("context", "overall_preference"),
        strength=abs(strength),
        source=source,
        source_kind="human",
    )
    return found, notes + more


def helpsteer_prompt(asked: str) -> Messages:
    """A HelpSteer2 prompt as messages: the later turns of a dialogue begin "<extra_id_1>Assistant" or "...User"."""
    first, *later = re.split(r"<extra_id_1>(User|Assistant)\n", asked)
    turns = [("User", first), *zip(later[::2], later[1::2], strict=True)]
    if not asked.strip():
        raise BadRow("empty_prompt")
    return tuple({"role": role.lower(), "content": said.strip("\n")} for role, said in turns)


def summary_comparison(row: JsonObject, *, source: str) -> Found:
    """OpenAI's comparisons of summaries (arXiv 2009.01325): `choice` 0 or 1 is the index of the better summary.

    The labeller's 9-point confidence stays in meta (`extra`): the release does not say which way it points.
    """
    summaries = row.get("summaries")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
        raise BadRow("not_two_summaries")
    choice = whole_number(row.get("choice"))
    if choice not in WINNER:
        raise BadRow("bad_label")
    prompt, item, told = summary_prompt(row)
    responses = (text(summaries[0], "text"), text(summaries[1], "text"))
    comparison = Comparison(
        prompt,
        responses,
        WINNER[choice],
        annotator=name_of(row.get("worker")),
        split=name_of(row.get("split")),
        item=item,
        source=source,
        source_kind="human",
        meta=rest(row, ("info", "summaries", "choice", "worker", "split"))
        | {"info": told, "summaries": [rest(summary, ("text",)) for summary in summaries]},
    )
    return [comparison], response_notes(responses)


def summary_prompt(row: JsonObject) -> tuple[Messages, str, JsonObject]:
    """The prompt that the summaries continue, the item's id, and what else is known of it.

    The texts are those that the models were asked with: the formats of github.com/openai/summarize-from-feedback for
    Reddit posts and for news, which TRL's and CleanRL's reproductions use too. Plain texts, since a completion follows.
    """
    info = row.get("info")
    if not isinstance(info, dict):
        raise BadRow("no_info")
    if isinstance(info.get("post"), str) and info["post"].strip():
        told = {key: name_of(info.get(key)) for key in ("subreddit", "title")}
        asked = f"SUBREDDIT: r/{told['subreddit']}\n\nTITLE: {told['title']}\n\nPOST: {info['post']}\n\nTL;DR:"
    elif isinstance(info.get("article"), str) and info["article"].strip():
        asked = f"Article:\n{info['article']}\n\nTL;DR:"
    else:
        raise BadRow("empty_prompt")
    return ({"role": "text", "content": asked},), name_of(info.get("id")), rest(info, ("id", "post", "article"))


def pku(row: JsonObject, *, source: str) -> Found:
    """PKU-SafeRLHF (arXiv 2406.15513): two comparisons a row, on the axes helpful and harmless.

    `better_response_id` and `safer_response_id` are the index of the better response; -1 is read as a tie.
    """
    prompt = user(text(row, "prompt"))
    read = ("prompt", "response_0", "response_1", "better_response_id", "safer_response_id")
    responses = (text(row, "response_0"), text(row, "response_1"))
    found, notes = [], response_notes(responses)
    for axis, key in (("helpful", "better_response_id"), ("harmless", "safer_response_id")):
        if key not in row:
            continue
        label = whole_number(row[key])
        ranks = TIE if label == -1 else WINNER.get(label) if label is not None else None
        if ranks is None:
            notes.append("bad_label")
            continue
        found.append(
            Comparison(prompt, responses, ranks, axis=axis, source=source, source_kind="human", meta=rest(row, read))
        )
    if not found:
        raise BadRow("no_usable_label")
    return found, notes
