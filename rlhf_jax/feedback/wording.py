"""What two copies of a text have in common, however they are written: its words, for leaks and for splits. Pure."""

import unicodedata
from collections.abc import Sequence

UNSPACED = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF)),
    *((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)),
    (0x20000, 0x3FFFF),
)
"""Scripts that set no space between words: Thai, Lao, Tibetan, Burmese, Khmer, Tai, kana, Chinese characters. Hangul does."""


def spaceless(character: str) -> bool:
    """Whether the character is of a script without spaces between words."""
    return any(first <= ord(character) <= last for first, last in UNSPACED)


class _Table(dict[int, str]):
    """Letters, marks, digits and the underscore as they are, in a script without spaces each for itself; else a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kept = character == "_" or unicodedata.category(character)[0] in "LMN"
        self[code] = (f" {character} " if spaceless(character) else character) if kept else " "
        return self[code]


_TABLE = _Table()


def words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation and white space; each character of a script that sets no
    spaces is a word. Equal for texts that differ in case, spacing or Unicode form only (NFKC, caseless)."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    folded = text.casefold()
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", folded)
    return folded.translate(_TABLE).split()


def grams(said: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every `n` words in a row; where one of them is a character of a script without spaces, 2 n of them: two characters are
    about a word."""
    if all(word.isascii() for word in said):
        return [tuple(said[start : start + n]) for start in range(len(said) - n + 1)]
    alone = [len(word) == 1 and spaceless(word) for word in said]
    found = []
    for start in range(len(said) - n + 1):
        stop = start + (2 * n if any(alone[start : start + n]) else n)
        if stop <= len(said):
            found.append(tuple(said[start:stop]))
    return found
