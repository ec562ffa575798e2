"""Repeats, and texts that training and evaluation share."""

import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import leakage, wording
from rlhf_jax.feedback.records import Comparison, Demonstration, Pair, Prompt, Rating, as_messages, votes

WORDS = "the quick brown fox jumps over the lazy dog while twenty seven small birds look on in wonder".split()


def ask(text):
    return Prompt(as_messages(text))


def judged(ranks, annotator="ann", responses=("a", "b"), prompt="hi", **fields):
    return Comparison(as_messages(prompt), responses, ranks, annotator=annotator, **{"source_kind": "human"} | fields)


def test_a_planted_duplicate_is_caught():
    train = [ask("Name a city, please!"), ask("Another question?")]
    found = leakage.leaks(train, [ask("Why?"), ask("name  a City please"), ask("Name a city")])
    assert (found.exact, found.overlapping, found.clean, found.records) == ([1], [], [0, 2], 3)
    assert found.text() == (
        "1 of 3 evaluation records (33.3%) are in the training data: 1 whole, 0 by 13 words in a row."
    )


@pytest.mark.parametrize("shared", [12, 13, 14])
def test_thirteen_words_in_a_row_leak_and_twelve_do_not(shared):
    train = [ask("before all " + " ".join(WORDS[:shared]) + " something else")]
    found = leakage.leaks(train, [ask("Well: " + ", ".join(WORDS[:shared]) + ". And so on")])
    assert found.overlapping == ([0] if shared >= 13 else []) and found.exact == []
    assert leakage.leaks(train, [ask(" ".join(WORDS[:3]))], n=3).overlapping == [0]


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=4),
    st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=4),
    st.integers(1, 4),
)
def test_overlap_is_what_the_definition_says(train, held, n):
    found = leakage.leaks([ask(" ".join(t) or ".") for t in train], [ask(" ".join(t) or "!") for t in held], n=n)
    grams = {tuple(t[i : i + n]) for t in train for i in range(len(t) - n + 1)}
    exact = [k for k, t in enumerate(held) if t and t in train]
    shares = [k for k, t in enumerate(held) if any(tuple(t[i : i + n]) in grams for i in range(len(t) - n + 1))]
    assert found.exact == exact and found.overlapping == [k for k in shares if k not in exact]
    assert sorted(found.exact + found.overlapping + found.clean) == list(range(len(held)))


def test_which_texts_are_looked_at():
    long = " ".join(WORDS)
    train = [judged((0, 1), responses=(long, "b"))]
    for record in (
        judged((0, 1), prompt="ho", responses=("x", long + " more")),
        Rating(as_messages("ho"), "more " + long, "style", 1, (0, 1), source_kind="human"),
        Pair(as_messages("ho"), "x", "more " + long, source_kind="human"),
        Demonstration(as_messages("ho"), long + " x", source_kind="human"),
    ):
        assert leakage.leaks(train, [record]).clean == [0], "prompts only, unless told"
        assert leakage.leaks(train, [record], part="responses").overlapping == [0]
        assert leakage.leaks(train, [record], part="all").overlapping == [0]
    assert leakage.leaks(train, [judged((1, 0))], part="all").exact == [0]
    with pytest.raises(UserError, match='"prompt", "responses" or "all"'):
        leakage.leaks(train, [ask("a")], part="meta")
    with pytest.raises(UserError, match="at least 1"):
        leakage.leaks([], [], n=0)
    assert leakage.leaks(train, [Prompt(as_messages("..."))]).clean == [0], "no word, no leak"
    assert leakage.leaks([], []).text().startswith("0 of 0 evaluation records (none)")


CHINESE = "请写一篇短文介绍黄河的源头和流经的省份以及它对农业的影响吧"
THAI = "ช่วยเขียนบทความสั้นเกี่ยวกับแม่น้ำเจ้าพระยาและจังหวัดที่ไหลผ่าน"


@pytest.mark.parametrize("text", [CHINESE, THAI])
def test_scripts_without_spaces_leak_by_their_characters(text):
    train = [ask(text)]
    assert leakage.leaks(train, [ask(text[:-1] + "x")]).overlapping == [0], "the last character is another"
    assert leakage.leaks(train, [ask("2. " + text)]).overlapping == [0]
    assert leakage.leaks(train, [ask(" ".join(text) + "!")]).exact == [0], "spaces and punctuation say nothing"
    assert leakage.leaks(train, [ask(text[:20])]).clean == [0], "twenty characters are fewer than 13 words"


@pytest.mark.parametrize(("shared", "leaked"), [(25, []), (26, [0]), (27, [0])])
def test_two_characters_count_as_a_word_where_none_are_written_apart(shared, leaked):
    start = 0x4E00
    text = "".join(chr(start + k) for k in range(shared))
    found = leakage.leaks([ask("前" + text + "后")], [ask("甲" + text + "乙")])
    assert found.overlapping == leaked and found.exact == []


@pytest.mark.parametrize("text", ["Où est le café ?", "가나다 라마", "हिन्दी में लिखो", "ℌall №5", "ｆｕｌｌ　ｗｉｄｔｈ"])
def test_one_text_in_several_unicode_forms_is_one_text(text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    for one in forms:
        assert leakage.leaks([ask(one)], [ask(other.upper()) for other in forms]).exact == [0, 1, 2, 3]
    assert wording.words("हिन्दी में") == ["हिन्दी", "में"], "vowel signs do not part words"


@given(st.text(max_size=30))
def test_words_are_of_any_text(text):
    found = wording.words(text)
    assert wording.words(f"  {text} !") == found
    assert all(word and not word.isspace() for word in found)


def test_a_system_message_that_all_share_is_no_leak():
    def led(text):
        return Prompt(({"role": "system", "content": " ".join(WORDS)}, {"role": "user", "content": text}))

    found = leakage.leaks([led("Name a city")], [led("Name a river"), led("Name a city")])
    assert (found.clean, found.exact) == ([0], [1])


A, B = (0, 1), (1, 0)


def test_contradictions_are_votes_and_repeats_are_not():
    """Two say the first, one the second: 2/3. The same person saying the same again is no second vote."""
    given = [judged(A, "x"), judged(A, "y"), judged(B, "z"), judged(A, "x"), judged(B, "x", responses=("b", "a"))]
    kept, count = leakage.without_repeats(given)
    assert kept == given[:3] and count == 2
    (pair,) = votes(kept)
    assert pair.label == pytest.approx(2 / 3) and pair.chosen == "a"


def test_what_is_no_repeat():
    first = judged(A, "x")
    others = [
        judged(B, "x"),
        judged(A, "y"),
        judged(A, "x", prompt="ho"),
        judged(A, "x", responses=("a", "c")),
        judged(A, "x", axis="harmless"),
        judged(A, "x", item="7"),
        judged(A, "x", source_kind="ai"),
    ]
    assert leakage.without_repeats([first, *others]) == ([first, *others], 0)


def test_without_a_name_only_equal_records_are_repeats():
    given = [judged(A, "", meta={"id": k, "provenance": {"sha256": str(n)}}) for n, k in enumerate((1, 2, 1))]
    kept, count = leakage.without_repeats(given)
    assert [c.meta["id"] for c in kept] == [1, 2] and count == 1


def test_words():
    assert leakage.words("Don't STOP — é" + string.punctuation) == ["don", "t", "stop", "é", "_"]
