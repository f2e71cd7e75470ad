"""The ladder: every step is right, short and cheaper than the one before, and its page tells the truth."""

import importlib
import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lanes import INTERPRETING

pytest.importorskip("triton", reason="Triton is not installed (it is on Linux alone)")

import triton

from gpuconv import emulator

LADDER = Path(__file__).parents[2] / "docs" / "examples" / "ladder"
if not LADDER.exists():
    pytest.skip("docs/ does not stand beside tests/", allow_module_level=True)
if emulator.why_not() is not None:
    pytest.skip(f"the virtual GPU does not run here: {emulator.why_not()}", allow_module_level=True)
if INTERPRETING:
    pytest.skip("what is interpreted is not compiled", allow_module_level=True)

PAGE = (LADDER / "README.md").read_text()
SHOWN = re.search(r"```console\n\$ python docs/examples/ladder/step.py\n(.*?)```", PAGE, re.DOTALL)[1]
RECORDED = f"from Triton {'.'.join(triton.__version__.split('.')[:2])};" in PAGE
STEPS = [file.stem for file in sorted(LADDER.glob("[0-9]_*.py"))]


@pytest.fixture(scope="module")
def step() -> Iterator[ModuleType]:
    """What the steps share; they import it by its name, as a file beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(LADDER))
        yield importlib.import_module("step")
        del sys.modules["step"]


@pytest.fixture(scope="module")
def run(step: ModuleType) -> tuple[dict[str, Any], str]:
    """What each step did, and what the page's command prints."""
    with redirect_stdout(io.StringIO()) as out:
        right = step.show(*step.files())
    return right, out.getvalue()


def counts(run: tuple[dict[str, Any], str], name: str) -> list[int]:
    return [ran.total(name) for ran in run[0].values()]


def test_every_step_is_right(run: tuple[dict[str, Any], str]) -> None:
    right, printed = run
    assert list(right) == STEPS and len(STEPS) == 4, printed
    assert all(0 < ran.error <= 1 and len(ran.launches) == 1 for ran in right.values())


def test_the_numbers_fall(run: tuple[dict[str, Any], str]) -> None:
    for name in ("instructions", "global_sectors"):
        falling = counts(run, name)
        assert falling == sorted(set(falling), reverse=True), name
    one, two, three, four = counts(run, "instructions")
    assert one > 15 * two and two > 5 * three and 2 * three > 3 * four
    one, two, three, four = counts(run, "global_sectors")
    assert one > 40 * two and two > 9 * three and four == 0
    assert counts(run, "global_sectors_least")[2] == three
    assert counts(run, "shared_passes")[3] < min(counts(run, "shared_passes")[1:3]) / 10


def test_all_tensor_cores_multiply_the_convolution_and_nothing_else(run: tuple[dict[str, Any], str]) -> None:
    operations = 2 * 16 * 16 * 64 * 64 * 9
    assert counts(run, "tensor_operations") == [0, operations, operations, operations]


def test_bytes_are_what_the_page_says(run: tuple[dict[str, Any], str]) -> None:
    """Four programs: all weights each, x at nine taps, y once; the copy engine takes what is outside the image too."""
    pixel, weights, y = 64 * 2, 4 * 64 * 9 * 64 * 2, 16 * 16 * 64 * 2
    assert counts(run, "global_sectors")[2] * 32 == weights + (3 * 16 - 2) ** 2 * pixel + y == 598_528
    assert counts(run, "tma_bytes") == [0, 0, 0, weights + 9 * 16 * 16 * pixel + y]


