"""A run that is stopped or killed and started again ends with the same bytes as one that never was."""

import signal
import time

import pytest
import reward_model
import sft

from rlhf_jax.runs import checkpoint, config
from rlhf_jax.runs.ppo_settings import Reward
from tests.experiments import alike
from tests.experiments.conftest import lines


@pytest.mark.parametrize("name", ["sft", pytest.param("reward_model", marks=pytest.mark.long)])
def test_resumed_training_ends_with_the_same_bytes(request, tmp_path, name):
    """Killed after step 6, with a checkpoint of 4: step 5 and 6 are cut from the log and done again."""
    whole = request.getfixturevalue({"sft": "sft_run", "reward_model": "reward_run"}[name])
    main = {"sft": sft, "reward_model": reward_model}[name].main
    alike.resumes_to_the_same_bytes(main, whole, tmp_path / "run", after=6, saved=4, names=alike.TRAINED)


def wait_for(process, path, count):
    """Until the file has so many lines; a process that ends before is an error."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, f"ended before line {count}: {process.communicate()}"
        time.sleep(0.005)


SLOW = """
import time


def words(prompts, responses, columns):
    time.sleep(0.05)
    return [len(response.split()) for response in responses]
"""


@pytest.mark.long
def test_ppo_stopped_and_killed_ends_with_the_same_bytes(world, start, tmp_path):
    """SIGTERM: the iteration is finished and saved, exit code 143. SIGKILL: whatever the moment. Then to the end.

    Beside parameters and optimizer, the coefficient of the KL and a reference that moves must come back.
    """
    (tmp_path / "slow.py").write_text(SLOW)
    rewards = {"judged": Reward(model=world.reward), "words": Reward(function=f"{tmp_path}/slow.py:words", weight=0.2)}
    chosen = world.settings(adaptive_kl_target=0.5, adaptive_kl_horizon=50.0, reference_every=3, reference_share=0.3)
    cfg = world.ppo(tmp_path / "whole", rewards, value="reward", iterations=24, save_every=4, show=2, ppo=chosen)
    (tmp_path / "ppo.yaml").write_text(config.dump(cfg))
    common = ("--config", tmp_path / "ppo.yaml", "--out")
    whole, stopped = start("ppo", *common, tmp_path / "whole"), start("ppo", *common, tmp_path / "run")
    path, again = tmp_path / "run" / "metrics.jsonl", (*common, tmp_path / "run", "--resume", "true")

    wait_for(stopped, path, 6)
    stopped.send_signal(signal.SIGTERM)
    _, told = stopped.communicate()
    assert stopped.returncode == 143 and "SIGTERM: ending this iteration, then saving" in told, told
    done = len(lines(path))
    assert 6 <= done < 12 and checkpoint.latest(tmp_path / "run" / "checkpoints") == done
    timing = lines(tmp_path / "run" / "timing.jsonl")

    killed = start("ppo", *again)
    wait_for(killed, path, 14)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and len(lines(path)) < 24
    assert lines(tmp_path / "run" / "timing.jsonl")[:done] == timing, "what was done before is not done again"

    last = start("ppo", *again)
    outputs = [process.communicate() for process in (whole, last)]
    assert (whole.returncode, last.returncode) == (0, 0), outputs
    alike.same_bytes(tmp_path / "run", tmp_path / "whole", alike.ALIGNED)
    assert len({row["kl/coef"] for row in lines(path)}) > 12, "the coefficient must have adapted all along"
    assert len(lines(path)) == 24
