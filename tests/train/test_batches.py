"""An epoch's last batch, where the network cannot be trained on what is left."""

import dataclasses
import io
import os
import signal
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gpuconv.errors import UserError
from gpuconv.train import data as datasets, distributed, loop, networks, run as runs
from gpuconv.train.config import Config
from gpuconv.train.progress import ProgressLines


def images(folder: Path, n: int) -> str:
    """n random images of 4×4."""
    draw = np.random.default_rng(1)
    pixels, labels = draw.integers(0, 256, (n, 4, 4), np.uint8), np.arange(n) % 2
    np.savez(folder / "x.npz", images=pixels, labels=labels, test_images=pixels, test_labels=labels)
    return f"npz:{folder / 'x.npz'}"


def train(path: Path, config: Config, *lines: ProgressLines, **how: object) -> list[str]:
    """The lines that were printed."""
    told = io.StringIO()
    runs.train(config, path, [ProgressLines(told, "title"), *lines], **how)
    return told.getvalue().splitlines()


class Stop(ProgressLines):
    """Asks for an end after a step, as a signal does."""

    def __init__(self, step: int) -> None:
        super().__init__(io.StringIO(), "")
        self.at = step

    def step(self, at: loop.Position) -> None:
        if at.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def one_pixel(shape: networks.Shape, classes: int) -> nn.Module:
    """A network that normalises maps of one pixel."""
    norm = nn.Sequential(nn.Conv2d(shape[0], 8, shape[1:]), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, classes))
    return nn.Sequential(OrderedDict(normalize=networks.Normalize(shape[0]), norm=norm))


def test_a_last_batch_of_one_image_joins_the_one_before_and_resume_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks.NETWORKS, "small", one_pixel)
    config = Config(data=images(tmp_path, 9), batch_size=4, epochs=2, lr=0.01)
    told = train(tmp_path / "whole", config)
    assert told[:2] == [
        "title",
        "an epoch's last batch would have 1 image, too few for BatchNorm: it joins the batch before it, which then has "
        "5",
    ]
    assert [line["step"] for line in runs.metrics(tmp_path / "whole")] == [2, 4]
    for step in (1, 3):
        train(tmp_path / "run", config, Stop(step), resume=step > 1)
    train(tmp_path / "run", config, resume=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


def test_a_network_that_can_be_trained_on_one_image_has_a_last_batch_of_one(tmp_path: Path) -> None:
    config = Config(data=images(tmp_path, 9), batch_size=4, epochs=1)
    assert len(train(tmp_path / "run", config)) == 2
    assert runs.metrics(tmp_path / "run")[-1]["step"] == 3


def test_batches_of_one_image_are_refused_before_the_first_step(tmp_path: Path) -> None:
    config = Config(data=images(tmp_path, 9), model="resnet18", batch_size=1)
    with pytest.raises(
        UserError, match=r"resnet18 cannot be trained on one image at a time .* a batch has 1: take a l"
    ):
        train(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


def test_each_of_several_processes_has_images_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    config = Config(batch_size=6, epochs=1)
    assert runs._last_batch_notes(config, 15, 2) == [
        "an epoch's last batch would have 3 images for 2 processes, too few for BatchNorm: it joins the batch before "
        "it, which then has 9"
    ]
    assert runs._last_batch_notes(config, 15, 1) == runs._last_batch_notes(config, 16, 2) == []
    with pytest.raises(UserError, match="an epoch's last batch has 1 images for 2 processes: change --batch-size"):
        runs._last_batch_notes(config, 13, 1)
    with pytest.raises(UserError, match="a batch has 3 for 2 processes: take a larger --batch-size"):
        runs._last_batch_notes(dataclasses.replace(config, batch_size=3), 15, 2)


@pytest.mark.parametrize(
    ("n", "size", "min_batch", "expected"),
    [
        (9, 4, 1, [4, 4, 1]),
        (9, 4, 2, [4, 5]),
        (8, 4, 4, [4, 4]),
        (11, 4, 4, [4, 7]),
        (3, 4, 4, [3]),
        (10, 4, 2, [4, 4, 2]),
    ],
)
def test_an_epoch_has_as_many_steps_as_batches_and_sees_each_image_once(
    n: int, size: int, min_batch: int, expected: list[int]
) -> None:
    labels = torch.arange(n)
    data = datasets.Data(torch.zeros(n, 1, 2, 2), labels, torch.zeros(1), labels[:1], ("a",), 1.0)
    config = Config(batch_size=size, epochs=1)
    batches = list(datasets.epoch_batches(data, config, 1, min_batch=min_batch))
    assert [size for _, _, size in batches] == [len(labels) for _, labels, _ in batches] == expected
    assert torch.cat([labels for _, labels, _ in batches]).sort().values.tolist() == labels.tolist()
    assert config.length(n, min_batch) == (len(expected), len(expected))
    again = list(datasets.epoch_batches(data, config, 1, first=len(expected) - 1, min_batch=min_batch))
    assert len(again) == 1 and torch.equal(again[0][1], batches[-1][1])


@pytest.mark.parametrize(("make", "expected"), [(networks.small, 1), (networks.tutorial, 1), (one_pixel, 2)])
def test_the_rehearsal_finds_out_what_a_batch_needs(make: Callable[..., nn.Module], expected: int) -> None:
    data, config = datasets.load(Config()), Config()
    network = make(data.image_shape, len(data.classes))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert loop.dry_run(network, data, config) == expected
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
