"""Every published form: what its rows become, which label means which response, and why a row is dropped."""

import json

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.formats import known as formats_known
from rlhf_jax.feedback.importers import strengths, verdicts
from rlhf_jax.feedback.records import mix, pairs
from tests.feedback.published import (
    ALPACA,
    ARENA,
    AUTO_J,
    BENCH,
    LLMBAR,
    OTHER,
    PANDALM,
    PKU,
    PREFERENCE,
    RED_TEAM,
    ROWS,
    SHP,
    STEER3,
    STUDIO,
    SUMMARY,
    TALK,
    ULTRA,
    WEBGPT,
    annotation,
    assistant,
    user,
)

FIRST, SECOND, TIE = (0, 1), (1, 0), (0, 0)


@pytest.fixture
def load(write):
    """load(row, …) -> comparisons and report of a file of these rows; `read` and keywords as for formats.load."""

    def read(*rows, read=formats.load, **keywords):
        return read(write("a.jsonl", "\n".join(map(json.dumps, rows))), **keywords)

    return read


def test_there_are_rows_of_every_form():
    assert set(ROWS) == set(formats_known.COMPARISON_KEYS) | set(formats_known.RATING_KEYS)


@pytest.mark.parametrize("name", ROWS)
def test_every_form_is_recognised_and_gives_what_it_says(load, name):
    form = formats_known.FORMS[name]
    assert formats_known.recognise(ROWS[name][0]) == {name}
    for given, read in ((form.comparisons, formats.load), (form.ratings, formats.load_ratings)):
        if given:
            found, report = load(*ROWS[name], read=read)
            assert report.format == name and report.read == 2 and set(report.dropped) <= {"no_labels"}
            assert len(found) == report.records > 0 and all(record.source == f"{name}:a.jsonl" for record in found)
            assert load(*ROWS[name], read=read, format=name)[0] == found, "named is as good as recognised"
            provenance = {"licence": form.licence, "sha256": report.sha256}
            assert all(record.meta["provenance"] == provenance for record in found)


# What each row's two responses are called, the key that holds the verdict, and what its values mean.
VERDICTS = [
    (PANDALM | {"annotator2": 0, "annotator3": 0}, "annotator1", {0: TIE, 1: FIRST, 2: SECOND}),
    (AUTO_J, "label", {0: FIRST, 1: SECOND, 2: TIE}),
    (LLMBAR, "label", {1: FIRST, 2: SECOND}),
    (ARENA, "winner", {"model_a": FIRST, "model_b": SECOND, "tie": TIE, "tie (bothbad)": TIE}),
    (SHP, "labels", {1: FIRST, 0: SECOND}),
    (SUMMARY, "choice", {0: FIRST, 1: SECOND}),
    (ALPACA, "preference", {1: FIRST, 1.2: FIRST, 1.5: TIE, 0: TIE, 1.51: SECOND, 2: SECOND}),
    (PREFERENCE, "preference_strength", {-3: FIRST, -1: FIRST, 0: TIE, 1: SECOND, 3: SECOND}),
    (STEER3, "overall_preference", {-3: FIRST, -1: FIRST, 0: TIE, 1: SECOND, 3: SECOND}),
    (PKU, "better_response_id", {0: FIRST, 1: SECOND, -1: TIE}),
]


@pytest.mark.parametrize(
    ("row", "key", "value", "ranks"),
    [(row, key, value, ranks) for row, key, table in VERDICTS for value, ranks in table.items()],
)
def test_which_label_means_which_response(load, row, key, value, ranks):
    """The conventions differ: 1 is the first response of one set and the second of another."""
    for written in (value, str(value)):
        assert load(row | {key: written})[0][0].ranks == ranks


@pytest.mark.parametrize(("row", "key"), [(row, key) for row, key, _ in VERDICTS])
@pytest.mark.parametrize("value", [None, "much", 7, -7, True, [1], float("nan")])
def test_a_verdict_that_is_none_drops_the_row(load, row, key, value):
    if row is PKU or key == "annotator1":  # the row's other judgements stay
        assert load(row | {key: value})[1].notes == {"bad_label": 1}
        return
    with pytest.raises(UserError, match="bad_(label|strength|preference) 1"):
        load(row | {key: value})


