"""reward_model.py end to end: it fits pairs, is normalised, beats or loses to baselines, and scores as it was saved."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import reward_model
import reward_parts

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, records
from rlhf_jax.model import heads, hf
from rlhf_jax.runs import checkpoint, config, data
from tests.experiments.conftest import PROMPT, RESPONSE, TEXT, lines, write
from tests.model import decoder_oracle as oracle

ASKED = ({"role": "user", "content": "What does the otter eat?"},)


def scored(folder, prompt, response):
    """One normalised score by the NumPy decoder, of the text as a reader would render it, closed by one EOS."""
    cfg, params = hf.load(folder)
    text = f"<bos><|user|>{prompt[0]['content']}<|assistant|>{response}<eos>"
    ids = hf.tokenizer(folder)(text, add_special_tokens=False)["input_ids"]
    raw = oracle.hidden(params, ids, cfg)[-1] @ np.asarray(params["score"], np.float64)[:, 0]
    return (raw - cfg.reward_mean[0]) / cfg.reward_std[0]


def test_the_first_loss_is_that_of_a_new_head_on_the_first_batch(reward_run):
    """Bradley and Terry's by the NumPy decoder, and the pull of the rewards towards 0."""
    cfg = reward_run.cfg
    model, base = hf.load(cfg.model)
    model = hf.classifier(model, 1)
    params = heads.add_reward_head(jax.random.fold_in(jax.random.key(cfg.seed), 1), base, model)
    rows = reward_parts.load(cfg, "pairs", hf.tokenizer(cfg.model), (), model.eos_ids).rows
    batch = data.take(rows, data.batch_rows(rows.weight.size, cfg.batch, seed=cfg.seed, step=0))

    def reward(tokens, length):
        hidden = (oracle.hidden(params, ids[:n], model)[-1] for ids, n in zip(tokens, length, strict=True))
        return np.array([x @ np.asarray(params["score"], np.float64)[:, 0] for x in hidden])

    better, worse = reward(batch.chosen, batch.chosen_length), reward(batch.rejected, batch.rejected_length)
    assert (batch.label == 1).all() and (batch.weight == batch.weight[0]).all()
    wanted = np.mean(np.logaddexp(0, worse - better) + cfg.centring_coef * (better + worse) ** 2)
    assert reward_run.metrics[0]["reward/loss"] == pytest.approx(wanted, abs=1e-5)


def test_it_fits_the_pairs(reward_run):
    rows = [row for row in reward_run.metrics if "reward/loss" in row]
    assert np.mean([row["reward/accuracy"] for row in rows[-6:]]) >= 0.95
    assert rows[-1]["reward/loss"] < 0.2


def test_the_run_folder_holds_what_design_says(reward_run):
    steps = len(reward_run.metrics) - 1
    assert [row["iteration"] for row in reward_run.metrics] == list(range(steps + 1))
    assert {name for name in reward_run.metrics[-1] if name != "iteration"} == {
        "held_out/reward model",
        "held_out/longer or shorter",
        "held_out/bag of words",
        "held_out/annotators",
    }
    assert [row["iteration"] for row in lines(reward_run.out / "timing.jsonl")] == list(range(steps))
    assert config.parse(reward_model.Experiment, ["--config", str(reward_run.out / "config.yaml")]) == reward_run.cfg
    assert checkpoint.latest(reward_run.out / "checkpoints") == steps
    assert (reward_run.out / "versions.json").exists() and (reward_run.out / "report.html").exists()


def test_the_update_is_compiled_once(reward_run):
    assert reward_run.result["compilations"] == {"update": 1}
    assert len(set(reward_run.compiled[:-1])) == 1, "something was compiled after the first step"


def test_the_saved_model_orders_the_held_out_pairs_as_reported(world, reward_run):
    found, _ = formats.load(world.comparisons)
    _, held = records.split_by_prompt(found, 0.2, seed=0)
    pairs = records.votes(held)
    folder = reward_run.result["folder"]
    margins = [scored(folder, p.prompt, p.chosen) - scored(folder, p.prompt, p.rejected) for p in pairs]
    told = reward_run.result["held_out"]["reward model"]
    assert told.n == len(pairs) and told.accuracy == pytest.approx(np.mean(np.array(margins) > 0))
    assert reward_run.result["held_out"]["annotators"].accuracy == 1.0  # the judges of this world agree


def test_scores_of_the_training_responses_are_normalised_and_saved(world, reward_run):
    """Mean 0 and deviation 1 on the reference responses, read back from config.json."""
    saved = json.loads((reward_run.out / "model" / "config.json").read_text())
    assert "LlamaForSequenceClassification" in saved["architectures"]
    found, _ = formats.load(world.comparisons)
    kept, _ = records.split_by_prompt(found, 0.2, seed=0)
    pairs = records.votes(kept)
    score = reward_model.scorer(reward_run.result["folder"], window=TEXT, rows=len(pairs))
    prompts = [pair.prompt for pair in pairs]
    values = np.concatenate(
        [score(prompts, [getattr(p, side) for p in pairs], None) for side in ("chosen", "rejected")]
    )
    assert abs(values.mean()) < 1e-3 and values.std() == pytest.approx(1, abs=1e-3)


