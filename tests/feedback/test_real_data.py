"""The published files: every figure of their SOURCE.md that an importer or a statistic could get wrong."""

from collections import Counter

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import baselines
from rlhf_jax.feedback import formats, leakage, records
from rlhf_jax.feedback.formats import exports
from rlhf_jax.feedback.formats import write as formats_export
from rlhf_jax.feedback.statistics import agreement

LABELS = {(0, 0): 0, (0, 1): 1, (1, 0): 2}


@pytest.fixture(scope="module")
def pandalm(real):
    return formats.load(real("pandalm/testset-v1.json"))


@pytest.fixture(scope="module")
def oasst(real):
    return formats.load(real("oasst/en_100_tree.jsonl"))


@pytest.fixture(scope="module")
def table(pandalm):
    """Labels 0 (tie), 1, 2 of the three annotators, [999, 3]."""
    return np.array([LABELS[c.ranks] for c in pandalm[0]]).reshape(999, 3)


def test_pandalm_rows(pandalm):
    found, report = pandalm
    assert (report.format, report.read, report.kept, report.records, report.dropped) == ("pandalm", 999, 999, 2997, {})
    assert report.notes == {"empty_response": 54, "boolean_response": 6}
    assert report.sha256 == "cc154f9067c7382d7ea86f8f246511a5e1ac87e1fddd845c5938d789505b07a4"
    assert Counter(c.annotator for c in found) == {"annotator1": 999, "annotator2": 999, "annotator3": 999}
    assert len({c.prompt_id for c in found}) == 170 and len({c.item for c in found}) == 999
    assert records.mix(found) == {"human": 2997}
    assert [c.responses[0] for c in found if c.item == "157"] == ["True"] * 3


def test_pandalm_labels(table):
    counts = np.stack([(table == label).sum(1) for label in (0, 1, 2)], 1)
    assert (counts.max(1) >= 2).all(), "no item without a majority"
    assert Counter(counts.argmax(1).tolist()) == {0: 105, 1: 422, 2: 472}
    assert int((counts.max(1) == 3).sum()) == 879
    assert agreement.fleiss_kappa(counts) == pytest.approx(0.8642, abs=5e-5)


@pytest.mark.parametrize(("one", "other", "kappa"), [(0, 1, 0.8520), (0, 2, 0.8789), (1, 2, 0.8617)])
def test_pandalm_kappa(table, one, other, kappa):
    assert agreement.cohen_kappa(table[:, one].tolist(), table[:, other].tolist()) == pytest.approx(kappa, abs=5e-5)


def test_pandalm_ceiling(pandalm):
    ceiling = agreement.annotator_ceiling(pandalm[0])
    assert (ceiling.rater_pairs, ceiling.judgements) == (2620, 2757)
    assert ceiling.agreement == pytest.approx(0.9473, abs=5e-5)
    assert ceiling.accuracy == pytest.approx(0.9565, abs=5e-5)


def test_pandalm_votes(pandalm):
    voted = records.votes(pandalm[0])
    assert len(voted) == 999 and sum(pair.tie for pair in voted) == 105
    lengths = [(len(pair.chosen), len(pair.rejected)) for pair in voted if not pair.tie]
    assert (sum(a > b for a, b in lengths), sum(a != b for a, b in lengths)) == (599, 887)
    assert {round(pair.label, 3) for pair in voted} == {0.5, 0.667, 1.0}
    everyone = baselines.length_only(voted, voted)
    assert everyone.n == 894 and everyone.accuracy == pytest.approx((599 + 7 / 2) / 894)


def test_pandalm_split(pandalm):
    train, held = records.split_by_prompt(pandalm[0], 0.2, seed=0)
    assert {c.prompt_id for c in train}.isdisjoint(c.prompt_id for c in held)
    assert len(train) + len(held) == 2997 and 0.1 < len(held) / 2997 < 0.3


