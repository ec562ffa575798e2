"""A dry run's figures against sums by hand, traced programs, compiled programs and real shardings."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import ppo
import pytest
import reward_model
import sft

from rlhf_jax import sharding
from rlhf_jax.algorithms.update import make_update
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import cost, heads, transformer
from rlhf_jax.model.hf import config as hf_config
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import weights
from rlhf_jax.runs import config, settings
from rlhf_jax.runs.dry_run import plan, reckon, sampled
from rlhf_jax.runs.dry_run import ppo as ppo_plan
from rlhf_jax.runs.dry_run import reward_model as reward_plan
from rlhf_jax.runs.dry_run import sft as sft_plan
from rlhf_jax.runs.ppo_settings import PPO, Reward
from rlhf_jax.types import Sampling, TrainState
from tests.jaxprs import inner
from tests.real_models import CONFIGS, LLAMA, PARAMETERS, PYTHIA, QWEN, counted
from tests.worlds import LM

ONE = cost.abstract_mesh()
shape = jax.ShapeDtypeStruct


@pytest.fixture
def folder(tmp_path):
    """A model folder with nothing in it but config.json."""

    def make(name, **changes):
        path = tmp_path / name.split("/")[1]
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(CONFIGS[name] | changes))
        return str(path)

    return make


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_architecture(name, folder):
    model = reckon.read_model(folder(name), settings.Compute()).cfg
    assert cost.parameters(transformer.param_specs(model)) == PARAMETERS[name] == counted(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_multiplied_parameters_are_the_matrices_of_the_layers(name):
    c = CONFIGS[name]
    D, F, L, N = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], c["num_attention_heads"]
    K, H = c.get("num_key_value_heads", N), D // N
    mlp = (2 if name == PYTHIA else 3) * D * F
    assert cost.matrix_parameters(hf_config.read(c)) == L * (2 * D * N * H + 2 * D * K * H + mlp)


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_bytes_of_a_device_are_those_of_the_real_mesh(data, fsdp, tensor):
    """14 heads and 2 key heads divide by no 4 or 8: those arrays stay whole along them."""
    specs = transformer.param_specs(hf_config.read(CONFIGS[QWEN]))
    mesh = sharding.make_mesh(data, fsdp, tensor)
    there = [sharding.of(spec.axes, spec.shape, mesh).shard_shape(spec.shape) for spec in specs.values()]
    assert cost.device_bytes(specs, cost.abstract_mesh(data, fsdp, tensor)) == 4 * sum(map(math.prod, there))
    rows = sharding.of(("rows",), (24,), mesh).shard_shape((24,))[0]
    assert cost.device_rows(24, cost.abstract_mesh(data, fsdp, tensor)) == rows


def test_a_mesh_may_be_larger_than_this_machine():
    specs = transformer.param_specs(hf_config.read(CONFIGS[LLAMA]))
    assert cost.device_bytes(specs, cost.abstract_mesh(1, 64, 8)) < 4 * PARAMETERS[LLAMA] / 500


def dots(jaxpr, times=1):
    """Operations of every matrix product in a traced program, those of a loop as often as it runs."""
    total = 0
    for part in inner(jaxpr):
        for equation in part.eqns:
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                out = math.prod(equation.outvars[0].aval.shape)
                total += 2 * times * out * math.prod(left[axis] for axis in contracted)
            often = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += sum(dots(value, times * often) for value in equation.params.values())
    return total


def policy_sum(model, window=8):
    """The sum of a window's log-probabilities, whose chunks it divides."""
    logprobs = functools.partial(heads.policy, window=window, cfg=model, chunk=4)
    return lambda params, tokens, length: logprobs(params, tokens, length - window, length * 0 + window)[0].sum()


