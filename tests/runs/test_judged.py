"""Several judgements of an item, as pairs: by votes, one by one, by how reliable each judge is; rankings and ratings as rows."""

import dataclasses
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records, simulate
from rlhf_jax.feedback.statistics import annotators
from rlhf_jax.objectives import reward
from rlhf_jax.playground import tokenizer as words_of
from rlhf_jax.runs import data, judged, judged_rows

ASKED = ({"role": "user", "content": "What does the otter eat?"},)


def said(ranks, who, texts=("fish", "leaves"), prompt=ASKED, **more):
    return records.Comparison(prompt, texts, ranks, annotator=who, **{"source_kind": "human"} | more)


def panel(items=60, votes=5, seed=0):
    """Judgements of pairs whose first text is the better one, by honest judges, spammers and two who turn it round."""
    rng = np.random.default_rng(seed)
    honest = [simulate.Judge(f"good {i}", temperature=0.5) for i in range(6)]
    spam = [simulate.Judge(f"spam {i}", lapse=1.0) for i in range(3)]
    wrong = [simulate.Judge(f"wrong {i}", temperature=-0.5) for i in range(2)]
    pairs = [simulate.Item(f"question {i}", [f"right {i}", f"wrong {i}"], [1.0, 0.0]) for i in range(items)]
    return simulate.collect(rng, pairs, [*honest, *spam, *wrong], votes=votes)


def right(pairs):
    return np.mean([0.5 if pair.tie else float(pair.chosen.startswith("right")) for pair in pairs])


def test_conflicting_judgements_are_kept_as_votes_not_dropped():
    """Two of three prefer the first: a target of two thirds, whichever order the texts were listed in."""
    votes = [said((0, 1), "A"), said((1, 0), "B"), said((1, 0), "C", texts=("leaves", "fish"))]
    (pair,) = judged.pairs(votes, "votes")
    assert (pair.chosen, pair.rejected) == ("fish", "leaves") and pair.label == pytest.approx(2 / 3) and pair.equal == 0
    rows, _, _ = data.encode_pairs([pair], made_tokenizer(), window=16)
    assert rows.label.item() == pytest.approx(2 / 3) and rows.tie.item() == 0


def test_the_share_of_ties_stands_beside_the_share_of_wins():
    votes = [said((0, 1), "A"), said((0, 0), "B"), said((0, 1), "C"), said((1, 0), "D")]
    (pair,) = judged.pairs(votes, "votes")
    assert pair.label == pytest.approx(2 / 3) and pair.equal == 0.25 and not pair.tie
    each = judged.pairs(votes, "each")
    assert [pair.equal for pair in each] == [0, 1, 0, 0] and [pair.annotator for pair in each] == list("ABCD")


def test_the_target_of_davidson_where_equal_leads():
    """2 for the first, none for the second, 3 equal: win .4, loss 0, tie .6; without a third verdict .7 against .3."""
    votes = [said((0, 1), "A"), said((0, 1), "B"), *(said((0, 0), who) for who in "CDE")]
    rows, _, _ = data.encode_pairs(judged.pairs(votes, "votes"), made_tokenizer(), window=16)
    label, tie = rows.label.item(), rows.tie.item()
    assert ((1 - tie) * label, (1 - tie) * (1 - label), tie) == pytest.approx((0.4, 0.0, 0.6))
    rewards = jnp.asarray([0.7]), jnp.asarray([-0.4])
    half = reward.davidson(*rewards, label=jnp.asarray(rows.label), tie=jnp.asarray(rows.tie), log_nu=0.3)
    odds = np.exp([0.55, 0.3, -0.55])
    assert half.item() == pytest.approx(
        -(0.4 * np.log(odds[0] / odds.sum()) + 0.6 * np.log(odds[1] / odds.sum())), rel=1e-5
    )


def test_labels_are_those_of_the_statistics():
    votes = panel()
    assert judged.pairs(votes, "dawid_skene") == annotators.dawid_skene(votes)[0]
    assert judged.pairs(votes, "crowd_bt") == annotators.crowd_bt(votes)[0]
    assert all(pair.annotator == "" and pair.equal < 0.1 for pair in judged.pairs(votes, "dawid_skene"))


