"""Short training runs for tests: settings, data, commands, a callback that stops them, and comparisons."""

import dataclasses
import io
import os
import signal
import sys
from pathlib import Path

import numpy as np

from gpuconv.train import loop, run as runs
from gpuconv.train.config import Config
from gpuconv.train.progress import Callback, ProgressLines

SHORT = Config(steps=3, batch_size=32)


def train(path: Path, config: Config = SHORT, *callbacks: Callback, **how: object) -> dict[str, object]:
    return runs.train(config, path, callbacks or [ProgressLines(io.StringIO(), "title")], **how)


def weights_of(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


# Everything that has a state of its own.
BUSY = Config(
    model="tutorial", steps=30, epochs=3, batch_size=91, shift=1, flip=True, cutout=2, ema=0.9, clip=1.0,
    dtype="float16", optimizer="adamw", lr=1e-3, label_smoothing=0.1,
)  # fmt: skip


class StopAt(Callback):
    """Sends this process a signal after a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGINT) -> None:
        self.at, self.number = step, number

    def step(self, at: loop.Position) -> None:
        if at.step == self.at:
            os.kill(os.getpid(), self.number)


def assert_equal_but_for_time(a: Path, b: Path) -> None:
    """Run a recorded what run b did, apart from times and being stopped."""
    lines = [
        [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in runs.metrics(path)]
        for path in (a, b)
    ]
    assert [line for line in lines[0] if line["kind"] != "stopped"] == lines[1]


def images(folder: Path, n: int = 1500) -> Path:
    """An npz file of random images of 8×8 pixels, in which a white pixel marks the class; it needs no scikit-learn."""
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 4, n)
    pixels = draw.integers(0, 200, (n, 8, 8), np.uint8)
    pixels[np.arange(n), labels, labels] = 255
    held = slice(0, n - 1547 if n > 1547 else 50)
    np.savez(folder / "x.npz", images=pixels, labels=labels, test_images=pixels[held], test_labels=labels[held])
    return folder / "x.npz"


def command(path: Path, config: Config, *options: object) -> list[str]:
    """The command that trains by `config` into `path`, or that with `options` instead."""
    given = {k: v for k, v in dataclasses.asdict(config).items() if v not in (None, False)}
    settings = [f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in given.items()]
    return [sys.executable, "-m", "gpuconv", "train", *map(str, options or (*settings, "--out", path))]
