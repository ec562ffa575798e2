"""Krippendorff's alpha: agreement of any number of raters, with gaps, on a nominal, ordinal or interval scale."""

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.errors import UserError

LEVELS = ("nominal", "ordinal", "interval")


@dataclass(frozen=True)
class Alpha:
    """Alpha and what it rests on. `value` is NaN where the data cannot tell; `reason` then says why."""

    value: float
    """1 for perfect agreement, 0 for chance, below 0 for systematic disagreement."""
    units: int
    """Units that two or more raters gave a value; the others say nothing of agreement."""
    values: int
    """Values given to these units."""
    reason: str = ""


def krippendorff_alpha(units: Iterable[Iterable[Hashable]], *, level: str = "nominal") -> Alpha:
    """1 - D_o / D_e over the values that raters gave to each unit; None and NaN are gaps.

    With n_uc raters who gave unit u the value c, m_u in all, the coincidences are o_ck = sum_u n_uc (n_uk - [c = k]) /
    (m_u - 1), n_c = sum_k o_ck, n = sum_c n_c, D_o = sum_ck o_ck d_ck / n and D_e = sum_ck n_c n_k d_ck / (n (n - 1)). The
    squared difference d is [c != k] (nominal), (c - k)^2 (interval), or (sum_{g=c..k} n_g - (n_c + n_k) / 2)^2 (ordinal,
    values in numeric order). Where all values are one and the same nothing could have disagreed: D_e = 0, alpha NaN.

    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), https://repository.upenn.edu/asc_papers/43; Hayes
    and Krippendorff 2007, doi:10.1080/19312450709336664. Raises UserError for an unknown level, and for values that are
    not finite numbers on an ordinal or interval scale.
    """
    if level not in LEVELS:
        raise UserError(f"level is one of {', '.join(LEVELS)}, got {level!r}")
    given = [[value for value in unit if not _gap(value)] for unit in units]
    given = [unit for unit in given if len(unit) > 1]
    if not given:
        return Alpha(math.nan, 0, 0, "no unit has values of two raters")
    found: list[Any] = list(dict.fromkeys(value for unit in given for value in unit))
    if level != "nominal":
        for value in found:
            if not isinstance(value, int | float | np.number) or not math.isfinite(value):
                raise UserError(f"{level} alpha needs finite numbers, got {value!r}")
        found.sort()
    place = {value: c for c, value in enumerate(found)}
    counts = np.zeros((len(given), len(found)))
    for u, unit in enumerate(given):
        for value in unit:
            counts[u, place[value]] += 1
    raters = counts.sum(1)
    total = int(raters.sum())
    coincidences = (counts / (raters - 1)[:, None]).T @ counts - np.diag((counts / (raters - 1)[:, None]).sum(0))
    marginals = coincidences.sum(1)
    apart = _squared_differences(found, marginals, level)
    expected = float((np.outer(marginals, marginals) * apart).sum()) / (total - 1)
    if expected == 0:
        return Alpha(math.nan, len(given), total, f"every value is {found[0]!r}: nothing could have disagreed")
    return Alpha(1 - float((coincidences * apart).sum()) / expected, len(given), total)


def _gap(value: Hashable) -> bool:
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _squared_differences(found: list[Any], marginals: NDArray[np.float64], level: str) -> NDArray[np.float64]:
    if level == "nominal":
        return 1.0 - np.eye(len(found))
    # the ordinal distance of c < k, n_c / 2 + everything between + n_k / 2, is the distance of their mid-ranks
    at = np.asarray(found, np.float64) if level == "interval" else np.cumsum(marginals) - marginals / 2
    return np.subtract.outer(at, at) ** 2
