"""The figures in README are those of the committed runs."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
METRICS = ("gold", "proxy", "kl", "win rate", "parses")


def test_the_quickstart_table_is_that_of_the_committed_run():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    run = json.loads((ROOT / "experiments/results/quickstart.json").read_text(encoding="utf-8"))
    assert run["command"] in readme
    for name, row in run["rows"].items():
        cells = [f"{row[metric][0]:.3f} ± {(row[metric][2] - row[metric][1]) / 2:.3f}" for metric in METRICS]
        assert f"| {name} | {' | '.join(cells)} |" in readme
    for gain in run["gains"].values():
        assert f"{gain[0]:+.3f} [{gain[1]:.3f}, {gain[2]:.3f}]" in readme
    for name in ("reward model", "bag of words"):
        found = run["accuracies"][name]
        assert f"{min(found):.0%} to {max(found):.0%}" in readme
