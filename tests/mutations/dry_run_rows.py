"""Mistakes in what a dry run reckons."""

from tests.mutations.mutation import Mutation

TESTS = "tests/runs/test_dry_run.py"


def row(id: str, file: str, find: str, replace: str, tests: str, reason: str) -> Mutation:
    """`tests` are names in the tests of the dry run."""
    return Mutation(
        f"dry-run-{id}", 0, file, find, replace, tuple(f"{TESTS}::test_{name}" for name in tests.split()), reason
    )


COST, RECKON = "rlhf_jax/model/cost.py", "rlhf_jax/runs/dry_run/reckon.py"

ROWS: tuple[Mutation, ...] = (
    row(
        "biases-multiplied",
        COST,
        'if path.startswith("layers/") and "embed" in s.axes)',
        'if path.startswith("layers/"))',
        "multiplied_parameters_are_the_matrices_of_the_layers",
        "norms and biases counted as matrices",
    ),
    row(
        "uncut",
        COST,
        "// cut(axes, shape, mesh) * bits",
        "// math.prod(mesh.shape.values()) * bits",
        "bytes_of_a_device_are_those_of_the_real_mesh",
        "every array taken to be cut along every axis of the mesh",
    ),
    row(
        "backward-once",
        COST,
        "trunk = (3 - frozen",
        "trunk = (2 - frozen",
        "operations_are_those_of_the_traced_programs",
        "a backward pass counted as one forward pass",
    ),
    row(
        "logits-once",
        COST,
        "return trunk + (4 - frozen) * head_flops",
        "return trunk + (3 - frozen) * head_flops",
        "operations_are_those_of_the_traced_programs",
        "the chunks of logits taken to be kept, not computed again",
    ),
    row(
        "weights-as-activations",
        COST,
        "sum(size(b) - size(a) for a, b in zip(once, twice, strict=True))",
        "sum(size(b) for a, b in zip(once, twice, strict=True))",
        "what_is_cast_for_the_backward_pass_is_counted",
        "weights that a backward pass holds on to counted as activations of twice the rows",
    ),
    row(
        "value-model-with-logits",
        COST,
        'if path not in ("score", "unembed")}',
        'if path != "score"}',
        "a_value_model_has_no_output_matrix",
        "a value model with an output matrix that it has not",
    ),
    row(
        "one-moment",
        RECKON,
        "ADAM = 2",
        "ADAM = 1",
        "the_training_state_is_what_the_optimizer_keeps",
        "Adam with one moment",
    ),
    row(
        "gradients-once",
        RECKON,
        "(1 if microbatches == 1 else 2)",
        "(1 if microbatches else 2)",
        "a_plan_of_sft_by_hand",
        "micro-batches whose sum of gradients takes no memory",
    ),
    row(
        "one-text-a-pair",
        "rlhf_jax/runs/dry_run/reward_model.py",
        'else 2 if kind == "pairs"',
        'else 1 if kind == "pairs"',
        "a_plan_of_a_reward_model_reads_two_texts_a_pair",
        "one text a pair",
    ),
    row(
        "base-for-each",
        "rlhf_jax/runs/dry_run/reckon.py",
        "if cfg.lora.rank else policy._replace(base=name)",
        "if not cfg.lora.rank else policy._replace(base=name)",
        "adapters_stand_on_one_base",
        "a base of its own for every adapter",
    ),
    row(
        "flag-ignored",
        "rlhf_jax/runs/config.py",
        'settings.append(("dry_run", "true"))',
        'settings.append(("dry_run", "false"))',
        "the_flag_runs_nothing_and_writes_nothing",
        "--dry-run that runs",
    ),
)
