"""What the page asks by default: axes, questions, flags and guidelines; all of it can be set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.store.assign import Rules
from rlhf_jax.feedback.store.verdict import Axis

AXES = (
    Axis("helpful", "Does it do what was asked?"),
    Axis("honest", "Is it true, and open about what it does not know?"),
    Axis("harmless", "Would it do no harm?"),
    Axis("style", "Is it well written?"),
)
FLAGS = ("unsafe", "personal data", "wrong language", "broken")
QUESTIONS = {"overall": "Which response is better?"}
GUIDELINES = """Read the whole conversation and every response before you judge.

Prefer the response that does what was asked, that is true, and that does no harm. A response that admits it does not
know is worse than a right one and better than a wrong one. Length is no merit: do not prefer the longer one for it.

Say "tie" when you would be equally content with either, "both bad" when you would want neither. Skip what you cannot
judge, and flag what should not be in the data.
"""


@dataclass(frozen=True)
class Settings:
    """What is asked, and where it is stored. UserError without axes, or with two of one name."""

    db: str | Path
    axes: Sequence[Axis] = AXES
    questions: Mapping[str, str] = field(default_factory=lambda: dict(QUESTIONS))
    """The question of a pair or a ranking, by its axis."""
    guidelines: str = GUIDELINES
    flags: Sequence[str] = FLAGS
    rules: Rules = field(default_factory=Rules)
    allowed_hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]")
    """Host names (no ports) by which the page may be reached."""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) < len(names):
            raise UserError(f"the page needs axes of different names, got {names}")
