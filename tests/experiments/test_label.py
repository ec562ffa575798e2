"""What label.py puts before people, keeps of them, and hands on."""

import itertools
import json
import math
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import generate
import label
import label_parts
import label_select
import numpy as np
import pytest
import reward_model
import reward_parts
from starlette.testclient import TestClient

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, records
from rlhf_jax.feedback.records import Comparison, Rating, as_messages
from rlhf_jax.feedback.server import run as server_run
from rlhf_jax.feedback.server.app import Settings, app
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import annotator_of
from rlhf_jax.feedback.store.read import annotators
from rlhf_jax.model import hf
from rlhf_jax.types import Sampling
from tests.experiments.conftest import PROMPT, RESPONSE, TEXT, draw, lines, model_config, optimised, write

OTTER = [
    "The otter eats fish.",
    "It likes grass and leaves.",
    "the otter  eats fish.",
    "Nothing at all",
    "No idea, sorry",
]


@pytest.fixture
def cfg(tmp_path):
    """An experiment on two prompts with ready responses."""
    rows = [
        {"prompt": "What does the otter eat?", "responses": OTTER, "tokens": [4, 5, 4, 3, 3]},
        {"prompt": [{"role": "user", "content": "Where?"}], "responses": ["In the river", "in  THE river"]},
    ]
    ready = write(tmp_path / "ready.jsonl", rows)
    return label.Experiment(str(tmp_path / "judgements.sqlite"), responses=ready, port=0)


@pytest.fixture
def sampled(world, tmp_path):
    """An experiment on the responses of the tiny model."""
    return label.Experiment(
        str(tmp_path / "judgements.sqlite"),
        prompts=world.prompts,
        policy=world.model,
        samples=3,
        prompt_window=PROMPT,
        response_window=RESPONSE,
        port=0,
    )


def stored(cfg, sql="SELECT * FROM item ORDER BY id"):
    with closing(open_store(cfg.db)) as con:
        return [dict(row) for row in con.execute(sql)]


def texts_of(cfg):
    """Each item's responses, in its own order."""
    known = {row["id"]: row["text"] for row in stored(cfg, "SELECT id, text FROM response")}
    return [[known[key] for key in json.loads(item["response_ids"])] for item in stored(cfg)]


def fill(cfg):
    with closing(open_store(cfg.db)) as con:
        return label.fill(con, cfg)


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("pair", [[OTTER[0], OTTER[1]], [OTTER[3], OTTER[4]]]),
        ("rank", [[OTTER[0], OTTER[1], OTTER[3], OTTER[4]]]),
        ("rate", [[OTTER[0]], [OTTER[1]], [OTTER[3]], [OTTER[4]], ["In the river"]]),
    ],
)
def test_each_kept_response_is_in_one_item_and_the_rest_is_counted(cfg, kind, items):
    found = fill(replace(cfg, kind=kind, overlap=3))
    assert texts_of(cfg) == items
    assert found.pop("items") == len(items)
    alone = {} if kind == "rate" else {"responses without another one to compare with": 1}
    expected = {"gold": 0, "near-duplicates of another response": 2} | alone
    assert found == expected
    assert {row["target_n"] for row in stored(cfg)} == {3}
    assert {row["kind"] for row in stored(cfg)} == {kind}


def test_a_long_list_of_responses_becomes_rankings_of_nine_at_most(cfg, tmp_path):
    words = "river meadow forest desert garden mountain ocean village harbour castle bridge".split()
    ready = write(tmp_path / "many.jsonl", [{"prompt": "Where?", "responses": words}])
    found = fill(replace(cfg, responses=ready, kind="rank"))
    assert [len(texts) for texts in texts_of(cfg)] == [9, 2]
    assert found["items"] == 2


def test_the_same_again_adds_nothing(cfg):
    first, items = fill(cfg), stored(cfg)
    assert fill(cfg) == first
    assert stored(cfg) == items