def test_the_page_shows_what_is_printed(run: tuple[dict[str, Any], str]) -> None:
    printed = run[1]
    if RECORDED:
        assert printed == SHOWN
        told = PAGE.split("## What does not fall")[1].split("## Try it")[0]
        numbers = re.findall(r"\d+,\d{3}", told)
        assert len(numbers) == 4 and all(f" {number}" in printed for number in numbers)
    else:  # another compiler makes other instructions
        rows = [[re.split(r"\s{2,}", line.strip())[0] for line in text.split("\n")] for text in (printed, SHOWN)]
        assert set(rows[1]) <= set(rows[0])


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_one_short_kernel(name: str) -> None:
    text = (LADDER / f"{name}.py").read_text()
    kernel = text[text.index("@triton.jit") : text.index("\n\n\nif __name__")]
    assert kernel.count("@triton.jit") == 1 and kernel.count("\n") < 60 and text.count("\n") < 80


def test_a_step_by_itself_stands_beside_the_one_before(step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    step.main(str(LADDER / "3_vectors.py"))
    printed = capsys.readouterr().out
    assert re.search(r"^ +2_implicit_gemm +3_vectors$", printed, re.MULTILINE)
    assert "most instructions" in printed and "3_vectors.py:" in printed


# ---- changed ---------------------------------------------------------------------------------------------------------


def changed(step: ModuleType, folder: Path, name: str, *changes: tuple[str, str]) -> tuple[Any, str]:
    """What a step does after changes of its text (None if that is wrong), and what is printed."""
    text = (LADDER / f"{name}.py").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / f"{name}.py").write_text(text)
    with redirect_stdout(io.StringIO()) as out:
        right = step.show(folder / f"{name}.py")
    return right.get(name), out.getvalue()


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("3_vectors", "mask=m_x[:, None], other=0.0", "", "bounds: global memory: 16 bytes at byte -2176 of p_x"),
        ("4_windows", "b_w = w.load", "b_w = weights.load", "NameError('weights is not defined')"),
        ("4_windows", "q + s - S // 2, c0", "q + s, c0", "times the error that is allowed"),
        ("4_windows", "y.store([n, p, q, k]", "y.store([n + 1, p, q, k]", "y[n=0, p=0, q=0, k=0] is nan and should be"),
        ("4_windows", "num_stages=3", "num_stages=30", "out of resource: shared memory"),
    ],
)
def test_a_mistake_is_named(step: ModuleType, tmp_path: Path, name: str, old: str, new: str, says: str) -> None:
    ran, printed = changed(step, tmp_path, name, (old, new))
    assert ran is None and f"{name}.py: " in printed and says in printed


def test_channels_fastest_is_what_step_3_gains_in_sectors(
    step: ModuleType, tmp_path: Path, run: tuple[dict[str, Any], str]
) -> None:
    old, new = "c, r, s = j // (R * S), j // S % R, j % S", "c, r, s = j % C, j // C // S, j // C % S"
    assert f"`{new}`" in PAGE
    ran, _ = changed(step, tmp_path, "2_implicit_gemm", (old, new))
    assert ran.total("global_sectors") == counts(run, "global_sectors")[2]
    _, two, three, _ = counts(run, "instructions")
    assert three < ran.total("instructions") < two / 4
    assert f"instructions to {ran.total('instructions'):,}" in PAGE or not RECORDED


def test_a_window_on_the_left_goes_through_registers(step: ModuleType, tmp_path: Path) -> None:
    ran, _ = changed(
        step, tmp_path, "4_windows", ("tl.zeros((BK, TH * TW)", "tl.zeros((TH * TW, BK)"),
        ("tl.dot(b_w, b_x.T, b_acc)", "tl.dot(b_x, b_w.T, b_acc)"), ("to(tl.bfloat16).T", "to(tl.bfloat16)"),
    )  # fmt: skip
    assert "`tl.dot(b_x, b_w.T, b_acc)`" in PAGE and "passes go from 256 to 2,560" in PAGE
    assert ran.total("shared_passes") == 2560


def test_only_windows_fit_an_image_that_is_15_wide(
    step: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "W", 15)
    assert list(step.show(*step.files()[1:])) == ["4_windows"]
    assert re.findall(r"^(\w+)\.py: \w+: bounds: ", capsys.readouterr().out, re.MULTILINE) == STEPS[1:3]
