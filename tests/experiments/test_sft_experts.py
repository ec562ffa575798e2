"""sft.py on a mixture of experts: its balance in the loss, and when that is refused."""

import numpy as np
import pytest
import sft

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.model import hf
from rlhf_jax.runs import data
from tests.experiments.conftest import ADAM, TEXT, draw, lines, model_config
from tests.model import decoder_oracle as oracle


@pytest.fixture(scope="module")
def mixture(world, tmp_path_factory):
    """A small Mixtral."""
    folder, words = tmp_path_factory.mktemp("mixture"), hf.tokenizer(world.model)
    cfg = model_config(words, family="mixtral", experts=4, experts_used=2, layers=1, d_ff=16)
    hf.save(folder, cfg, draw(cfg, scale=0.3), words)
    return str(folder)


def experiment(world, model, out, **changes):
    return sft.Experiment(
        model, world.demonstrations, str(out), window=TEXT, batch=8, epochs=0.5, held_out=0.0, optimizer=ADAM,
        save_every=0, **changes,
    )  # fmt: skip


def test_the_balance_is_in_the_loss(world, mixture, tmp_path):
    """The first step's balance is that of the loaded model by hand; the router learns."""
    result = sft.main(experiment(world, mixture, tmp_path, router_coef=0.5))
    first = lines(tmp_path / "metrics.jsonl")[0]
    cfg, params = hf.load(mixture)
    found, _ = formats.load_demonstrations(world.demonstrations)
    rows, _ = data.encode_demonstrations(found, tokenizer=hf.tokenizer(mixture), window=TEXT, learn="completion")
    batch = data.take(rows, data.batch_rows(rows.length.size, 8, seed=0, step=0))
    routed: list = []
    for tokens, length in zip(batch.tokens, batch.length, strict=True):
        oracle.hidden(params, tokens[:length], cfg, routed)
    probs = np.concatenate([oracle.softmax(logits) for logits in routed])
    often = np.zeros(4)
    for row in probs:
        often[np.argsort(-row)[:2]] += 1 / len(probs)
    assert first["sft/balance"] == pytest.approx(4 * sum(often * probs.mean(axis=0)), rel=1e-4)
    saved = hf.load(result["folder"])[1]["layers/router"]
    assert np.isfinite(saved).all() and not np.array_equal(saved, params["layers/router"])


def test_a_balance_that_cannot_be_is_refused(world, mixture, tmp_path):
    with pytest.raises(UserError, match=r"router_coef is 0.1, but .* is no mixture of experts; set it to 0"):
        sft.main(experiment(world, world.model, tmp_path, router_coef=0.1))
    with pytest.raises(UserError, match="router_coef balances experts over a whole batch; set microbatches to 1"):
        experiment(world, mixture, tmp_path, router_coef=0.1, microbatches=2)
    with pytest.raises(UserError, match="router_coef"):
        experiment(world, mixture, tmp_path, router_coef=-0.1)
