"""The networks by name. Each takes images with values 0 … 1 and normalises them itself: its file is all it needs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpuconv.nn import Conv2d


class Normalize(nn.Module):
    """(x − mean) / std for each channel of [N, C, H, W]; mean and std are buffers, saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def measure(self, images: Tensor) -> None:
        """Take mean and std of `images`, [N, C, H, W]; a channel that never varies keeps its scale."""
        self.mean.copy_(images.double().mean((0, 2, 3), keepdim=True)[0])
        std = images.double().std((0, 2, 3), keepdim=True)[0]
        self.std.copy_(torch.where(std > 0, std, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Small(nn.Sequential):
    """conv → ReLU → pool → conv → ReLU → pool → fully connected; digits: 1×8×8 → 64×4×4 → 128×2×2 → 10."""

    def __init__(self, image_shape: tuple[int, ...], classes: int) -> None:
        channels, height, width = image_shape
        super().__init__()
        self.normalize = Normalize(channels)
        self.conv1 = Conv2d(channels, 64, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = Conv2d(64, 128, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(128 * (height // 4) * (width // 4), classes)


# Each is made from the shape of an image, [C, H, W], and the number of classes.
NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {"small": Small}