def test_lengths_stand_beside_their_responses(cfg):
    fill(cfg)
    found = {row["text"]: row["n_tokens"] for row in stored(cfg, "SELECT text, n_tokens FROM response")}
    assert found == {OTTER[0]: 4, OTTER[1]: 5, OTTER[3]: 3, OTTER[4]: 3}


def test_responses_are_those_of_generate(world, sampled, tmp_path):
    """The same prompts, seed and sizes give the same texts as generate.py writes."""
    sampled = replace(sampled, kind="rank", similar=1.0, sampling=Sampling(temperature=0.9), seed=3)
    fill(sampled)
    other = generate.Experiment(world.model, world.prompts, str(tmp_path / "other.jsonl"), samples=3, seed=3)
    generate.main(
        replace(other, prompt_window=PROMPT, response_window=RESPONSE, sampling=Sampling(temperature=0.9), batch=32)
    )
    expected = [(row["prompt"], row["responses"]) for row in lines(other.out)]
    assert [(row["prompt"], row["responses"]) for row in lines(f"{sampled.db}.responses.jsonl")] == expected
    assert {text for texts in texts_of(sampled) for text in texts} <= {t for _, texts in expected for t in texts}
    made = stored(sampled, "SELECT DISTINCT policy, generation FROM response")
    assert [row["policy"] for row in made] == [world.model]
    assert json.loads(made[0]["generation"])["temperature"] == 0.9 and json.loads(made[0]["generation"])["seed"] == 3


def test_only_new_prompts_are_sampled(world, sampled, tmp_path, monkeypatch, capsys):
    few = write(tmp_path / "few.jsonl", lines(world.prompts)[:2])
    fill(replace(sampled, first=2))
    before, items = lines(f"{sampled.db}.responses.jsonl"), stored(sampled)
    real, asked = generate.respond, []

    def respond(params, prompts, *args, **kwargs):
        asked.append(prompts.length.size)
        return real(params, prompts, *args, **kwargs)

    monkeypatch.setattr(generate, "respond", respond)
    fill(replace(sampled, prompts=few))
    assert asked == [], "nothing to sample, so no model is loaded either"
    assert lines(f"{sampled.db}.responses.jsonl") == before
    more = write(tmp_path / "more.jsonl", lines(world.prompts)[:4] + lines(world.prompts)[:1])
    capsys.readouterr()
    found = fill(replace(sampled, prompts=more))
    told = capsys.readouterr().out
    assert "others, which stay" not in told, "those of the first file are among them"
    assert f"({found['items'] - len(items)} new, {len(items)} there before)" in told
    assert asked == [2]
    after = lines(f"{sampled.db}.responses.jsonl")
    assert after[:2] == before and len(after) == 4
    assert stored(sampled)[: len(items)] == items
    another = write(tmp_path / "another.jsonl", lines(world.prompts)[3:5])
    fill(replace(sampled, prompts=another))
    told = capsys.readouterr().out
    assert "to 1 of these 2 prompts, and to 3 others, which stay and are asked about too" in told and asked == [2, 1]


def test_a_prompt_too_long_is_not_tried_again(world, sampled, tmp_path, capsys):
    rows = [*lines(world.prompts)[:2], {"prompt": "What does the otter eat? " * 9}]
    long = write(tmp_path / "long.jsonl", rows)
    fill(replace(sampled, prompts=long))
    assert [len(row["responses"]) for row in lines(f"{sampled.db}.responses.jsonl")] == [3, 3, 0]
    assert "1 longer than 10 tokens: dropped" in capsys.readouterr().out
    fill(replace(sampled, prompts=long))
    assert "nothing to sample" in capsys.readouterr().out


def compared(responses, ranks, annotator="Ada"):
    return Comparison(
        as_messages("Gold?"), tuple(responses), tuple(ranks), source_kind="human", annotator=annotator, item="x"
    )


