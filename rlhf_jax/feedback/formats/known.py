"""Every form that a file of human feedback may have: the keys by which it is known, what it gives, and its licence.

A form is a line of `FORMS`: to add one, write its function in a file of importers and its line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_jax.feedback.formats import trl
from rlhf_jax.feedback.formats.rows import JsonObject
from rlhf_jax.feedback.importers import dialogues as importers
from rlhf_jax.feedback.importers import own as importers_own
from rlhf_jax.feedback.importers import ratings as importers_ratings
from rlhf_jax.feedback.importers import strengths as importers_strengths
from rlhf_jax.feedback.importers import verdicts as importers_verdicts

Importer = Callable[..., tuple[list[Any], list[str]]]


@dataclass(frozen=True)
class Form:
    """A form and its importers: functions of (row, *, source), and of what the two flags below say."""

    keys: str
    """To tell the user."""
    fits: Callable[[JsonObject], bool]
    """Whether a row looks like it."""
    comparisons: Importer | None = None
    ratings: Importer | None = None
    demonstrations: Importer | None = None
    prompts: Importer | None = None
    licence: str = ""
    """What the publisher states for the set that is published in this form; empty where nothing is known."""
    asks_kind: bool = False
    """The row need not say who judged: the importers take `source_kind`."""
    asks_synthetic: bool = False
    """The importers take `synthetic`, "keep" or "drop"."""


def has(*names: str) -> Callable[[JsonObject], bool]:
    """A test that a row has all these keys."""
    return lambda row: set(names) <= row.keys()


def _transcripts(row: JsonObject) -> bool:
    return any(str(row[key]).startswith("\n\nHuman:") for key in ("chosen", "rejected"))


def _three(row: JsonObject) -> bool:
    """RM-Bench's answers: three plain texts a side, where TRL's have one text or messages."""
    texts = row.get("chosen")
    return isinstance(texts, list) and len(texts) == 3 and all(isinstance(text, str) for text in texts)


def _data(row: JsonObject) -> JsonObject:
    return row["data"] if isinstance(row.get("data"), dict) else {}


_PAIR, _ASKED = has("chosen", "rejected"), has("prompt")

FORMS: dict[str, Form] = {
    "pandalm": Form(
        "instruction, response1, response2, annotator1 …",
        has("instruction", "response1", "response2"),
        comparisons=importers.pandalm,
        licence="Apache-2.0",
    ),
    "oasst": Form(
        "message_tree_id, prompt (a tree of replies)",
        has("message_tree_id", "prompt"),
        comparisons=importers.oasst,
        ratings=importers.oasst_labels,
        licence="Apache-2.0",
        asks_synthetic=True,
    ),
    "hh_rlhf": Form(
        'chosen, rejected (transcripts that begin with "\\n\\nHuman:")',
        lambda row: _PAIR(row) and not _ASKED(row) and _transcripts(row),
        comparisons=importers.hh_rlhf,
        licence="MIT",
    ),
    "hh_red_team": Form(
        "transcript, rating, min_harmlessness_score_transcript",
        has("transcript", "rating", "min_harmlessness_score_transcript"),
        ratings=importers.red_team,
        licence="MIT",
    ),
    "shp": Form(
        "history, human_ref_A, human_ref_B, labels",
        has("history", "human_ref_A", "human_ref_B", "labels"),
        comparisons=importers_strengths.shp,
    ),
    "ultrafeedback": Form(
        "instruction, completions", has("instruction", "completions"), ratings=importers_ratings.ultrafeedback
    ),
    "helpsteer2": Form(
        "prompt, response, helpfulness, correctness …",
        has("prompt", "response", "helpfulness", "correctness"),
        ratings=importers_ratings.helpsteer2,
        licence="CC-BY-4.0",
    ),
    "helpsteer2_preference": Form(
        "prompt, response_1, response_2, preference_strength",
        has("prompt", "response_1", "response_2", "preference_strength"),
        comparisons=importers_strengths.helpsteer2_preference,
        licence="CC-BY-4.0",
    ),
    "helpsteer3": Form(
        "context, response1, response2, overall_preference",
        has("context", "response1", "response2", "overall_preference"),
        comparisons=importers_strengths.helpsteer3,
        licence="CC-BY-4.0",
    ),
    "summary_comparisons": Form(
        "info, summaries, choice",
        has("info", "summaries", "choice"),
        comparisons=importers_strengths.summary_comparison,
    ),
    "summary_axes": Form("info, summary (with axes)", has("info", "summary"), ratings=importers_ratings.summary_axes),
    "webgpt": Form(
        "question, answer_0, answer_1, score_0, score_1",
        has("question", "answer_0", "answer_1", "score_0", "score_1"),
        comparisons=importers_strengths.webgpt,
    ),
    "arena": Form(
        "conversation_a, conversation_b, winner",
        has("conversation_a", "conversation_b", "winner"),
        comparisons=importers_verdicts.arena,
    ),
    "alpaca_eval": Form(
        "instruction, output_1, output_2, preference",
        has("instruction", "output_1", "output_2", "preference"),
        comparisons=importers_verdicts.alpaca_eval,
        licence="Apache-2.0",
    ),
    "auto_j": Form(
        "prompt, response 1, response 2, label",
        has("prompt", "response 1", "response 2", "label"),
        comparisons=importers_verdicts.auto_j,
    ),
    "llmbar": Form(
        "input, output_1, output_2, label",
        has("input", "output_1", "output_2", "label"),
        comparisons=importers_verdicts.llmbar,
        licence="MIT",
    ),
    "rm_bench": Form(
        "prompt, chosen, rejected (three texts each)",
        lambda row: _PAIR(row) and _ASKED(row) and _three(row),
        comparisons=importers_verdicts.rm_bench,
    ),
    "pku_safe_rlhf": Form(
        "prompt, response_0, response_1, better_response_id",
        lambda row: (
            has("prompt", "response_0", "response_1")(row)
            and bool(row.keys() & {"better_response_id", "safer_response_id"})
        ),
        comparisons=importers_strengths.pku,
        ratings=importers_ratings.pku_safety,
        licence="CC-BY-NC-4.0",
    ),
    "label_studio": Form(
        "data (prompt, answer1, answer2), annotations",
        lambda row: has("prompt", "answer1", "answer2")(_data(row)),
        comparisons=importers_verdicts.label_studio,
    ),
    "trl_explicit": Form(
        "prompt, chosen, rejected",
        lambda row: _PAIR(row) and _ASKED(row) and not _three(row),
        comparisons=trl.explicit,
        asks_kind=True,
    ),
    "trl_implicit": Form(
        "chosen, rejected",
        lambda row: _PAIR(row) and not _ASKED(row) and not _transcripts(row),
        comparisons=trl.implicit,
        asks_kind=True,
    ),
    "comparison": Form(
        "prompt, responses, ranks",
        has("prompt", "responses", "ranks"),
        comparisons=importers_own.own,
        asks_kind=True,
    ),
    "rating": Form(
        "prompt, response, axis, value, scale",
        has("prompt", "response", "axis", "value", "scale"),
        ratings=importers_own.own_rating,
        asks_kind=True,
    ),
    "ranking": Form("prompt, ranking", has("prompt", "ranking"), comparisons=importers_own.ranking, asks_kind=True),
    "trl_unpaired": Form(
        "prompt, completion, label", has("prompt", "completion", "label"), ratings=trl.unpaired, asks_kind=True
    ),
    "trl_stepwise": Form(
        "prompt, completions, labels", has("prompt", "completions", "labels"), ratings=trl.stepwise, asks_kind=True
    ),
    "trl_prompt_completion": Form(
        "prompt, completion", has("prompt", "completion"), demonstrations=trl.prompt_completion, asks_kind=True
    ),
    "trl_messages": Form(
        "messages", has("messages"), demonstrations=trl.dialogue, prompts=trl.dialogue_prompt, asks_kind=True
    ),
    "trl_prompt": Form("prompt", has("prompt"), prompts=trl.prompt_only),
}

SIMPLER = ("trl_prompt", "trl_prompt_completion", "trl_messages")
SINGLE = ("trl_unpaired", "trl_stepwise")


def _listed(*, also: str = "", single: bool = False) -> dict[str, str]:
    return {
        name: form.keys
        for name, form in FORMS.items()
        if ((form.comparisons or form.ratings) and (single or name not in SINGLE)) or (also and getattr(form, also))
    }


COMPARISON_KEYS = _listed(single=True)
RATING_KEYS = {name: form.keys for name, form in FORMS.items() if form.ratings}
DEMONSTRATION_KEYS = _listed(also="demonstrations")
PROMPT_KEYS = _listed(also="prompts")


def recognise(row: JsonObject, known: Any = tuple(COMPARISON_KEYS)) -> set[str]:
    """Which of the known forms a row's keys (and the kind of value under them) fit: usually one, none when unknown.

    A form of judgements goes before a simpler one, and a `prompt` column before `messages`. A prompt with two answers is a
    pair, whatever the data set's own columns are called.
    """
    found = {name for name in known if FORMS[name].fits(row)}
    if "trl_explicit" in found:
        found -= {"ranking", *SINGLE}
    return found - set(SIMPLER) or found & {"trl_prompt"} or found
