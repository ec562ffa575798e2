"""reward_model.py with every loss it can be told: ties, rankings, ratings, judges, axes; what is learnt beside the model."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import ppo
import pytest
import reward_model
import reward_parts

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, records, simulate
from rlhf_jax.model import heads, hf
from rlhf_jax.model.hf import config as hf_config
from rlhf_jax.runs import config
from rlhf_jax.runs.dry_run import reward_model as dry_run
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.runs.reward_settings import Judging
from tests.experiments import alike
from tests.experiments.alike import refused
from tests.experiments.conftest import TEXT, facts, lines, message, write

QUICK = {"epochs": 0.5, "held_out": 0.3}


def answers():
    """(question as messages, four responses, their gold scores): right, half right twice, wrong."""
    for question, right, wrong, _ in facts():
        yield tuple(message("user", question)), (right, right + " " + wrong, wrong + " " + right, wrong), (3, 2, 1, 0)


@pytest.fixture(scope="module")
def judged(world):
    """Files: comparisons by judges of whom one turns everything round, rankings of four with ties, ratings on two axes."""
    rng = np.random.default_rng(0)
    panel = [
        simulate.Judge(name, temperature=1e-6, tie=1e6 if name == "Tess" else 0.0) for name in ("Ada", "Bob", "Tess")
    ]
    panel.append(simulate.Judge("Ivo", temperature=-1e-6))
    pairs = [simulate.Item(list(q), [a[0], a[3]], [1.0, 0.0]) for q, a, _ in answers()]
    comparisons = simulate.collect(rng, pairs, panel, votes=3)
    rankings = [
        records.Comparison(q, a, (0, 1, 1, 2), source_kind="human", annotator=name)
        for q, a, _ in answers()
        for name in ("Ada", "Bob")
    ]
    ratings = [
        records.Rating(q, text, axis, value, (1, 5), source_kind="human", annotator="Ada")
        for q, a, gold in answers()
        for text, score in zip(a, gold)
        for axis, value in (("helpful", score + 1), ("short", 5 if len(text) < 40 else 1))
    ]
    both = [dataclasses.replace(c, axis="helpful", strength=2) for c in comparisons]
    both += [dataclasses.replace(c, axis="odd", ranks=c.ranks[::-1]) for c in comparisons]
    files = {"comparisons": comparisons, "rankings": rankings, "axes": both}
    for name, found in files.items():
        files[name] = str(world.folder / f"judged_{name}.jsonl")
        formats.dump(files[name], found)
    rows = [{**dataclasses.asdict(rating), "prompt": list(rating.prompt)} for rating in ratings]
    return files | {"ratings": write(world.folder / "judged_ratings.jsonl", rows)}


@pytest.fixture(autouse=True, scope="module")
def _no_report():
    """Tested elsewhere, and half the time of so small a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_model.report, "write", lambda out: f"{out}/report.html")
        yield


def experiment(world, out, file, **changes):
    return dataclasses.replace(world.reward_model(out, **QUICK | changes), comparisons=file)


def run(world, out, file, **changes):
    return reward_model.main(experiment(world, out, file, **changes))


LOSSES = [
    ("davidson", "comparisons", {}, {"nu"}),
    ("crowd_bt", "comparisons", {"judgements": "each"}, {"reliability"}),
    ("plackett_luce", "rankings", {"window": 32}, {"delta"}),
    ("ordinal", "ratings", {"window": 32, "axes": ("helpful",)}, {"thresholds"}),
    ("regression", "ratings", {"window": 32, "axes": ("helpful", "short")}, set()),
    ("bradley_terry", "comparisons", {"judgements": "dawid_skene"}, set()),
]


SLOW = [
    pytest.param(*row, id=row[0], marks=() if row[0] in ("crowd_bt", "plackett_luce", "ordinal") else pytest.mark.long)
    for row in LOSSES
]