@pytest.mark.parametrize(
    ("kind", "given", "answers", "left"),
    [
        ("pair", [compared("ab", [1, 0])], [(["b", "a"], {"strength": -2})], {}),
        ("pair", [compared("ab", [0, 1]), compared("ba", [1, 0], "Bob")], [(["a", "b"], {"strength": -2})], {}),
        ("rank", [compared("abc", [2, 0, 0])], [(["a", "b", "c"], {"ranks": [1, 0, 0]})], {}),
    ],
)
def test_gold_is_what_all_judges_say(cfg, tmp_path, kind, given, answers, left):
    clear = tmp_path / "gold.jsonl"
    noise = [compared("cd", [0, 1]), compared("cd", [1, 0], "Bob"), compared("ef", [0, 0])]
    formats.dump(clear, [*given, *noise])
    found = fill(replace(cfg, kind=kind, gold=str(clear)))
    gold = [(texts, json.loads(item["gold"])) for texts, item in zip(texts_of(cfg), stored(cfg)) if item["gold"]]
    if kind == "rank":
        answers = [(texts, {"ranks": [1, 0, 0]}) for texts, _ in answers]
    assert gold == answers
    assert found["gold"] == len(answers)


def test_gold_ratings(cfg, tmp_path):
    def rated(response, axis, value, scale=(1, 5), annotator="Ada"):
        return Rating(as_messages("Q"), response, axis, value, scale, source_kind="human", annotator=annotator)

    path = tmp_path / "gold.jsonl"
    given = [rated("a", "helpful", 4), rated("a", "style", 1), rated("b", "helpful", 2), rated("b", "helpful", 5)]
    formats.dump(path, [*given, rated("c", "helpful", 2, (0, 4)), rated("d", "overall", 2)])
    made, left = label_parts.gold_items(str(path), replace(cfg, kind="rate"))
    assert [(item.responses, item.gold) for item in made] == [(("a",), {"ratings": {"helpful": 4, "style": 1}})]
    assert left == {
        "gold on which its judges differ": 1,
        "gold on an axis or a scale that the page does not have": 2,
    }


def test_gold_without_a_clear_answer_is_refused(cfg, tmp_path):
    path = tmp_path / "gold.jsonl"
    formats.dump(path, [compared("ef", [0, 0])])
    with pytest.raises(UserError, match="gives no item with a clear answer .1 gold that is a tie."):
        fill(replace(cfg, gold=str(path)))


TEXTS = ["fish", "grass", "leaves by the river", "worms in the garden"]


@pytest.fixture(scope="module")
def members(world, tmp_path_factory):
    """Two reward models that differ in their weights."""
    words, folder = hf.tokenizer(world.model), tmp_path_factory.mktemp("members")
    judge = hf.classifier(model_config(words), 1)
    for seed in (1, 2):
        hf.save(folder / f"member_{seed}", judge, draw(judge, seed, scale=0.5), words)
    return [str(folder / f"member_{seed}") for seed in (1, 2)]


@pytest.fixture(scope="module")
def margins(members):
    """(prompt, one response, the other): [M], one text at a time, of all pairs."""
    found = {}
    for folder in members:
        with optimised(False):
            score = reward_model.scorer(folder, window=TEXT, rows=1)
            for animal in ("otter", "moose"):
                prompt = as_messages(f"What does the {animal} eat?")
                said = [float(score([prompt], [text], [{}])[0]) for text in TEXTS]
                for a, b in itertools.combinations(range(4), 2):
                    key = records.prompt_key(prompt), TEXTS[a], TEXTS[b]
                    found.setdefault(key, []).append(said[a] - said[b])
    return found


