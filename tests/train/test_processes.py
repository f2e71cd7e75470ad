"""Several processes that torchrun starts train as one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from training_runs import command, images, train, weights_of

from gpuconv.errors import UserError
from gpuconv.train import run as runs
from gpuconv.train.config import Config

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


# `python -m gpuconv`, which says at the end which threads of a process group are still there.
ENTRY = """
import atexit, contextlib, pathlib, time

def left():
    found = []
    for comm in pathlib.Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):
            found.append(comm.read_text().strip())
    return [name for name in found if "gloo" in name]

def report():
    end = time.monotonic() + 2  # a thread that was joined is listed for a moment longer
    while left() and time.monotonic() < end:
        time.sleep(0.05)
    print(f"threads left: {left()}\\n", end="")  # in one piece: two processes write

atexit.register(report)
from gpuconv.__main__ import main
main()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are listed in Linux's /proc")
def test_two_processes_train_as_one(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    config = Config(
        data=f"npz:{images(tmp_path)}", model="tutorial", dtype="float64", steps=20, epochs=2, batch_size=101, shift=1,
        flip=True, cutout=2, ema=0.8, label_smoothing=0.1,
    )  # fmt: skip
    train(tmp_path / "one", config)
    environment = clean_environment | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    (tmp_path / "entry.py").write_text(ENTRY)
    arguments = [tmp_path / "entry.py", *command(tmp_path / "two", config)[3:]]
    done = subprocess.run([*TORCHRUN, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("threads left: []\n") == 2, done.stdout  # one that is left may abort its process
    assert done.stdout.count("held-out images") == 1  # one process speaks
    one, two = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert (two[name] - value).norm() <= 1e-9 * value.norm(), name
    epochs = [[line for line in runs.metrics(tmp_path / name)] for name in ("one", "two")]
    for a, b in zip(*epochs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9) and a["test_accuracy"] == b["test_accuracy"]
    with pytest.raises(UserError, match=r"checkpoint.safetensors is of 2 processes, but there are 1"):
        train(tmp_path / "two", config, resume=True)


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="torchrun is tried on Unix")
def test_two_processes_that_were_stopped_go_on_to_the_same_bits(
    tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    environment = clean_environment | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    config = Config(data=f"npz:{images(tmp_path)}", model="tutorial", epochs=3, batch_size=32)
    subprocess.run([*TORCHRUN, *command(tmp_path / "whole", config)[1:]], env=environment, check=True)
    process = subprocess.Popen(
        [*TORCHRUN, *command(tmp_path / "run", config)[1:]], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/"):
            break
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIG" in process.communicate(timeout=60)[0]
    resume = command(tmp_path / "run", config, "--resume", tmp_path / "run")[1:]
    subprocess.run([*TORCHRUN, *resume], env=environment, check=True)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "whole")