@pytest.mark.parametrize(("loss", "file", "changes", "numbers"), SLOW)
def test_every_loss_runs_and_says_what_it_learnt(world, judged, tmp_path, capsys, loss, file, changes, numbers):
    result = run(world, tmp_path / "run", judged[file], loss=loss, **{"epochs": 0.2} | changes)
    rows = [row for row in lines(tmp_path / "run" / "metrics.jsonl") if "reward/loss" in row]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert set(result["judging"]) == numbers
    assert json.loads((tmp_path / "run" / "model" / "judging.json").read_text()) == result["judging"]
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in numbers)
    assert f"judged by: {'synthetic' if file == 'comparisons' else 'human'}" in said
    cfg, params = hf.load(result["folder"])
    assert not [path for path in params if path.startswith("judging/")] and cfg.axis_names == changes.get("axes", ())


@pytest.mark.long
@pytest.mark.parametrize(("loss", "file", "changes", "numbers"), LOSSES, ids=[row[0] for row in LOSSES])
def test_every_loss_learns(world, judged, tmp_path, loss, file, changes, numbers):
    out = tmp_path / "run"
    result = run(world, out, judged[file], loss=loss, **{"epochs": 12.0, "batch": 16} | changes)
    rows = [row for row in lines(out / "metrics.jsonl") if "reward/loss" in row]
    assert np.mean([row["reward/loss"] for row in rows[-4:]]) < np.mean([row["reward/loss"] for row in rows[:4]])
    assert result["compilations"] == {"update": 1}
    if "thresholds" in numbers:
        assert (np.diff(result["judging"]["thresholds"]["helpful"]) > 0).all()


def test_a_judge_who_turns_everything_round_is_found_out(world, judged, tmp_path):
    """Ada and Bob see what is so, Ivo the opposite, Tess calls everything equal, which tells nothing of her."""
    changes = {"judgements": "each", "epochs": 6.0, "judging": Judging(lr=0.1)}
    found = run(world, tmp_path / "run", judged["comparisons"], loss="crowd_bt", **changes)["judging"]["reliability"]
    assert set(found) == {"Ada", "Bob", "Ivo", "Tess"}
    assert min(found["Ada"], found["Bob"]) > 0.75 > 0.5 > found["Ivo"]


def test_what_is_given_is_not_learnt(world, judged, tmp_path):
    path = tmp_path / "reliability.json"
    path.write_text(json.dumps({"Ada": 0.9, "Bob": 0.8, "Ivo": 0.1, "Tess": 0.5, "Zoe": 0.7}))
    given = {"judgements": "each", "judging": Judging(reliability=str(path))}
    found = run(world, tmp_path / "run", judged["comparisons"], loss="crowd_bt", **given)["judging"]["reliability"]
    assert found == pytest.approx({"Ada": 0.9, "Bob": 0.8, "Ivo": 0.1, "Tess": 0.5})
    for content, words in (
        ('{"Ada": 0.9}', "does not know 'Bob' (3 of 4)"),
        ('{"Ada": 7}', "a share from 0 to 1"),
        ("{", "as JSON"),
    ):
        path.write_text(content)
        refused(lambda: run(world, tmp_path / "x", judged["comparisons"], loss="crowd_bt", **given), words)


@pytest.mark.long
def test_a_tie_parameter_that_is_held_stays(world, judged, tmp_path):
    fixed = run(world, tmp_path / "nu", judged["comparisons"], loss="davidson", judging=Judging(learn=False, nu=0.3))
    assert fixed["judging"]["nu"] == {"": pytest.approx(0.3)}


