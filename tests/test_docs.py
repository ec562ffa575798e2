"""The pages of documentation: their tables and drawings are what the committed results say."""

from pathlib import Path

import pytest

from rlhf_jax.runs.sweep import publish, spec

ROOT = Path(__file__).parent.parent
PAGES = ("ppo_details", "kl", "losses")


@pytest.mark.parametrize("name", PAGES)
def test_a_sweeps_page_says_what_its_results_say(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = ROOT / f"docs/{name}.md"
    sweep = spec.load("experiments/ppo.py", f"experiments/sweeps/{name}.yaml")
    found = publish.from_csv(sweep, f"experiments/results/{name}.csv")
    text, drawings = publish.fill(page.read_text(), found, page.stem)
    assert text == page.read_text(), f"python -m rlhf_jax.runs.sweep.publish … docs/{name}.md fills it"
    for file, svg in drawings.items():
        assert (page.parent / file).read_text() == svg, file
    assert all(point.status == "done" for point in found.outcomes)
    assert {f"docs/{file}" for file in drawings} == {
        str(path.relative_to(ROOT)) for path in page.parent.glob(f"{name}.*.svg")
    }
