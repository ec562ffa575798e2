"""Reading what a run has written line by line."""

import json
import warnings
from pathlib import Path
from typing import Any


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's .jsonl file. A line that is no JSON object with an iteration is left out, with a warning."""
    rows, bad = [], 0
    with open(path, encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if line.endswith("\n") and isinstance(row, dict) and isinstance(row.get("iteration"), int):
                rows.append(row)
            else:
                bad += 1
    if bad:
        warnings.warn(f"{path}: {bad} unreadable line(s) left out", stacklevel=2)
    return rows