@pytest.mark.parametrize(
    ("first", "second", "ranks", "strength"),
    [(0.5, -0.5, FIRST, 0.5), (-1, 1, SECOND, 1.0), (0, 0, TIE, 0.0), ("0.25", "-0.25", FIRST, 0.25)],
)
def test_webgpt_scores(load, first, second, ranks, strength):
    (found,), report = load(WEBGPT | {"score_0": first, "score_1": second})
    assert (found.ranks, found.strength, found.item) == (ranks, strength, "q1")
    assert found.prompt == (user("Why is the sky blue?"),) and found.meta["question"] == {"dataset": "eli5"}
    assert report.notes == {}
    with pytest.raises(UserError, match="scores_not_opposite 1"):
        load(WEBGPT | {"score_0": 0.5, "score_1": 0.4})


def test_strengths_lose_their_sign_to_the_ranks(load):
    given = [PREFERENCE | {"preference_strength": k} for k in (-3, -1, 0, 2)]
    assert [c.strength for c in load(*given)[0]] == [3, 1, 0, 2]
    assert [c.strength for c in load(*(ALPACA | {"preference": p} for p in (1, 1.25, 1.5)))[0]] == [1.0, 0.5, 0.0]
    assert load(SHP)[0][0].strength == 4.0


def test_helpsteer2_dialogues(load):
    (found,), _ = load(PREFERENCE)
    assert found.prompt == (user("Hi"), assistant("Hello"), user("A city?"))
    assert (found.responses, found.split) == (("Lyon", "Rome"), "train")
    assert found.meta["all_preferences_unprocessed"] == PREFERENCE["all_preferences_unprocessed"]
    assert strengths.helpsteer_prompt("c#") == (user("c#"),)


def test_who_judged(load):
    kinds = {name: set(mix(load(*ROWS[name])[0])) for name in ROWS if name not in ("hh_red_team", "trl_stepwise")}
    assert kinds.pop("ultrafeedback") == kinds.pop("alpaca_eval") == {"ai"}
    assert kinds.pop("rm_bench") == {"synthetic"}
    assert set(map(frozenset, kinds.values())) == {frozenset({"human"})}
    assert mix(load(ARENA | {"judge": ["gpt-4", "pair-v2"]})[0]) == {"ai": 1}
    crowd = load(ALPACA | {"annotator_index": 14})[0][0]
    assert (crowd.source_kind, crowd.annotator) == ("human", "annotator 14")


def test_arena_needs_one_prompt_that_both_continue(load):
    two = [user("and a river?"), assistant("Rhône")]
    also = [user("and a river?"), assistant("Tiber")]
    row = ARENA | {"conversation_a": TALK + two, "conversation_b": TALK + also, "turn": 2}
    (found,), _ = load(row)
    assert found.prompt == (*TALK, two[0]) and found.responses == ("Rhône", "Tiber")
    assert (found.annotator, found.item) == ("arena_user_1", "58210e39")
    assert set(found.meta) - {"provenance"} == {"model_a", "model_b", "turn", "anony", "language", "tstamp"}
    (first,), _ = load(row | {"conversation_b": OTHER + also, "turn": 1})
    assert first.responses == ("Lyon", "Rome"), "the first turn was judged, whatever came after"
    for change, reason in (
        ({"conversation_b": OTHER + also}, "conversations_diverge"),
        ({"conversation_b": [], "turn": None}, "conversation_b_empty"),
        ({"conversation_a": TALK[:1], "turn": None}, "no_answer"),
    ):
        with pytest.raises(UserError, match=f"{reason} 1"):
            load(row | change)
    led = {"role": "system", "content": "Be kind."}
    assert len(load(ARENA | {"conversation_a": [led, *TALK], "conversation_b": [led, *OTHER]})[0][0].prompt) == 2
    assert load(ARENA | {"winner": "tie (bothbad)"})[0][0].meta["both_bad"] is True
    assert "both_bad" not in load(ARENA | {"winner": "tie"})[0][0].meta