def test_what_is_learnt_beside_the_model_survives_a_resume_bit_for_bit(world, judged, tmp_path):
    changes = {"loss": "crowd_bt", "judgements": "each", "epochs": 0.6, "save_every": 3}
    whole = run(world, tmp_path / "whole", judged["comparisons"], **changes)
    steps = len(lines(tmp_path / "whole" / "metrics.jsonl")) - 1
    assert steps > 5

    cfg = experiment(world, tmp_path / "killed", judged["comparisons"], **changes)
    again = alike.killed_and_resumed(reward_model.main, cfg, after=4, saved=3)
    assert again["judging"] == whole["judging"]
    first, second = (hf.load(each["folder"])[1] for each in (whole, again))
    assert all(np.array_equal(first[path], second[path]) for path in first)


@pytest.fixture(scope="module")
def model(world, judged, tmp_path_factory):
    """A reward model of two axes, of which `odd` is `helpful` turned round."""
    changes = {"axes": ("helpful", "odd"), "epochs": 12.0, "batch": 16, "judgements": "dawid_skene"}
    return run(world, tmp_path_factory.mktemp("axes") / "run", judged["axes"], **changes)


class TestAxes:
    """One output an axis, by name, each taught by its own judgements; mixed when it is used."""

    def test_names_are_saved_and_each_output_orders_by_its_own_axis(self, model):
        cfg, _ = hf.load(model["folder"])
        assert cfg.axes == 2 and cfg.axis_names == ("helpful", "odd") and len(cfg.reward_std) == 2
        document = json.loads(open(f"{model['folder']}/config.json").read())
        assert document["id2label"] == {"0": "helpful", "1": "odd"} and document["label2id"]["odd"] == 1
        questions, texts = zip(*[(q, a) for q, a, _ in answers()])
        for axis, sign in ((0, 1), (1, -1)):
            score = reward_model.scorer(model["folder"], window=TEXT, rows=36, axis=axis)
            right, wrong = (score(questions, [text[side] for text in texts], None) for side in (0, 3))
            assert (sign * (right - wrong) > 0).mean() > 0.75
        told = [model["held_out"][name].n for name in ("reward model", "reward model, helpful", "reward model, odd")]
        assert told[0] == told[1] + told[2] > told[1] == told[2]

    @pytest.mark.parametrize("names", [("helpful", "odd"), ()])
    def test_names_stand_in_config_json_where_transformers_has_labels(self, world, names):
        cfg = hf.classifier(hf.load(world.model)[0], 2, names)
        document, _ = hf_config.write(cfg, None, None)
        shown = names or ("LABEL_0", "LABEL_1")
        assert document["id2label"] == {"0": shown[0], "1": shown[1]} and document["num_labels"] == 2
        assert hf_config.read(document).axis_names == names
        doubled = document | {"id2label": {"0": "same", "1": "same"}}
        assert hf_config.read(doubled).axis_names == (), "names that do not tell the axes apart are none"

    def test_the_mix_is_chosen_when_scoring_and_every_axis_is_told(self, model):
        questions, texts = zip(*[(q, a[0]) for q, a, _ in answers()][:6])
        alone = [
            reward_model.scorer(model["folder"], window=TEXT, rows=4, axis=axis)(questions, texts, [{}] * 6)
            for axis in (0, 1)
        ]
        score = reward_model.scorer(model["folder"], window=TEXT, rows=4, axes={"odd": -0.5, "helpful": 2.0})
        total, parts = score(questions, texts, [{}] * 6)
        np.testing.assert_allclose(total, 2.0 * alone[0] - 0.5 * alone[1], rtol=1e-5, atol=1e-6)
        assert list(parts) == ["helpful", "odd"]
        np.testing.assert_array_equal(parts["odd"], alone[1])

    @pytest.mark.long
    def test_ppo_logs_every_axis_and_begins_its_values_at_the_mix(self, world, model, tmp_path):
        rewards = {"judged": Reward(model=model["folder"], axes={"helpful": 1.0, "odd": 0.5})}
        cfg = world.ppo(tmp_path / "run", rewards, iterations=1, value="reward")
        ppo.main(cfg)
        row = lines(tmp_path / "run" / "metrics.jsonl")[0]
        parts = {name: row[f"reward/judged{name}"] for name in ("", ".helpful", ".odd")}
        assert parts[""] == pytest.approx(parts[".helpful"] + 0.5 * parts[".odd"], abs=1e-4)

    def test_the_value_head_is_the_mix_of_the_axes(self, world, model):
        from rlhf_jax.runs import models

        rewards = {"judged": Reward(model=model["folder"], axes={"helpful": 1.0, "odd": 0.5})}
        cfg = dataclasses.replace(world.ppo("unused", rewards), value="reward")
        opened = models.open_model(model["folder"])
        value = ppo.build_value(cfg, models.open_model(world.model), hf.tokenizer(world.model), None, {})
        tokens, length = jnp.array([[5, 6, 7, 8]]), jnp.array([4])
        scores = heads.reward(opened.params, tokens, length, cfg=opened.cfg)
        found = heads.value(value.params, tokens, length, 0 * length, window=1, cfg=value.cfg)
        np.testing.assert_allclose(found[0, 0], scores[0] @ np.array([1.0, 0.5]), rtol=1e-4, atol=1e-5)

    def test_an_axis_that_is_not_there_is_told_with_those_that_are(self, world, model, judged, tmp_path):
        refused(
            lambda: reward_model.scorer(model["folder"], window=TEXT, rows=4, axes={"helpfull": 1.0}),
            "no axis 'helpfull'",
            "did you mean 'helpful'",
            "it has helpful, odd",
        )
        plain = {"a": Reward(model=world.reward, axes={"helpful": 1.0})}
        refused(lambda: ppo.main(world.ppo(tmp_path / "p", plain)), "has no axis 'helpful'", "1 without names")
        refused(
            lambda: run(world, tmp_path / "a", judged["axes"], axes=("kind",)),
            "nobody judged 'kind'",
            "helpful (",
            "odd (",
        )
        more = {"axes": ("odd", "helpful")}
        cfg = dataclasses.replace(world.reward_model(tmp_path / "b", **more), model=model["folder"])
        refused(lambda: reward_model.main(cfg), "has helpful, odd, not odd, helpful")

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"axes": {"a": float("nan")}, "model": "m"}, "axes.a must be a finite number"),
            ({"axes": {"a": 1.0}, "function": "f.py:f"}, "axes are those of a model"),
            ({"axes": {"a": 1.0}, "model": "m", "axis": 1}, "axis must be left out"),
        ],
    )
    def test_a_mix_that_means_nothing_is_refused(self, changes, words):
        refused(lambda: Reward(**changes), words)

    def test_the_mix_is_read_from_yaml_and_from_the_command_line(self, tmp_path):
        path = tmp_path / "ppo.yaml"
        path.write_text("rewards: {judged: {model: m, axes: {helpful: 1.0, harmless: 0.5}}}\n")
        arguments = ["--config", str(path), "--policy", "p", "--prompts", "q"]
        assert config.parse(ppo.Experiment, arguments).rewards["judged"].axes == {"helpful": 1.0, "harmless": 0.5}
        told = config.parse(ppo.Experiment, [*arguments, "--rewards.judged.axes.harmless", "0.25"])
        assert told.rewards["judged"].axes == {"helpful": 1.0, "harmless": 0.25}

    def test_axes_that_share_an_output_are_told_of(self, world, judged, tmp_path, capsys):
        run(world, tmp_path / "run", judged["axes"], epochs=0.05)
        assert "one reward learns all axes alike; axes: [helpful, odd]" in capsys.readouterr().out


