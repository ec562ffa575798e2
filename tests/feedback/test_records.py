import hashlib
import itertools
import json
import math
import unicodedata
from dataclasses import replace

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import leakage
from rlhf_jax.feedback.records import (
    Comparison,
    Demonstration,
    Pair,
    Prompt,
    as_messages,
    best_responses,
    mix,
    pairs,
    prompt_key,
    split_by_prompt,
    votes,
)


def said(text, *more):
    """A user message, then assistant and user by turns."""
    roles = itertools.cycle(("user", "assistant"))
    return tuple({"role": role, "content": content} for role, content in zip(roles, (text, *more)))


def compare(responses, ranks, prompt="hello", **fields):
    return Comparison(said(prompt), tuple(responses), tuple(ranks), **{"source_kind": "human"} | fields)


def test_a_comparison_fills_in_its_prompt_id():
    comparison = compare("ab", (0, 1))
    text = json.dumps([["user", "hello"]], separators=(",", ":"))
    assert comparison.prompt_id == prompt_key(said("hello")) == hashlib.sha256(text.encode()).hexdigest()
    assert pairs(comparison)[0].prompt_id == comparison.prompt_id


def test_prompt_keys_tell_prompts_apart():
    prompts = [
        said("a"),
        said("a "),
        said("a", "b"),
        as_messages("a"),
        said('a"],["assistant","b'),
        said("é"),
        said("\ud800"),
    ]
    assert len({prompt_key(prompt) for prompt in prompts}) == len(prompts)
    assert prompt_key(({"content": "a", "role": "user"},)) == prompt_key(said("a")), (
        "the order of a dict is no difference"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"responses": ("a",), "ranks": (0,)}, "at least 2 responses"),
        ({"ranks": (0,)}, "one per response (2)"),
        ({"ranks": (1, 2)}, "the best of them 0"),
        ({"ranks": (0, -1)}, "the best of them 0"),
        ({"ranks": (0, True)}, "plain ints"),
        ({"ranks": (0, 1.0)}, "plain ints"),
        ({"responses": ("a", 1)}, "must be texts"),
        ({"responses": ["a", "b"]}, "a tuple of at least 2"),
        ({"source_kind": "crowd"}, "human, ai, synthetic"),
        ({"weight": math.nan}, "weight must be a finite number"),
        ({"weight": -1.0}, "weight must be a finite number of at least 0"),
        ({"weight": 10**400}, "weight must be a finite number"),
        ({"weight": True}, "weight must be a finite number"),
        ({"margin": math.inf}, "margin must be a finite number"),
        ({"strength": math.nan}, "strength must be a finite number"),
        ({"prompt": ()}, "at least one message"),
        ({"prompt": "hello"}, "a tuple of at least one message"),
        ({"prompt": ({"role": "human", "content": "a"},)}, "role is one of system"),
        ({"prompt": ({"role": "user", "content": None},)}, '"content" text'),
        ({"prompt": ({"role": "user"},)}, '"role" and a "content"'),
        ({"prompt": (*as_messages("a"), *said("b"))}, '"text" is a whole prompt'),
    ],
)
def test_a_malformed_comparison_is_refused_in_one_line(change, words, unchecked):
    good = {"prompt": said("hello"), "responses": ("a", "b"), "ranks": (0, 1), "source_kind": "human"}
    Comparison(**good)
    with pytest.raises(UserError) as error:
        Comparison(**good | change)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": 1.5}, "label must be a finite number of at least 0 and at most 1"),
        ({"label": math.nan}, "label must be"),
        ({"tie": True}, "a tie has label 0.5 unless votes call it equal"),
        ({"weight": -0.1}, "weight"),
        ({"margin": math.nan}, "margin"),
        ({"source_kind": ""}, "source_kind is one of"),
        ({"prompt": ()}, "at least one message"),
    ],
)
def test_a_malformed_pair_is_refused(change, words, unchecked):
    good = {"prompt": said("hello"), "chosen": "a", "rejected": "b", "source_kind": "human"}
    Pair(**good)
    with pytest.raises(UserError, match=words):
        Pair(**good | change)


def test_source_kind_has_no_default():
    with pytest.raises(TypeError, match="source_kind"):
        Comparison(said("hello"), ("a", "b"), (0, 1))


def test_pairs_of_a_ranking_with_a_tie():
    """Ranks 1, 1, 2, 3 give five strict pairs and one tie."""
    found = pairs(compare("abcd", (0, 0, 1, 2), margin=0.5, weight=3.0, annotator="ann"))
    strict = {(pair.chosen, pair.rejected) for pair in found if not pair.tie}
    assert strict == {("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")}
    assert [(pair.chosen, pair.rejected, pair.label, pair.margin) for pair in found if pair.tie] == [
        ("a", "b", 0.5, 0.0)
    ]
    assert all(pair.label == 1.0 and pair.margin == 0.5 for pair in found if not pair.tie)
    assert all(pair.annotator == "ann" and pair.weight == pytest.approx(3 / 6) for pair in found)


