"""The page as somebody has it who installed a built wheel: all of its files are in it, and it works."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent.parent
SERVE = """
import sys
import rlhf_jax
from rlhf_jax.feedback.server import app as server
from rlhf_jax.feedback.server import run as server_run
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.add import NewItem, add_annotator, add_items

con = open_store(sys.argv[1])
add_items(con, [NewItem("Question", ["a", "b"])])
token = add_annotator(con, "ann")
listening = server_run.bind()
print(rlhf_jax.__file__, server_run.link(listening, token), flush=True)
server_run.serve(server.app(server.Settings(sys.argv[1])), listening)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, built from a copy of the sources: stale files of a build cannot come in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rlhf_jax", source / "rlhf_jax", ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "installed")
    return folder / "installed"


def test_every_file_of_the_page_is_in_it(installed):
    there = {
        path.name: path.read_bytes() for path in (installed / "rlhf_jax" / "feedback" / "server" / "page").iterdir()
    }
    assert there == {
        path.name: path.read_bytes() for path in (ROOT / "rlhf_jax" / "feedback" / "server" / "page").iterdir()
    }
    assert {"index.html", "app.js", "style.css", "icon.svg"} <= set(there)


def test_it_serves_the_page(installed, tmp_path, browser):
    told = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", SERVE, str(tmp_path / "judgements.sqlite")]
    with subprocess.Popen(command, env=told, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            where, link = server.stdout.readline().split()
            assert Path(where).is_relative_to(installed)
            browser.open(link)
            assert sorted(browser.responses()) == ["a", "b"]
            browser.press("4")
            browser.submit()
            assert browser.text("h1") == "All done, thank you"
            assert browser.complaints() == []
        finally:
            server.terminate()
