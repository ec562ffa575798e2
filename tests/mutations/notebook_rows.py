"""Mistakes in what notebooks show, and in what is told of them."""

from tests.mutations.mutation import Mutation

NOTEBOOKS = "tests/notebooks/test_notebooks.py"

# fmt: off
ROWS: tuple[Mutation, ...] = (
    Mutation("notebooks-repr-of-a-sweep", 0, "rlhf_jax/runs/sweep/in_process.py", "    __repr__ = __str__\n", "",
             ("tests/runs/test_sweep_page.py::test_a_function_of_a_notebook_is_swept_in_process",),
             "a notebook keeps all numbers of a sweep beside its page"),
    Mutation("notebooks-readme", 0, "README.md", "notebooks/05_sharding.ipynb", "notebooks/05_mesh.ipynb",
             (f"{NOTEBOOKS}::test_all_are_there_and_the_readme_tells_of_each",), "the README names a notebook that is not there"),
    Mutation("notebooks-sign-by-colour-alone", 0, "notebooks/04_token_by_token.ipynb", "<rt>+8.3</rt>", "<rt>8.3</rt>",
             (f"{NOTEBOOKS}::test_coloured_text_shows_signs_without_colour_and_has_a_legend",), "a token without its sign"),
)
