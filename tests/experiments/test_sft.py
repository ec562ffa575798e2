"""sft.py end to end, and what it learns from: completions, one EOS, no second BOS."""

import dataclasses

import numpy as np
import pytest
import sft

from rlhf_jax.feedback import formats, records
from rlhf_jax.model import hf
from rlhf_jax.runs import checkpoint, config, data
from rlhf_jax.types import Demonstrations
from tests.experiments.conftest import ANIMALS, TEXT, lines, message, optimised, write
from tests.model import decoder_oracle as oracle

QUESTION, ANSWER = "What does the otter eat?", "The otter eats fish."
CHAT = ({"role": "user", "content": QUESTION},)
PLAIN = ({"role": "text", "content": QUESTION},)


def likelihood(folder, texts):
    """Mean negative log-likelihood, nats, of the tokens of answers and their EOS, by the NumPy decoder."""
    cfg, params = hf.load(folder)
    tokenizer = hf.tokenizer(folder)
    terms = []
    for prompt, answer in texts:
        before = tokenizer(f"<bos><|user|>{prompt}<|assistant|>", add_special_tokens=False)["input_ids"]
        ids = before + tokenizer(f"{answer}<eos>", add_special_tokens=False)["input_ids"]
        logprobs = oracle.log_softmax(oracle.logits(params, ids, cfg))
        terms += [-logprobs[t - 1, ids[t]] for t in range(len(before), len(ids))]
    return np.mean(terms)


def test_the_loss_falls(sft_run):
    losses = [row["sft/loss"] for row in sft_run.metrics if "sft/loss" in row]
    assert losses[0] == pytest.approx(np.log(96), abs=0.5)  # a random model guesses among all words
    assert losses[-1] < losses[0] - 1
    assert sft_run.result["sft/loss"] == losses[-1]


def test_the_held_out_loss_falls_too(sft_run):
    """What is said of other animals is learnt in part: far from one batch by heart."""
    first = next(row["sft/loss"] for row in sft_run.metrics)
    assert sft_run.result["sft/held_out_loss"] < first - 1


def test_the_run_folder_holds_what_design_says(sft_run):
    steps = len(sft_run.metrics) - 1  # and a line for the held-out loss
    assert [row["iteration"] for row in sft_run.metrics] == list(range(steps + 1))
    assert [row["iteration"] for row in lines(sft_run.out / "timing.jsonl")] == list(range(steps))
    assert config.parse(sft.Experiment, ["--config", str(sft_run.out / "config.yaml")]) == sft_run.cfg
    assert checkpoint.latest(sft_run.out / "checkpoints") == steps
    assert '"jax"' in (sft_run.out / "versions.json").read_text()
    assert "sft/loss" in (sft_run.out / "report.html").read_text()


def test_the_update_is_compiled_once(sft_run):
    assert sft_run.result["compilations"] == {"update": 1}
    assert len(set(sft_run.compiled[:-1])) == 1, "something was compiled after the first step"


def test_the_held_out_loss_is_that_of_the_saved_model(world, sft_run):
    found, _ = formats.load_demonstrations(world.demonstrations)
    _, held = records.split_by_prompt(found, 0.2, seed=0)
    texts = [(row.prompt[0]["content"], row.completion) for row in held]
    assert held and len(held) % 8, "the last batch must be a partial one"
    assert sft_run.result["sft/held_out_loss"] == pytest.approx(likelihood(sft_run.result["folder"], texts), rel=1e-5)


def test_the_saved_model_is_whole(world, sft_run):
    cfg, params = hf.load(sft_run.result["folder"])
    before, start = hf.load(world.model)
    assert cfg == before and params.keys() == start.keys()
    assert not np.array_equal(params["layers/q"], start["layers/q"])
    assert hf.tokenizer(sft_run.result["folder"]).get_vocab() == hf.tokenizer(world.model).get_vocab()


@pytest.mark.parametrize("prompt", [CHAT, PLAIN], ids=["conversation", "plain text"])
@pytest.mark.parametrize("learn", ["completion", "all"])
def test_what_is_learnt_is_the_completion_and_one_eos(world, prompt, learn):
    words = hf.tokenizer(world.model)
    rows, counts = data.encode_demonstrations(
        [records.Demonstration(prompt, ANSWER, source_kind="human")],
        words,
        window=TEXT,
        learn=learn,
    )
    ids, length = rows.tokens[0].tolist(), int(rows.length[0])
    assert not counts and ids.count(words.bos_token_id) == (prompt is CHAT)
    assert ids.index(words.eos_token_id) == length - 1 and ids.count(words.eos_token_id) == 1
    learnt = words.decode(np.array(ids)[rows.loss_mask[0]])
    if learn == "completion":
        assert learnt == f"{ANSWER}<eos>"
    else:
        assert learnt == words.decode(ids[1:length])  # nothing predicts the first token