class TestSelection:
    """Which pairs of sampled responses are asked about."""

    @pytest.fixture
    def cfg(self, members, tmp_path):
        """12 pairs of 4 responses to 2 prompts."""
        rows = [{"prompt": f"What does the {who} eat?", "responses": TEXTS} for who in ("otter", "moose")]
        ready = write(tmp_path / "ready.jsonl", rows)
        return label.Experiment(
            str(tmp_path / "judgements.sqlite"),
            responses=ready,
            similar=1.0,
            select="disagreement",
            reward_models=",".join(members),
            ask=6,
            prompt_window=PROMPT,
            response_window=RESPONSE,
        )

    def items(self, cfg):
        return stored(cfg, "SELECT item.*, messages FROM item JOIN prompt ON prompt.id = prompt_id ORDER BY item.id")

    @pytest.mark.parametrize("method", ["disagreement", "bald"])
    def test_the_members_choose_and_a_fifth_is_drawn_at_random(self, cfg, margins, method):
        cfg = replace(cfg, select=method)
        assert fill(cfg)["items"] == 6
        items, texts = self.items(cfg), texts_of(cfg)
        assert [item["selection"] for item in items] == ["random"] * 2 + [f"active:{method}"] * 4
        score = {}
        for key, row in margins.items():
            shares = [1 / (1 + math.exp(-x)) for x in row]
            mean = sum(shares) / 2
            if method == "bald":
                score[key] = binary(mean) - sum(binary(p) for p in shares) / 2
            else:
                score[key] = sum((p - mean) ** 2 for p in shares) / 2
        asked = [(item["prompt_id"], *pair) for item, pair in zip(items, texts, strict=True)]
        assert len(set(asked)) == 6
        assert [item["score"] for item in items] == pytest.approx([score[key] for key in asked], rel=1e-3, abs=1e-7)
        rest = sorted((score[key] for key in score if key not in asked[:2]), reverse=True)
        assert [score[key] for key in asked[2:]] == pytest.approx(rest[:4], rel=1e-3, abs=1e-7)

    def test_d_optimal_asks_in_different_directions(self, cfg):
        cfg = replace(cfg, select="d_optimal", ask=0)
        assert fill(cfg)["items"] == 4, "as many as without"
        assert [item["selection"] for item in self.items(cfg)] == ["random"] + ["active:d_optimal"] * 3

    def test_features_are_what_the_score_is_linear_in(self, cfg, members):
        texts = ["fish", "grass", "leaves by the river", "worms in the garden", "fish fish"]
        prompts = [as_messages("What does the otter eat?")] * 5
        z = label_select.features(members[0], prompts, texts, window=TEXT, cfg=cfg)
        head = np.asarray(hf.load(members[0])[1]["score"], np.float64)[:, 0]
        said = np.asarray(reward_model.scorer(members[0], window=TEXT, rows=8)(prompts, texts, [{}] * 5), np.float64)
        np.testing.assert_allclose((z @ head) / (z @ head).std(), said / said.std(), rtol=1e-3)
        assert np.mean(z**2) == pytest.approx(1)

    def test_the_same_again_adds_nothing_and_random_needs_no_model(self, cfg):
        fill(cfg)
        before = self.items(cfg)
        fill(cfg)
        assert self.items(cfg) == before
        cfg = replace(cfg, db=f"{cfg.db}.other", select="random", reward_models="", ask=5)
        fill(cfg)
        assert {(item["selection"], item["score"]) for item in self.items(cfg)} == {("random", None)}
        assert len(self.items(cfg)) == 5

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"reward_models": "one"}, "disagreement needs 2 reward_models"),
            ({"reward_models": "", "select": "d_optimal"}, "d_optimal needs 1 reward_models"),
            ({"kind": "rank"}, "kind must be pair"),
            ({"ask": 13}, "ask is 13, and there are 12 pairs"),
            ({"select": ""}, "say how, with select"),
        ],
    )
    def test_settings_that_do_not_fit_together(self, cfg, changes, told):
        with pytest.raises(UserError, match=told):
            fill(replace(cfg, **changes))