def test_oasst_sets(oasst):
    found, report = oasst
    assert (report.format, report.read, report.kept, report.records, report.dropped) == ("oasst", 100, 100, 212, {})
    assert report.notes == {"unranked_reply": 1}
    assert Counter(len(c.responses) for c in found) == {2: 57, 3: 117, 4: 27, 5: 3, 6: 6, 8: 1, 9: 1}
    assert all(sorted(c.ranks) == list(range(len(c.ranks))) for c in found)
    assert all(c.prompt[0]["role"] == c.prompt[-1]["role"] == "user" for c in found)
    assert max(len(c.prompt) for c in found) == 5
    assert len({c.meta["message_tree_id"] for c in found}) == 100


def test_oasst_pairs(oasst):
    found = [pair for c in oasst[0] for pair in records.pairs(c)]
    assert len(found) == 754 and sum(pair.weight for pair in found) == pytest.approx(212)
    assert sum(len(pair.chosen) > len(pair.rejected) for pair in found) == 526


def test_oasst_first_place_is_not_the_best(oasst):
    """In the file the best reply comes first in all 212 sets; after shuffling as often as chance has it."""
    chance = np.array([1 / len(c.ranks) for c in oasst[0]])
    first = sum(c.ranks[0] == 0 for c in oasst[0])
    assert abs(first - chance.sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())


def test_oasst_synthetic_messages(oasst, real):
    flagged = [sum(c.meta["synthetic_responses"]) for c in oasst[0]]
    assert sum(flagged) == 17
    roots = {c.meta["message_tree_id"] for c in oasst[0] if c.meta["synthetic_prompt"]}
    assert len(roots) == 5
    clean, report = formats.load(real("oasst/en_100_tree.jsonl"), synthetic="drop")
    assert not any(c.meta["synthetic_prompt"] or any(c.meta["synthetic_responses"]) for c in clean)
    assert report.dropped == {"synthetic_only": 5} and len(clean) == 207


def test_oasst_ceiling_is_unknown(oasst):
    ceiling = agreement.annotator_ceiling(oasst[0])
    assert ceiling.accuracy is ceiling.agreement is ceiling.bound is None and "consensus" in ceiling.reason


def test_oasst_split_keeps_trees_together(oasst):
    train, held = records.split_by_prompt(oasst[0], 0.3)
    trees = [{c.meta["message_tree_id"] for c in part} for part in (train, held)]
    assert trees[0].isdisjoint(trees[1]) and len(trees[0] | trees[1]) == 100


def test_prompts_and_demonstrations(real):
    assert len(formats.load_prompts(real("pandalm/testset-v1.json"))[0]) == 170
    best = formats.load_demonstrations(real("oasst/en_100_tree.jsonl"))[0]
    assert len(best) == 212
    prompts, report = formats.load_prompts(real("xstest/xstest_prompts.csv"))
    assert (
        len(prompts) == 450
        and report.dropped == {}
        and set(prompts[0].meta) == {"id", "type", "label", "focus", "note"}
    )


def test_hh_rlhf(real):
    found, report = formats.load(real("hh/harmless-base/test.jsonl.gz"))
    assert report.read == 2312 and report.dropped == {"prefix_mismatch": 5, "empty_response": 4}
    assert report.notes == {"repeated_role": 4} and len(found) == 2303


LLMBAR = {
    "Natural": (100, 42, 0.566),
    "Adversarial/Neighbor": (134, 75, 0.119),
    "Adversarial/GPTInst": (92, 45, 0.130),
    "Adversarial/GPTOut": (47, 22, 0.447),
    "Adversarial/Manual": (46, 22, 0.178),
}


@pytest.mark.parametrize("subset", LLMBAR)
def test_llmbar(real, subset):
    found, report = formats.load(real(f"llmbar/{subset}/dataset.json"))
    rows, first, longer = LLMBAR[subset]
    assert (report.format, report.licence, report.records, report.dropped) == ("llmbar", "MIT", rows, {})
    assert sum(c.ranks == (0, 1) for c in found) == first and {c.source_kind for c in found} == {"human"}
    pairs = [pair for c in found for pair in records.pairs(c) if len(pair.chosen) != len(pair.rejected)]
    assert np.mean([len(p.chosen) > len(p.rejected) for p in pairs]) == pytest.approx(longer, abs=5e-4)