def traced(model):
    params = cost.shapes(transformer.param_specs(model))
    return params, shape((3, 20), jnp.int32), shape((3,), jnp.int32)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_are_those_of_the_traced_programs(remat):
    model = dataclasses.replace(LM, remat=remat, layers=3)
    arrays, loss = traced(model), policy_sum(model)
    forward = cost.trunk_flops(model, 3, 20, 20) + cost.head_flops(model, 3 * 8)
    assert forward == dots(jax.make_jaxpr(loss)(*arrays))
    last = 2 * 3 * 20 * model.layers * model.d_ff * model.d_model  # of each layer; nothing needs it again
    training = cost.training_flops(model, 3, 20, 8) - last * (remat == "full")
    assert training == dots(jax.make_jaxpr(jax.grad(loss))(*arrays))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_of_frozen_weights_are_those_of_the_traced_program(remat):
    model = dataclasses.replace(LM, remat=remat)
    params, *row = traced(model)
    own, frozen = map(cost.shapes, reckon.trained(model, transformer.param_specs(model), Lora(rank=1)))
    loss = policy_sum(model)
    found = dots(jax.make_jaxpr(jax.grad(lambda own, frozen: loss({**frozen, **own}, *map(zeros, row))))(own, frozen))
    reckoned = cost.training_flops(model, 3, 20, 8, frozen=True)
    assert found == pytest.approx(reckoned, rel=0.15), "an adapter of rank 1 costs a little of its own"
    assert found < 0.9 * cost.training_flops(model, 3, 20, 8)


def zeros(array):
    return jnp.zeros(array.shape, array.dtype)


@pytest.mark.parametrize("name", [PYTHIA, QWEN])
def test_a_value_model_has_no_output_matrix(name):
    cfg = hf_config.read(CONFIGS[name])
    params = cost.shapes(transformer.param_specs(cfg))
    made = jax.eval_shape(lambda params: heads.add_value_head(params, cfg), params)
    assert {path: spec.shape for path, spec in cost.value_specs(cfg).items()} == {k: x.shape for k, x in made.items()}


def test_operations_of_sampling_by_hand():
    matrices = cost.matrix_parameters(LM)
    attention = 4 * LM.layers * LM.heads * LM.head_dim
    prefill = 5 * 7 * (2 * matrices + attention * 7)
    steps = 10 * 3 * (2 * matrices + attention * 11)
    head = 10 * 4 * 2 * LM.d_model * LM.vocab_size
    assert cost.sampling_flops(LM, 5, 10, 7, 4) == prefill + steps + head


def test_the_cache_by_hand():
    a_token = 2 * LM.layers * LM.kv_heads * LM.head_dim * 4
    assert cost.cache_bytes(LM, 5, 3, 7, 4) == (5 * 7 * a_token, 5 * 3 * 4 * a_token)
    half = dataclasses.replace(LM, dtype="bfloat16")
    assert sum(cost.cache_bytes(half, 5, 3, 7, 4)) == (5 * 7 + 5 * 3 * 4) * a_token // 2


@pytest.mark.parametrize("rank", [0, 2])
def test_the_training_state_is_what_the_optimizer_keeps(rank):
    own, frozen = reckon.trained(LM, transformer.param_specs(LM), Lora(rank=rank))
    adam = settings.optimizer(settings.Optimizer(), 10)
    made = jax.eval_shape(lambda params: TrainState.create(params, adam), cost.shapes(own))
    counters = 4 * sum(leaf.shape == () for leaf in jax.tree.leaves(made))
    assert sum(reckon.state("model", own, ONE).values()) == cost.size(made) - counters
    assert not set(own) & set(frozen) and (rank == 0) == (not frozen)


