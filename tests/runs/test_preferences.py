"""Rows for preference optimisation: prompt and response lie where their lengths say, and what does not fit is counted."""

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.playground import tokenizer as words
from rlhf_jax.runs import chat, preferences

ASKED = ["what does the otter eat", "where does the seal live", "who eats the fish that the seal left by the river"]
SAID = ["fish", "by the sea", "the otter eats the fish by the river"]


@pytest.fixture(scope="module")
def tokenizer():
    return words.train_tokenizer(ASKED + SAID)


def asked(text):
    return ({"role": "user", "content": text},)


def ids(tokenizer, rows, b, k):
    start = int(rows.prompt_length[b])
    whole = rows.tokens[b, k]
    return list(whole[:start]), list(whole[start : start + int(rows.response_length[b, k])]), whole


def test_pairs_lie_where_their_lengths_say_and_alike_or_long_ones_are_left_out(tokenizer):
    def pair(prompt, chosen, rejected, **more):
        return records.Pair(asked(prompt), chosen, rejected, source_kind="human", **more)

    pairs = [
        pair(ASKED[0], SAID[0], SAID[2], label=0.75, weight=2.0),
        pair(ASKED[1], SAID[1], SAID[1]),
        pair(ASKED[2], SAID[0], SAID[2]),
        pair(ASKED[1], SAID[1], SAID[0]),
    ]
    window = max(len(chat.encode_prompt(tokenizer, asked(ASKED[2]))) + 3, 18)
    rows, kept, counts = preferences.encode_preferences(pairs, tokenizer, window=window)
    assert kept == [pairs[0], pairs[3]] and sum(counts.values()) == 2 and counts["equal responses: dropped"] == 1
    assert rows.tokens.shape == (2, 2, window) and rows.tokens.dtype == np.int32
    for b, each in enumerate(kept):
        for k, text in enumerate((each.chosen, each.rejected)):
            prompt, response, whole = ids(tokenizer, rows, b, k)
            assert prompt == chat.encode_prompt(tokenizer, each.prompt)
            assert response == chat.encode_response(tokenizer, each.prompt, text)
            assert response[-1] == tokenizer.eos_token_id and not whole[len(prompt) + len(response) :].any()
    np.testing.assert_array_equal(rows.label, [0.75, 1.0])
    np.testing.assert_array_equal(rows.weight, [2.0, 1.0])
    with pytest.raises(UserError, match="no pair is left of 4"):
        preferences.encode_preferences(pairs, tokenizer, window=3)


def test_verdicts_of_pairs_and_of_ratings():
    pair = records.Pair(asked("a"), "x", "y", source_kind="human", label=0.8, weight=0.5)
    good, bad = preferences.verdicts_of_pairs([pair])
    assert (good.response, good.label, good.weight) == ("x", 0.8, 0.5)
    assert (bad.response, round(bad.label, 9), bad.weight) == ("y", 0.2, 0.5)

    def rating(response, value, weight=1.0):
        scale = (1, 5)
        return records.Rating(asked("a"), response, "overall", value, scale, source_kind="human", weight=weight)

    found, counts = preferences.verdicts_of_ratings(
        [rating("x", 4), rating("x", 1), rating("y", 3), rating("z", 2, 0.4)]
    )
    assert [(v.response, v.label, v.weight) for v in found] == [("x", 1.0, 0.5), ("x", 0.0, 0.5), ("z", 0.0, 0.4)]
    assert counts == {"rated in the middle: dropped": 1}


def test_a_mismatched_response_is_of_another_prompt_and_fits(tokenizer):
    given = [(0, 0), (0, 2), (1, 1), (2, 0), (2, 1)]
    verdicts = [preferences.Verdict(asked(ASKED[q]), SAID[a], float(a != 1), 1.0, "human") for q, a in given]
    prompts = [chat.encode_prompt(tokenizer, verdict.prompt) for verdict in verdicts]
    answers = [chat.encode_response(tokenizer, v.prompt, v.response) for v in verdicts]
    for window in (max(map(len, prompts)) + 4, 60):
        rows, kept, _ = preferences.encode_verdicts(verdicts, tokenizer, window=window, mismatched=True)
        assert kept and rows.tokens.shape == (len(kept), 2, window)
        for b, verdict in enumerate(kept):
            prompt, own, _ = ids(tokenizer, rows, b, 0)
            same, other, _ = ids(tokenizer, rows, b, 1)
            assert prompt == same and own == answers[verdicts.index(verdict)]
            sources = {str(prompts[i]) for i, answer in enumerate(answers) if answer == other}
            assert sources - {str(prompt)}, "a response to another prompt"
    plain, _, _ = preferences.encode_verdicts(verdicts, tokenizer, window=60)
    assert plain.tokens.shape[1] == 1 and plain.ref_logprobs is None
    with pytest.raises(UserError, match="all responses are to one prompt"):
        preferences.encode_verdicts(verdicts[:2], tokenizer, window=60, mismatched=True)
