"""Text from outside (folders, files, classes, layers, what others' code says), made fit to be printed."""

import unicodedata

# What ends a line, moves the cursor, colours the terminal, turns the direction of writing, or cannot be encoded.
# Joiners stay: Persian and emoji need them.
_KINDS = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object) -> str:
    """`str(text)` with control characters escaped as in Python's literals: `a\\x1b[31mb`, whatever prints it."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(_escaped(c) if unicodedata.category(c) in _KINDS or c in _DIRECTIONS else c for c in shown)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
