"""The training of the tour's small network, recorded: coloured handwritten digits on parts of two photographs.

Digits and photographs are scikit-learn's. Pictures are 32×32×3, the first layer has twelve filters, and a few seconds
of training turn noise into detectors.
"""

import dataclasses
import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gpuconv.nn
from gpuconv.see.arithmetic import Pair, dead, duplicates
from gpuconv.train import data as datasets
from gpuconv.train.config import Config

SIDE = 32
FILTERS = 12
EPOCHS = 24
_INK = 24  # side of a digit
_MIDDLE = 0.5  # of the values 0 … 1
_BATCH, _RATE, _DECAY = 64, 0.004, 0.05


@functools.cache
def photographs() -> tuple[Tensor, Tensor]:
    """scikit-learn's two photographs, a Chinese temple and a flower, [3, 427, 640], 0 … 1."""
    from sklearn.datasets import load_sample_images

    temple, flower = (torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in load_sample_images().images)
    return temple, flower


def paint(digits: Tensor, seed: int) -> Tensor:
    """Digits [N, 1, 8, 8] as pictures [N, 3, 32, 32], each at a random place, in a colour unlike its background's."""
    generator = torch.Generator().manual_seed(seed)
    count = len(digits)
    ink = F.interpolate(digits, size=(_INK, _INK), mode="bicubic").clamp(0, 1)
    grounds = [F.interpolate(photo[None], scale_factor=0.5, mode="area")[0] for photo in photographs()]
    places = torch.rand(count, 4, generator=generator)
    pictures, strokes = torch.empty(count, 3, SIDE, SIDE), torch.zeros(count, 1, SIDE, SIDE)
    room = SIDE - _INK
    for i, (down, right, top, left) in enumerate(places.tolist()):
        ground = grounds[i % 2]
        y, x = int(down * (ground.shape[1] - SIDE)), int(right * (ground.shape[2] - SIDE))
        pictures[i] = ground[:, y : y + SIDE, x : x + SIDE]
        y, x = round(room / 4 + top * room / 2), round(room / 4 + left * room / 2)
        strokes[i, :, y : y + _INK, x : x + _INK] = ink[i]
    mean = pictures.mean((2, 3), keepdim=True)
    away = torch.rand(count, 3, 1, 1, generator=generator) - mean
    colour = (mean + F.normalize(away, dim=1)).clamp(0, 1)
    return pictures * (1 - strokes) + colour * strokes


class TourNetwork(nn.Sequential):
    """Three times convolution, ReLU and pooling, then one fully connected layer: 3×32×32 → ten numbers.

    12×16×16 after the first pooling, 24×8×8 after the second, 32×4×4 after the third.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = gpuconv.nn.Conv2d(3, FILTERS, 7, padding=3)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = gpuconv.nn.Conv2d(FILTERS, 24, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = gpuconv.nn.Conv2d(24, 32, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(32 * (SIDE // 8) ** 2, 10)


class Snapshot(NamedTuple):
    """The network after an epoch, measured on the held-out pictures."""

    filters: Tensor  # [12, 3, 7, 7]: the first layer's
    outputs: Tensor  # [N, 10]: softmax
    cross_entropy: float
    mse: float  # of the outputs against one-hot
    accuracy: float
    dead: tuple[int, int, int]  # filters of each layer that are positive for no held-out picture
    alike: list[Pair]


@dataclasses.dataclass(frozen=True)
class TrainingRecord:
    """A trained network, snapshots of its training, and the pictures that it was not trained on."""

    network: TourNetwork
    snapshots: list[Snapshot]  # before training, then after each epoch
    training_loss: list[float]  # cross-entropy of each epoch
    pictures: Tensor  # [N, 3, 32, 32], 0 … 1
    labels: Tensor  # [N]


def centred(pictures: Tensor) -> Tensor:
    """Pictures 0 … 1 as the network takes them, with 0 in the middle of the range."""
    return pictures - _MIDDLE


def train_recorded(epochs: int = EPOCHS, seed: int = 0, lr_factor: float = 1) -> TrainingRecord:
    """Train a `TourNetwork`. Each epoch sees the digits on new backgrounds in new colours, so no two are alike.

    lr_factor: a factor on the learning rate.
    """
    data = datasets.load(Config(data="digits"))
    digits, unseen = (data.pixels(images, torch.float64) for images in (data.images, data.test_images))
    labels, held_out = data.labels, paint(unseen, seed=1 << 20)
    torch.manual_seed(seed)
    network = TourNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE * lr_factor, weight_decay=_DECAY)
    steps = epochs * -(-len(labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (steps / 4), (steps - step) / (steps * 3 / 4))
    )
    snapshots, losses = [_snapshot(network, held_out, data.test_labels)], []
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        pictures, total = centred(paint(digits, seed=epoch)), 0.0
        for batch in torch.randperm(len(labels), generator=generator).split(_BATCH):
            loss = F.cross_entropy(network(pictures[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        losses.append(total / len(labels))
        snapshots.append(_snapshot(network, held_out, data.test_labels))
    return TrainingRecord(network.eval(), snapshots, losses, held_out, data.test_labels)


@torch.no_grad()
def _snapshot(network: TourNetwork, pictures: Tensor, labels: Tensor) -> Snapshot:
    value, dead_counts = centred(pictures), []
    for module in network.children():
        value = module(value)
        if isinstance(module, nn.Conv2d):
            dead_counts.append(len(dead(value)))
    outputs, weight = value.softmax(1), network.conv1.weight.detach().clone()
    return Snapshot(
        weight,
        outputs,
        F.cross_entropy(value, labels).item(),
        F.mse_loss(outputs, F.one_hot(labels, 10).float()).item(),
        (outputs.argmax(1) == labels).float().mean().item(),
        (dead_counts[0], dead_counts[1], dead_counts[2]),
        duplicates(weight),
    )
