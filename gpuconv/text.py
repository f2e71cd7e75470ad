"""Text made fit to be printed: names from outside gpuconv, and characters that the terminal's encoding lacks."""

import codecs
import difflib
import sys
import unicodedata
from collections.abc import Sequence
from io import TextIOWrapper

# What ends a line, moves the cursor, colours the terminal, turns the direction of writing, or cannot be encoded.
# Joiners stay: Persian and emoji need them.
_KINDS = frozenset({"Cc", "Cs", "Zl", "Zp"})
_ALIKE = 0.7  # of difflib: resnet81 and resnet18 have 0.88, nope and any that timm has less than 0.6
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object) -> str:
    """`str(text)` with control characters escaped as in Python's literals: `a\\x1b[31mb`, whatever prints it."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(_escaped(c) if unicodedata.category(c) in _KINDS or c in _DIRECTIONS else c for c in shown)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def like(name: str, names: Sequence[str], count: int = 3) -> str:
    """`; the nearest names are A, B`: those that are nearly this one, or else begin with it. '' where none does."""
    small = {other.lower(): other for other in names}
    near: Sequence[str] = difflib.get_close_matches(name.lower(), small, n=count, cutoff=_ALIKE)
    near = near or [other for other in small if len(name) > 2 and other.startswith(name.lower())][:count]
    return f"; the nearest names are {some([small[other] for other in near])}" if near else ""


def some(names: Sequence[str], count: int = 3) -> str:
    """Names with commas, the first ones of many."""
    return ", ".join(printable(name) for name in names[:count]) + (", …" if len(names) > count else "")


# What text of ours has, and terminals that are not UTF-8 may lack.
_PLAIN = {
    "×": "x", "·": "*", "µ": "u", "…": "...", "→": "->", "−": "-", "±": "+/-", "≤": "<=", "≥": ">=", "⌈": "", "⌉": "",
    "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "²": "^2", "³": "^3", "√": "sqrt", "▀": "#",
}  # fmt: skip


def print_anything() -> None:
    """From now on stdout and stderr take any text: what their encoding lacks is printed in ASCII."""
    codecs.register_error("gpuconv", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="gpuconv")


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
