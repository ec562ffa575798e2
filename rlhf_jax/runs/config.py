"""Configuration: frozen dataclasses, filled from YAML (`--config`) and from `--a.b value`.

A script ends with `command(main, Experiment)` and is done. In a notebook a config is just the dataclass: nothing here
is needed. A bad setting is told in one line that says what would be right (`UserError`; `command` prints it and exits
with 2).

Fields may be bool, int, float, str, Path, Literal, Enum, unions of these, tuples, lists and dicts of them, and further
dataclasses. Anything else is refused, callables and `Any` above all: such a field would import what a YAML file names.
A user's own function is a string, "file.py:function", that the script hands to `resolve_function`.
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import re
import sys
import typing
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import yaml

from rlhf_jax.errors import UserError
from rlhf_jax.runs import hints, strict_yaml
from rlhf_jax.runs.functions import resolve_function
from rlhf_jax.runs.ranges import (
    at_least,
    between,
    check,
    choice,
    divides,
    existing,
    fraction,
    nearest,
    non_negative,
    one_line,
    positive,
    shown,
)
from rlhf_jax.runs.strict_yaml import dump

__all__ = ["at_least", "between", "check", "choice", "command", "divides", "dump", "existing", "fraction"]
__all__ += ["non_negative", "parse", "positive", "resolve_function"]

Config = TypeVar("Config")


def parse(Experiment: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Read a config: defaults of the dataclass, then the YAML of `--config`, then `--a.b value`, wherever each stands.

    Raises UserError for anything the user can mend. `--help` prints every field with its docstring and exits with 0.
    """
    import jsonargparse

    flags, settings = _split(list(sys.argv[1:] if argv is None else argv))
    files = [value or "" for key, value in settings if key == "config"]
    check("" not in files, "--config needs a value: a YAML file of settings")
    check(len(files) < 2, "--config is given twice: one YAML file per run")
    data = strict_yaml.load(files[0]) if files else {}
    for key, value in data.items():
        _check_keys(value, Experiment, [str(key)], f"{files[0]}: ", "")
    settings = [(key, text) for key, text in settings if key != "config"]
    for key, text in settings:
        _check_keys(text, Experiment, key.removesuffix("+").split("."), "", "--")
    others, folded = _fold(settings, data, Experiment)

    parser = _parser(typing.cast(Hashable, Experiment))
    try:
        # The file goes first, so that a setting on the command line wins wherever it stands.
        tokens = [f"--config={dump(data | folded)}"] if data or folded else []
        tokens += [f"--{key}={text}" for key, text in others]
        namespace = parser.parse_args(tokens + flags, env=False)
    except jsonargparse.ArgumentError as error:
        raise UserError(_explain(str(error), Experiment, data | folded, dict(settings), files)) from None
    return typing.cast(Config, _build(Experiment, namespace))


@functools.cache
def _parser(Experiment: Any) -> Any:
    """The parser of a configuration; a sweep asks it once a point."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True, instantiate_subclass_spec_in_any=False)
    jsonargparse.set_loader("rlhf_jax", strict_yaml.load_text, exceptions=(yaml.YAMLError, ValueError))
    module = sys.modules.get(Experiment.__module__)
    parser = jsonargparse.ArgumentParser(
        description=((module and module.__doc__) or "").strip().split("\n\n")[0],
        exit_on_error=False,
        print_config=None,
        allow_abbrev=False,
        parser_mode="rlhf_jax",
    )
    parser.add_argument("--config", action="config", help="YAML file of settings; --name value overrides it.")
    parser.add_class_arguments(Experiment)
    for action in parser._actions:
        if action.metavar == "CONFIG" and action.dest != "config":
            action.help = "All of this group at once, as {name: value}."
    for group in parser._action_groups:
        if (group.title or "").startswith(f"{Experiment.__name__}("):  # what a dataclass without a docstring has as one
            group.title = "settings"
    return parser


def command(main: Callable[[Any], Any], Experiment: type[Any], argv: Sequence[str] | None = None) -> Any:
    """What a script's last line calls: parse, then run main(cfg) and return its result.

    A UserError becomes one line on stderr, `error: …`, and exit code 2; Ctrl-C exits with 130. Any other error keeps
    its traceback.
    """
    try:
        return main(parse(Experiment, argv))
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _split(argv: list[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Split ["--a", "1", "--b=2", "--c", "-h"] into ["-h"] and [("a", "1"), ("b", "2"), ("c", None)]."""
    flags: list[str] = []
    settings: list[tuple[str, str | None]] = []
    tokens = iter(range(len(argv)))
    for i in tokens:
        token = argv[i]
        if token in ("-h", "--help") or (token.startswith("--") and token.endswith(".help")):
            flags.append(token)
            continue
        if token == "--dry-run":
            settings.append(("dry_run", "true"))
            continue
        check(token.startswith("--") and len(token) > 2, f"unexpected {token!r}: settings are given as --name value")
        key, equals, text = token[2:].partition("=")
        value: str | None = text if equals else None
        if not equals and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            value = argv[next(tokens)]
        settings.append((key, value))
    return flags, settings


