"""Whether a file can be written is checked before anything is computed for it."""

import os
import time
from pathlib import Path

import pytest

from gpuconv.cli import main
from gpuconv.files import writable_or_raise

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that even root cannot write to")


def test_what_can_be_written_passes_and_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("as it was")
    before = file.stat().st_mtime_ns
    for path, folder in ((file, False), (tmp_path / "new", False), (tmp_path / "a/b/c", False), (tmp_path, True),
                         (tmp_path / "a/b", True)):  # fmt: skip
        writable_or_raise(path, folder)
    assert [*tmp_path.iterdir()] == [file] and file.read_text() == "as it was" and file.stat().st_mtime_ns == before


@needs_proc
def test_what_cannot_be_written_is_told_with_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, folder, words in (
        (tmp_path, False, "Is a directory"),
        (tmp_path / "file", True, "Not a directory"),
        (tmp_path / "file/a/b", False, "file: Not a directory"),
        (tmp_path / "file/a/b", True, "file: Not a directory"),
        (Path("/proc/gpuconv"), False, "/proc: "),
        (Path("/proc/gpuconv/a"), True, "/proc: "),
    ):
        with pytest.raises(OSError, match=f"^cannot write to {path}: .*{words}"):
            writable_or_raise(path, folder)


@needs_proc
@pytest.mark.parametrize(
    "command",
    [
        "bench --suite resnet50 --device cpu",
        "bench --suite resnet50 --device cpu --out TMP/a.jsonl --csv a.csv",
        "bench --suite resnet50 --device cpu --out TMP/a.jsonl --plots plots",
        "bench --suite resnet50 --device cpu --out /dev",
        "bench --report TMP/none --csv TMP/file/a.csv",
        "bench --report TMP/none --plots TMP/file",
        "tune --layer resnet50 --device cpu",
        "train --device cpu",
        "compare --device cpu",
        "export TMP --out a.onnx",
        "see tour",
        "see tour --out TMP/file",
        "see timm:resnet50 --image TMP/none.png",
    ],
)
def test_a_command_that_cannot_write_says_so_before_it_computes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir("/proc")  # where even root cannot write
    monkeypatch.setenv("GPUCONV_CACHE", "/proc/cache")
    began = time.process_time()
    status = main.run(command.replace("TMP", str(tmp_path)).split())
    output, errors = capsys.readouterr()
    assert status == 1 and errors.startswith("error: cannot write to ") and errors.count("\n") == 1, errors
    assert "accuracy" not in output and time.process_time() - began < 10
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_csv_and_plots_go_into_folders_that_are_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sample = Path(__file__).parent.parent / "bench/results/2026-11-24-cpu.jsonl"
    assert main.run(["bench", "--report", str(sample), "--csv", str(tmp_path / "a/b.csv")]) == 0
    assert (tmp_path / "a/b.csv").stat().st_size


def test_what_cannot_be_read_is_one_line_whichever_command_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("bench --report nowhere", "bench --compare nowhere nowhere", "predict nowhere nowhere"):
        assert main.run(command.split()) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("error: ") and errors.count("\n") == 1
