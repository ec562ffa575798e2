"""Each script ends its texts where the policy stops: at one of the model's EOS ids, not at the tokenizer's alone."""

import dataclasses

import numpy as np
import pytest
import reward_model
import reward_scores
import sft

from rlhf_jax.model import hf
from rlhf_jax.runs import data, judged_rows
from tests.experiments.conftest import TEXT, draw, message, write


class Seen(Exception):
    """The script has encoded its texts."""


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    """The world's model, whose turns end in a full stop too."""
    cfg, params = hf.load(world.model)
    words = hf.tokenizer(world.model)
    folder = tmp_path_factory.mktemp("stops") / "model"
    end = words.convert_tokens_to_ids(".")
    assert end != words.unk_token_id
    hf.save(folder, dataclasses.replace(cfg, eos_ids=(*cfg.eos_ids, end)), params, words)
    return str(folder), end


def ends(rows):
    return {row[-1] for row in rows}


def test_sft_learns_up_to_the_policys_stop(world, model, tmp_path, monkeypatch):
    folder, end = model
    rows = []

    def seen(found, tokenizer, what, texts):
        rows.extend(found)
        raise Seen

    monkeypatch.setattr(data, "check_known", seen)
    with pytest.raises(Seen):
        sft.main(dataclasses.replace(world.sft(tmp_path / "run"), model=folder))
    assert ends(rows) == {end} and all(row.count(end) == 1 for row in rows)


@pytest.mark.parametrize("loss", ["bradley_terry", "plackett_luce", "regression"])
def test_a_reward_model_is_trained_and_normalised_on_texts_up_to_the_policys_stop(
    world, model, tmp_path, monkeypatch, loss
):
    folder, end = model
    rows, fitted = [], []

    def reference(*arguments):
        fitted.append(reward_parts_reference(*arguments))
        raise Seen

    reward_parts_reference = reward_model.reference_responses
    for module in (data, judged_rows):
        monkeypatch.setattr(module, "check_known", lambda found, tokenizer, what, texts: rows.extend(found))
    monkeypatch.setattr(reward_model, "reference_responses", reference)
    asked = message("user", "What does the otter eat?")
    responses = [{"prompt": asked, "responses": ["The otter eats fish. The seal"]}]
    cfg = world.reward_model(tmp_path / "run", loss=loss, reference=write(tmp_path / "responses.jsonl", responses))
    if loss == "regression":
        said = ["The otter eats fish.", "The seal eats fish."]
        rated = [
            {"prompt": asked, "response": text, "axis": "good", "value": i, "scale": [0, 1]}
            for i, text in enumerate(said)
        ]
        rated += [row | {"prompt": message("user", f"What does the seal eat? {i}")} for i in range(20) for row in rated]
        cfg = dataclasses.replace(cfg, comparisons=write(tmp_path / "ratings.jsonl", rated))
    with pytest.raises(Seen):
        reward_model.main(dataclasses.replace(cfg, model=folder))
    assert rows and ends(rows) == {end} and all(row.count(end) == 1 for row in rows)
    ((tokens, length),) = fitted
    assert tokens[0, length[0] - 1] == end and (tokens[0] == end).sum() == 1


def test_a_saved_reward_model_reads_what_it_was_trained_on(model, tmp_path):
    """The stops come back from its config.json."""
    folder, end = model
    cfg, _ = hf.load(folder)
    judge = hf.classifier(cfg, 1)
    hf.save(tmp_path / "reward", judge, draw(judge), hf.tokenizer(folder))
    reader = reward_scores.open_reader(str(tmp_path / "reward"), window=TEXT)
    asked = tuple(message("user", "What does the otter eat?"))
    tokens, length = reader.encode([asked], ["The otter eats fish. The seal"])
    words = hf.tokenizer(folder)
    assert np.array_equal(
        tokens[0, : length[0]], data.encode_text(words, asked, "The otter eats fish", stops=())[:-1] + [end]
    )
