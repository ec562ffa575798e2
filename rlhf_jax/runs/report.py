"""A run as one HTML page that needs nothing else: curves, numbers, samples before and after, and what was run.

    python -m rlhf_jax.runs.report runs/ppo                  one run, into runs/ppo/report.html
    python -m rlhf_jax.runs.report runs/ppo runs/ppo-2 …     several, overlaid, into runs/report.html

The page forbids scripts and requests, and everything in it is escaped.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.runs import chart, page, strict_yaml
from rlhf_jax.runs.lines import read_lines
from rlhf_jax.runs.page import Loaded
from rlhf_jax.runs.ranges import check, nearest_file

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c1e21;--soft:#667;--line:#e4e6ea;--wash:#f6f7f9;--mark:#9a5b00}
@media(prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e4e6e9;--soft:#9aa1aa;--line:#2c3036;--wash:#1c1f23;
--mark:#e6b45c}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1080px;padding:2.5rem 1.5rem 4rem;background:var(--paper);
color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .2em;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2.6em 0 .9em;padding-top:1em;border-top:1px solid var(--line)}
p{margin:.3em 0;max-width:75ch}.soft{color:var(--soft);font-size:.88em}.charts{display:grid;gap:1.6rem 2.4rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr))}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.28em .9em .28em 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;font-size:.88em;color:var(--soft)}.n{text-align:right;white-space:nowrap;padding-left:1.2em}
pre,code{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--wash);padding:.9em 1em;border-radius:6px;overflow-x:auto;margin:.5em 0;white-space:pre-wrap;
overflow-wrap:anywhere}details{margin:1em 0}summary{cursor:pointer;color:var(--soft)}details>.charts{margin-top:1.2em}
.sample{margin:0 0 1.8rem}.texts{display:grid;gap:.7rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr))}
.text{background:var(--wash);border-radius:6px;padding:.6em .9em;min-width:0}.text.prompt{background:none;padding:0;
border-left:3px solid var(--line);border-radius:0;padding-left:.9em;margin-bottom:.6em}
.said{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}.head{display:flex;justify-content:space-between;
gap:1em;color:var(--soft);font-size:.85em;margin-bottom:.15em}.note{border-left:3px solid var(--mark);padding-left:.9em}
"""


def load(folder: str | Path) -> Loaded:
    """Read a run folder. UserError where the folder is missing or holds nothing of a run."""
    folder = Path(folder)
    check(folder.is_dir(), f"there is no run folder {str(folder)!r}{nearest_file(folder)}")

    def rows(name: str) -> list[dict[str, Any]]:
        path = folder / f"{name}.jsonl"
        return read_lines(path) if path.exists() else []

    def facts(name: str) -> dict[str, Any]:
        path = folder / f"{name}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    run = Loaded(
        name=folder.resolve().name,
        config=strict_yaml.load(folder / "config.yaml") if (folder / "config.yaml").exists() else {},
        versions=facts("versions"),
        about=facts("about"),
        metrics=rows("metrics"),
        timing=rows("timing"),
        samples=rows("samples"),
    )
    check(any(run[1:]), f"{folder} holds nothing of a run (config.yaml, metrics.jsonl, samples.jsonl …)")
    return run


def write(
    *folders: str | Path,
    out: str | Path | None = None,
    table: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    synthetic: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Write the report of a run, or of several with their curves overlaid, and return its path.

    `table` is rows of results to show first, {column: number or text}; `notes` are sentences to read with them;
    `synthetic` are sentences on what is made up, added to those in about.json. `title` stands above it all (default: the
    runs' names). `out` is the file; without it
    <folder>/report.html for one run, report.html beside the folders for several.
    """
    check(len(folders) > 0, "report: name at least one run folder")
    runs = [load(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=str(folder)) for run, folder in zip(runs, folders)]
    single = runs[0] if len(runs) == 1 else None
    first = Path(folders[0])
    path = Path(out) if out else (first if single else first.resolve().parent) / "report.html"
    title = title or str((single.about.get("title") if single else None) or " and ".join(run.name for run in runs))
    made_up = list(dict.fromkeys([*synthetic, *(s for run in runs for s in _sentences(run.about.get("synthetic")))]))
    told = list(dict.fromkeys([*notes, *(s for run in runs for s in _sentences(run.about.get("notes")))]))
    sections = [
        section("Results", page.table(table)),
        section("Notes", "".join(f"<p>{escape(s)}</p>" for s in told)),
        section("What is synthetic", "".join(f'<p class="note">{escape(s)}</p>' for s in made_up)),
        section("Curves", page.charts(runs)),
        section("In numbers", page.numbers(runs)),
        section("Before and after" if single else "The same prompts", page.samples(runs)),
        section("Where the settings differ", "" if single else page.differences(runs)),
        section("What ran", "".join(page.what_ran(run, named=not single) for run in runs)),
    ]
    try:
        hidden = path.with_name(f".{path.name}.new")
        html = document(title, page.summary(runs) + "".join(sections))
        hidden.write_text(html, encoding="utf-8", errors="replace")
        hidden.replace(path)
    except OSError as error:
        raise UserError(f"cannot write the report {path}: {error.strerror}") from None
    return path


def document(title: str, body: str, *, style: str = "") -> str:
    """A whole page with this title and body (HTML), in the look of all reports: no script, no request."""
    return _visible(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{chart.STYLE}{style}</style></head><body>"
        f"<h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of a page under its heading; "" without a body."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _sentences(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(v) for v in value] if isinstance(value, list) else []


def _visible(text: str) -> str:
    """Control characters, which HTML cannot hold, as their pictures (␀)."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda m: chr(0x2421 if m[0] == "\x7f" else 0x2400 + ord(m[0])), text)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: one folder or several, and where to write."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.runs.report", description="Write a run's report.html.")
    parser.add_argument("folders", nargs="+", help="run folders; several are compared on one page")
    parser.add_argument("--out", help="file to write (report.html in the folder, or beside several folders)")
    args = parser.parse_args(argv)
    try:
        print(write(*args.folders, out=args.out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
