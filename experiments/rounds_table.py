"""The rounds as a table for the terminal, and as a page. `cfg` is rounds.py's Experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.runs import report

COLUMNS = {
    "comparisons": "comparisons",
    "fresh": "accuracy on fresh pairs",
    "held_out": "after training",
    "ceiling": "annotators",
    "reward": "PPO's reward",
    "kl": "KL, nats",
    "now": "held-out score",
    "gain": "gain over the first policy",
}


def cells(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row a round, as text."""

    def shown(value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, list | tuple):
            return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    names = [name for name in COLUMNS if any(name in row for row in rows)]
    return [
        {"round": str(number)} | {COLUMNS[name]: shown(row.get(name)) for name in names}
        for number, row in enumerate(rows, 1)
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rounds as a table for the terminal."""
    found = cells(rows)
    width = {name: max(len(name), *(len(row[name]) for row in found)) for name in found[0]}
    lines = ["  ".join(f"{name:>{width[name]}}" for name in found[0])]
    return "\n".join(lines + ["  ".join(f"{row[name]:>{width[name]}}" for name in row) for row in found])


def warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the reader should know before they use the last policy."""
    found = []
    for number, row in enumerate(rows, 1):
        own, other = row["held_out"], row.get("baseline")
        if own is not None and other is not None and own <= other:
            found.append(
                f"round {number}: the reward model orders {own:.3f} of the held-out pairs rightly, the best of its baselines "
                f"{other:.3f}; judge more before you trust what PPO made of it"
            )
    scores = [row["now"][0] if row.get("now") else None for row in rows]
    told = [score for score in scores if score is not None]
    if told and scores[-1] is not None and max(told) > scores[-1]:
        best = scores.index(max(told))
        found.append(f"the held-out score was highest after round {best + 1}: {rows[best]['policy']}")
    return found


def report_page(cfg: Any, rows: Sequence[Mapping[str, Any]], mix: Mapping[str, int]) -> Path:
    """One page of all rounds' PPO runs, with the table."""
    folders = [Path(cfg.out) / f"round_{number}" / "ppo" for number in range(1, len(rows) + 1)]
    judged = ", ".join(f"{kind} {count}" for kind, count in mix.items() if count)
    return report.write(
        *folders,
        out=Path(cfg.out) / "report.html",
        title="Rounds of feedback",
        table=cells(rows),
        notes=[
            f"Comparisons judged by: {judged}.",
            "Accuracy on fresh pairs: of the reward model of the round before, on pairs that it has not learnt from.",
            "After training: on pairs of prompts held out from all rounds so far. Intervals are 95 %, over prompts.",
        ],
        synthetic=["The judges of these rounds are simulated."] if mix.get("synthetic") else [],
    )