@pytest.mark.long
def test_members_differ_by_head_and_order_and_are_read_together(world, judged, tmp_path):
    changes = {"epochs": 0.2}
    folders = [run(world, tmp_path / str(m), judged["comparisons"], member=m, **changes)["folder"] for m in (0, 1)]
    plain = run(world, tmp_path / "plain", judged["comparisons"], **changes)["folder"]
    first, second, alone = (hf.load(folder)[1] for folder in (*folders, plain))
    assert all(np.array_equal(first[path], alone[path]) for path in first), "member 0 is the model that there was"
    assert not np.array_equal(first["score"], second["score"])
    questions, texts = zip(*[(q, a[0]) for q, a, _ in answers()][:7])
    found = reward_model.ensemble(folders, window=TEXT, rows=4)(questions, texts, None)
    each = [reward_model.scorer(folder, window=TEXT, rows=4)(questions, texts, None) for folder in folders]
    assert found.shape == (2, 7)
    np.testing.assert_allclose(found, each, rtol=1e-4, atol=1e-5)
    shared = [records_of(tmp_path / name) for name in ("0", "1")]
    assert shared[0] == shared[1], "the same prompts are held out"


def records_of(out):
    """How many pairs were held out, and how the baselines do on them, which know no seed."""
    row = lines(out / "metrics.jsonl")[-1]
    return {name: x for name, x in row.items() if "bag" in name or "longer" in name}


