"""The committed configurations parse, say how they are run, and every setting explains itself."""

import dataclasses
import re
import shlex
import typing
from pathlib import Path

import best_of_n
import convert
import distill
import dpo
import evaluate
import generate
import grpo
import label
import nash_md
import online_dpo
import ppo
import pytest
import quickstart
import reward_model
import rounds
import sft

from rlhf_jax.runs import config

CONFIGS = Path(__file__).parent.parent.parent / "experiments" / "configs"
SCRIPTS = {
    "sft": sft,
    "reward": reward_model,
    "ppo": ppo,
    "rounds": rounds,
    "dpo": dpo,
    "best": best_of_n,
    "grpo": grpo,
    "distill": distill,
    "online": online_dpo,
    "nash": nash_md,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_configuration_parses_and_begins_with_its_command(path):
    script = SCRIPTS[path.stem.split("_")[0]]
    cfg = config.parse(script.Experiment, ["--config", str(path)])
    assert config.parse(script.Experiment, ["--config", str(path), "--seed", "3"]) == dataclasses.replace(cfg, seed=3)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = f"python experiments/{Path(script.__file__).name} --config experiments/configs/{path.name}"
    assert any(command in line for line in header)
    assert any("Expect" in line for line in header)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_command_in_the_header_parses_as_it_stands(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent.parent)
    found = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#") and "python " in line]
    assert found
    for _, script, *arguments in map(shlex.split, found):
        Experiment = SCRIPTS[Path(script).stem.split("_")[0]].Experiment
        assert isinstance(config.parse(Experiment, arguments), Experiment)


def fields(cls, prefix=""):
    """(dotted name, dataclass that holds it) of every setting that takes a value."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, cls


@pytest.mark.parametrize(
    "script",
    [
        sft,
        reward_model,
        ppo,
        grpo,
        distill,
        dpo,
        online_dpo,
        nash_md,
        best_of_n,
        generate,
        evaluate,
        convert,
        label,
        rounds,
        quickstart,
    ],
    ids=lambda s: s.__name__,
)
def test_help_explains_every_setting(script, capsys):
    """Each has a word of its own before argparse's "(type: …)"; each group's title, its docstring, is one whole line."""
    with pytest.raises(SystemExit) as caught:
        config.parse(script.Experiment, ["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    silent = []
    for name, holder in fields(script.Experiment):
        entry = re.search(rf"^  --{re.escape(name)} .*?(?=^  --|^\S|\Z)", shown, re.MULTILINE | re.DOTALL)
        assert entry, f"--{name} is missing"
        text = re.sub(r"^  --\S+ (\{.*?\}|\[.*?\]|\S+)", "", entry[0]).strip()
        if not text or text.startswith("("):
            silent.append(name)
        title = holder.__doc__.strip().split("\n\n")[0]
        assert "\n" not in title and title.rstrip(".") in shown, f"cut off: {title}"
    assert not silent, f"settings without a word of explanation: {silent}"


def test_dumped_configurations_read_back_equal(tmp_path):
    cfg = config.parse(ppo.Experiment, ["--config", str(CONFIGS / "ppo_pandalm.yaml")])
    (tmp_path / "again.yaml").write_text(config.dump(cfg))
    assert config.parse(ppo.Experiment, ["--config", str(tmp_path / "again.yaml")]) == cfg
