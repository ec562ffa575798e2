"""A save that fails leaves the model that lay there as it was; one that succeeds leaves nothing but the new model."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf
from rlhf_jax.model.hf import files as hf_files
from tests.fixtures.hf import checkpoints

SHARDED = {"max_shard_bytes": 20_000}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def saved(tmp_path):
    """A sharded checkpoint: where it lies, its configuration and parameters."""
    cfg, params = hf.load(checkpoints.write(tmp_path / "source", "llama2"))
    hf.save(tmp_path / "model", cfg, params, **SHARDED)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    return tmp_path / "model", cfg, params


def test_nan_in_the_last_shard_leaves_all_shards_as_they_were(saved):
    folder, cfg, params = saved
    before, index = contents(folder), hf_files.read_text(folder, hf_files.INDEX)
    placed = hf_files.parse(index, "index")["weight_map"]
    assert placed["lm_head.weight"] == max(placed.values())
    worse = {name: x + 1 for name, x in params.items()}
    worse["unembed"] = worse["unembed"].at[0].set(jnp.nan)
    with pytest.raises(UserError, match="lm_head.weight .*NaN"):
        hf.save(folder, cfg, worse, **SHARDED)
    assert contents(folder) == before and not (folder / ".partial").exists()


def test_a_disk_that_fills_up_leaves_all_as_it_was(saved, monkeypatch):
    folder, cfg, params = saved
    before = contents(folder)

    def fills_up(file, text):
        raise UserError(f"{file}: no space left on device")

    monkeypatch.setattr(hf_files, "write_text", fills_up)
    with pytest.raises(UserError, match="no space left"):
        hf.save(folder, cfg, {name: x + 1 for name, x in params.items()}, **SHARDED)
    assert contents(folder) == before and not (folder / ".partial").exists()


def test_a_save_takes_the_place_of_another_cut(saved):
    folder, cfg, params = saved
    (folder / ".partial").mkdir()
    (folder / ".partial" / "model.safetensors").write_bytes(b"left by a kill")
    changed = {name: x + 1 for name, x in params.items()}
    hf.save(folder, cfg, changed)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    for name, x in hf.load(folder)[1].items():
        assert np.array_equal(x, changed[name]), name


def test_one_file_at_a_time_is_in_memory(saved, monkeypatch):
    """Each shard is on the disk before the next one is gathered."""
    folder, cfg, params = saved
    order, gather, write = [], hf._gather, hf_files.write_tensors
    monkeypatch.setattr(hf, "_gather", lambda *given: order.append("gather") or gather(*given))
    monkeypatch.setattr(hf_files, "write_tensors", lambda *given: order.append("write") or write(*given))
    hf.save(folder, cfg, params, **SHARDED)
    shards = list(folder.glob("*.safetensors"))
    assert order.count("write") == len(shards) and order[-1] == "write" and order.index("write") < order.count("gather")
