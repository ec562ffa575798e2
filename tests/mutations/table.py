"""What is broken on purpose, and which tests must then fail.

A row is one small, plausible mistake: `find`, which stands exactly once in `file`, becomes `replace`. It is killed when
one of `tests` fails; an import that breaks, a name that does not exist or a fixture that fails does not count. Choose
the smallest tests that can see it: each row is a pytest run of its own.
"""

from tests.mutations import (
    check_rows,
    distill_rows,
    dry_run_rows,
    every_rows,
    family_rows,
    label_rows,
    lora_rows,
    mend_rows,
    mended_rows,
    model_rows,
    moe_rows,
    nash_rows,
    notebook_rows,
    policy_zoo_rows,
    ppo_rows,
    preference_rows,
    quantised_rows,
    records_rows,
    reward_rows,
    script_rows,
    statistics_rows,
    store_rows,
    sweep_rows,
)
from tests.mutations.mutation import Mutation

__all__ = ["MUTATIONS", "Mutation"]

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        id="floors-import-up",
        invariant=0,
        file="rlhf_jax/masks.py",
        find="import jax.numpy as jnp\n",
        replace="import jax.numpy as jnp\n\nfrom rlhf_jax.objectives import kl as _kl  # noqa: F401\n",
        tests=("tests/test_floors.py::test_imports_point_down_only",),
        reason="a ground file that imports a wing",
    ),
    Mutation(
        id="import-loads-matplotlib",
        invariant=0,
        file="rlhf_jax/__init__.py",
        find='__version__ = "',
        replace='import matplotlib\n\n__version__ = "',
        tests=("tests/test_imports.py::test_import_rlhf_jax_loads_nothing_heavy",),
        reason="a plotting library loaded by every user",
    ),
    *check_rows.ROWS,
    *distill_rows.ROWS,
    *dry_run_rows.ROWS,
    *every_rows.ROWS,
    *label_rows.ROWS,
    *lora_rows.ROWS,
    *mend_rows.ROWS,
    *mended_rows.ROWS,
    *model_rows.ROWS,
    *moe_rows.ROWS,
    *nash_rows.ROWS,
    *notebook_rows.ROWS,
    *family_rows.ROWS,
    *ppo_rows.ROWS,
    *preference_rows.ROWS,
    *policy_zoo_rows.ROWS,
    *records_rows.ROWS,
    *reward_rows.ROWS,
    *quantised_rows.ROWS,
    *script_rows.ROWS,
    *statistics_rows.ROWS,
    *store_rows.ROWS,
    *sweep_rows.ROWS,
)
