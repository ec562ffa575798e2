"""dpo.py: it fits pairs, mixes losses, learns from single verdicts, moves its reference, resumes bit for bit."""

import dataclasses

import dpo
import numpy as np
import pytest

from rlhf_jax.feedback import formats
from rlhf_jax.model import hf
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import config
from tests.experiments import alike
from tests.experiments.alike import refused
from tests.experiments.conftest import ADAM, TEXT, facts, lines, message, write

OWN = '''
"""Losses that the tests name in configurations."""
import jax


def logistic(chosen, rejected, *, ref_chosen, ref_rejected, beta=0.1, slope: float = 1.0):
    return jax.nn.softplus(-slope * beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def backwards(worse, better):
    return worse
'''


def experiment(world, out, **changes):
    small = {"window": TEXT, "batch": 8, "epochs": 2.0, "held_out": 0.2, "optimizer": ADAM, "save_every": 0}
    return dpo.Experiment(world.model, world.comparisons, str(out), **small | changes)


@pytest.fixture(autouse=True, scope="module")
def _no_report():
    """Tested elsewhere, and half the time of so small a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpo.report, "write", lambda out: f"{out}/report.html")
        yield


@pytest.fixture(scope="module")
def thumbs(world):
    """TRL's unpaired form: right answers with a thumb up, wrong ones with one down."""
    rows = []
    for question, right, wrong, _ in facts():
        for text, good in ((right, True), (wrong, False)):
            rows.append({"prompt": message("user", question), "completion": message("assistant", text), "label": good})
    return write(world.folder / "thumbs.jsonl", [row | {"source_kind": "human"} for row in rows])


def test_it_fits_pairs_and_the_model_it_saves_prefers_what_people_do(world, tmp_path, capsys):
    """The world's other answer is mostly "pup", "fish" or "by the river": the few animals of which these are true (a young mouse,
    a young robin) are learnt last, against all others, and until the 12th epoch one of them costs its batch an eighth."""
    result = dpo.main(experiment(world, tmp_path / "run", epochs=15.0))
    said = capsys.readouterr().out
    assert "0 whole, 0 by 13 words" in said and "judged by: synthetic" in said and "pairs to learn" in said
    rows = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "preference/loss" in row]
    assert rows[0]["preference/loss"] == pytest.approx(np.log(2), abs=1e-3), "policy and reference begin as one"
    assert len(rows) == 56, "30 pairs: the last 4 steps saw each of them"
    assert max(row["preference/loss"] for row in rows[-4:]) < 0.3
    assert min(row["preference/accuracy"] for row in rows[-4:]) > 0.95
    assert rows[-1]["preference/margin"] == pytest.approx(
        rows[-1]["preference/chosen_reward"] - rows[-1]["preference/rejected_reward"], abs=1e-4
    )
    assert result["compilations"] == {"update": 1}
    assert set(result["held_out"]) == {"implicit reward", "longer or shorter", "bag of words"}
    cfg, after = hf.load(result["folder"])
    assert not cfg.axes and any(not np.array_equal(after[path], x) for path, x in hf.load(world.model)[1].items())


@pytest.mark.long
def test_kto_reads_thumbs_up_and_down(world, thumbs, tmp_path, capsys):
    cfg = experiment(world, tmp_path / "run", loss="kto", epochs=6.0, batch=16)
    result = dpo.main(dataclasses.replace(cfg, comparisons=thumbs))
    said = capsys.readouterr().out
    assert "responses, " in said and "of them good, to learn" in said and "judged by: human" in said
    rows = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "preference/loss" in row]
    assert np.mean([row["preference/loss"] for row in rows[-4:]]) < rows[0]["preference/loss"] - 0.03
    assert rows[-1]["preference/margin"] > 0.3
    assert set(result["held_out"]) <= {"implicit reward", "longer or shorter", "bag of words"} and result["held_out"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ("bco", {}),
        ("sigmoid", {"also": {"sft": 0.2, "bco_pair": 0.5}, "beta": 0.3}),
        ("simpo", {"options": {"gamma": 1.0}}),
        ("ipo", {"per_token": False, "reference": "each"}),
        ("sigmoid", {"ld_alpha": 0.5, "microbatches": 2, "ties": "half"}),
        ("sigmoid", {"lora": Lora(rank=2)}),
        ("own", {"options": {"slope": 2.0}}),
    ],
)
def test_every_way_to_learn_runs(world, tmp_path, loss, changes):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    name = f"{path}:logistic" if loss == "own" else loss
    result = dpo.main(experiment(world, tmp_path / "run", loss=name, epochs=4.0, **changes))
    rows = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "preference/loss" in row]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    first, last = (np.mean([row["preference/loss"] for row in part]) for part in (rows[:4], rows[-4:]))
    assert last < first and result["compilations"] == {"update": 1}


@pytest.mark.long
def test_a_reference_that_is_replaced_is_the_policy_of_that_moment(world, tmp_path):
    """Every third step begins with no margin, and an adapter is its own reference's."""
    dpo.main(experiment(world, tmp_path / "run", lora=Lora(rank=2), reference_every=3))
    rows = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "preference/loss" in row]
    assert len(rows) > 6
    for step, row in enumerate(rows):
        if step % 3 == 0:
            assert row["preference/margin"] == pytest.approx(0, abs=1e-5)
            assert row["preference/loss"] == pytest.approx(np.log(2), abs=1e-5)
        else:
            assert abs(row["preference/margin"]) > 1e-4