def test_alpaca_eval_prompts(load):
    assert load(ALPACA | {"input": "In France."})[0][0].prompt == (user("A city?\n\nIn France."),)
    with pytest.raises(UserError, match="empty_prompt 1"):
        load(ALPACA | {"instruction": " "})


def test_rm_bench_gives_nine_pairs_without_ties(load):
    found, _ = load(BENCH)
    assert len(found) == 9 and len({c.item for c in found}) == 9
    assert {(c.responses[0], c.responses[1]) for c in found} == {
        (good, bad) for good in BENCH["chosen"] for bad in BENCH["rejected"]
    }
    assert all(pair.chosen in BENCH["chosen"] and not pair.tie for c in found for pair in pairs(c))
    by_style = {(c.meta["chosen_style"], c.meta["rejected_style"]): c.responses for c in found}
    assert by_style["concise", "detailed_markdown"] == ("Lyon", "**Mars**")
    for change in ({"chosen": ["a", "b", 3]}, {"rejected": ["a", "b"]}):
        with pytest.raises(UserError, match="not_three_texts 1"):
            load(BENCH | change, format="rm_bench")


def test_pku_has_two_axes(load):
    found, _ = load(PKU)
    assert [(c.axis, c.ranks) for c in found] == [("helpful", FIRST), ("harmless", SECOND)]
    rated, _ = load(PKU | {"is_response_1_safe": "True"}, read=formats.load_ratings)
    assert [(r.response, r.axis, r.value, r.scale) for r in rated] == [
        ("With a pick.", "harmless", 0, (0, 1)),
        ("Ask a locksmith.", "harmless", 1, (0, 1)),
    ]
    assert rated[0].meta["response_0_severity_level"] == 1
    assert load(PKU | {"is_response_0_safe": None}, read=formats.load_ratings)[1].notes == {"bad_label": 1}


def test_label_studio_annotators_are_pseudonyms(load):
    found, _ = load(STUDIO)
    assert [(c.annotator, c.ranks, c.item) for c in found] == [("7", FIRST, "3"), ("8", SECOND, "3")]
    assert found[0].meta["topic"] == "towns" and found[0].meta["lead_time"] == 4.2
    mailed = STUDIO | {"annotations": [annotation("left", completed_by="ann@example.org")] * 2}
    (one, other), _ = load(mailed)
    assert one.annotator == other.annotator and "@" not in one.annotator and "ann@" not in json.dumps(one.meta)
    broken = [annotation("left", was_cancelled=True), annotation("up"), annotation("left", result=[]), "x"]
    _, report = load(STUDIO | {"annotations": [*broken, annotation("right")]})
    assert report.notes == {"cancelled": 2, "bad_label": 2}
    with pytest.raises(UserError, match="no_usable_label 1"):
        load(STUDIO | {"annotations": broken})


def test_summaries_are_asked_for_as_the_models_were(load):
    (found,), _ = load(SUMMARY)
    asked = "SUBREDDIT: r/legaladvice\n\nTITLE: Help\n\nPOST: I crashed.\n\nTL;DR:"
    assert found.prompt == ({"role": "text", "content": asked},) and found.responses == (" crash", " law")
    assert (found.annotator, found.item, found.split) == ("ikNm", "t3_x", "train")
    assert found.meta["extra"] == {"confidence": 8} and found.meta["summaries"][0] == {"policy": "ref", "note": "n"}
    news = load(SUMMARY | {"info": {"id": "1", "article": "Rain.", "post": None}})[0][0]
    assert news.prompt[0]["content"] == "Article:\nRain.\n\nTL;DR:"
    for change, reason in (
        ({"info": {"id": "1"}}, "empty_prompt"),
        ({"info": None}, "no_info"),
        ({"summaries": SUMMARY["summaries"][:1]}, "not_two_summaries"),
    ):
        with pytest.raises(UserError, match=f"{reason} 1"):
            load(SUMMARY | change)


def test_shp_labels_that_contradict_the_scores_are_noted(load):
    assert load(SHP | {"labels": 0})[1].notes == {"label_contradicts_scores": 1}
    assert load(SHP | {"labels": 0, "score_A": 2, "score_B": 8})[1].notes == {}
    assert load(SHP | {"score_A": 2})[1].notes == {}, "equal scores contradict nothing"
    assert load(SHP | {"score_A": None})[1].notes == {}