@pytest.mark.parametrize("how", ["dawid_skene", "crowd_bt"])
def test_reliability_repairs_what_bad_judges_break(how):
    votes = panel()
    plain, better = right(judged.pairs(votes, "votes")), right(judged.pairs(votes, how))
    assert better > plain and better > 0.9, (plain, better)


def test_the_first_listed_text_has_no_part_in_it():
    """Data sets often list the preferred text first: the labels are those of the same votes with every other item turned."""
    votes = panel()

    def turned(c):
        odd = int(c.prompt[0]["content"].split()[-1]) % 2
        return dataclasses.replace(c, responses=c.responses[::-1], ranks=c.ranks[::-1]) if odd else c

    for how in ("dawid_skene", "crowd_bt"):
        one, other = judged.pairs(votes, how), judged.pairs([turned(c) for c in votes], how)
        assert [p.chosen for p in one] == [p.chosen for p in other]
        np.testing.assert_allclose([p.label for p in one], [p.label for p in other], rtol=1e-6)


def test_a_tie_is_a_verdict_of_its_own():
    """Three judges agree: a third of the items are ties, the others are won by the first and the second text in turn."""
    votes = [
        said([(0, 0), (0, 1), (1, 0)][i % 3], who, prompt=({"role": "user", "content": f"question {i}"},))
        for i in range(30)
        for who in "ABC"
    ]
    for how in ("dawid_skene", "crowd_bt"):
        found = judged.pairs(votes, how)
        assert [pair.tie for pair in found] == [i % 3 == 0 for i in range(30)], how
        assert all(pair.label == 0.5 and pair.equal > 0.9 for pair in found[::3])
        assert all(pair.chosen == "fish" and pair.equal < 0.1 for pair in found[1::3])
        assert all(pair.chosen == "leaves" for pair in found[2::3])


def test_axes_are_fitted_apart_and_kinds_are_items_of_their_own():
    """B turns every verdict round on one axis, and is right on the other; what a simulated judge said stays apart."""
    votes = [
        said((0, 1) if right else (1, 0), who, axis=axis, prompt=({"role": "user", "content": f"question {i}"},))
        for axis in ("helpful", "kind")
        for i in range(12)
        for who, right in (("A", True), ("C", True), ("B", axis == "helpful"))
    ]
    votes += [said((1, 0), "D", axis="kind", source_kind="synthetic")]
    alone = [said((1, 0), "B", axis=axis) for axis in ("helpful", "kind")]
    found = judged.pairs([*votes, *alone], "dawid_skene")
    assert Counter((p.axis, p.source_kind) for p in found) == {
        ("helpful", "human"): 13,
        ("kind", "human"): 13,
        ("kind", "synthetic"): 1,
    }
    helpful, kind = (
        next(p for p in found if p.axis == a and p.prompt == ASKED and p.source_kind == "human")
        for a in ("helpful", "kind")
    )
    assert (helpful.chosen, kind.chosen) == ("leaves", "fish")


def test_a_ranking_gives_each_of_its_pairs_once_at_a_shared_weight():
    votes = [said((0, 1, 2), who, texts=("a", "b", "c"), margin=0.5, weight=2.0) for who in "AB"]
    for how in ("dawid_skene", "crowd_bt"):
        found = judged.pairs(votes, how)
        assert len(found) == 3 and sum(pair.weight for pair in found) == pytest.approx(2.0)
        assert {(p.chosen, p.rejected) for p in found} == {("a", "b"), ("a", "c"), ("b", "c")}
        assert all(pair.margin == 0.5 for pair in found)


def test_strength_becomes_a_margin():
    strengths = [None, 0, 1, 2, -2, 1.5]
    votes = [said((0, 1), "A", strength=s, margin=0.25) for s in strengths]
    found = [c.margin - 0.25 for c in judged.with_margins(votes, (0.5, 2.0))]
    assert found == pytest.approx([0, 0, 0.5, 2.0, 2.0, 1.25])
    assert judged.with_margins(votes, ()) == votes
    with pytest.raises(UserError, match="strength_margins has 1 numbers.*A gave strength 2"):
        judged.with_margins(votes, (0.5,))


