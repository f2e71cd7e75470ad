"""What docs/emulator.md shows that is printed, found and counted is what happens; test_pages.py runs the rest."""

import io
import re
import runpy
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from pages import DOCS

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

from gpuconv import emulator
from gpuconv.backends.triton.launch import RELEASE
from gpuconv.cli import main
from gpuconv.emulator import program
from gpuconv.emulator.counters import COUNTS, Counters

if emulator.why_not() is not None:
    pytest.skip(f"the virtual GPU does not run here: {emulator.why_not()}", allow_module_level=True)

PAGE = (DOCS / "emulator.md").read_text()
PYTHON = re.findall(r"^```python\n(?:# (\w+\.py)\n)?(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
NAMED = {name: text for name, text in PYTHON if name}
SHOWN = re.findall(r"^```console\n\$ ([^\n]*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def printed(command: str, folder: Path) -> str:
    program, *words = shlex.split(command)
    out = io.StringIO()
    with redirect_stdout(out):
        if program == "gpuconv":
            assert main.run(words) == 0
        else:
            (name,) = words
            file = DOCS.parent / name if name.startswith("docs/") else folder / name
            if file.parent == folder:
                file.write_text(f"# {name}\n{NAMED[name]}")
            runpy.run_path(str(file), run_name="__main__")
    return out.getvalue()


@pytest.mark.parametrize(("command", "shown"), SHOWN, ids=[command.split()[1] for command, _ in SHOWN])
def test_commands_print_what_is_shown(command: str, shown: str, tmp_path: Path) -> None:
    got = printed(command, tmp_path)
    if f"Triton {RELEASE[0]}.{RELEASE[1]};" not in PAGE and "faults" not in command:
        assert got.split()[0] == shown.split()[0]  # another compiler makes other instructions
    else:
        assert got == shown


def test_every_kind_of_fault_is_in_the_table_and_shown() -> None:
    table = PAGE.split("## What is checked")[1].split("## What is counted")[0]
    kinds = {kind for kind in program._KINDS if kind != "interrupted"}  # by Ctrl-C
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == kinds
    faults = runpy.run_path(str(DOCS / "examples" / "faults.py"))
    assert {faults["found"](body).kind for body in faults["FAULTS"].values()} == kinds


def test_every_counter_is_in_the_table() -> None:
    table = PAGE.split("## What is counted")[1].split("```")[0]
    for name in COUNTS.names:
        assert re.search(rf"\b{name.removesuffix('_least')}\b", table) or name in ("runs", "bytes"), name
    assert "by_pipe" in table and hasattr(Counters, "by_pipe")
