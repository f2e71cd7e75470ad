"""Text that is safe to print: names from outside gpuconv, and characters that the terminal's encoding lacks."""

import codecs
import difflib
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from io import TextIOWrapper

# What ends a line, moves the cursor, colours the terminal, turns the direction of writing, or cannot be encoded.
# Joiners stay: Persian and emoji need them.
_KINDS = frozenset({"Cc", "Cs", "Zl", "Zp"})
_SIMILAR = 0.7  # difflib's ratio: resnet81 and resnet18 have 0.88, nope and any name in timm less than 0.6
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: object) -> str:
    """`str(text)` with control characters escaped as in Python's literals: `a\\x1b[31mb`."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(_escaped(c) if unicodedata.category(c) in _KINDS or c in _DIRECTIONS else c for c in shown)


def printable_lines(text: str) -> str:
    """`printable` for a text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def did_you_mean(name: str, names: Iterable[str], count: int = 3) -> str:
    """` (did you mean A, B?)`: names that are similar to this one, or else contain it; empty where there are none."""
    small = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), small, n=count, cutoff=_SIMILAR)
    if not near and len(name) > 2:
        containing = [other for other in small if name.lower() in other]
        near = sorted(containing, key=lambda other: other.find(name.lower()))[:count]  # those that begin with it first
    return f" (did you mean {first_few([small[other] for other in near])}?)" if near else ""


def first_few(names: Sequence[str], count: int = 8) -> str:
    """The names with commas; of many the first ones, and how many more there are."""
    more = len(names) - count
    return ", ".join(map(printable, names[:count])) + (f" … and {more:,} more" if more > 0 else "")


# Characters of gpuconv's texts that terminals without UTF-8 may lack.
_PLAIN = {
    "×": "x", "·": "*", "µ": "u", "…": "...", "→": "->", "−": "-", "±": "+/-", "≤": "<=", "≥": ">=", "⌈": "", "⌉": "",
    "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "²": "^2", "³": "^3", "√": "sqrt", "▀": "#",
}  # fmt: skip


def print_anything() -> None:
    """Make stdout and stderr accept any text: characters that their encoding lacks are printed in ASCII."""
    codecs.register_error("gpuconv", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="gpuconv")


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
