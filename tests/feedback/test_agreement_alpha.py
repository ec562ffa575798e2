import math
from itertools import permutations

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.feedback.statistics.agreement import cohen_kappa, fleiss_kappa
from rlhf_jax.feedback.statistics.alpha import krippendorff_alpha


def units(table):
    """The columns of a printed table of raters, `*` for a gap."""
    rows = [[None if cell == "*" else int(cell) for cell in line.split()[1:]] for line in table.strip().splitlines()]
    return list(zip(*rows, strict=True))


THREE_CODERS = units("""
A  * * * * * 3 4 1 2 1 1 3 3 * 3
B  1 * 2 1 3 3 4 3 * * * * * * *
C  * * 2 1 3 4 4 * 2 1 1 3 3 * 4
""")  # https://en.wikipedia.org/wiki/Krippendorff's_alpha
FOUR_OBSERVERS = units("""
A  1 2 3 3 2 1 4 1 2 * * *
B  1 2 3 3 2 2 4 1 2 5 * 3
C  * 3 3 3 2 3 4 2 2 5 1 *
D  1 2 3 3 2 4 4 1 2 5 1 *
""")  # Krippendorff 2011, section C


@pytest.mark.parametrize(
    ("table", "level", "golden"),
    [
        (THREE_CODERS, "nominal", 0.6914),
        (THREE_CODERS, "ordinal", 0.8067),
        (THREE_CODERS, "interval", 0.8108),
        (FOUR_OBSERVERS, "nominal", 0.743),
        (FOUR_OBSERVERS, "ordinal", 0.815),
        (FOUR_OBSERVERS, "interval", 0.849),
    ],
)
def test_alpha_of_published_tables(table, level, golden):
    digits = len(str(golden)) - 2
    assert krippendorff_alpha(table, level=level).value == pytest.approx(golden, abs=0.5 * 10**-digits)


def by_pairs(table, level):
    """Alpha from its definition over pairs of values: within units against among all values of units with two."""
    kept = [[v for v in unit if v is not None] for unit in table]
    kept = [unit for unit in kept if len(unit) > 1]
    pool = [v for unit in kept for v in unit]

    def apart(c, k):
        if level == "nominal":
            return float(c != k)
        if level == "interval":
            return float(c - k) ** 2
        low, high = sorted((c, k))
        return (sum(low <= g <= high for g in pool) - (pool.count(c) + pool.count(k)) / 2) ** 2

    observed = sum(sum(apart(a, b) for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in kept) / len(pool)
    expected = sum(apart(a, b) for a, b in permutations(pool, 2)) / (len(pool) * (len(pool) - 1))
    return 1 - observed / expected


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_one_minus_observed_over_expected_disagreement(level, seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 6, 25)
    table = [
        [int(np.clip(t + rng.integers(-1, 2), 1, 5)) if rng.random() < 0.6 else None for _ in range(5)] for t in truth
    ]
    found = krippendorff_alpha(table, level=level)
    assert found.value == pytest.approx(by_pairs(table, level), abs=1e-12)
    assert found.units == sum(sum(v is not None for v in unit) > 1 for unit in table)


def test_the_ordinal_distance_is_not_that_of_the_numbers():
    """Names of ranks may be stretched: only their order counts for ordinal alpha, not for interval alpha."""
    stretched = [[None if v is None else v**3 for v in unit] for unit in THREE_CODERS]
    ordinal = krippendorff_alpha(stretched, level="ordinal").value
    assert ordinal == pytest.approx(krippendorff_alpha(THREE_CODERS, level="ordinal").value, abs=1e-12)
    assert abs(krippendorff_alpha(stretched, level="interval").value - 0.8108) > 0.01


def test_alpha_is_nearly_fleiss_kappa_without_gaps():
    """1 - alpha = (1 - kappa) (n - 1) / n for n values: Krippendorff corrects for the size of the sample."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 3, (40, 4))
    kappa = fleiss_kappa(np.stack([(table == c).sum(1) for c in range(3)], 1))
    alpha = krippendorff_alpha(table.tolist()).value
    assert 1 - alpha == pytest.approx((1 - kappa) * (table.size - 1) / table.size, abs=1e-12)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([[1, 1], [1, 1, 1]], "every value is 1: nothing could have disagreed"),
        ([[1], [2, None], [math.nan, 3]], "no unit has values of two raters"),
        ([], "no unit has values of two raters"),
    ],
)
def test_alpha_that_cannot_be_told_is_nan_with_a_reason(table, reason):
    found = krippendorff_alpha(table)
    assert math.isnan(found.value) and found.reason == reason


def test_alpha_at_its_ends():
    assert krippendorff_alpha([[1, 1], [2, 2]]).value == 1.0
    assert krippendorff_alpha([[1, 1], [2, 2]]).reason == ""
    assert krippendorff_alpha([["a", "b"], ["b", "a"]]).value == pytest.approx(1 - 1 / (8 / 12))
    found = krippendorff_alpha([[1, 2], [3], [2, 2, None]])
    assert (found.units, found.values) == (2, 4)


def test_alpha_needs_what_it_needs():
    with pytest.raises(UserError, match="nominal, ordinal, interval"):
        krippendorff_alpha([[1, 2]], level="ratio")
    with pytest.raises(UserError, match="interval alpha needs finite numbers, got 'a'"):
        krippendorff_alpha([["a", 1]], level="interval")
    with pytest.raises(UserError, match="ordinal alpha needs finite numbers, got inf"):
        krippendorff_alpha([[math.inf, 1]], level="ordinal")


# statsmodels 0.15.0, cohens_kappa(T, wt=...) and fleiss_kappa(F); scikit-learn 1.9.1 gives the same three of T
T = [[11, 4, 2, 0], [3, 9, 5, 1], [1, 6, 12, 3], [0, 2, 4, 14]]
F = [[4, 1, 0], [0, 5, 0], [2, 2, 1], [1, 0, 4], [3, 1, 1], [0, 0, 5], [2, 3, 0]]


@pytest.mark.parametrize(
    ("weights", "golden"),
    [("nominal", 0.46117381489841985), ("linear", 0.5991276206556915), ("quadratic", 0.7240547063555912)],
)
def test_kappas_as_statsmodels_has_them(weights, golden):
    cells = [(i, j) for i in range(4) for j in range(4) for _ in range(T[i][j])]
    found = cohen_kappa([i for i, _ in cells], [j for _, j in cells], weights=weights, categories=range(4))
    assert found == pytest.approx(golden, abs=1e-12)


def test_fleiss_kappa_as_statsmodels_has_it():
    assert fleiss_kappa(F) == pytest.approx(0.37806372549019596, abs=1e-12)


def test_alpha_of_pandalm(real):
    label = {(0, 0): 0, (0, 1): 1, (1, 0): 2}
    table = np.array([label[c.ranks] for c in formats.load(real("pandalm/testset-v1.json"))[0]]).reshape(999, 3)
    found = krippendorff_alpha(table.tolist())
    assert (found.units, found.values) == (999, 2997)
    assert found.value == pytest.approx(0.8642, abs=5e-5)