def test_an_ensemble_of_other_models_is_refused(world):
    refused(lambda: reward_model.ensemble([world.reward], window=TEXT, rows=4, axis=1), "axis 1 is not one")


def test_a_loss_of_ones_own(world, judged, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import jax.numpy as jnp\n\n\n"
        "def hinge(chosen, rejected, label, margin=1.0):\n"
        "    return jnp.maximum(0, 1 - (2 * label - 1) * (chosen - rejected))\n\n\n"
        "def greedy(chosen, rejected, colour):\n    return chosen\n\n\n"
        "def other(a, b):\n    return a\n"
    )
    result = run(world, tmp_path / "run", judged["comparisons"], loss=f"{path}:hinge")
    assert result["held_out"]["reward model"].n > 5
    refused(
        lambda: run(world, tmp_path / "a", judged["comparisons"], loss=f"{path}:greedy"), "may ask for", "got colour"
    )
    refused(lambda: run(world, tmp_path / "b", judged["comparisons"], loss=f"{path}:other"), "begins with", "got a, b")
    refused(lambda: run(world, tmp_path / "c", judged["comparisons"], loss="bradley"), "did you mean 'bradley_terry'")


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("comparisons", {"loss": "crowd_bt"}, ("judgements must be each",)),
        ("comparisons", {"loss": "davidson", "label_smoothing": 0.1}, ("label_smoothing", "takes none")),
        ("rankings", {"loss": "plackett_luce", "margin": 0.1}, ("margin", "takes none")),
        ("rankings", {"loss": "plackett_luce", "judgements": "dawid_skene"}, ("judgements must be votes or each",)),
        ("axes", {"strength_margins": (0.5,)}, ("strength_margins has 1 numbers", "gave strength 2")),
    ],
)
def test_settings_that_a_loss_would_not_heed_are_refused(world, judged, tmp_path, file, changes, words):
    refused(lambda: run(world, tmp_path / "run", judged[file], **changes), *words)


def test_a_dry_run_knows_what_a_row_is(world, judged, tmp_path):
    plans = {}
    for loss, file in (("bradley_terry", "comparisons"), ("plackett_luce", "rankings"), ("ordinal", "ratings")):
        cfg = dataclasses.replace(world.reward_model(tmp_path / "run", loss=loss), comparisons=judged[file])
        plans[loss] = dry_run.plan(cfg)
    texts = {"bradley_terry": "8 pairs, 2 x", "plackett_luce": "8 rankings, 4 x", "ordinal": "8 ratings, 1 x"}
    assert all(plans[loss].step.startswith(start) for loss, start in texts.items())
    flops = [plans[loss].flops["update"] for loss in ("ordinal", "bradley_terry", "plackett_luce")]
    assert flops[1] == 2 * flops[0] and flops[2] == 4 * flops[0]
    several = dataclasses.replace(
        world.reward_model(tmp_path / "run", axes=("helpful", "odd")), comparisons=judged["axes"]
    )
    assert next(iter(dry_run.plan(several).models.values())).axis_names == ("helpful", "odd")
    assert not (tmp_path / "run").exists()


