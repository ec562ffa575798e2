"""The types of a config's fields, walked: what is inside them, which keys they have, what fits them, and all in words."""

import dataclasses
import enum
import types
import typing
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def inner(hint: Any) -> Any:
    """What a tuple, list or dict holds, as one type (a union where a tuple's places differ); None for anything else."""
    args = [a for a in typing.get_args(hint) if a is not ...]
    origin = typing.get_origin(hint)
    if origin is dict:
        return args[1]
    return typing.Union[tuple(args)] if origin in (tuple, list) and args else None  # noqa: UP007 (a run-time union)


def fields(cls: Any) -> dict[str, Any]:
    """{field: type} of a config dataclass, after refusing field types that a config may not have."""
    return _checked(cls)


@cache
def _checked(cls: Any) -> dict[str, Any]:
    known = typing.get_type_hints(cls)
    known = {f.name: known[f.name] for f in dataclasses.fields(cls) if f.init}

    def refuse(hint: Any, name: str) -> None:
        for option in options(hint):
            origin, args = typing.get_origin(option), typing.get_args(option)
            if dataclasses.is_dataclass(option):
                fields(option)
            elif origin in (tuple, list) or (origin is dict and args[0] is str):
                refuse(inner(option), name)
            elif origin is not typing.Literal and option not in (bool, int, float, str, type(None), Path):
                if not (isinstance(option, type) and issubclass(option, enum.Enum)):
                    raise TypeError(
                        f"{cls.__name__}.{name} has type {hint}: a config field is a bool, int, float, str, Path, "
                        "Literal, Enum, dataclass, or a union, tuple, list or dict (by str) of these; "
                        'name a function as "file.py:function"'
                    )

    for name, hint in known.items():
        refuse(hint, name)
    return known


def paths(cls: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a config dataclass."""
    found = []
    for name, hint in fields(cls).items():
        found.append(prefix + name)
        for option in options(hint):
            found += paths(option, f"{prefix}{name}.") if dataclasses.is_dataclass(option) else []
    return found


def child(hint: Any, part: str) -> Any:
    """The type of `part` in `hint`: a field of a dataclass, an entry of a dict; None when there is no such part."""
    for option in options(hint):
        if dataclasses.is_dataclass(option) and part in fields(option):
            return fields(option)[part]
        if typing.get_origin(option) is dict:
            return inner(option)
    return None


def at(hint: Any, path: Sequence[str]) -> Any:
    """The type at the end of a path of names; None when there is none."""
    for part in path:
        hint = child(hint, part)
    return hint


def fits(hint: Any, value: Any) -> bool:
    """Whether a plain value is one of the type. What groups, dicts, lists and tuples hold is not looked into."""
    for option in options(hint):
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is typing.Literal:
            right = value in args
        elif isinstance(option, type) and issubclass(option, enum.Enum):
            right = value in [e.name for e in option]
        elif origin is dict or dataclasses.is_dataclass(option):
            right = isinstance(value, dict)
        elif origin in (tuple, list):
            right = isinstance(value, (tuple, list))
        else:
            kinds: Any = {float: (int, float), Path: str}.get(option, option)
            right = isinstance(value, kinds) and (option is bool or not isinstance(value, bool))
        if right:
            return True
    return False


def parts(hint: Any) -> bool:
    """Whether it is a dict of dataclasses, such as the parts of a reward."""
    inside = [inner(option) for option in options(hint) if typing.get_origin(option) is dict]
    return any(dataclasses.is_dataclass(option) for hint in inside for option in options(hint))


def describe(hint: Any) -> str:
    """A type in words: "a number or null", "one of a, b", "[a whole number, …]"."""
    if len(options(hint)) > 1:
        return " or ".join(describe(o) for o in options(hint))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return "one of " + ", ".join(str(a) for a in args or [e.name for e in hint])
    if origin is dict:
        return f"{{name: {describe(args[1])}, …}}"
    if origin is tuple and ... not in args:
        return f"[{', '.join(describe(a) for a in args)}]"
    if origin in (tuple, list):
        return f"[{describe(args[0])}, …]"
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(f"{name}: …" for name in fields(hint)) + "}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return words.get(hint, "null")
