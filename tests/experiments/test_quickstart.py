"""The whole loop, in miniature, for families that differ in their blocks, norms, positions and windows."""

import json

import pytest
import quickstart

from rlhf_jax.model import hf
from rlhf_jax.runs.ppo_settings import PPO

TINY = dict(width=32, layers=2, corpus=400, demonstrations=100, judged=50, judges=2, iterations=2, evaluated=16)


@pytest.mark.long
@pytest.mark.parametrize("family", ["gpt_neox", "gemma2", "olmo2"])
def test_any_family_goes_through_the_whole_loop(tmp_path, family):
    out = tmp_path / "run"
    found = quickstart.main(
        quickstart.Experiment(out=str(out), family=family, ppo=PPO(epochs=1, minibatches=2), **TINY)
    )
    assert set(found["rows"]) == {"SFT", "best of 4", "PPO"}
    assert json.loads((out / "results.json").read_text())["rows"]["PPO"]["gold"] == list(found["rows"]["PPO"]["gold"])
    aligned, _ = hf.load(out / "seed_0" / "ppo" / "model")
    assert aligned.family == family
    page = (out / "report.html").read_text()
    assert "made up" in page and "best of 4" in page
