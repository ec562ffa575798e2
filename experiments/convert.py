"""One file of human feedback in, another form out, with a manifest of what is in it and what was left out.

python experiments/convert.py --given votes.json --out pairs.jsonl --form trl_explicit
python experiments/convert.py --given hub:nvidia/HelpSteer2:train --out ratings.jsonl --records ratings
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, leakage
from rlhf_jax.feedback.formats import exports
from rlhf_jax.feedback.formats import write as formats_export
from rlhf_jax.runs import config, data, who_judged
from rlhf_jax.runs.ranges import check, choice

READ: dict[str, Callable[..., tuple[list[Any], formats.Report]]] = {
    "comparisons": formats.load,
    "ratings": formats.load_ratings,
    "demonstrations": formats.load_demonstrations,
    "prompts": formats.load_prompts,
}


@dataclass(frozen=True)
class Experiment:
    """What to read, what to keep of it, and how to write it."""

    given: str
    """File of judgements, demonstrations or prompts; or hub:owner/name:split, with the extra "hub"."""
    out: str
    """File to write, JSON lines; its manifest is beside it, .manifest.json."""
    form: str = "raw"
    """Form to write: raw, ranking, trl_explicit, trl_implicit, trl_conversational, trl_unpaired, trl_prompt,
    trl_prompt_completion or trl_stepwise."""
    records: str = "comparisons"
    """What to read: comparisons, ratings, demonstrations or prompts."""
    format: str = "auto"
    """Form of the file read; auto tells by its keys."""
    source_kind: str = ""
    """Who judged, where the file does not say: human, ai or synthetic; empty: a file that does not say is taken as human."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    source_kinds: tuple[str, ...] = ()
    """Keep only what these judged: human, ai, synthetic; empty keeps all."""
    axes: tuple[str, ...] = ()
    """Keep only these axes; empty keeps all."""
    repeats: str = "keep"
    """keep or drop comparisons that are there twice; contradictions of several annotators always stay."""
    against: str = ""
    """File of evaluation data: what shares a prompt or 13 words in a row of one with it is left out."""
    include_groups: bool = False
    """Write also what describes the annotators as people. They must have agreed."""

    def __post_init__(self) -> None:
        choice("records", self.records, READ)
        choice("form", self.form, exports.FORMS)
        choice("repeats", self.repeats, ("keep", "drop"))
        choice("source_kind", self.source_kind, who_judged.KINDS)
        check(not self.source_kind or self.records != "prompts", "source_kind: nobody judges a prompt; leave it out")
        check(self.repeats == "keep" or self.records == "comparisons", "repeats: only comparisons can be repeated")


def main(cfg: Experiment) -> dict[str, Any]:
    """Convert; the manifest."""
    found, _ = who_judged.read(READ[cfg.records], data.find(cfg.given, cfg.data), cfg.format, cfg.source_kind)
    if cfg.repeats == "drop":
        found, count = leakage.without_repeats(found)
        print(f"{count} repeated judgements left out.")
    if cfg.against:
        held, _ = formats.load_prompts(data.find(cfg.against, cfg.data))
        leaks = leakage.leaks(held, found)
        print(f"Against {cfg.against}: {leaks.text()} They are left out.")
        found = [found[index] for index in leaks.clean]
        if not found:
            raise UserError(f"every record of {cfg.given} shares a prompt with {cfg.against}; nothing is written")
    where = {"source_kind": cfg.source_kinds, "axis": cfg.axes}
    chosen = {name: values for name, values in where.items() if values}
    manifest = formats_export.write(cfg.out, found, cfg.form, where=chosen, include_groups=cfg.include_groups)
    kinds = ", ".join(f"{count} {kind}" for kind, count in manifest["source_kinds"].items()) or "nobody judged"
    left = ", ".join(f"{name} {count}" for name, count in manifest["left_out"].items()) or "nothing"
    print(
        f"{cfg.out}: {manifest['rows']} rows of {cfg.form} from {manifest['records']} records ({kinds}); left out: {left}."
    )
    return manifest


if __name__ == "__main__":
    config.command(main, Experiment)
