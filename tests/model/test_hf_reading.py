"""What loading costs: each device reads its own slices, and the host never holds much more than one file of weights."""

import os
import subprocess
import sys
from collections import defaultdict

import jax
import numpy as np
import pytest

from rlhf_jax import sharding
from rlhf_jax.model import hf, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf import files as hf_files
from rlhf_jax.model.hf import place as hf_place

WIDE = ModelConfig(
    family="llama", vocab_size=512, d_model=64, layers=2, heads=8, kv_heads=8, head_dim=8, d_ff=128, max_positions=64,
    norm="rms", norm_eps=1e-5, positions="rope",
)  # fmt: skip


@pytest.mark.parametrize("piece", [16 * 2**20, 4096], ids=["whole", "in pieces"])
@pytest.mark.parametrize("axes", [(1, 8, 1), (1, 1, 8), (1, 2, 4)], ids=["fsdp", "tensor", "both"])
def test_each_device_reads_an_eighth_of_what_is_sharded(tmp_path, monkeypatch, axes, piece):
    """Every matrix is cut in eight, each eighth is read once, and of no tensor more than it holds is read."""
    mesh = sharding.make_mesh(*axes)
    params = transformer.init(jax.random.key(0), WIDE)
    hf.save(tmp_path / "model", WIDE, params)
    read = defaultdict(list)

    def counted(weights, name, box, read_slice=hf_files.read_slice):
        block = read_slice(weights, name, box)
        assert block.shape == tuple(part.stop - part.start for part in box)
        read[name].append(block.nbytes)
        return block

    monkeypatch.setattr(hf_files, "read_slice", counted)
    monkeypatch.setattr(hf_place, "PIECE_BYTES", piece)
    _, loaded = hf.load(tmp_path / "model", mesh=mesh)
    matrices = {name: sizes for name, sizes in read.items() if "norm" not in name}
    assert len(matrices) == 2 + 7 * WIDE.layers
    whole = sum(map(sum, matrices.values()))
    assert whole == sum(4 * params[path].size for path in params if "norm" not in path)
    for name, sizes in matrices.items():
        assert max(sizes) <= sum(sizes) / 8, name
        assert len(sizes) >= 8 and (piece > 4096 or len(sizes) > 8 or sum(sizes) <= 8 * 4096), name
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)
        cut = 1 if "norm" in path else 8
        assert {shard.data.nbytes for shard in leaf.addressable_shards} == {leaf.nbytes // cut}, path


SEVERAL = dict(vocab_size=128, d_model=64, layers=2, heads=16, kv_heads=16, head_dim=4, d_ff=64, max_positions=64)
LAYER = dict(norm="layer", gated_mlp=False, mlp_bias=True, qkv_bias=True, out_bias=True)
FAMILIES = {
    "gpt_neox": LAYER | dict(positions="rope", parallel=True, activation="gelu", rotary_fraction=0.5),
    "gpt2": LAYER | dict(positions="learned", activation="gelu_tanh", tied=True),
    "phi3": dict(norm="rms", positions="rope"),
    "qwen3_moe": dict(norm="rms", positions="rope", experts=8, experts_used=2, qk_norm="head"),
}


@pytest.mark.parametrize("axes", [(1, 8, 1), (1, 1, 8), (1, 2, 4)], ids=["fsdp", "tensor", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_that_hold_several_parameters_are_read_once(tmp_path, monkeypatch, family, axes):
    """With two heads a device and more, where q, k and v lie in one tensor, by heads or one after the other: of each tensor as
    many bytes are read as it holds, which with every parameter in eight parts is an eighth for each device."""
    cfg = ModelConfig(family=family, norm_eps=1e-5, **SEVERAL, **FAMILIES[family])
    params = transformer.init(jax.random.key(0), cfg)
    params = {path: leaf + 0.01 * np.arange(leaf.size).reshape(leaf.shape) for path, leaf in params.items()}
    hf.save(tmp_path / "model", cfg, params)
    stored = {
        name: 4 * int(np.prod(header.shape))
        for name, header in hf_files.open_weights(tmp_path / "model").headers.items()
        if len(header.shape) > 1
    }
    read = defaultdict(int)

    def counted(weights, name, box, read_slice=hf_files.read_slice):
        block = read_slice(weights, name, box)
        read[name] += block.nbytes
        return block

    monkeypatch.setattr(hf_files, "read_slice", counted)
    _, loaded = hf.load(tmp_path / "model", mesh=sharding.make_mesh(*axes))
    assert {name: read[name] for name in stored} == stored
    for path, leaf in loaded.items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)
        if path in ("layers/q", "layers/k", "layers/v", "layers/o", "layers/up", "layers/down", "layers/expert_up"):
            assert {shard.data.nbytes for shard in leaf.addressable_shards} == {leaf.nbytes // 8}, path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pieces_make_the_same_arrays(tmp_path, monkeypatch, dtype):
    hf.save(tmp_path / "model", WIDE, transformer.init(jax.random.key(0), WIDE))
    whole = hf.load(tmp_path / "model", dtype=dtype)[1]
    monkeypatch.setattr(hf_place, "PIECE_BYTES", 5000)  # divides nothing
    for path, leaf in hf.load(tmp_path / "model", dtype=dtype)[1].items():
        assert leaf.dtype == dtype and not leaf.committed
        np.testing.assert_array_equal(leaf, whole[path], err_msg=path)


MEASURE = """
import resource, sys, jax
from rlhf_jax.model import hf
from rlhf_jax.model.hf import place as hf_place
jax.block_until_ready(jax.numpy.zeros(8) + 1)
hf_place.PIECE_BYTES, usual = 4096, hf_place.PIECE_BYTES
hf.load(sys.argv[1])  # a first, small model: what is imported and compiled by any loading is not counted
hf_place.PIECE_BYTES = usual

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = resident()
_, params = hf.load(sys.argv[2])
held = sum(leaf.nbytes for leaf in params.values())
print(peak() - before - held)
"""


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads the peak of memory from Linux' /proc")
def test_the_host_holds_little_more_than_a_file_of_weights(tmp_path):
    """Beyond the parameters themselves, which on a CPU live in the same memory, ≤ 1.3 × the largest file."""
    cfg = ModelConfig(
        **{**vars(WIDE), "vocab_size": 32_000, "d_model": 512, "d_ff": 2048, "layers": 24, "head_dim": 64}
    )
    params = transformer.init(jax.random.key(0), cfg)
    hf.save(tmp_path / "large", cfg, params, dtype="bfloat16", max_shard_bytes=60_000_000)
    hf.save(tmp_path / "small", WIDE, transformer.init(jax.random.key(0), WIDE))
    largest = max(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    total = sum(4 * leaf.size for leaf in params.values())
    assert largest < 0.25 * total
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1.3 * largest, f"{int(done.stdout) / largest:.2f} × the largest file"
