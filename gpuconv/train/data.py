"""The images to learn from, held in memory as tensors on the device, and the order in which training sees them."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Data:
    """A training set and a held-out set: images [N, C, H, W] with values 0 … 1, labels [N] int64."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    shift: int  # training moves an image by up to this many pixels along each axis

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[C, H, W]"""
        return tuple(self.images.shape[1:])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Data":
        """The same data on `device`, the images as `dtype`."""
        images, test_images = self.images.to(device, dtype), self.test_images.to(device, dtype)
        return Data(
            images, self.labels.to(device), test_images, self.test_labels.to(device), self.classes, self.shift
        )  # fmt: skip


def _digits() -> Data:
    """1,797 handwritten digits, 8×8 pixels, out of scikit-learn's package; every fifth of each digit is held out."""
    from sklearn.datasets import load_digits  # takes a second to import

    raw = load_digits()
    images, labels = torch.from_numpy(raw.images).unsqueeze(1) / 16, torch.from_numpy(raw.target).long()
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        held_out[(labels == digit).nonzero()[4::5, 0]] = True
    classes = tuple(str(digit) for digit in range(10))
    return Data(images[~held_out], labels[~held_out], images[held_out], labels[held_out], classes, shift=1)


DATASETS: dict[str, Callable[[], Data]] = {"digits": _digits}


def epoch_batches(data: Data, batch_size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The training set once, shuffled and shifted, as (images [B, C, H, W], labels [B]); the last batch may be small.

    Everything random is drawn here, for each image by its place in the training set, from a generator of its own: seed
    and epoch alone decide what a step sees.
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    count, device = len(data.labels), data.labels.device
    order = torch.randperm(count, generator=generator).to(device)
    shifts = torch.randint(2 * data.shift + 1, (count, 2), generator=generator).to(device)
    padded = F.pad(data.images, (data.shift,) * 4)
    channels, height, width = (torch.arange(size, device=device) for size in data.image_shape)
    for batch in order.split(batch_size):
        rows = (shifts[batch, 0, None] + height)[:, None, :, None]
        columns = (shifts[batch, 1, None] + width)[:, None, None, :]
        yield padded[batch[:, None, None, None], channels[:, None, None], rows, columns], data.labels[batch]