def test_the_scorer_gives_what_the_model_says(reward_run):
    folder = reward_run.result["folder"]
    responses = ["The otter eats fish.", "The seal eats", "The otter lives by the river. The seal eats fish."]
    score = reward_model.scorer(folder, window=24, rows=2)  # one whole chunk, one that must be filled up
    found = score([ASKED] * 3, responses, [{}] * 3)
    assert found == pytest.approx([scored(folder, ASKED, response) for response in responses], abs=1e-5)
    assert len(set(found.tolist())) == 3


def test_a_text_past_the_window_loses_the_beginning_of_its_prompt(world):
    encode = data.score_encoder(hf.tokenizer(world.model), window=12)
    words = hf.tokenizer(world.model)
    tokens, length = encode([ASKED], ["The otter eats fish."])
    assert length.tolist() == [12] and words.decode(tokens[0]).endswith("eat?<|assistant|>The otter eats fish.<eos>")
    with pytest.raises(UserError, match="a response has 13 tokens for the reward model, whose window is 12; widen it"):
        encode([ASKED], ["The otter eats fish. The otter eats fish. The otter"])


@pytest.mark.long
def test_a_reward_model_can_go_on_and_be_fitted_on_responses(world, reward_run, tmp_path):
    """It starts from the saved one (old normalisation gone), and is normalised on a file of responses."""
    rows = [{"prompt": list(ASKED), "responses": ["The seal eats fish.", "The otter eats leaves."]}] * 3
    reference = write(tmp_path / "responses.jsonl", rows)
    adam = dataclasses.replace(reward_run.cfg.optimizer, lr=0.0)
    cfg = world.reward_model(tmp_path / "more", reference=reference, epochs=0.1, optimizer=adam)
    result = reward_model.main(dataclasses.replace(cfg, model=reward_run.result["folder"], label_smoothing=0.1))
    before, old = hf.load(reward_run.result["folder"])
    after, new = hf.load(result["folder"])
    assert all(np.array_equal(old[name], new[name]) for name in old), "lr 0 must change nothing"
    assert after.reward_mean != before.reward_mean
    values = [scored(result["folder"], ASKED, response) for response in rows[0]["responses"]]
    assert np.mean(values) == pytest.approx(0, abs=1e-4) and np.std(values) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "labels", "margins"),
    [
        ({}, [2 / 3, 0.5], [0.0, 0.0]),
        ({"judgements": "each"}, [1.0, 1.0, 1.0, 0.5], [0.0] * 4),
        ({"ties": "drop"}, [2 / 3], [0.0]),
        ({"judgements": "each", "ties": "drop", "margin": 0.5}, [1.0] * 3, [0.5] * 3),
    ],
)
def test_judgements_become_pairs_as_told(world, tmp_path, changes, labels, margins):
    def judged(prompt, ranks, who):
        return records.Comparison(prompt, ("a", "b"), ranks, annotator=who, source_kind="human")

    other = ({"role": "user", "content": "And the seal?"},)
    comparisons = [judged(ASKED, ranks, who) for ranks, who in (((0, 1), "A"), ((0, 1), "B"), ((1, 0), "C"))]
    comparisons.append(judged(other, (0, 0), "A"))
    pairs = reward_model.to_pairs(comparisons, world.reward_model(tmp_path, **changes))
    assert [pair.label for pair in pairs] == pytest.approx(labels)
    assert [pair.margin for pair in pairs] == pytest.approx(margins)


def test_pairs_hold_both_texts_with_one_eos(world):
    words = hf.tokenizer(world.model)
    human = {"source_kind": "human"}
    pair = records.Pair(
        ASKED, "The seal eats fish.", "The otter eats leaves.", margin=0.25, weight=0.5, label=0.75, **human
    )
    long = records.Pair(ASKED, "The seal eats fish.", "The otter eats fish. " * 5, **human)
    rows, kept, counts = data.encode_pairs([pair, long], words, window=TEXT)
    assert kept == [pair] and dict(counts) == {f"longer than {TEXT} tokens: dropped": 1}
    for side, text in (("chosen", "The seal eats fish."), ("rejected", "The otter eats leaves.")):
        ids = getattr(rows, side)[0][: int(getattr(rows, f"{side}_length")[0])]
        assert words.decode(ids) == f"<bos><|user|>What does the otter eat?<|assistant|>{text}<eos>"
    assert (rows.label.item(), rows.margin.item(), rows.weight.item()) == (0.75, 0.25, 0.5)


def test_a_response_that_was_cut_gets_an_eos_as_in_training(world):
    """Scoring adds the EOS that pairs have, whether or not the policy wrote one."""
    words = hf.tokenizer(world.model)
    encode = data.score_encoder(words, window=PROMPT + RESPONSE + 1)
    tokens, length = encode([ASKED] * 2, ["The seal eats fish.", "The seal eats fish.<eos>"])
    assert tokens[0].tolist() == tokens[1].tolist() and tokens[0, length[0] - 1] == words.eos_token_id
    assert (tokens[0] == words.eos_token_id).sum() == 1
