"""Runs `interpreted….py` where Triton interprets. A process either interprets kernels or compiles them, never both.

By default a reader's quick check, in one process: what is compiled runs on the emulator. With --full hundreds of
problems, in a process for each file.
"""

from pathlib import Path

import pytest
from in_interpreter import needs_interpreter, passes

FILES = sorted(Path(__file__).parent.glob("interpreted*.py"))
pytestmark = needs_interpreter


def test_kernels_in_the_interpreter(clean_environment: dict[str, str]) -> None:
    assert len(FILES) == 7
    passes(FILES, clean_environment)


@pytest.mark.full
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_all_kernels_in_the_interpreter(file: Path, clean_environment: dict[str, str]) -> None:
    passes([file], clean_environment, "--full")