def test_a_demonstration_that_does_not_fit_is_dropped_and_counted(world):
    words = hf.tokenizer(world.model)
    both = [records.Demonstration(CHAT, text, source_kind="human") for text in (ANSWER, f"{ANSWER} {ANSWER}")]
    rows, counts = data.encode_demonstrations(both, words, window=16)
    assert rows.length.tolist() == [15] and dict(counts) == {"longer than 16 tokens: dropped": 1}


def test_a_tokenizer_that_adds_special_tokens_adds_none_to_a_conversation(world):
    """As Llama's does: BOS before a plain text; the chat template writes its own."""
    words = hf.tokenizer(world.model)
    from tokenizers.processors import TemplateProcessing

    special = [("<bos>", words.bos_token_id), ("<eos>", words.eos_token_id)]
    words._tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    plain = words("fish.")["input_ids"]
    assert plain[0] == words.bos_token_id and plain[-1] == words.eos_token_id, "the tokenizer adds both"
    assert data.encode_prompt(words, PLAIN)[0] == words.bos_token_id
    assert words.eos_token_id not in data.encode_prompt(words, PLAIN)
    assert data.encode_prompt(words, CHAT).count(words.bos_token_id) == 1
    for prompt in (CHAT, PLAIN):
        answer = data.encode_response(words, prompt, ANSWER)
        assert answer.count(words.eos_token_id) == 1 and answer[-1] == words.eos_token_id
        assert words.bos_token_id not in answer


def test_the_held_out_loss_counts_tokens_not_batches():
    """A batch of long answers and one of a short one, filled up: 9 tokens at 1 nat, 1 token at 3."""
    rows = Demonstrations(np.zeros((3, 6), np.int32), np.array([6, 6, 2]), np.arange(6) >= np.array([[2], [1], [1]]))
    rows = rows.replace(loss_mask=rows.loss_mask & (np.arange(6) < rows.length[:, None]))
    assert rows.loss_mask.sum(1).tolist() == [4, 5, 1]

    def evaluate(params, batch):
        return 3.0 if batch.loss_mask.sum() == 1 else 1.0

    assert sft.held_out_loss(evaluate, {}, rows, 2) == pytest.approx((9 * 1.0 + 1 * 3.0) / 10)


@pytest.mark.parametrize(("leaks", "kept"), [("drop", False), ("keep", True)])
def test_held_out_prompts_that_training_shares_are_left_out(world, tmp_path, monkeypatch, capsys, leaks, kept):
    """Words in a row, as a reworded prompt has them: what is held out is evaluated without it, unless it is told to stay."""
    long = "Tell me in a few words what you know of the animal that everybody in this town calls the {}, please"
    rows = [
        {"prompt": message("user", long.format(who)), "completion": message("assistant", "It eats.")} for who in ANIMALS
    ]
    path = write(tmp_path / "rows.jsonl", lines(world.demonstrations) + rows)
    seen = []

    class Seen(Exception):
        """Both parts were handed on; what is learnt of them is another test's."""

    def encode(part, encoded=data.encode_demonstrations, **settings):
        seen.append(len(part))
        if len(seen) == 2:
            raise Seen
        return encoded(part, **settings)

    monkeypatch.setattr(data, "encode_demonstrations", encode)
    found, _ = formats.load_demonstrations(path)
    learnt, held = records.split_by_prompt(found, 0.4, seed=0)
    shared = sum("Tell me" in each.prompt[0]["content"] for each in held)
    assert 0 < shared < len(held) and any("Tell me" in each.prompt[0]["content"] for each in learnt)
    small = {"window": 40, "held_out": 0.4, "leaks": leaks}
    with pytest.raises(Seen):
        sft.main(dataclasses.replace(world.sft(tmp_path / "run", **small), demonstrations=path))
    assert seen == [len(learnt), len(held) - (0 if kept else shared)]
    told = capsys.readouterr().out
    assert f"held out: {shared} of {len(held)} evaluation records" in told
    assert f"They are {'kept' if kept else 'left out'}" in told


def test_every_step_sees_the_next_rows(world, tmp_path, monkeypatch):
    steps = []

    def batch_rows(*arguments, step, deal=data.batch_rows, **keywords):
        steps.append(step)
        return deal(*arguments, step=step, **keywords)

    monkeypatch.setattr(data, "batch_rows", batch_rows)
    with optimised(False):
        sft.main(world.sft(tmp_path / "run", epochs=0.5, save_every=0))
    assert len(steps) > 1 and steps == list(range(len(steps)))
