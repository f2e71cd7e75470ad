"""What comes from outside is printed without doing anything to the terminal."""

import pytest

from gpuconv.text import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\r\tand \x07\x7f\x9b2J", r"two\nlines\r\tand \x07\x7f\x9b2J"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
        ("猫 와 ég 👩\u200d🔬\u3000C:\\new", "猫 와 ég 👩\u200d🔬\u3000C:\\new"),
    ],
)
def test_control_characters_are_escaped_and_nothing_else_is(name: str, shown: str) -> None:
    assert printable(name) == shown
    shown.encode()
