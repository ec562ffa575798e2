"""What goes wrong in other people's files, scripts and functions, as one line for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_jax.errors import UserError
from rlhf_jax.runs.ranges import one_line


@contextmanager
def refused(where: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Raise what is raised inside, if it is of these kinds, as a UserError in one line: `where: words`."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{where}: {words(error)}") from None


def words(error: BaseException) -> str:
    """One line of an error: for a UserError and the system's errors without the kind, which says nothing more."""
    told = one_line(str(error))
    if isinstance(error, UserError):
        return told
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.start})"
    if isinstance(error, SystemExit):
        return f"it ended itself while it was loaded, by sys.exit({told})"
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
