"""Two counts over a text, of stretches between blanks and of marks of a choice ("A) "), without a pattern or a split.

Each byte of a text in ASCII is exchanged for the kind of its character; then counting kinds in a row is counting bytes.
"""

import re
from typing import Final

_CHOICES = re.compile(r"(?<!\w)[A-D][).:]\s")
_BLANKS: Final = bytes(32 if chr(i).isspace() else 120 for i in range(128)) + bytes(128)


def _kind(c: str) -> str:
    """a: a letter A to D; b: a sign after it; c: a blank; w: another part of a word; x: anything else."""
    if c in "ABCD":
        return "a"
    if c in ").:":
        return "b"
    return "c" if c.isspace() else "w" if c.isalnum() or c == "_" else "x"


_KINDS: Final = "".join(_kind(chr(i)) for i in range(128)).encode() + bytes(128)


def spaced_and_choices(text: str, raw: bytes) -> tuple[int, int]:
    """raw: the characters of the text that are ASCII."""
    if len(raw) != len(text):
        return len(text.split()), len(_CHOICES.findall(text))
    spaced = (b" " + raw.translate(_BLANKS)).count(b" x")
    kinds = raw.translate(_KINDS)
    choices = kinds.count(b"abc")
    if choices:  # not those within a word
        choices -= kinds.count(b"wabc") + kinds.count(b"aabc")
    return spaced, choices