def test_llmbar_has_419_pairs_and_pandalm_does_not_leak_into_them(real, pandalm):
    every = [c for subset in LLMBAR for c in formats.load(real(f"llmbar/{subset}/dataset.json"))[0]]
    assert len(every) == 419
    assert leakage.leaks(pandalm[0], pandalm[0]).clean == []
    assert len(leakage.leaks(pandalm[0], every).clean) == 419


def test_pandalm_contradictions_survive_deduplication(pandalm):
    kept, count = leakage.without_repeats(pandalm[0])
    assert count == 0 and len(kept) == 2997
    assert leakage.without_repeats([*pandalm[0], *pandalm[0]]) == (pandalm[0], 2997)
    labels = [round(pair.label, 3) for pair in records.votes(kept) if not pair.tie]
    assert min(labels) == 0.667, "2 to 1"


def test_pandalm_split_by_annotator(pandalm):
    rest, held = records.split_by_annotator(pandalm[0], 0.34)
    assert len(rest) == 1998 and len(held) == 999
    assert {c.annotator for c in rest}.isdisjoint(c.annotator for c in held)


def test_pandalm_out_and_in_again(pandalm, tmp_path):
    some = pandalm[0][:600]
    told = formats_export.write(tmp_path / "a.jsonl", some)
    assert formats.load(tmp_path / "a.jsonl")[0] == some
    assert told["sources"][0]["licence"] == "Apache-2.0" and told["sources"][0]["sha256"] == pandalm[1].sha256
    assert len(exports.explicit(pandalm[0])[0]) == 2671 and exports.explicit(pandalm[0])[1] == {"tie": 326}
    formats_export.write(tmp_path / "b.jsonl", some, "trl_implicit")
    back = formats.load(tmp_path / "b.jsonl")[0]
    decided = [pair for c in some for pair in records.pairs(c) if not pair.tie]
    assert [(c.prompt, *c.responses) for c in back] == [(p.prompt, p.chosen, p.rejected) for p in decided]


def test_oasst_provenance(oasst):
    (told,) = records.provenance(oasst[0])
    assert told == {
        "source": "oasst:en_100_tree.jsonl",
        "licence": "Apache-2.0",
        "sha256": "a27639214a5098bf9e1cc62a855c85c630b64ab48ee94655e7f6046438b0aedb",
        "source_kind": "human",
        "records": 212,
    }


def test_oasst_sample_has_no_labels(real):
    with pytest.raises(UserError, match="no_labels 100"):
        formats.load_ratings(real("oasst/en_100_tree.jsonl"))


def test_auto_j(real):
    found, report = formats.load(real("auto_j/testdata_pairwise.jsonl"))
    assert (report.read, report.records, report.dropped, report.licence) == (1392, 1392, {}, "")
    assert Counter(c.ranks for c in found) == {(0, 1): 520, (1, 0): 499, (0, 0): 373}
    pairs = [
        pair for c in found for pair in records.pairs(c) if not pair.tie and len(pair.chosen) != len(pair.rejected)
    ]
    assert len(pairs) == 1013 and np.mean([len(p.chosen) > len(p.rejected) for p in pairs]) == pytest.approx(
        0.718, abs=5e-4
    )


@pytest.mark.parametrize(
    ("subset", "rows"), [("chat", 129), ("code", 228), ("safety-refuse", 284), ("safety-response", 157)]
)
def test_rm_bench(real, subset, rows):
    found, report = formats.load(real(f"rm_bench/{subset}_filtered.json"))
    assert (report.read, report.kept, report.records, report.dropped) == (rows, rows, 9 * rows, {})
    assert Counter(c.ranks for c in found) == {(0, 1): 9 * rows}