def binary(p):
    """Entropy of a coin, nats."""
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_reward_models_are_evaluated_on_random_items_only(world, tmp_path, monkeypatch, capsys):
    """Held-out comparisons that a reward model chose are left out, and counted; they teach like any other."""
    read, _ = formats.load(world.comparisons)
    ways = ["random", "active:bald", None]
    rows = [replace(c, meta={"selection": ways[i % 3]} if ways[i % 3] else {}) for i, c in enumerate(read)]
    formats.dump(tmp_path / "chosen.jsonl", rows)
    cfg = replace(world.reward_model(""), comparisons=str(tmp_path / "chosen.jsonl"), held_out=0.5)
    seen = []
    pairs_of = reward_parts.to_pairs
    monkeypatch.setattr(reward_parts, "to_pairs", lambda c, *more: (seen.append(c), pairs_of(c, *more))[1])
    reward_parts.load(cfg, "pairs", hf.tokenizer(world.model), ())
    kept, held = seen
    assert {c.meta.get("selection") for c in kept} == {*ways}
    assert {c.meta.get("selection") for c in held} == {"random", None}
    _, whole = records.split_by_prompt(rows, 0.5, seed=cfg.seed)
    assert len(held) == sum(c.meta.get("selection") != "active:bald" for c in whole) < len(whole)
    assert f"{len(whole) - len(held)} held-out rows were chosen by a reward model" in capsys.readouterr().out


class TestTokens:
    def test_an_admin_is_one_on_a_store_that_knows_them_already(self, cfg):
        path = Path(f"{cfg.db}.links.json")
        with closing(open_store(cfg.db)) as con:
            before = label_parts.tokens(con, ["me", "you"], path)
            assert label_parts.tokens(con, ["me", "you"], path, admin="me") == before
            assert {row["name"]: row["admin"] for row in annotators(con)} == {"me": True, "you": False}

    def test_what_people_tell_of_themselves_is_exported_only_when_asked_for(self, cfg, tmp_path):
        """Row A19: opt-in, kept with the time of consent, taken back at will, and no export has it unasked."""
        fill(cfg)
        told = tmp_path / "groups.json"
        with closing(open_store(cfg.db)) as con:
            (token,) = label_parts.tokens(con, ["me"], Path(f"{cfg.db}.links.json")).values()
            told.write_text('{"me": {"age": "30-39"}}')
            label_parts.keep_groups(con, told)
            assert con.execute("SELECT consent_at FROM annotator").fetchone()[0] > 0
            client = TestClient(app(Settings(cfg.db)), base_url="http://127.0.0.1")
            said = {"authorization": f"Bearer {token}"}
            task = client.get("/api/task", headers=said).json()["task"]["assignment"]
            client.post("/api/judgement", headers=said, json={"assignment": task, "verdict": {"strength": 1}})
            for asked, there in ((False, False), (True, True)):
                label.export(replace(cfg, export=str(tmp_path / "out.jsonl"), include_groups=asked))
                text = (tmp_path / "out.jsonl").read_text()
                assert ("30-39" in text) is there and '"me"' not in text
            told.write_text('{"me": null}')
            label_parts.keep_groups(con, told)
            assert tuple(con.execute("SELECT groups, consent_at FROM annotator").fetchone()) == (None, None)
            for content, words in (
                ('{"you": null}', "no annotator 'you'"),
                ('{"me": 3}', "must hold"),
                ("", "cannot be read"),
            ):
                told.write_text(content)
                with pytest.raises(UserError, match=words):
                    label_parts.keep_groups(con, told)

    def test_stay_the_same_and_are_only_in_a_file_of_their_owner(self, cfg):
        path = Path(f"{cfg.db}.links.json")
        with closing(open_store(cfg.db)) as con:
            first = label_parts.tokens(con, ["ann", "bob"], path, admin="bob")
            again = label_parts.tokens(con, ["bob", "cy"], path)
            assert again["bob"] == first["bob"]
            assert len({*first.values(), *again.values()}) == 3
            assert [annotator_of(con, first[name])["name"] for name in ("ann", "bob")] == ["ann", "bob"]
            assert {row["name"]: row["admin"] for row in annotators(con)} == {"ann": False, "bob": True, "cy": False}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        whole = b"".join(each.read_bytes() for each in path.parent.glob("judgements.sqlite*") if each != path)
        assert not any(token.encode() in whole for token in first.values())

    def test_are_new_where_the_file_is_gone(self, cfg):
        path = Path(f"{cfg.db}.links.json")
        with closing(open_store(cfg.db)) as con:
            old = label_parts.tokens(con, ["ann"], path)["ann"]
            path.unlink()
            new = label_parts.tokens(con, ["ann"], path)["ann"]
            assert annotator_of(con, old) is None and annotator_of(con, new)["name"] == "ann"
            assert len(annotators(con)) == 1

    def test_of_somebody_else_are_not_taken(self, cfg):
        path = Path(f"{cfg.db}.links.json")
        with closing(open_store(cfg.db)) as con:
            bob = label_parts.tokens(con, ["bob"], path)["bob"]
            path.write_text(json.dumps({"ann": bob, "bob": bob}))
            ann = label_parts.tokens(con, ["ann"], path)["ann"]
            assert annotator_of(con, ann)["name"] == "ann"

    @pytest.mark.parametrize("content", ["{", "[]", '{"ann": 1}', "\udcff"])
    def test_in_a_file_of_something_else(self, cfg, content):
        path = Path(f"{cfg.db}.links.json")
        path.write_bytes(content.encode(errors="surrogateescape"))
        with closing(open_store(cfg.db)) as con, pytest.raises(UserError, match=r"links.json .* new (link|one)"):
            label_parts.tokens(con, ["ann"], path)