def _check_keys(value: Any, cls: Any, path: list[str], where: str, dashes: str) -> None:
    """Refuse a key that no field has (`path` to it, then those inside `value`), naming the nearest one that exists."""
    hint: Any = cls
    for depth, part in enumerate(path):
        if hints.child(hint, part) is None:
            names = [n for o in hints.options(hint) if dataclasses.is_dataclass(o) for n in hints.fields(o)]
            namesakes = [p for p in hints.paths(cls) if p.split(".")[-1] == path[-1]]
            near = difflib.get_close_matches(part, names, n=1)
            known = namesakes or [".".join([*path[:depth], n]) for n in near]
            wrong = dashes + ".".join(path)
            tip = nearest(wrong, [dashes + k for k in known or hints.paths(cls)], 0.0 if known else 0.6)
            raise UserError(f"{where}unknown key {wrong!r}{tip}")
        hint = hints.child(hint, part)
    groups = [o for o in hints.options(hint) if dataclasses.is_dataclass(o)]
    if dashes and value is None:
        raise UserError(f"--{'.'.join(path)} needs a value: {hints.describe(hint)}")
    if dashes and (groups or hints.parts(hint)) and value.startswith("{"):
        try:
            value = strict_yaml.load_text(value)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"--{'.'.join(path)} must be {{name: value, …}}, got {shown(value)}") from None
    if isinstance(value, dict) and (groups or any(typing.get_origin(o) is dict for o in hints.options(hint))):
        for key, inner in value.items():
            _check_keys(inner, cls, [*path, str(key)], where, "")
    elif len(groups) == len(hints.options(hint)):
        fields = ", ".join(hints.fields(groups[0]))
        raise UserError(f"{where}{dashes}{'.'.join(path)} is a group: give its fields ({fields}), got {shown(value)}")


def _fold(
    settings: list[tuple[str, str | None]], data: dict[str, Any], cls: Any
) -> tuple[list[tuple[str, str | None]], dict[str, Any]]:
    """The settings that are in no dict of dataclasses (such as `rewards`), and each such dict that others are in, whole: what
    the file says of it, with these in it. jsonargparse knows a lone `--rewards.r.function F.py:f` as no field's value."""
    others: list[tuple[str, str | None]] = []
    folded: dict[str, Any] = {}
    for key, text in settings:
        path = key.split(".")
        hint = hints.at(cls, path)
        if not hints.parts(hints.at(cls, path[:1])) or hint is None or text is None:
            others.append((key, text))
            continue
        value: Any = text
        if hint is not str:
            with contextlib.suppress(yaml.YAMLError, ValueError):  # jsonargparse will say what it is not
                value = strict_yaml.load_text(text)
        if len(path) == 1:
            folded[key] = value
            continue
        place = folded.setdefault(path[0], copy.deepcopy(data.get(path[0])))
        if not isinstance(place, dict):
            place = folded[path[0]] = {}
        for part in path[1:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return others, folded


def _explain(message: str, cls: Any, data: dict[str, Any], given: dict[str, str | None], files: list[str]) -> str:
    """jsonargparse's message in one line: the key, what it must be, what it got, and where that stands."""
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        keys = [k.strip() for k in missing[1].split(",")]
        return f"{' and '.join(keys)} must be given: --{keys[0]} value, or `{keys[0]}: value` in the YAML of --config"
    named = [name for name in re.findall(r'Parser key "([^"]+)"', message) if name != "config"]
    if not named:
        return one_line(message)
    hint: Any = cls
    value: Any = data
    found: list[str] = []
    for name in ".".join(named[:2]).split("."):
        if hints.parts(hint) and isinstance(value, dict):  # jsonargparse leaves out which part it is
            having = [part for part, group in value.items() if isinstance(group, dict) and name in group]
            wrong = [part for part in having if not hints.fits(hints.at(hint, [part, name]), value[part][name])]
            found += wrong[:1]
            hint, value = (hints.child(hint, wrong[0]), value[wrong[0]]) if wrong else (hint, value)
        found.append(name)
        hint, value = hints.child(hint, name) or hint, value.get(name) if isinstance(value, dict) else value
    path, folded = ".".join(found), hints.parts(hints.at(cls, found[:1]))
    typed = [key for key in given if f"{key.removesuffix('+')}.".startswith(f"{path}.") or path.startswith(f"{key}.")]
    where = f" (in {files[0]})" if files else ""
    if typed:
        where = " (on the command line)"
    if typed and not folded:
        path, value = typed[-1].removesuffix("+"), given[typed[-1]]
        hint = hints.at(cls, path.split("."))
    return f"{path} must be {hints.describe(hint)}, got {shown(value)}{where}"


def _named(name: str, hint: Any, value: Any) -> Any:
    """`_build`, with the name put before what a UserError says."""
    try:
        return _build(hint, value)
    except UserError as error:
        first = re.split(r"\W", str(error), maxsplit=1)[0]
        if str(error).startswith(f"{name}."):
            raise  # its author has named it in full
        raise UserError(f"{name}{'.' if hints.child(hint, first) else ': '}{error}") from None


def _build(hint: Any, value: Any) -> Any:
    """Make the dataclasses that `hint` asks for out of parsed values; a nested UserError gets its full dotted name."""
    for option in hints.options(hint):
        origin = typing.get_origin(option)
        if origin in (tuple, list) and isinstance(value, (tuple, list)):
            return type(value)(_build(hints.inner(option), v) for v in value)
        if origin is dict and isinstance(value, dict):
            return {k: _named(k, hints.inner(option), v) for k, v in value.items()}
        if not dataclasses.is_dataclass(option) or not hasattr(value, "__dict__") or dataclasses.is_dataclass(value):
            continue
        made = {name: _named(name, inner, getattr(value, name)) for name, inner in hints.fields(option).items()}
        return typing.cast(Callable[..., Any], option)(**made)
    return value
