"""Configuration: frozen dataclasses, filled from YAML (`--config`) and from `--a.b value`.

A script ends with `command(main, Experiment)` and is done. In a notebook a config is just the dataclass: nothing here
is needed. A bad setting is told in one line that says what would be right (`UserError`; `command` prints it and exits
with 2).

Fields may be bool, int, float, str, Path, Literal, Enum, unions of these, tuples, lists and dicts of them, and further
dataclasses. Anything else is refused, callables and `Any` above all: such a field would import what a YAML file names.
A user's own function is a string, "file.py:function", that the script hands to `resolve_function`.
"""

import dataclasses
import difflib
import enum
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rlhf_jax.errors import UserError
from rlhf_jax.runs import strict_yaml
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
    check(len(files) < 2, "--config is given twice: one YAML file per run")
    data = strict_yaml.load(files[0]) if files else {}
    for key, value in data.items():
        _check_keys(value, Experiment, [str(key)], f"{files[0]}: ", "")
    settings = [(key, text) for key, text in settings if key != "config"]
    for key, text in settings:
        _check_keys(text, Experiment, key.removesuffix("+").split("."), "", "--")

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
    try:
        # The file goes first, so that a setting on the command line wins wherever it stands.
        tokens = [f"--config={files[0]}"] if data else []
        tokens += [f"--{key}={text}" for key, text in settings]
        namespace = parser.parse_args(tokens + flags, env=False)
    except jsonargparse.ArgumentError as error:
        raise UserError(_explain(str(error), Experiment, data, dict(settings), files)) from None
    return typing.cast(Config, _build(Experiment, namespace))


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


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _inner(hint: Any) -> Any:
    """What a tuple, list or dict holds, as one type (a union where a tuple's places differ); None for anything else."""
    args = [a for a in typing.get_args(hint) if a is not ...]
    origin = typing.get_origin(hint)
    if origin is dict:
        return args[1]
    return typing.Union[tuple(args)] if origin in (tuple, list) and args else None  # noqa: UP007 (a run-time union)


def _hints(cls: Any) -> dict[str, Any]:
    """{field: type} of a config dataclass, after refusing field types that a config may not have."""
    return _checked_hints(cls)


@cache
def _checked_hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    hints = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}

    def refuse(hint: Any, name: str) -> None:
        for option in _options(hint):
            origin, args = typing.get_origin(option), typing.get_args(option)
            if dataclasses.is_dataclass(option):
                _hints(option)
            elif origin in (tuple, list) or (origin is dict and args[0] is str):
                refuse(_inner(option), name)
            elif origin is not typing.Literal and option not in (bool, int, float, str, type(None), Path):
                if not (isinstance(option, type) and issubclass(option, enum.Enum)):
                    raise TypeError(
                        f"{cls.__name__}.{name} has type {hint}: a config field is a bool, int, float, str, Path, "
                        "Literal, Enum, dataclass, or a union, tuple, list or dict (by str) of these; "
                        'name a function as "file.py:function"'
                    )

    for name, hint in hints.items():
        refuse(hint, name)
    return hints


