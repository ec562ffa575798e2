"""What ran: the command, package versions, devices, and the commit of the source."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("rlhf-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def command() -> str:
    """The command line, with the script's path as seen from the working folder where it lies in there."""
    script = os.path.relpath(sys.argv[0])
    return shlex.join(["python", sys.argv[0] if script.startswith("..") else script, *sys.argv[1:]])


def current() -> dict[str, Any]:
    """Versions of Python and packages, platform, devices, and the git commit of the source if it lies in a checkout."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    kinds = [d.device_kind if d.device_kind == d.platform else f"{d.platform} {d.device_kind}" for d in jax.devices()]
    found["devices"] = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    found["processes"] = jax.process_count()
    return found | {"git": _git_commit()}


def record(path: Path) -> dict[str, Any]:
    """What versions.json at `path` must hold from now on: after a resume under other versions the earlier ones too.

    Such a resume warns, as results may differ in the last bits.
    """
    now = current()
    if path.exists():
        was = json.loads(path.read_text(encoding="utf-8"))
        earlier = was.pop("earlier", [])
        changed = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key)]
        if changed:
            told = ", ".join(f"{key} {was.get(key)} -> {now.get(key)}" for key in changed)
            warnings.warn(f"resumed under other versions, so results may differ in the last bits: {told}", stacklevel=3)
            earlier.append(was)
        now |= {"earlier": earlier} if earlier else {}
    return now


def _git_commit() -> str | None:
    """The commit of the checkout that this package lies in, with + after it when tracked files have been changed."""
    package = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=package, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    commit = git("rev-parse", "HEAD")
    if not top or not commit or Path(top) / package.name != package:
        return None  # installed somewhere inside a repository that is not ours
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