@pytest.mark.parametrize("ranks", list(itertools.permutations(range(3))))
def test_pairs_do_not_depend_on_the_order_of_the_responses(ranks):
    responses = [None, None, None]
    for place, rank in enumerate(ranks):
        responses[place] = "abc"[rank]
    strict = {(pair.chosen, pair.rejected) for pair in pairs(compare(responses, ranks))}
    assert strict == {("a", "b"), ("a", "c"), ("b", "c")}


@pytest.mark.parametrize("size", [2, 3, 7])
def test_a_long_set_weighs_as_much_as_a_short_one_if_told_so(size):
    comparison = compare([str(k) for k in range(size)], range(size), weight=2.0)
    assert sum(pair.weight for pair in pairs(comparison)) == pytest.approx(2.0)
    assert [pair.weight for pair in pairs(comparison, per_set_weight=False)] == [2.0] * (size * (size - 1) // 2)


def vote(*ranks, **fields):
    return [compare("ab", r, annotator=f"annotator{k}", **fields) for k, r in enumerate(ranks)]


A, B, TIE = (0, 1), (1, 0), (0, 0)


@pytest.mark.parametrize(
    ("ranks", "chosen", "label", "tie"),
    [
        ((A, A, B), "a", 2 / 3, False),
        ((B, A, B), "b", 2 / 3, False),
        ((A, A, A), "a", 1.0, False),
        ((A, TIE), "a", 1.0, False),
        ((A, A, B, TIE), "a", 2 / 3, False),
        ((A, TIE, TIE), "a", 1.0, True),
        ((A, A, TIE, TIE, TIE), "a", 1.0, True),
        ((A, A, B, TIE, TIE, TIE), "a", 2 / 3, True),
        ((A, B), "a", 0.5, True),
        ((A, B, TIE), "a", 0.5, True),
        ((TIE,), "a", 0.5, True),
    ],
)
def test_votes_become_soft_labels(ranks, chosen, label, tie):
    """Contradicting judgements are kept, 2 to 1 gives 0.667."""
    (pair,) = votes(vote(*ranks))
    assert (pair.chosen, pair.tie) == (chosen, tie) and pair.label == pytest.approx(label) and pair.weight == 1.0


def test_the_label_is_of_the_decisive_votes_also_where_equal_leads():
    """2 for a, none for b, 3 equal: of win, loss and tie the votes are .4, 0 and .6."""
    (pair,) = votes(vote(A, A, TIE, TIE, TIE))
    won, lost = (1 - pair.equal) * pair.label, (1 - pair.equal) * (1 - pair.label)
    assert (won, lost, pair.equal) == pytest.approx((0.4, 0.0, 0.6)) and pair.tie and pair.margin == 0
    assert pair.share == pytest.approx(0.7), "half a vote for either"
    (level,) = votes(vote(A, B, TIE))
    assert level.label == level.share == 0.5 and level.equal == pytest.approx(1 / 3)
    (none,) = votes(vote(TIE, TIE))
    assert (none.label, none.equal, none.share) == (0.5, 1.0, 0.5)


def test_votes_count_by_weight():
    (pair,) = votes([*vote(A, weight=3.0, margin=1.0), *vote(B, B, weight=0.5, margin=7.0)])
    assert pair.chosen == "a" and pair.label == pytest.approx(3 / 4) and pair.margin == 1.0
    assert pair.weight == pytest.approx(4 / 3)
    (tie,) = votes([compare("ab", A, weight=w) for w in (0.1, 0.2)] + [compare("ab", B, weight=0.3)])
    assert tie.tie, "0.1 + 0.2 against 0.3 is level, whatever floats make of it"
    assert votes(vote(A, weight=0.0)) == []


def test_votes_see_the_same_item_in_any_order_of_responses():
    (pair,) = votes([compare("ab", A), compare("ba", B), compare("ab", B)])
    assert (pair.chosen, pair.label) == ("a", pytest.approx(2 / 3))
    (twins,) = votes([compare("aa", A), compare("aa", A)])
    assert (twins.chosen, twins.rejected, twins.label) == ("a", "a", 1.0)


def test_votes_keep_items_prompts_axes_and_kinds_apart():
    given = [
        compare("ab", A, annotator="one"),
        compare("ab", B, prompt="other"),
        compare("ab", B, axis="harmless"),
        compare("ab", B, item="17"),
        compare("ab", B, source_kind="synthetic"),
        compare("ac", A),
    ]
    found = votes(given)
    assert len(found) == 6 and all(pair.label == 1.0 for pair in found)
    assert [pair.source_kind for pair in found].count("synthetic") == 1
    assert [pair.annotator for pair in found][0] == "one"


def test_votes_on_longer_lists():
    found = votes([compare("abc", (0, 1, 2)), compare("cab", (1, 0, 2)), compare("abc", (0, 1, 1))])
    labels = {(pair.chosen, pair.rejected): (pair.label, pair.tie) for pair in found}
    assert labels == {("a", "b"): (1.0, False), ("a", "c"): (1.0, False), ("b", "c"): (0.5, True)}
    assert sum(pair.weight for pair in found) == pytest.approx(1.0)


def test_best_responses():
    found = best_responses([*vote(A, A, B), compare("xy", TIE), compare("xyz", (2, 0, 1), prompt="more")])
    assert [(d.prompt, d.completion) for d in found] == [(said("hello"), "a"), (said("more"), "y")]
    assert best_responses([*vote(B, weight=3.0), *vote(A, A)])[0].completion == "b"


def test_the_split_is_by_prompt_and_by_seed():
    records = [Prompt(said(str(k % 50)), meta={"row": k}) for k in range(500)]
    rest, held = split_by_prompt(records, 0.3, seed=1)
    assert sorted(r.meta["row"] for r in rest + held) == list(range(500))
    assert {r.prompt_id for r in rest}.isdisjoint(r.prompt_id for r in held)
    assert [r.meta["row"] for r in held] == sorted(r.meta["row"] for r in held)
    assert split_by_prompt(records, 0.3, seed=1) == (rest, held)
    assert split_by_prompt(records, 0.3, seed=2) != (rest, held)
    assert split_by_prompt(records[::-1], 0.3, seed=1)[1][::-1] == held, "a prompt's part does not depend on the others"


def test_prompts_that_leaks_calls_one_stay_together():
    """But for case, spaces, punctuation, Unicode form, role, system message: whole leaks, were they torn apart."""

    def forms(k):
        text = f"Où est la gare {k} ?"
        plain = [text, text.upper(), f"  où   est la gare, {k}!", unicodedata.normalize("NFD", text)]
        return [*map(as_messages, plain), said(text), ({"role": "system", "content": "Be kind."}, *said(text))]

    records = [Prompt(prompt, meta={"k": k}) for k in range(60) for prompt in forms(k)]
    for by in ("conversation", "prompt"):
        rest, held = split_by_prompt(records, 0.4, by=by)
        assert 6 * 12 < len(held) < 6 * 36 and {r.meta["k"] for r in rest}.isdisjoint(r.meta["k"] for r in held)
        assert leakage.leaks(rest, held).exact == []
    wordless = [Prompt(as_messages("?" * k)) for k in range(1, 60)]
    assert 0 < len(split_by_prompt(wordless, 0.5)[1]) < 59, "prompts without a word go by themselves"


def test_the_split_has_about_the_size_asked_for():
    records = [Prompt(said(str(k))) for k in range(4000)]
    for fraction in (0.0, 0.1, 0.5, 1.0):
        share = len(split_by_prompt(records, fraction)[1]) / 4000
        assert abs(share - fraction) <= 4 * math.sqrt(fraction * (1 - fraction) / 4000)


def test_the_turns_of_a_conversation_stay_together():
    trees = [[said(f"tree {k}"), said(f"tree {k}", "answer", "and then?")] for k in range(100)]
    records = [Prompt(({"role": "system", "content": "Be kind."}, *prompt)) for tree in trees for prompt in tree]
    rest, held = split_by_prompt(records, 0.5)
    assert 60 < len(held) < 140, "a system prompt that all share does not put all into one part"
    roots = [{record.prompt[1]["content"] for record in part} for part in (rest, held)]
    assert roots[0].isdisjoint(roots[1])
    apart = split_by_prompt(records, 0.5, by="prompt")
    roots = [{record.prompt[1]["content"] for record in part} for part in apart]
    assert roots[0] & roots[1], "the whole prompt as key does tear them apart"


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(UserError, match="fraction must be a finite number of at least 0 and at most 1"):
        split_by_prompt([], fraction)
    with pytest.raises(UserError, match='"conversation" or "prompt"'):
        split_by_prompt([], 0.5, by="row")


def test_mix_counts_who_judged():
    assert mix(vote(A, A, source_kind="synthetic") + vote(A)) == {"human": 1, "synthetic": 2}
    assert mix([Demonstration(said("a"), "b", source_kind="ai")]) == {"ai": 1}


def test_records_are_frozen_and_can_be_changed_by_replace():
    pair = pairs(compare("ab", A))[0]
    with pytest.raises(AttributeError):
        pair.label = 0.7
    assert replace(pair, label=0.7).label == 0.7