def session(monkeypatch, work):
    """main() with `work(client, token)` in place of people and network; then Ctrl-C."""
    seen = {}

    def serve(app, listening):
        told = label_parts.read_tokens(seen["links"])
        seen["address"] = listening.getsockname()
        work(TestClient(app, base_url="http://127.0.0.1"), told)
        raise KeyboardInterrupt

    monkeypatch.setattr(server_run, "serve", serve)
    return seen


def judge_all(client, headers, verdict):
    """How many tasks there were."""
    task, count = client.get("/api/task", headers=headers).json()["task"], 0
    while task:
        body = {"assignment": task["assignment"], "verdict": verdict(task)}
        reply = client.post("/api/judgement", headers=headers, json=body)
        assert reply.status_code == 200, reply.text
        task, count = reply.json()["task"], count + 1
    return count


def test_serve_judge_stop_go_on_and_export(cfg, monkeypatch, tmp_path, capsys):
    cfg = replace(cfg, annotators="ann, bob,ann", overlap=2, guidelines=str(tmp_path / "guide.txt"), question="Best?")
    (tmp_path / "guide.txt").write_text("Be fair.")
    done = []

    def work(client, told):
        for name in cfg.names():
            headers = {"Authorization": f"Bearer {told[name]}"}
            assert client.get("/api/guidelines", headers=headers).json()["text"] == "Be fair."
            done.append(judge_all(client, headers, lambda task: {"strength": -1 if task["question"] == "Best?" else 3}))

    session(monkeypatch, work)["links"] = Path(f"{cfg.db}.links.json")
    found = label.main(cfg)
    assert (found["items"], found["judgements"], done) == (2, 4, [2, 2])
    first = capsys.readouterr().out
    assert "stopped; " in first and "4 judgements of 2 items" in first
    links = [line.split()[1] for line in first.splitlines() if line.startswith("  ")]
    assert [link.split("#")[1] for link in links] == list(
        label_parts.read_tokens(Path(f"{cfg.db}.links.json")).values()
    )
    assert label.main(cfg)["judgements"] == 4
    assert done == [2, 2, 0, 0], "nothing is left to judge"
    again = capsys.readouterr().out
    assert all(link.split("#")[1] in again for link in links), "the links go on working"
    out = tmp_path / "comparisons.jsonl"
    assert label.main(replace(cfg, export=str(out)))["rows"] == 4
    comparisons, report = formats.load(out)
    assert report.dropped == {} and len({c.annotator for c in comparisons}) == 2
    assert {c.strength for c in comparisons} == {1} and {c.source_kind for c in comparisons} == {"human"}