def test_red_team_attempts(load):
    (found,), _ = load(RED_TEAM, read=formats.load_ratings)
    assert found.prompt == (user("How?"), assistant("No."), user("Please")) and found.response == "Well then."
    assert (found.axis, found.value, found.scale, found.annotator) == ("harmless", 1, (0, 4), "64")
    assert found.meta["min_harmlessness_score_transcript"] == -1.5
    for change, reason in (
        ({"rating": 5}, "bad_rating"),
        ({"rating": None}, "bad_rating"),
        ({"transcript": "hello"}, "not_a_transcript"),
        ({"transcript": "\n\nHuman: a\n\nAssistant: "}, "empty_response"),
        ({"transcript": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"}, "last_turn_not_assistant"),
    ):
        with pytest.raises(UserError, match=f"{reason} 1"):
            load(RED_TEAM | change, read=formats.load_ratings)


UNREAD = {
    "pandalm": {"motivation_app", "cmp_key", "idx"},
    "shp": {"domain", "upvote_ratio", "seconds_difference", "score_A", "score_B"},
    "webgpt": {"quotes_0", "tokens_1"},
    "helpsteer3": {"domain", "language", "individual_preference"},
    "summary_comparisons": {"batch", "extra"},
    "alpaca_eval": {"generator_1", "generator_2"},
    "auto_j": {"scenario"},
    "rm_bench": {"domain", "id"},
    "pku_safe_rlhf": {"is_response_0_safe"},
}


@pytest.mark.parametrize("name", [name for name, form in formats_known.FORMS.items() if form.comparisons])
def test_unknown_columns_are_kept(load, name):
    if name in ("oasst", "comparison"):  # a tree has no columns; our own form refuses them
        return
    row = ROWS[name][0] | {"data": STUDIO["data"] | {"extra_column": 5}} if name == "label_studio" else ROWS[name][0]
    found = load(row | {"extra_column": 5})[0][0]
    assert found.meta["extra_column"] == 5 and UNREAD.get(name, set()) <= found.meta.keys()


def test_the_tables_of_labels_are_complete():
    assert set(verdicts.AUTO_J.values()) == set(verdicts.ARENA.values()) == {FIRST, SECOND, TIE}
    assert set(verdicts.LLMBAR.values()) == set(strengths.SHP.values()) == {FIRST, SECOND}


def test_a_form_without_ratings_says_so(load):
    with pytest.raises(UserError, match="is a pandalm file, which does not give what is asked"):
        load(PANDALM, read=formats.load_ratings)
    with pytest.raises(UserError, match="no format 'pandalm'"):
        load(PANDALM, read=formats.load_ratings, format="pandalm")
    with pytest.raises(UserError, match="no prompt has two responses"):
        load(RED_TEAM)


def test_a_licence_can_be_given(load):
    found, report = load(PANDALM, licence="CC0")
    assert report.licence == "CC0" and found[0].meta["provenance"]["licence"] == "CC0"
    assert "(pandalm; licence CC0)" in report.text(), "the file's own"
    assert "(pandalm; the set published in this form is under Apache-2.0)" in load(PANDALM)[1].text()
    assert "(auto_j)" in load(AUTO_J)[1].text() and "(pandalm)" in load(PANDALM, licence="")[1].text()


def test_ultrafeedback_in_comparisons(load):
    found, report = load(ULTRA)
    assert report.records == len(found) and report.notes == {"not_rated": 1}
    by_axis = {(c.axis, c.meta["axis"]): (c.responses, c.ranks) for c in found}
    assert by_axis == {
        ("helpful", "instruction_following"): (("Lyon", "Rome"), FIRST),
        ("honest", "honesty"): (("Lyon", "Rome"), SECOND),
        ("helpful", "helpfulness"): (("Lyon", "Rome"), FIRST),
        ("overall", "overall_score"): (("Lyon", "Rome"), FIRST),
    }, "one of the two truthfulness ratings is N/A"
