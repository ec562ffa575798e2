"""evaluate.py: rows of the table against the NumPy decoder, best-of-n, win rates by hand."""

import evaluate
import numpy as np
import pytest

from rlhf_jax.algorithms import rollout
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import intervals
from rlhf_jax.model import hf
from rlhf_jax.types import Sampling
from tests.experiments.conftest import PROMPT, RESPONSE, draw, lines, write
from tests.model import decoder_oracle as oracle

N, PROMPTS = 2, 7


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """(configuration, result of main, what was collected) for a policy unlike the start; the last batch is partial."""
    folder = tmp_path_factory.mktemp("evaluate")
    cfg, _ = hf.load(world.model)
    hf.save(folder / "policy", cfg, draw(cfg, seed=5, scale=0.15), hf.tokenizer(world.model))
    asked = write(folder / "held_out.jsonl", lines(world.prompts)[:PROMPTS])
    chosen = evaluate.Experiment(
        str(folder / "policy"),
        world.model,
        world.reward,
        asked,
        judge=world.function("words"),
        samples=N,
        prompt_window=PROMPT,
        response_window=RESPONSE,
        sampling=Sampling(temperature=0.8),
        batch=4,
    )
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        collect = rollout.collect

        def note(*arguments, **keywords):
            seen.append(collect(*arguments, **keywords))
            return seen[-1]

        patch.setattr(evaluate.rollout, "collect", note)
        rows = evaluate.compare(chosen)
    return chosen, rows, seen


def logprob(folder, facts, row, temperature=0.8):
    """Σ log π of a response, nats, by the NumPy decoder."""
    cfg, params = hf.load(folder)
    start, length = int(facts.prompt_length[row]), int(facts.response_length[row])
    ids = np.asarray(facts.tokens[row])[: start + length]
    logprobs = oracle.log_softmax(oracle.logits(params, ids, cfg) / temperature)
    return sum(logprobs[t - 1, ids[t]] for t in range(start, start + length))


def test_the_kl_is_that_of_the_samples(run):
    cfg, rows, seen = run
    first = seen[0]  # of the policy, before two batches of the start
    for prompt in range(2):
        samples = [prompt * N + k for k in range(N)]
        wanted = np.mean([logprob(cfg.policy, first, i) - logprob(cfg.start, first, i) for i in samples])
        assert rows["policy"]["kl"][prompt] == pytest.approx(wanted, abs=1e-4)
    assert rows["policy"]["kl"].mean() > 0.5
    assert not rows["start"]["kl"].any(), "the start is no distance away from itself"
    assert rows["best of 2"]["kl"] == pytest.approx(np.log(2) - 0.5)


def test_every_prompt_has_one_value_a_metric(run):
    _, rows, seen = run
    assert list(rows) == ["start", "best of 2", "policy"]
    for row in rows.values():
        assert set(row) == {"proxy", "judge", "kl", "length", "win rate"}
        assert all(values.shape == (PROMPTS,) and np.isfinite(values).all() for values in row.values())
        assert ((row["length"] >= 1) & (row["length"] <= RESPONSE)).all()
    proxies = np.concatenate([np.asarray(facts.score_parts["proxy"]).reshape(-1, N) for facts in seen[:2]])[:PROMPTS]
    assert rows["policy"]["proxy"] == pytest.approx(proxies.mean(axis=1), abs=1e-6)


def test_best_of_n_takes_the_best_by_the_proxy_of_samples_of_their_own(run):
    _, rows, seen = run
    both = {
        name: np.concatenate([np.asarray(facts.score_parts[name]).reshape(-1, 2 * N) for facts in seen[2:]])[:PROMPTS]
        for name in ("proxy", "judge")
    }
    best = both["proxy"][:, N:].argmax(axis=1)
    for name in both:
        assert rows["best of 2"][name] == pytest.approx(both[name][np.arange(PROMPTS), N + best], abs=1e-6)
        assert rows["start"][name] == pytest.approx(both[name][:, :N].mean(axis=1), abs=1e-6)


def test_win_rates_are_by_the_judge(run):
    _, rows, seen = run
    judged = np.concatenate([np.asarray(facts.score_parts["judge"]).reshape(-1, 2 * N) for facts in seen[2:]])[:PROMPTS]
    ours = np.concatenate([np.asarray(facts.score_parts["judge"]).reshape(-1, N) for facts in seen[:2]])[:PROMPTS]
    for prompt in range(PROMPTS):
        pairs = [(a, b) for a in ours[prompt] for b in judged[prompt, :N]]
        wanted = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
        assert rows["policy"]["win rate"][prompt] == pytest.approx(wanted)


def test_the_table_has_a_line_a_model_and_an_interval_a_number(run, monkeypatch, capsys):
    cfg, rows, _ = run
    monkeypatch.setattr(evaluate, "compare", lambda cfg: rows)
    result = evaluate.main(cfg)
    told = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in told[-4:]] == ["", "start", "best of 2", "policy"]
    mean, low, high = intervals.paired(rows["policy"]["kl"])
    assert result["policy"]["kl"] == (mean, low, high)
    assert f"{mean:.3f} ± {(high - low) / 2:.3f}" in told[-1]


def test_a_truncated_sampler_has_no_kl(tmp_path):
    with pytest.raises(UserError, match="no KL to the start"):
        evaluate.Experiment("policy", "start", "reward", "prompts", sampling=Sampling(top_p=0.9))