def test_one_person_is_paused_and_goes_on(cfg, monkeypatch, capsys):
    """From another terminal, while the page is served."""
    seen = []

    def work(client, told):
        headers = {"Authorization": f"Bearer {told['me']}"}
        label.main(replace(cfg, pause="me"))
        seen.append(client.get("/api/task", headers=headers).json())
        label.main(replace(cfg, resume="me"))
        seen.append(client.get("/api/task", headers=headers).json())

    session(monkeypatch, work)["links"] = Path(f"{cfg.db}.links.json")
    label.main(cfg)
    assert seen[0]["task"] is None and "stop here for now" in seen[0]["paused"]
    assert seen[1]["task"] is not None and seen[1]["paused"] is None
    told = capsys.readouterr().out
    assert "me is paused" in told and "me is asked to go on" in told
    with pytest.raises(UserError, match="there is no annotator 'you'; there are: me"):
        label.main(replace(cfg, pause="you"))
    with pytest.raises(UserError, match="not both"):
        replace(cfg, pause="me", resume="me")


@pytest.mark.long
def test_from_a_policy_to_a_reward_model(world, sampled, monkeypatch, tmp_path):
    """The whole way of a first-time user, the clicks made by a function that likes the earlier letter of the alphabet."""

    def prefer(task):
        first, second = (text.strip().lower() for text in task["responses"])
        return {"strength": -2 if first < second else 2}

    def work(client, told):
        judge_all(client, {"Authorization": f"Bearer {told['me']}"}, prefer)

    session(monkeypatch, work)["links"] = Path(f"{sampled.db}.links.json")
    found = label.main(sampled)
    assert found["judgements"] == found["items"] > 20
    out = str(tmp_path / "comparisons.jsonl")
    label.main(replace(sampled, export=out))
    for comparison in formats.load(out)[0]:
        best, worst = (comparison.responses[comparison.ranks.index(rank)] for rank in (0, 1))
        assert best.strip().lower() < worst.strip().lower()
    trained = reward_model.main(replace(world.reward_model(tmp_path / "reward"), comparisons=out, epochs=0.3))
    assert trained["held_out"]["reward model"].n > 0


def test_other_machines_only_when_asked(cfg, monkeypatch, capsys):
    replies = {}

    def work(client, told):
        headers = {"Authorization": f"Bearer {told['me']}"}
        for host in ("127.0.0.1", "label.example.org", "evil.example.org"):
            replies[host] = client.get("/api/task", headers=headers | {"Host": host}).status_code

    seen = session(monkeypatch, work)
    seen["links"] = Path(f"{cfg.db}.links.json")
    with pytest.raises(UserError, match="every network"):
        label.main(replace(cfg, host="0.0.0.0"))
    label.main(replace(cfg, public=True, url="http://label.example.org"))
    assert seen["address"][0] == "0.0.0.0"
    assert replies == {"127.0.0.1": 200, "label.example.org": 200, "evil.example.org": 400}
    told = capsys.readouterr().out
    assert "http://label.example.org/#" in told and "nothing is encrypted" in told
    label.main(cfg)
    assert seen["address"][0] == "127.0.0.1"
    assert replies == {"127.0.0.1": 200, "label.example.org": 400, "evil.example.org": 400}
    assert "encrypted" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "pairs"}, "kind must be one of pair, rank, rate; got 'pairs'; did you mean 'pair'"),
        ({"prompts": "p.jsonl"}, "prompts and policy belong together"),
        ({"policy": "m", "prompts": "p"}, "give it or `responses`, not both"),
        ({"annotators": " , "}, "annotators must hold one name"),
        ({"admin": "eve"}, "admin 'eve' is not one of the annotators"),
        ({"overlap": 0}, "overlap must be at least 1"),
        ({"similar": 1.5}, "similar must be between 0 and 1"),
        ({"kind": "rate", "axes": {}}, "axes must hold one question"),
        ({"url": "label.example.org"}, "url must be http://NAME or https://NAME"),
    ],
)
def test_settings_that_cannot_be_meant(cfg, changes, told):
    with pytest.raises(UserError, match=told):
        replace(cfg, **changes)


