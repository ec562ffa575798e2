"""One row of the mutation table."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One mistake. `invariant` is its row in the list of correctness invariants, 0 where it has none."""

    id: str
    invariant: int
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    reason: str


def named(tests: str) -> tuple[str, ...]:
    """The ids of the tests in "FILE name name …". A name may lack its "test_", also in a class ("Class::name")."""
    path, *names = tests.split()
    return tuple(f"{path}::{_whole(name)}" for name in names)


def _whole(name: str) -> str:
    case = name.find("[") if "[" in name else len(name)
    place = name.rfind("::", 0, case) + 2 if "::" in name[:case] else 0
    return name if name.startswith(("test_", "Test"), place) else f"{name[:place]}test_{name[place:]}"


def rows(group: str) -> Callable[..., Mutation]:
    """row(id, file, find, replace, tests, reason) -> a Mutation called "group-id", of no invariant; `tests` as in `named`."""

    def row(id: str, file: str, find: str, replace: str, tests: str, reason: str) -> Mutation:
        return Mutation(f"{group}-{id}", 0, file, find, replace, named(tests), reason)

    return row
