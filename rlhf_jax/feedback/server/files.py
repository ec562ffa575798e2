"""The files of the page, as they lie in the package (or in a wheel of it), read once."""

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import PurePath

from rlhf_jax.errors import UserError

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_files() -> dict[str, bytes]:
    """name -> content of every file of the page. UserError where the package was installed without it."""
    folder = resources.files("rlhf_jax.feedback.server") / "page"
    found = {}
    if folder.is_dir():
        found = {f.name: f.read_bytes() for f in folder.iterdir() if PurePath(f.name).suffix in TYPES}
    if "index.html" not in found:
        raise UserError("the labelling page is missing from this installation; install rlhf-jax[label] again")
    return found


def ui_version(page: Mapping[str, bytes]) -> str:
    """12 hex digits that change when any file of the page does; stored with every judgement."""
    digest = hashlib.sha256()
    for name in sorted(page):
        digest.update(f"{name}\0{len(page[name])}\0".encode() + page[name])
    return digest.hexdigest()[:12]