@pytest.mark.parametrize(("low", "high"), [(5, 1), (1, 1), (-1, 3), (0, 11)])
def test_scales_that_the_keys_cannot_reach(low, high):
    with pytest.raises(UserError, match="low and high"):
        label.Scale(low=low, high=high)


def test_files_that_hold_nothing(cfg, tmp_path):
    with pytest.raises(UserError, match="holds nothing to judge: give prompts and policy, or responses"):
        label.main(replace(cfg, responses=""))
    for row, told in (
        ({"prompt": "a"}, "prompt 1: responses must be a list of texts"),
        ({"prompt": "a", "responses": ["b", 3]}, "prompt 1: responses must be a list of texts"),
        ({"prompt": "a", "responses": ["same", "Same"]}, "holds nothing to judge; left out: 1 near-duplicates"),
    ):
        with pytest.raises(UserError, match=told):
            label.main(replace(cfg, responses=write(tmp_path / "bad.jsonl", [row])))
    with pytest.raises(UserError, match="no such file of judgements"):
        label.main(replace(cfg, db=str(tmp_path / "none.sqlite"), export=str(tmp_path / "out.jsonl")))
    with pytest.raises(UserError, match="there is no folder"):
        label.main(replace(cfg, export=str(tmp_path / "none" / "out.jsonl")))
    with pytest.raises(UserError, match="name a new file"):
        label.main(replace(cfg, export=cfg.db))


def test_what_is_missing_is_told_before_anything_is_sampled(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr(label_parts, "sample", lambda *_, **__: pytest.fail("it sampled"))
    with closing(server_run.bind("127.0.0.1", 0)) as taken:
        with pytest.raises(UserError, match="in use; choose another port"):
            label.main(replace(sampled, port=taken.getsockname()[1]))
    for name in ("guidelines", "gold", "groups"):
        with pytest.raises(UserError, match=f"there is no {tmp_path}/{name}.file"):
            label.main(replace(sampled, **{name: f"{tmp_path}/{name}.file"}))
    assert not Path(sampled.db).exists()


def test_items_from_before_are_told(cfg, monkeypatch, tmp_path, capsys):
    session(monkeypatch, lambda client, told: None)["links"] = Path(f"{cfg.db}.links.json")
    label.main(cfg)
    assert "2 items of kind pair; left out" in capsys.readouterr().out
    other = write(tmp_path / "other.jsonl", [{"prompt": "Who?", "responses": ["Ann", "the otter"]}])
    label.main(replace(cfg, responses=other))
    told = capsys.readouterr().out
    assert "1 items of kind pair (1 new, 0 there before)" in told
    assert f"{cfg.db} holds 2 more from before, which are asked about too" in told
    label.main(cfg)
    assert "2 items of kind pair (0 new, 2 there before)" in capsys.readouterr().out


def test_an_export_of_nothing_says_what_to_do(cfg, tmp_path):
    fill(cfg)
    with pytest.raises(
        UserError, match="nobody has judged anything yet: open a link of the page, judge, and export again"
    ):
        label.main(replace(cfg, export=str(tmp_path / "out.jsonl")))


def test_axes_of_a_rating_reach_the_page(cfg):
    asked = {
        "clear": label.Scale("Is it clear?", 0, 3, labels={"0": "no", "3": "yes"}),
        "kind": label.Scale(required=False),
    }
    cfg = replace(cfg, kind="rate", axes=asked)
    fill(cfg)
    with closing(open_store(cfg.db)) as con:
        token = label_parts.tokens(con, ["me"], Path(f"{cfg.db}.links.json"))["me"]
    client = TestClient(app(Settings(cfg.db, axes=cfg.asked())), base_url="http://127.0.0.1")
    task = client.get("/api/task", headers={"Authorization": f"Bearer {token}"}).json()["task"]
    assert task["axes"] == [
        {
            "name": "clear",
            "question": "Is it clear?",
            "low": 0,
            "high": 3,
            "required": True,
            "labels": {"0": "no", "3": "yes"},
        },
        {"name": "kind", "question": "", "low": 1, "high": 5, "required": False, "labels": {}},
    ]
