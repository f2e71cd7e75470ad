"""What is printed where it cannot be printed as it is."""

import codecs
import sys
from io import TextIOWrapper

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
