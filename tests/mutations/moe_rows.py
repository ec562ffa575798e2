"""Mistakes in mixtures of experts: routing, sorting, weighing, their files, their balance, their devices."""

from tests.mutations.mutation import Mutation

EXPERTS, ROUTING, SFT, TRANSFORMER, COST = (
    f"rlhf_jax/{name}.py"
    for name in ("model/experts", "objectives/routing", "algorithms/sft", "model/transformer", "model/cost")
)
TABLES, FAMILIES, TENSORS, CONFIG = (
    f"rlhf_jax/model/hf/{name}.py" for name in ("tables", "families", "tensors", "config")
)
OWN = "tests/model/test_experts.py::test"
LOOP = f"{OWN}_experts_are_those_of_a_loop"


def logits(case: str) -> str:
    """The test that compares logits and gradients with torch's on this fixture."""
    return f"tests/model/test_hf.py::test_logits_and_gradients_are_those_of_transformers[{case}]"


def row(id: str, file: str, find: str, replace: str, reason: str, *tests: str, invariant: int = 0) -> Mutation:
    """One mistake, and the tests that see it."""
    return Mutation(f"moe-{id}", invariant, file, find, replace, tests, reason)


# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("never-renormalised", EXPERTS, "    if cfg.renormalise:\n", "    if False:\n",
        "the chosen weights keep their share of all", LOOP, logits("mixtral")),
    row("always-renormalised", EXPERTS, "    if cfg.renormalise:\n", "    if True:\n",
        "norm_topk_prob passed over", LOOP, logits("qwen3_moe")),
    row("softmax-of-the-chosen-logits", EXPERTS, "jax.lax.top_k(jax.nn.softmax(logits, axis=-1), cfg.experts_used)",
        "jax.lax.top_k(logits, cfg.experts_used)", "weights that are logits", LOOP),
    row("weights-detached", EXPERTS, 'jnp.einsum("...k,...kd->...d", weights,',
        'jnp.einsum("...k,...kd->...d", jax.lax.stop_gradient(weights),', "the router learns nothing",
        f"{OWN}_gradients_are_those_of_all_experts_masked"),
    row("rows-of-the-wrong-token", EXPERTS, "[order // k]", "[order % (order.size // k)]",
        "copies of another token go to the expert", LOOP),
    row("not-sorted-back", EXPERTS, 'meet(inner, "down")[back]', 'meet(inner, "down")[order]',
        "outputs handed to other tokens", LOOP),
    row("gate-and-up", EXPERTS, 'activation(meet(rows, "gate")) * up', 'activation(up) * meet(rows, "gate")',
        "the wrong half is activated", LOOP),
    row("router-in-the-compute-type", EXPERTS, 'layer["router"].astype(x.dtype)', 'layer["router"]',
        "training routes by numbers that decoding has not", f"{OWN}_a_router_decides_alike_in_training_and_in_decoding"),
    row("bf16-logits", EXPERTS, "preferred_element_type=jnp.float32", "preferred_element_type=x.dtype",
        "logits rounded before the choice", f"{OWN}_a_router_decides_alike_in_training_and_in_decoding"),
    row("tokens-gathered", EXPERTS, "    if rows is None:\n", "    if True:\n",
        "every device sorts and computes the tokens of all", f"{OWN}_invariant_22_eight_devices_compute_what_one_does[shape0]",
        invariant=22),
    row("routing-always-kept", TRANSFORMER, 'if keep == "routing" else memory', 'if keep != "cache" else memory',
        "every training pass keeps the routers' logits",
        f"{OWN}_plain_states_keep_no_routing"),
    row("balance-of-padding", ROUTING, "weights = jnp.broadcast_to(mask, logits.shape[:-1])",
        "weights = jnp.broadcast_to(mask | True, logits.shape[:-1])", "padding is balanced too",
        f"{OWN}_balance_is_that_of_transformers[2]"),
    row("balance-of-the-first-choice", ROUTING, "[..., :used]", "[..., :1]", "only the best expert counts as used",
        f"{OWN}_balance_is_that_of_transformers[2]"),
    row("balance-unscaled", ROUTING, "return experts * jnp.sum", "return jnp.sum", "without the number of experts",
        f"{OWN}_balance_is_that_of_transformers[1]"),
    row("balance-of-the-learnt", SFT, "    real = jnp.arange(batch.tokens.shape[1])[None] < batch.length[:, None]\n    balance",
        "    real = batch.loss_mask\n    balance", "prompts are not balanced",
        f"{OWN}_fine_tuning_adds_the_balance_of_all_real_tokens"),
    row("balance-not-added", SFT, "return total + coef * balance,", "return total,", "told and not trained",
        f"{OWN}_fine_tuning_adds_the_balance_of_all_real_tokens"),
    row("w2-and-w3", TABLES, '"block_sparse_moe", "w1", "w3", "w2"', '"block_sparse_moe", "w3", "w1", "w2"',
        "Mixtral's w1 and w3 swapped", logits("mixtral")),
    row("fused-halves-swapped", TABLES, '("layers/expert_gate", "layers/expert_up"), "E cF D"',
        '("layers/expert_up", "layers/expert_gate"), "E cF D"', "gate and up of the fused form swapped",
        f"{OWN}_experts_fused_as_transformers_5_holds_them_are_read_and_written_so[mixtral-Mixtral]"),
    row("mixed-layers-pass", FAMILIES, '"mlp_only_layers": ([], None)', "", "dense layers read as experts",
        f"{OWN}_mixtures_that_are_refused"),
    row("alias-unread", CONFIG, "            key = alias\n", "", "the key that transformers 5 writes passed over",
        f"{OWN}_keys_of_experts"),
    row("countless-experts", TENSORS, "cfg.layers * cfg.experts > len(names)", "cfg.experts < 0",
        "names of countless experts are made", f"{OWN}_missing_and_countless_experts_are_named"),
    row("all-experts-cost", COST, "size // cfg.experts * cfg.experts_used if", "size if",
        "operations of experts that a token does not meet", f"{OWN}_parameters_of_models_of_the_hub"),
)
# fmt: on
