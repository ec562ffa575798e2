"""A progress bar with the numbers that tell whether a run goes well."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax


@contextmanager
def progress(
    total: int, initial: int = 0, *, every: int | None = None
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A progress bar on stderr; the body calls advance({"reward": 0.5, "tokens/s": 900}) after each iteration.

    Where stderr is no terminal it writes a plain line every `every` iterations and after the last; none with every=0, and left
    out, every tenth until there are some twenty.
    """
    from tqdm import tqdm

    done, apart = initial, max(10, total // 20) if every is None else every
    terminal = sys.stderr.isatty()
    with tqdm(total=total, initial=initial, disable=not terminal, file=sys.stderr, dynamic_ncols=True) as bar:

        def advance(fields: Mapping[str, Any]) -> None:
            nonlocal done
            done += 1
            numbers = zip(fields, map(float, jax.device_get(list(fields.values()))))
            text = "  ".join(f"{name} {v:,.0f}" if abs(v) >= 1000 else f"{name} {v:.3g}" for name, v in numbers)
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            if not terminal and apart and (done % apart == 0 or done == total):
                print(f"{done}/{total}  {text}", file=sys.stderr, flush=True)

        yield advance