class TestWhatIsLearntFrom:
    """Who judged, and what evaluation may be on; nothing is trained."""

    ASKED = "What does the animal by the river that has fur and teeth eat at {}?"

    def rows(self, **more):
        prompts = [self.ASKED.format(f"number {k}") for k in range(15)] + [f"Why {k}?" for k in range(15)]
        return [
            {"prompt": text, "chosen": "The otter eats fish.", "rejected": "The otter eats."} | more for text in prompts
        ]

    def loaded(self, world, tmp_path, rows, **changes):
        cfg = world.reward_model(tmp_path, **{"window": 64} | changes)
        cfg = dataclasses.replace(cfg, comparisons=write(tmp_path / "a.jsonl", rows))
        return reward_parts.load(cfg, "pairs", hf.tokenizer(world.model), ())

    def test_held_out_prompts_that_training_shares_are_told_and_left_out(self, world, tmp_path, capsys):
        def shares(pairs):
            return [pair for pair in pairs if "by the river" in pair.prompt[0]["content"]]

        found = self.loaded(world, tmp_path, self.rows(), held_out=0.5)
        told = capsys.readouterr().out
        assert shares(found.pairs) and found.held and not shares(found.held)
        every = self.loaded(world, tmp_path, self.rows(), held_out=0.5, leaks="keep")
        assert "They are kept" in capsys.readouterr().out and len(every.pairs) == len(found.pairs)
        leaked = len(every.held) - len(found.held)
        assert leaked == len(shares(every.held)) > 0 and len(every.held_rows.weight) == len(every.held)
        assert f"held out: {leaked} of {len(every.held)} evaluation records" in told and "They are left out." in told

    def test_who_judged_is_said(self, world, tmp_path, capsys):
        self.loaded(world, tmp_path, self.rows())
        told = capsys.readouterr().out
        assert "does not say who judged 30 of its rows: TAKEN AS HUMAN" in told
        assert "judged by: human 30 (human assumed in 30 rows, which do not say)" in told
        self.loaded(world, tmp_path, self.rows(), source_kind="ai")
        told = capsys.readouterr().out
        assert "judged by: ai 30\n" in told and "TAKEN AS HUMAN" not in told
        refused(
            lambda: self.loaded(world, tmp_path, self.rows(source_kind="human"), source_kind="ai"),
            "source_kind is ai",
            "human 30",
        )
        refused(lambda: world.reward_model(tmp_path, source_kind="robot"), "source_kind")
        refused(lambda: world.reward_model(tmp_path, leaks="hide"), "leaks")

    def test_ties_dropped_are_no_votes_either(self, world, tmp_path):
        asked = ({"role": "user", "content": "What does the otter eat?"},)

        def said(ranks, who):
            return records.Comparison(asked, ("a", "b"), ranks, annotator=who, source_kind="human")

        votes = [said((0, 1), "A"), said((0, 1), "B"), said((0, 0), "C")]
        (half,) = reward_model.to_pairs(votes, world.reward_model(tmp_path))
        (drop,) = reward_model.to_pairs(votes, world.reward_model(tmp_path, ties="drop"))
        assert (half.label, half.equal, half.share) == pytest.approx((1.0, 1 / 3, 5 / 6))
        assert (drop.label, drop.equal, drop.share) == (1.0, 0.0, 1.0)
        leads = [*votes, said((0, 0), "D"), said((0, 0), "E")]
        with pytest.raises(UserError, match="no  ?pair has a winner"):
            reward_model.to_pairs(leads, world.reward_model(tmp_path, ties="drop"))