def test_the_records_of_some_axes():
    votes = [said((0, 1), "A", axis=axis) for axis in ("helpful", "kind", "helpful")]
    assert len(judged.of_axes(votes, ("helpful",))) == 2 and judged.of_axes(votes, ()) == votes
    with pytest.raises(UserError, match=r"nobody judged 'odd'; the axes in the data are helpful \(2\), kind \(1\)"):
        judged.of_axes(votes, ("helpful", "odd"))


def test_what_a_loss_learns_from_is_told_by_its_name(tmp_path):
    from rlhf_jax.algorithms import reward_model
    from rlhf_jax.objectives import reward

    for name in reward.LOSSES:
        assert judged.kind_by_name(name) == reward_model.kind_of(getattr(reward, name))
    path = tmp_path / "mine.py"
    path.write_text("def mine(scores, ranks):\n    return scores[:, 0]\n")
    assert judged.kind_by_name(f"{path}:mine") == "rankings"


# --- rows ---------------------------------------------------------------------------------------------------------------


def made_tokenizer():
    return words_of.train_tokenizer(["What does the otter eat?", *"fish leaves frogs a b c".split(), " frogs"])


def test_a_ranking_is_a_row_of_texts_and_ranks_without_gaps():
    votes = [
        said((0, 5, 5), "A", texts=("fish", "leaves", "frogs")),
        said((1, 0), "B"),
        said((0, 1), "C", texts=("fish", "frogs " * 20)),
        said((0, 0), "D"),
    ]
    words = made_tokenizer()
    rows, counts = judged_rows.encode_rankings(votes, words, window=14, most=3, axes=("overall",), ties=True)
    assert rows.ranks.tolist() == [[0, 1, 1], [1, 0, -1], [0, 0, -1]] and rows.tokens.shape == (3, 3, 14)
    assert dict(counts) == {"longer than 14 tokens: dropped": 1}
    text = words.decode(rows.tokens[0, 2][: rows.length[0, 2]])
    assert text == "<bos><|user|>What does the otter eat?<|assistant|>frogs<eos>"
    assert (rows.length >= 1).all()
    assert rows.weight.tolist() == [1, 0.5, 0.5], "B and D judged one item, which counts once"
    each, counts = judged_rows.encode_rankings(votes, words, window=14, most=2, ties=False, once=False)
    assert each.weight.tolist() == [1] and each.ranks.tolist() == [[1, 0]]
    assert counts["with a tie: dropped"] == 1 and counts["more than 2 texts: dropped"] == 1
    with pytest.raises(UserError, match="no ranking is left of 4"):
        judged_rows.encode_rankings(votes, words, window=4, most=3)


def rated(value, text="fish", axis="helpful", scale=(1, 5), **more):
    return records.Rating(ASKED, text, axis, value, scale, source_kind="human", **more)


def test_ratings_are_grades_or_numbers():
    ratings = [rated(1), rated(5), rated(4, "leaves"), rated(2, "leaves", "kind")]
    words = made_tokenizer()
    rows, kept, counts = judged_rows.encode_ratings(
        ratings, words, window=14, value=judged_rows.grade, axes=("helpful", "kind")
    )
    assert rows.rating.tolist() == [0, 4, 3, 1] and rows.axis.tolist() == [0, 0, 0, 1]
    assert rows.weight.tolist() == [0.5, 0.5, 1, 1] and kept == ratings and not counts
    assert [judged_rows.centred(rating) for rating in ratings] == [-1, 1, 0.5, -0.5]
    assert judged_rows.grades(ratings) == 4
    with pytest.raises(UserError, match="1 to 5, 1 to 7; use --loss regression"):
        judged_rows.grades([*ratings, rated(2, scale=(1, 7))])
    with pytest.raises(UserError, match="a rating of 2.5 on helpful is no whole grade"):
        judged_rows.grade(rated(2.5))
    with pytest.raises(UserError, match="no rating is left of 4"):
        judged_rows.encode_ratings(ratings, words, window=3, value=judged_rows.grade)


def test_pairs_of_rated_texts_are_those_whose_means_differ():
    ratings = [rated(5), rated(1), rated(4, "leaves"), rated(3, "frogs"), rated(1, "leaves", "kind")]
    found = judged_rows.rated_pairs(ratings)
    assert {(p.chosen, p.rejected, p.axis) for p in found} == {
        ("leaves", "fish", "helpful"),
        ("leaves", "frogs", "helpful"),
    }