WIDE = dataclasses.replace(LM, d_model=64, d_ff=128, layers=4, kv_heads=4, head_dim=16, vocab_size=64)


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.long), "full"])
@pytest.mark.long
def test_memory_of_an_update_is_near_what_is_compiled(remat):
    """The largest share by far, activations, within a fifth of what XLA sets aside on a CPU."""
    model = dataclasses.replace(WIDE, remat=remat)
    specs = transformer.param_specs(model)

    def loss(params, batch, weight):
        logprobs, _ = heads.token_logprobs(
            params, transformer.hidden(params, *batch, cfg=model)[:, :-1], batch[0][:, 1:], cfg=model
        )
        return -(logprobs * weight).sum(), {}

    adam = settings.optimizer(settings.Optimizer(), 10)
    update = make_update(loss, adam, weigh=lambda batch: weights.token_mean(batch[0][:, 1:] >= 0))
    state = jax.eval_shape(lambda params: TrainState.create(params, adam), cost.shapes(specs))
    batch = shape((16, 128), jnp.int32), shape((16,), jnp.int32)
    compiled = update.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).compile().memory_analysis()

    def forward(model):
        def logprobs(params, tokens, length):
            states = transformer.hidden(params, tokens, length, cfg=model)[:, :-1]
            return heads.token_logprobs(params, states, tokens[:, 1:], cfg=model)[0]

        return logprobs

    parts = reckon.backward(forward, model, (specs, {}), 16, 128, 32)
    reckoned = sum(parts.values()) + sum(reckon.gradients(specs, ONE, 1).values())
    assert reckoned == pytest.approx(compiled.temp_size_in_bytes, rel=0.2)
    held = sum(reckon.state("model", specs, ONE).values())
    assert held == pytest.approx(compiled.argument_size_in_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("prompts", "samples", "prompt", "response", "largest"),
    [(16, 1, 256, 8, "prefill"), pytest.param(128, 4, 32, 32, "decoding", marks=pytest.mark.long)],
)
@pytest.mark.long
def test_memory_of_sampling_is_near_what_is_compiled(prompts, samples, prompt, response, largest):
    """Long prompts, where reading them takes most, and many long responses, where writing does."""
    model = dataclasses.replace(WIDE, layers=2)
    specs = transformer.param_specs(model)
    row = shape((prompts, prompt), jnp.int32), shape((prompts,), jnp.int32), shape((prompts, samples), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = engine.generate.lower(cost.shapes(specs), *row, key, window=response, cfg=model, sampling=Sampling())
    windows = {"prompt_window": prompt, "response_window": response}
    cfg = ppo_config("", prompts_per_iteration=prompts, samples_per_prompt=samples, **windows)
    sizes = {name: sum(parts.values()) for name, parts in sampled.sampling(cfg, model, specs, ONE).items()}
    assert max(sizes, key=sizes.get) == largest
    assert sizes[largest] == pytest.approx(lowered.compile().memory_analysis().temp_size_in_bytes, rel=0.2)


def test_what_is_cast_for_the_backward_pass_is_counted():
    model = dataclasses.replace(WIDE, dtype="bfloat16")
    forward = policy_sum(model)
    specs = transformer.param_specs(model)
    kept, cast = cost.saved_bytes(forward, cost.shapes(specs), {}, rows=4, window=20)
    matrices = cost.matrix_parameters(model)
    assert matrices * 2 <= cast <= matrices * 2 + 4 * model.d_model * model.vocab_size
    twice, same = cost.saved_bytes(forward, cost.shapes(specs), {}, rows=8, window=20)
    assert (twice, same) == (2 * kept, cast)


def sft_config(model, **changes):
    return sft.Experiment(model, "nothing.jsonl", **{"window": 64, "batch": 8} | changes)


def test_a_plan_of_sft_by_hand(folder):
    found = sft_plan.plan(sft_config(folder(QWEN), microbatches=2))
    weights_ = 4 * PARAMETERS[QWEN]
    assert sum(found.held.values()) == 4 * weights_  # as opened, in training, two moments
    assert found.phases["update"]["gradients"] == 2 * weights_
    assert found.peak == 4 * weights_ + sum(found.phases["update"].values())
    assert found.steps is None and "no data at nothing.jsonl" in "".join(found.notes)
    assert found.flops["update"] == cost.training_flops(next(iter(found.models.values())), 8, 64, 63)


def test_a_plan_of_a_reward_model_reads_two_texts_a_pair(folder):
    found = reward_plan.plan(reward_model.Experiment(folder(QWEN), "nothing.jsonl", window=64, batch=8, microbatches=2))
    model = next(iter(found.models.values()))
    assert cost.parameters(transformer.param_specs(model)) == PARAMETERS[QWEN] + 896 and found.steps is None

    def forward(params, tokens, length):
        return heads.reward(params, tokens, length, cfg=model)

    params = cost.shapes(transformer.param_specs(model))
    kept, _ = cost.saved_bytes(forward, params, {}, rows=2 * 8 // 2, window=64)
    assert found.phases["update"]["activations kept"] == kept
    assert found.flops["update"] == 3 * cost.trunk_flops(model, 2 * 8, 64, 64)


def test_steps_are_counted_where_the_data_are(folder, tmp_path):
    rows = [{"prompt": f"question {i}", "completion": "yes"} for i in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = sft_config(folder(QWEN), held_out=0.0, epochs=2.0)
    cfg = dataclasses.replace(cfg, demonstrations=str(tmp_path / "rows.jsonl"))
    assert sft_plan.plan(cfg).steps == 12  # 2 · 50 / 8, as the script rounds it

    pairs = [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    judged = reward_model.Experiment(folder(QWEN), str(tmp_path / "pairs.jsonl"), batch=4, held_out=0.01)
    found = reward_plan.plan(judged)
    kept = int(found.notes[-1].split()[0])
    assert 25 <= kept <= 30 and found.steps == round(kept / 4)


def ppo_config(policy, **changes):
    small = {"prompts_per_iteration": 8, "samples_per_prompt": 2, "prompt_window": 32, "response_window": 16}
    rewards = {"judged": Reward(model="runs/a/reward")}
    return ppo.Experiment(policy, "nothing.jsonl", rewards, **small | {"ppo": PPO(epochs=2, minibatches=2)} | changes)


def test_a_plan_of_ppo_by_hand(folder):
    found = ppo_plan.plan(ppo_config(folder(QWEN)))
    D, V = 896, 151936
    policy, reward, value = (4 * (PARAMETERS[QWEN] + more) for more in (0, D, D + 1))
    assert sum(found.held.values()) == policy + reward + 3 * policy + 3 * value
    assert found.phases["update"]["gradients"] == policy + value
    assert found.phases["update"]["a chunk of logits"] == 3 * 4 * (8 * 16 * V)  # 16 rows in 2 minibatches, 16 positions
    assert found.steps == 100 and "runs/a/reward is not there yet" in "".join(found.notes)
    model = next(iter(found.models.values()))
    trunk = cost.trunk_flops(model, 16, 48, 48)
    assert found.flops["log-probabilities of policy and reference"] == 2 * (trunk + cost.head_flops(model, 16 * 16))
    assert found.flops["update"] == 2 * (3 * trunk + 4 * cost.head_flops(model, 256) + 3 * trunk)
    assert found.flops["values"] == trunk and found.flops["rewards"] == cost.trunk_flops(model, 16, 49, 49)


def test_adapters_stand_on_one_base(folder):
    """Policy, reference, value and reward model of 8 billion parameters: one base, and adapters of less than 2 %."""
    found = ppo_plan.plan(ppo_config(folder(LLAMA), lora=Lora(rank=8)))
    base = 4 * PARAMETERS[LLAMA]
    assert base < sum(found.held.values()) < 1.05 * base
    own, _ = reckon.trained(
        hf_config.read(CONFIGS[LLAMA]), transformer.param_specs(hf_config.read(CONFIGS[LLAMA])), Lora(rank=8)
    )
    D, F, L, K = 4096, 14336, 32, 8 * 128
    assert cost.parameters(own) == L * 8 * (2 * (D + D) + 2 * (D + K) + 3 * (D + F))
    assert found.held["policy in training"] == 4 * cost.parameters(own) < 0.02 * base
    assert found.flops["update"] < ppo_plan.plan(ppo_config(folder(LLAMA))).flops["update"]


def test_a_shared_trunk_has_no_value_model(folder):
    shared = ppo_plan.plan(ppo_config(folder(QWEN), value="shared"))
    assert shared.held["value model in training"] == 4 * (896 + 1)
    assert shared.flops["update"] < 0.7 * ppo_plan.plan(ppo_config(folder(QWEN))).flops["update"]


def test_rows_that_do_not_divide_are_told(folder):
    alone = sft_plan.plan(sft_config(folder(QWEN), batch=8, mesh=settings.Layout(fsdp=8)))
    spare = sft_plan.plan(sft_config(folder(QWEN), batch=8, microbatches=2, mesh=settings.Layout(fsdp=8)))
    assert not [note for note in alone.notes if "do not divide" in note]
    assert [note for note in spare.notes if "4 rows of a micro-batch do not divide over 8 devices" in note]


def test_an_adapter_leads_to_its_base(folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": folder(QWEN)}))
    found = reckon.read_model(str(adapter), settings.Compute())
    assert found.base == folder(QWEN) and found.cfg.d_model == 896 and found.adapter
    # q_proj is [896, 896] in each of 24 layers: A [4, 896], B [896, 4], and one scale
    assert cost.parameters(found.adapter) == 24 * (4 * 896 + 896 * 4 + 1)
    (adapter / "adapter_config.json").write_text(
        (adapter / "adapter_config.json").read_text().replace("q_proj", "q_prog")
    )
    with pytest.raises(UserError, match="adapter_config.json: target_modules .* matches no module; this model has"):
        reckon.read_model(str(adapter), settings.Compute())


@pytest.mark.parametrize("here", ["out", "folder"])
def test_a_name_of_two_parts_may_be_a_folder_yet_to_be_made(folder, tmp_path, monkeypatch, here):
    """Below the run's own first folder, or below one that is here; any other such name is the hub's."""
    monkeypatch.chdir(tmp_path)
    policy = reckon.read_model(folder(QWEN), settings.Compute())
    cfg, notes = ppo_config(folder(QWEN), out="made/ppo"), []
    name = "made/model"
    if here == "folder":
        (tmp_path / "elsewhere").mkdir()
        name = "elsewhere/model"
    found = reckon.same_size(name, policy, cfg, notes)
    assert found.cfg == policy.cfg and found.base == name
    assert notes == [f"{name} is not there yet: taken to be of the size of the policy"]

    def asked(name, compute):
        raise UserError(f"asked the hub for {name}")

    monkeypatch.setattr(reckon, "read_model", asked)
    with pytest.raises(UserError, match="asked the hub for another/model"):
        reckon.same_size("another/model", policy, cfg, notes)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nobody/nothing-of-the-kind", r"fetch it once with `hf download nobody/nothing-of-the-kind config.json`"),
        ("runs/sft/model", r"no such folder, and no hub name .* name the one that run starts from"),
    ],
)
def test_a_model_that_is_not_here_is_told_in_one_line(name, told):
    with pytest.raises(UserError, match=told):
        reckon.read_model(name, settings.Compute())


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="no config.json; a model folder has one"):
        reckon.read_model(str(tmp_path), settings.Compute())


def test_the_flag_runs_nothing_and_writes_nothing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = config.parse(sft.Experiment, ["--dry-run", "--model", folder(QWEN), "--demonstrations", "nothing.jsonl"])
    assert cfg.dry_run
    before = sorted(tmp_path.rglob("*"))
    result = sft.main(cfg)
    assert sorted(tmp_path.rglob("*")) == before
    shown = capsys.readouterr().out
    assert result["parameters"] == PARAMETERS[QWEN] and "494,032,768 parameters" in shown
    assert f"{result['peak_bytes'] / 1e9:.3f}  at the most" in shown
    assert "embed [151936, 896]" in shown and "FLOPs a step" in shown and "no weights are read" in shown


def test_a_plan_is_told_in_full(folder):
    shown = plan.text(ppo_plan.plan(ppo_config(folder(QWEN), mesh=settings.Layout(data=2, fsdp=4))))
    assert "memory on each of 8 devices (data 2 x fsdp 4 x tensor 1)" in shown
    assert "steps: 100, each an iteration: 16 responses of 16 tokens to prompts of 32, 4 optimizer steps" in shown
    assert "update: gradients" in shown and "prefill: keys and values of the prompts" in shown
