"""Mistakes with a base in few bits: its numbers, what a compiler may keep of it, who shares it, what a dry run says."""

from tests.mutations.mutation import Mutation

QUANTISED, TRANSFORMER, EXPERTS, LORA, COST, PLACE = (
    f"rlhf_jax/model/{name}.py" for name in ("quantised", "transformer", "experts", "lora", "cost", "hf/place")
)
MODEL, SCRIPT = (f"tests/{name}/test_quantised.py::test" for name in ("model", "experiments"))


def row(id: str, file: str, find: str, replace: str, reason: str, *tests: str) -> Mutation:
    """One mistake, and the tests that see it."""
    return Mutation(f"quantised-{id}", 0, file, find, replace, tests, reason)


# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("scale-of-all-outputs", QUANTISED, "    sizes = list(shape)\n", "    sizes = [shape[0]] + [1] * (len(shape) - 1)\n",
        "one scale a layer", f"{MODEL}_each_number_is_the_nearest_level_of_its_block[layers/q-int8]"),
    row("one-input-of-two", QUANTISED, '"o": 2,', '"o": 1,', "a scale for each head dimension of the output matrix",
        f"{MODEL}_each_number_is_the_nearest_level_of_its_block[layers/o-int8]"),
    row("blocks-of-all-inputs", QUANTISED, "            sizes[axis] = shape[axis] // tile\n", "            sizes[axis] = 1\n",
        "4 bits with one scale an output", f"{MODEL}_blocks_are_64_inputs_and_8_bits_have_a_scale_an_output"),
    row("experts-share-scales", QUANTISED, 'first = 2 if name.startswith("expert_") else 1', "first = 1",
        "the experts taken for inputs", f"{MODEL}_each_number_is_the_nearest_level_of_its_block[layers/expert_up-int8]"),
    row("router-too", QUANTISED, 'INPUTS = {"q": 1,', 'INPUTS = {"router": 1, "q": 1,', "a router in few bits",
        f"{MODEL}_matrices_of_the_layers_alone_are_quantised[mixtral]"),
    row("numbers-kept", QUANTISED, "    @jax.checkpoint\n", "", "the backward pass keeps every matrix as floats",
        f"{MODEL}_the_backward_pass_keeps_no_matrix_as_floats[int8-none]"),
    row("numbers-made-ahead", QUANTISED, "        x, weight = jax.lax.optimization_barrier((x, weight))\n", "",
        "a compiler makes all numbers ahead of the decoding loop", f"{MODEL}_the_decoding_loop_carries_integers[int4]"),
    row("whole-stack-at-once", TRANSFORMER, "x, (layers_of(params), varying), unroll",
        "x, ({name: quantised.plain(w) for name, w in layers_of(params).items()}, varying), unroll",
        "the stack is made numbers ahead of the scan", f"{MODEL}_no_float_copy_of_a_stacked_matrix_is_compiled[int8-1]"),
    row("float-layers-for-decoding", TRANSFORMER,
        'name: x if quantised.is_quantised(x) or x.ndim == 1 or "norm" in name else x.astype',
        "name: x if x.ndim == 1 else quantised.plain(x).astype", "decoding makes the whole base numbers",
        f"{MODEL}_the_decoding_loop_carries_integers[int4]"),
    row("scale-rounded", QUANTISED, "plain(weight).astype(x.dtype)", "plain(weight.astype(x.dtype))",
        "scales rounded to the compute type", f"{MODEL}_in_bfloat16_scales_are_not_rounded"),
    row("merge-passes-over", LORA, "else quantised.plain(x)\n", "else x\n", "a merged model with integers in it",
        f"{MODEL}_a_matrix_without_an_adapter_is_made_numbers_in_a_merge"),
    row("merge-of-integers", LORA, "matrix = quantised.plain(params[path])\n",
        "matrix = getattr(params[path], \"qvalue\", params[path])\n", "scales left out of a merge",
        f"{MODEL}_an_adapter_adds_to_a_quantised_base_and_a_merge_is_their_sum[llama-int8]"),
    row("whole-matrix-read", "rlhf_jax/model/hf/__init__.py",
        "hf_place.build_each(spec.shape, wanted, place, read, axis, quantise)",
        "quantise(hf_place.build(spec.shape, wanted, place and place(spec.shape), read, axis))",
        "a whole stack of floats on the device", f"{MODEL}_a_model_is_quantised_as_it_is_read_a_layer_at_a_time[llama-int8]"),
    row("first-layer-again", PLACE, "return read(((index, index + 1), *spans[1:]))", "return read(((0, 1), *spans[1:]))",
        "every layer is the first", f"{MODEL}_a_model_is_quantised_as_it_is_read_a_layer_at_a_time[llama-int8]"),
    row("scales-everywhere", COST, "for axes, (shape, bits) in held)",
        "for axes, (shape, bits) in held if bits != 32 or len(shape) < 3)", "scales left out of a device's bytes",
        f"{MODEL}_a_quantised_model_on_a_mesh_is_the_same_model[llama-nf4]"),
    row("base-by-folder-alone", "rlhf_jax/runs/models.py", "bases[key, held] = cfg, placed(base, mesh)",
        "bases[key, held] = bases[key, \"float\"] = cfg, placed(base, mesh)", "a float base that is a quantised one",
        f"{SCRIPT}_one_folder_held_in_two_ways_is_two_bases"),
    row("value-on-floats", "experiments/ppo_parts.py", "models.open_model(folder, mesh, bases, cfg.compute.base)",
        "models.open_model(folder, mesh, bases)", "the value model brings a float base",
        f"{SCRIPT}_all_roles_stand_on_one_quantised_base"),
    row("reward-on-floats", "experiments/reward_scores.py", 'bases, compute.base if compute else "float")', "bases)",
        "the reward model brings a float base", f"{SCRIPT}_all_roles_stand_on_one_quantised_base"),
    row("trained-whole", "rlhf_jax/runs/settings.py", 'compute.base == "float" or rank > 0', "rank >= 0",
        "integers handed to the optimizer", f"{SCRIPT}_a_whole_model_is_not_trained_on_a_quantised_base"),
    row("dry-run-in-floats", "rlhf_jax/runs/dry_run/given.py", "return quantised.specs(specs, cfg.compute.base)", "return specs",
        "a dry run that reckons 32 bits", f"{SCRIPT}_a_dry_run_counts_the_small_base[int8-8-False]"),
    row("extra-not-checked", "rlhf_jax/model/hf/__init__.py", "    quantised.check(held)\n", "",
        "an import error from deep inside", f"{MODEL}_an_unknown_kind_and_a_missing_library_are_told"),
)
