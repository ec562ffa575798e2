"""sft.py with several demonstrations a row: the same loss at the first step, the same script around it."""

import numpy as np
import pytest
import sft

from rlhf_jax.feedback import formats
from rlhf_jax.model import hf
from rlhf_jax.runs import data, packing
from tests.experiments.conftest import TEXT, lines

WINDOW = 3 * TEXT


@pytest.mark.long
def test_packed_and_unpacked_runs_begin_with_one_loss(world, tmp_path, capsys):
    """A batch of everything, packed or not, holds the same tokens; nothing is held out. Held-out rows are never packed."""
    found, _ = formats.load_demonstrations(world.demonstrations)
    rows, _ = data.encode_demonstrations(found, hf.tokenizer(world.model), window=WINDOW)
    losses = {}
    for name, pack, size in (("alone", False, rows.length.size), ("packed", True, None)):
        if size is None:
            size = packing.pack(rows)[0].length.size
        cfg = world.sft(tmp_path / name, window=WINDOW, pack=pack, batch=size, held_out=0.0, epochs=1.0)
        result = sft.main(cfg)
        losses[name] = lines(tmp_path / name / "metrics.jsonl")[0]["sft/loss"]
        assert result["compilations"] == {"update": 1}
    assert losses["packed"] == pytest.approx(losses["alone"], abs=1e-5)
    assert size < rows.length.size / 2
    assert f"packed: {rows.length.size} demonstrations in {size} rows of {WINDOW} tokens" in capsys.readouterr().out
    start, end = hf.load(world.model)[1], hf.load(str(tmp_path / "packed" / "model"))[1]
    assert not np.array_equal(start["embed"], end["embed"])


def test_a_dry_run_does_not_guess_the_rows(world, tmp_path, capsys):
    plan = sft.main(world.sft(tmp_path / "run", pack=True, dry_run=True))
    assert plan["steps"] is None and "packed into" in capsys.readouterr().out