def _paths(cls: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a config dataclass."""
    paths = []
    for name, hint in _hints(cls).items():
        paths.append(prefix + name)
        for option in _options(hint):
            paths += _paths(option, f"{prefix}{name}.") if dataclasses.is_dataclass(option) else []
    return paths


def _child(hint: Any, part: str) -> Any:
    """The type of `part` in `hint`: a field of a dataclass, an entry of a dict; None when there is no such part."""
    for option in _options(hint):
        if dataclasses.is_dataclass(option) and part in _hints(option):
            return _hints(option)[part]
        if typing.get_origin(option) is dict:
            return _inner(option)
    return None


def _check_keys(value: Any, cls: Any, path: list[str], where: str, dashes: str) -> None:
    """Refuse a key that no field has (`path` to it, then those inside `value`), naming the nearest one that exists."""
    hint: Any = cls
    for depth, part in enumerate(path):
        if _child(hint, part) is None:
            names = [n for o in _options(hint) if dataclasses.is_dataclass(o) for n in _hints(o)]
            namesakes = [p for p in _paths(cls) if p.split(".")[-1] == path[-1]]
            near = difflib.get_close_matches(part, names, n=1)
            known = namesakes or [".".join([*path[:depth], n]) for n in near]
            wrong = dashes + ".".join(path)
            tip = nearest(wrong, [dashes + k for k in known or _paths(cls)], 0.0 if known else 0.6)
            raise UserError(f"{where}unknown key {wrong!r}{tip}")
        hint = _child(hint, part)
    groups = [o for o in _options(hint) if dataclasses.is_dataclass(o)]
    if dashes and value is None:
        raise UserError(f"--{'.'.join(path)} needs a value: {_describe(hint)}")
    if dashes and groups and value.startswith("{"):
        try:
            value = strict_yaml.load_text(value)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"--{'.'.join(path)} must be {{name: value, …}}, got {shown(value)}") from None
    if isinstance(value, dict) and (groups or any(typing.get_origin(o) is dict for o in _options(hint))):
        for key, inner in value.items():
            _check_keys(inner, cls, [*path, str(key)], where, "")
    elif len(groups) == len(_options(hint)):
        fields = ", ".join(_hints(groups[0]))
        raise UserError(f"{where}{dashes}{'.'.join(path)} is a group: give its fields ({fields}), got {shown(value)}")


def _explain(message: str, cls: Any, data: dict[str, Any], given: dict[str, str | None], files: list[str]) -> str:
    """jsonargparse's message in one line: the key, what it must be, what it got, and where that stands."""
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        keys = [k.strip() for k in missing[1].split(",")]
        return f"{' and '.join(keys)} must be given: --{keys[0]} value, or `{keys[0]}: value` in the YAML of --config"
    named = re.findall(r'Parser key "([^"]+)"', message)
    if not named:
        return one_line(message)
    path = ".".join(named[:2])
    value: Any = data
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else value
    typed = [key for key in given if f"{key.removesuffix('+')}.".startswith(f"{path}.") or path.startswith(f"{key}.")]
    where = f" (in {files[0]})" if files else ""
    if typed:
        path, value, where = typed[-1].removesuffix("+"), given[typed[-1]], " (on the command line)"
    hint = cls
    for part in path.split("."):
        hint = _child(hint, part) or hint
    return f"{path} must be {_describe(hint)}, got {shown(value)}{where}"


def _describe(hint: Any) -> str:
    """A type in words: "a number or null", "one of a, b", "[a whole number, …]"."""
    if len(_options(hint)) > 1:
        return " or ".join(_describe(o) for o in _options(hint))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return "one of " + ", ".join(str(a) for a in args or [e.name for e in hint])
    if origin is dict:
        return f"{{name: {_describe(args[1])}, …}}"
    if origin is tuple and ... not in args:
        return f"[{', '.join(_describe(a) for a in args)}]"
    if origin in (tuple, list):
        return f"[{_describe(args[0])}, …]"
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(f"{name}: …" for name in _hints(hint)) + "}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return words.get(hint, "null")


def _build(hint: Any, value: Any) -> Any:
    """Make the dataclasses that `hint` asks for out of parsed values; a nested UserError gets its full dotted name."""
    for option in _options(hint):
        origin = typing.get_origin(option)
        if origin in (tuple, list) and isinstance(value, (tuple, list)):
            return type(value)(_build(_inner(option), v) for v in value)
        if origin is dict and isinstance(value, dict):
            return {k: _build(_inner(option), v) for k, v in value.items()}
        if not dataclasses.is_dataclass(option) or not hasattr(value, "__dict__") or dataclasses.is_dataclass(value):
            continue
        made = {}
        for name, inner in _hints(option).items():
            try:
                made[name] = _build(inner, getattr(value, name))
            except UserError as error:
                first = re.split(r"\W", str(error), maxsplit=1)[0]
                if str(error).startswith(f"{name}."):
                    raise  # its author has named it in full
                raise UserError(f"{name}{'.' if _child(inner, first) else ': '}{error}") from None
        return typing.cast(Callable[..., Any], option)(**made)
    return value
