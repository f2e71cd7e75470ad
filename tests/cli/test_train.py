"""The trainer's commands as a user meets them: what they print, where, with which status they end, what they leave."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import Environment, assert_one_clear_line, call, finish, start

import gpuconv

FEW = ["train", "--device", "cpu", "--steps", "3", "--batch-size", "32"]


# ---- what must hold of a whole run ----------------------------------------------------------------------------------


def test_training_with_no_options_learns_the_digits_in_time(clean_environment: Environment, tmp_path: Path) -> None:
    began = time.perf_counter()
    status, output, errors = finish(start(clean_environment, "train", "--out", tmp_path / "run", "--json"))
    took = time.perf_counter() - began
    assert status == 0, errors
    result = json.loads(output)
    print(f"accuracy {result['accuracy']:.2%}, training {result['seconds']} s, the whole command {took:.1f} s")
    assert result["accuracy"] >= 0.98
    assert result["seconds"] < 60
    assert result["epochs"] == 40 and result["steps"] == 920 and result["stopped_by"] is None
    assert len(re.findall(r"^epoch ", errors, re.MULTILINE)) == 40  # stderr is no terminal here: one line an epoch
    status, output, errors = finish(start(clean_environment, "eval", tmp_path / "run", "--json"))
    assert (status, errors) == (0, "")
    assert json.loads(output) == {key: result[key] for key in ("accuracy", "loss", "n")}


def test_the_numpy_backend_learns_the_digits_in_time(clean_environment: Environment, tmp_path: Path) -> None:
    options = ["--device", "cpu", "--backend", "numpy", "--json", "--out", tmp_path / "run"]
    status, output, errors = finish(start(clean_environment, "train", *options))
    assert status == 0, errors
    result = json.loads(output)
    print(f"accuracy {result['accuracy']:.2%}, training {result['seconds']} s")
    assert result["accuracy"] >= 0.98
    assert result["seconds"] < 180


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_too_the_same_seed_gives_the_same_bits(clean_environment: Environment, tmp_path: Path) -> None:
    for name in ("a", "b"):
        options = ["--device", "cuda", "--epochs", "5", "--out", tmp_path / name, "--json"]
        status, output, errors = finish(start(clean_environment, "train", *options))
        assert status == 0, errors
        assert json.loads(output)["accuracy"] > 0.9
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


# ---- what is printed ------------------------------------------------------------------------------------------------


def test_training_ends_with_accuracy_time_and_where_things_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, output, errors = call(capsys, *FEW, "--out", tmp_path / "run")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith("training small on digits: cpu, float32, backend ")
    assert [line.split("  ")[0] for line in lines[1:4]] == ["step 1", "step 2", "step 3"]
    assert re.match(r"step 1  loss \d\.\d{5}  lr ", lines[1])  # six digits
    assert lines[4].startswith("epoch 1/1  loss ")
    assert re.match(r"accuracy  \d+\.\d\d% of 355 held-out images, loss ", lines[5])
    assert re.match(r"time      \d+\.\d s for 3 steps", lines[6])
    assert lines[7] == f"run       {tmp_path / 'run'} (config.json, metrics.jsonl, model.safetensors, curves.png)"
    assert len(lines) == 8


def test_with_json_stdout_holds_json_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, output, errors = call(capsys, *FEW, "--out", tmp_path / "run", "--json", "--loss", "mse")
    assert status == 0
    result = json.loads(output)
    assert len(result["losses"]) == 3 and result["steps"] == 3 and result["run"] == str(tmp_path / "run")
    assert "epoch 1/1" in errors
    status, output, _ = call(capsys, "eval", tmp_path / "run", "--json")
    assert status == 0
    assert json.loads(output) == {"accuracy": result["accuracy"], "loss": result["loss"], "n": 355}


def test_without_out_a_run_lands_in_a_folder_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert call(capsys, *FEW)[0] == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(names) == 2 and all(re.fullmatch(r"digits-\d{8}-\d{6}(-2)?", name) for name in names)


def test_on_a_terminal_there_is_a_bar_and_no_line_for_each_epoch(
    clean_environment: Environment, tmp_path: Path
) -> None:
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gpuconv", "train", "--device", "cpu", "--epochs", "3", "--out", tmp_path / "run"]
    environment = clean_environment | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other end was closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(60) == 0
    text = seen.decode()
    assert re.search(r"epoch 3/3 loss \d\.\d{4} accuracy \d+\.\d% test \d+\.\d% [\d,]+ images/s", text)
    assert "\x1b[2K" in text and "━" in text
    assert "epoch 2/3  loss" not in text
    assert "held-out images" in text


def test_eval_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    call(capsys, *FEW, "--out", tmp_path / "run")
    status, output, errors = call(capsys, "eval", tmp_path / "run", "--backend", "numpy", "--dtype", "float64")
    assert (status, errors) == (0, "")
    assert re.fullmatch(r"accuracy  \d+\.\d\d% of 355 held-out images, loss \d+\.\d+\n", output)


# ---- errors: one line, a status, nothing written --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--backend abacus", "backend must be one of auto, .* but got 'abacus'"),
        ("--device tpu", "device must be cpu, cuda or cuda:N, but got 'tpu'"),
        ("--device cuda:99", "device 'cuda:99' is not there"),
        ("--dtype int8", "dtype must be one of .* but got 'int8'"),
        ("--loss hinge", "loss must be one of .* but got 'hinge'"),
        ("--data cats", "data must be one of .* but got 'cats'"),
        ("--model huge", "model must be one of .* but got 'huge'"),
        ("--epochs 0", "epochs must be at least 1, but got 0"),
        ("--steps 0", "steps must be at least 1, but got 0"),
        ("--batch-size -2", "batch size must be at least 1, but got -2"),
        ("--log-every 0", "log every must be at least 1, but got 0"),
        ("--lr 0", "lr must be a positive number"),
        ("--lr nan", "lr must be a positive number"),
        ("--seed -1", "seed must be from 0"),
        ("--epochs many", "--epochs"),
        ("--frobnicate", "--frobnicate"),
        ("--epochs", "--epochs"),
        ("surplus", "surplus"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: str, message: str
) -> None:
    status, output, errors = call(capsys, "train", "--out", tmp_path / "run", *options.split())
    assert status in (1, 2) and output == ""
    assert_one_clear_line(errors, message)
    assert not (tmp_path / "run").exists()


def test_a_backend_that_cannot_run_here_is_one_line_with_the_reason_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Absent(gpuconv.backends.Backend):
        name = "absent"

        def unavailable(self) -> str | None:
            return "its GPU is on the moon"

    gpuconv.backends.register(Absent())
    try:
        status, output, errors = call(capsys, *FEW, "--backend", "absent", "--out", tmp_path / "run")
    finally:
        del gpuconv.backends._loaded["absent"]
    assert (status, output) == (1, "")
    assert_one_clear_line(errors, "its GPU is on the moon")
    assert not (tmp_path / "run").exists()


def test_a_wrong_backend_in_the_environment_is_one_line(clean_environment: Environment, tmp_path: Path) -> None:
    environment = clean_environment | {"GPUCONV_BACKEND": "abacus"}
    status, output, errors = finish(start(environment, *FEW, "--out", tmp_path / "run"))
    assert (status, output) == (1, "")
    assert_one_clear_line(errors, "backend must be one of auto, .* but got 'abacus'")


def test_an_out_that_cannot_be_written_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, output, errors = call(capsys, *FEW, "--out", tmp_path / "file" / "run")
    assert (status, output) == (1, "")
    assert_one_clear_line(errors, "file is not a folder")


def test_a_second_run_does_not_go_into_the_first_ones_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call(capsys, *FEW, "--out", tmp_path / "run")[0] == 0
    status, output, errors = call(capsys, *FEW, "--out", tmp_path / "run")
    assert (status, output) == (1, "")
    assert_one_clear_line(errors, "already holds a run")


def test_a_damaged_run_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    call(capsys, *FEW, "--out", tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:5000])
    status, output, errors = call(capsys, "eval", tmp_path / "run")
    assert (status, output) == (1, "")
    assert_one_clear_line(errors, "model.safetensors is damaged")


def test_resume_with_other_settings_says_which_differ(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert call(capsys, *FEW, "--out", tmp_path / "run")[0] == 0
    options = ["--lr", "0.3", "--seed", "0", "--flip", "--batch-size", "32"]  # two are as they were
    status, output, errors = call(capsys, "train", "--resume", tmp_path / "run", *options)
    assert (status, output) == (1, "")
    assert_one_clear_line(errors, r"these settings differ from the run's: lr 0\.1 → 0\.3, flip False → True")
    status, output, errors = call(capsys, "train", "--resume", tmp_path / "run", "--seed", "0")
    assert (status, errors) == (0, "") and "held-out images" in output


def test_predict_export_and_compare(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from PIL import Image

    assert call(capsys, *FEW, "--out", tmp_path / "run")[0] == 0
    Image.new("RGB", (20, 30)).save(tmp_path / "black.png")
    status, output, _ = call(capsys, "predict", tmp_path / "run", tmp_path / "black.png", "--top", "2")
    assert status == 0 and re.fullmatch(rf"{tmp_path}/black\.png(  \d \d+\.\d%){{2}}\n", output)
    status, output, _ = call(capsys, "export", tmp_path / "run")
    assert status == 0 and output.startswith(f"{tmp_path / 'run' / 'export.safetensors'}: outputs within ")
    options = ["--backends", "aten,numpy", "--seeds", "2", "--epochs", "1", "--batch-size", "300", "--device", "cpu"]
    status, output, _ = call(capsys, "compare", *options, "--out", tmp_path / "compare", "--json")
    rows = json.loads(output)
    assert status == 0 and [row["backend"] for row in rows] == ["aten", "numpy"]
    for row in rows:
        assert row["accuracy"] > 0 and row["accuracy_spread"] >= 0 and row["images_per_second"] > 0
        assert set(row["step_ms"]) == {"data", "forward", "backward", "optimizer"}
    names = sorted(path.name for path in (tmp_path / "compare").iterdir())
    assert names == ["aten-0", "aten-1", "compare.json", "compare.png", "numpy-0", "numpy-1"]


def test_on_a_cpu_auto_is_aten_and_is_measured_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--seeds", "1", "--steps", "2", "--batch-size", "300", "--device", "cpu", "--out", tmp_path / "compare"]
    status, output, errors = call(capsys, "compare", *options)
    assert (status, errors) == (0, "")
    assert output.startswith("on cpu, auto is aten, which is measured once\naten, seed 0\n")
    names = sorted(path.name for path in (tmp_path / "compare").iterdir())
    assert names == ["aten-0", "compare.json", "compare.png"]


def test_predict_takes_folders_and_escapes_what_would_colour_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from PIL import Image

    for label in ("a\x1b[31m", "b"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(6):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(tmp_path / "data" / label / f"{k}.png")
    (tmp_path / "data" / "b" / "note\x1b[31m.txt").write_text("hello")
    status, output, _ = call(capsys, *FEW, "--data", f"folder:{tmp_path / 'data'}", "--out", tmp_path / "run")
    assert status == 0 and f"left out 1 file without an image: {tmp_path}/data/b/note\\x1b[31m.txt" in output
    status, output, errors = call(capsys, "predict", tmp_path / "run", tmp_path / "data")
    assert status == 0 and len(output.splitlines()) == 12 and errors.startswith("left out 1 file without an image: ")
    assert "\x1b" not in output + errors and "a\\x1b[31m" in output
    status, output, _ = call(capsys, "predict", tmp_path / "run", tmp_path / "data", "--json", "--top", "1")
    assert status == 0 and len(json.loads(output)) == 12
    status, _, errors = call(capsys, "eval", tmp_path / "run")
    assert status == 0 and errors.startswith("left out 1 file without an image: ")


# ---- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_run_that_can_be_used(
    clean_environment: Environment, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = start(clean_environment, "train", "--device", "cpu", "--epochs", "10000", "--out", tmp_path / "run")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch     2/"):
            break
    process.send_signal(number)
    got, output, errors = finish(process)
    assert (got, errors) == (status, "")
    assert re.search(f"stopped by {number.name} after step \\d+; weights are in {tmp_path / 'run'}\n$", output)
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "model.safetensors",
    ]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "stopped" and lines[-1]["signal"] == number.name
    got, output, errors = finish(start(clean_environment, "eval", tmp_path / "run", "--json"))
    assert (got, errors) == (0, "")
    assert json.loads(output)["n"] == 355


def test_output_that_nobody_reads_is_no_traceback(clean_environment: Environment, tmp_path: Path) -> None:
    process = start(clean_environment, "train", "--device", "cpu", "--epochs", "50", "--out", tmp_path / "run")
    assert process.stdout is not None and process.stderr is not None
    with process.stderr, process.stdout:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.wait(60) == 1
