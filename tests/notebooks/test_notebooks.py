"""Every cell of every notebook runs, nothing of the package is written meanwhile, and what is committed is what they show.

`make notebooks` runs this file and nothing else."""

import ast
import hashlib
import re

import nbformat
import pytest

from tests.notebooks.execute import ROOT, execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [
    "01_a_new_loss",
    "02_bring_your_own_model",
    "03_kl_placement",
    "04_token_by_token",
    "05_sharding",
    "06_from_clicks_to_a_reward_model",
    "07_reading_a_sweep",
]
LARGEST = 300_000
"""Bytes."""
LINES = {"01_a_new_loss": 32, "02_bring_your_own_model": 28}
"""The longest cell of code; elsewhere SHORT."""
SHORT = 25
PICTURES = ("image/png", "text/html")
MACHINE = re.compile(r"/(?:home|root|work|tmp|Users|private|var|opt|usr)/|site-packages|[A-Z]:\\\\")
"""Parts of a path of some machine."""
NUMBER = re.compile(r"[-+−]?\d[\d.]*(?:e[-+−]?\d+)?|\s")
"""What another machine may reckon a little differently, and the room that it takes."""


def code(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def functions(path):
    """Functions that a notebook defines, by name."""
    nodes = [node for source in code(path) for node in ast.parse(source).body]
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}


def package():
    """A digest of every file of the package."""
    files = sorted(path for path in (ROOT / "rlhf_jax").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert len(files) > 50
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shown(notebook):
    """(kind, text with its numbers taken out, or the kind of picture) of everything that the cells show."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text", "") or " ".join(kind for kind in PICTURES if kind in output.get("data", {}))
            found.append((output.output_type, NUMBER.sub("", text)))
    return found


def test_all_are_there_and_the_readme_tells_of_each():
    assert [path.stem for path in NOTEBOOKS] == NAMES
    readme = (ROOT / "README.md").read_text()
    assert all(f"notebooks/{name}.ipynb" in readme for name in NAMES)


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_writes_no_file_of_the_package(path, tmp_path):
    """The notebooks' own assertions are that PPO learns and that the two losses differ as they say."""
    before = package()
    notebook = execute(path, tmp_path)
    assert package() == before
    assert not list(tmp_path.iterdir())
    printed = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in printed if output.get("name") == "stderr"]
    # what one output held may come in two on a busy machine
    kinds = {kind for kind, _ in shown(notebook)}
    text = ["".join(text for _, text in shown(n)) for n in (notebook, nbformat.read(path, as_version=4))]
    assert kinds and sorted(text[0]) == sorted(text[1])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran(path):
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    told = "".join(output.get("text", "") for output in outputs)
    told += "".join(text for output in outputs for kind, text in output.get("data", {}).items() if kind != "image/png")
    assert not MACHINE.search(told) and "Warning" not in told
    assert str(ROOT) not in path.read_text() and "/home/" not in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_is_short_and_a_notebook_says_what_it_asks(path):
    cells = nbformat.read(path, as_version=4).cells
    assert max(len(source.splitlines()) for source in code(path)) <= LINES.get(path.stem, SHORT)
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")


def test_coloured_text_shows_signs_without_colour_and_has_a_legend():
    """A frame of its own and a number with its sign a token; ink and ground are both set, so any theme of the page will do."""
    cells = nbformat.read(NOTEBOOKS[3], as_version=4).cells
    pages = [
        o["data"]["text/html"] for cell in cells for o in cell.get("outputs", []) if "text/html" in o.get("data", {})
    ]
    assert len(pages) == 1 and pages[0].count("legend:") == 3
    chips = re.findall(r'<ruby[^>]*><span style="([^"]*)">[^<]*</span><rt>(.)[\d.]+</rt></ruby>', pages[0])
    assert len(chips) == pages[0].count("<ruby") > 100
    for style, sign in chips:
        assert "background:rgb(" in style and "color:#111" in style
        assert ("solid" if sign == "+" else "dashed") in style and sign in "+−"
    assert {sign for _, sign in chips} == set("+−")


def test_the_new_loss_is_short_and_goes_straight_into_ppo():
    path = NOTEBOOKS[0]
    loss = functions(path)["parabola"]
    assert [argument.arg for argument in loss.args.args][:3] == ["logprobs", "old_logprobs", "advantages"]
    assert loss.end_lineno - loss.lineno + 1 <= 10
    source = "\n".join(code(path))
    assert "policy_loss=policy_loss" in source and "train(parabola)" in source and "train(policy.clipped)" in source
    assert "load_file(" in source and "from safetensors.numpy import" in source


def test_both_libraries_go_through_one_loop():
    path = NOTEBOOKS[1]
    classes = [node for source in code(path) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert [ast.unparse(node.bases[0]) for node in classes] == ["nnx.Module", "nn.Module"]
    assert "rlhf_jax.model" not in "\n".join(code(path)), "a model of the package would be no model of one's own"
    assert "for name, (params, apply) in models.items()" in "\n".join(code(path))