@pytest.mark.long
def test_computed_once_or_at_each_step_the_reference_is_the_same(world, tmp_path):
    folders = [
        dpo.main(experiment(world, tmp_path / how, reference=how, epochs=1.0))["folder"] for how in ("once", "each")
    ]
    once, each = (hf.load(folder)[1] for folder in folders)
    for path, x in once.items():
        np.testing.assert_allclose(x, each[path], atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_reference_that_moves_survives_a_resume_bit_for_bit(world, tmp_path, share):
    changes = {"epochs": 2.0, "save_every": 3, "reference_every": 2, "reference_share": share}
    whole = dpo.main(experiment(world, tmp_path / "whole", **changes))
    metrics = lines(tmp_path / "whole" / "metrics.jsonl")
    plain = dpo.main(experiment(world, tmp_path / "plain", **changes | {"reference_every": 0}))

    again = alike.killed_and_resumed(dpo.main, experiment(world, tmp_path / "killed", **changes), after=4, saved=3)
    first, second, other = (hf.load(each["folder"])[1] for each in (whole, again, plain))
    assert all(np.array_equal(first[path], second[path]) for path in first)
    assert lines(tmp_path / "killed" / "metrics.jsonl") == metrics
    assert any(not np.array_equal(first[path], other[path]) for path in first), "a reference that moves changes the run"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "sigmod"}, ("loss must be one of", "did you mean 'sigmoid'")),
        ({"options": {"gama": 1.0}, "loss": "simpo"}, ("options.gama", "did you mean 'gamma'")),
        ({"beta": 0.1, "loss": "sft"}, ("beta: no loss here takes it",)),
        ({"also": {"sigmoid": 1.0}}, ("also names sigmoid",)),
        ({"also": {"kto": 1.0}}, ("must learn from the same rows", "kto from verdicts")),
        ({"loss": "kto", "ld_alpha": 0.5}, ("ld_alpha compares",)),
        ({"loss": "aot", "microbatches": 2}, ("microbatches must be 1", "aot")),
        ({"loss": "simpo", "reference_every": 5}, ("reference_every", "has no reference")),
        ({"window": 3}, ("no pair is left", "window is 3")),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(world, tmp_path, changes, words):
    refused(lambda: dpo.main(experiment(world, tmp_path / "run", **changes)), *words)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta": 0.0}, "beta must be > 0"),
        ({"ld_alpha": 1.5}, "ld_alpha must be between 0 and 1"),
        ({"reference": "never"}, "reference must be one of once, each"),
        ({"reference_share": 0.0}, "reference_share must be > 0"),
        ({"reference_share": 0.5, "lora": Lora(rank=2)}, "reference_share must be 1 with lora"),
        ({"batch": 8, "microbatches": 3}, "do not divide"),
    ],
)
def test_settings_that_mean_nothing_are_refused(world, tmp_path, changes, words):
    refused(lambda: experiment(world, tmp_path / "run", **changes), words)


def test_a_function_that_is_no_loss_is_refused(world, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    cfg = experiment(world, tmp_path / "run", loss=f"{path}:backwards")
    refused(lambda: dpo.main(cfg), "begins with chosen and rejected for pairs", "got worse, better")


def test_a_dry_run_tells_rows_steps_and_a_reference_that_moves(world, tmp_path, capsys):
    def told(**changes):
        plan = dpo.main(experiment(world, tmp_path / "run", dry_run=True, **changes))
        return plan["steps"], capsys.readouterr().out

    steps, pairs = told(reference_every=4)
    assert steps == 8 and "8 pairs, 2 x 20 tokens each" in pairs and "reference that moves" in pairs
    steps, single = told(loss="bco")
    assert steps == 15 and "8 verdicts, 1 x 20 tokens each" in single and "log-probabilities of the reference" in single
    assert "8 verdicts, 2 x 20 tokens each" in told(loss="kto")[1]
    assert "reference" not in told(loss="simpo")[1] and not (tmp_path / "run").exists()


def test_settings_are_read_from_the_command_line():
    told = ["--model", "m", "--comparisons", "c", "--loss", "simpo", "--also.sft", "0.1", "--options.gamma", "1.5"]
    cfg = config.parse(dpo.Experiment, [*told, "--beta", "2.5", "--per_token", "false"])
    assert (cfg.also, cfg.options, cfg.beta, cfg.per_token) == ({"sft": 0.1}, {"gamma": 1.5}, 2.5, False)


def test_prompts_that_are_all_one_have_no_mismatched_responses(world, tmp_path):
    found, _ = formats.load(world.comparisons)
    one = [dataclasses.replace(each, prompt=found[0].prompt, prompt_id="") for each in found[:12]]
    path = tmp_path / "one.jsonl"
    formats.dump(path, one)
    cfg = dataclasses.replace(experiment(world, tmp_path / "run", loss="kto", held_out=0.0), comparisons=str(path))
    refused(lambda: dpo.main(cfg), "all responses are to one prompt")
