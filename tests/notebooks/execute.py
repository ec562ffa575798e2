"""Execute a notebook from top to bottom in a kernel of its own.

python -m tests.notebooks.execute notebooks/*.ipynb    # runs them and keeps what they show, for committing
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent.parent
SECONDS = 600
"""A cell may take this long on a busy machine; all of a notebook takes half a minute on a quiet one."""


def execute(path, folder, **environment):
    """The notebook with what its cells show now. They run in `folder`, on this tree, offline. A cell that fails raises
    nbclient.exceptions.CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    told = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    told["MPLBACKEND"] = (
        "module://matplotlib_inline.backend_inline"  # figures are shown, whatever the caller's own does
    )
    client.execute(env=os.environ | told | environment)
    notebook.metadata.language_info = {"name": "python"}  # not the version that happened to run it
    return notebook


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        nbformat.write(execute(path, path.parent), path)
        print(f"{path}: executed, {path.stat().st_size / 1000:.0f} kB")
