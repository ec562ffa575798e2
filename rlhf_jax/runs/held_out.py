"""Evaluation data without what training has seen: leaks are counted, told, and left out of the evaluation."""

from collections.abc import Sequence
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import leakage

LEAKS = ("drop", "keep")
"""What happens to evaluation records that share a prompt, or words in a row of one, with training."""


def clean(train: Sequence[Any], held: Sequence[Any], name: str, leaks: str = "drop") -> list[Any]:
    """The records of `held` whose prompts training does not share (`leakage.leaks`), with one printed line on the others.

    Where all but whole copies share words in a row, as prompts of one template do, those are kept, and the line says so.
    leaks="keep" only tells. `name` is what the line calls them. UserError where all are copies.
    """
    found = leakage.leaks(train, held)
    leaked = len(found.exact) + len(found.overlapping)
    kept, said = found.clean, "They are left out." if leaked else ""
    if leaks == "keep":
        kept, said = list(range(len(held))), "They are kept: leaks is keep." if leaked else ""
    elif not kept and found.overlapping:
        kept = found.overlapping
        said = "Whole copies are left out; the words in a row are in every prompt, and are taken for a template."
    print(f"{name}: {found.text()} {said}".rstrip(), flush=True)
    if held and not kept:
        raise UserError(f"{name}: every prompt is in the training data; bring others, or set leaks: keep")
    return [held[index] for index in kept]
