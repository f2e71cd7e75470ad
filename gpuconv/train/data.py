"""The images of a run, held in memory on the device, and the batches of an epoch, shuffled and augmented."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpuconv.errors import UserError
from gpuconv.train import image_folder, npz, standard_data
from gpuconv.train.config import Config
from gpuconv.train.raw_data import RawData, nth_of_class

_EVERY = 5  # where nothing is held out, every fifth image of each class is


@dataclasses.dataclass(frozen=True)
class Data:
    """Training images, test images, and perhaps validation images.

    Images are [N, C, H, W] uint8 or floats, labels [N] int64.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    top: float = 255.0  # the value that stands for 1
    skipped: tuple[str, ...] = ()  # what could not be read
    val_images: Tensor | None = None
    val_labels: Tensor | None = None
    notes: tuple[str, ...] = ()  # for the user

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[C, H, W]"""
        return tuple(self.images.shape[1:])

    @property
    def monitored(self) -> str:
        """The part that is evaluated after each epoch: 'val' where there is one, else 'test'."""
        return "test" if self.val_labels is None else "val"

    def part(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of 'val' or 'test'."""
        if name == "test" or self.val_images is None or self.val_labels is None:
            return self.test_images, self.test_labels
        return self.val_images, self.val_labels

    def pixels(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Images of this data with values 0 … 1, as networks take them."""
        return images.to(dtype).div_(self.top) if self.top != 1 else images.to(dtype)

    def to(self, device: torch.device) -> "Data":
        """This data on `device`."""
        tensors: dict[str, Any] = {k: value.to(device) for k, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)


def load(config: Config, size: tuple[int, int] | None = None) -> Data:
    """The data that `config.data` names. size: (H, W) that a folder's images are resized to; by default as they are.

    Data without a test part are tested with their `val` part, or with every fifth training image of each class. Where
    the best of several epochs is to be kept (`config.patience`), it is chosen by `val` alone, or else by every fifth
    remaining image; nothing is chosen by test images. Raises UserError for what is missing, damaged or does not fit
    together.
    """
    kind, _, path = config.data.partition(":")
    try:
        source = _READERS[kind](Path(path), config, size)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    parts, classes = source.parts, source.classes
    for name, (images, labels) in parts.items():
        if len(images) != len(labels) or not len(labels):
            raise UserError(f"{config.data}: {len(images):,} images do not go with {len(labels):,} labels")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            what = f"label {labels[wrong[0]]} of image {wrong[0]} is out of range: there are {len(classes)} classes"
            raise UserError(f"{config.data}: {what}")
        if images.shape[1:] != parts["train"][0].shape[1:]:
            shapes = [list(array.shape[1:]) for array in (parts["train"][0], images)]
            raise UserError(f"{config.data}: training images are {shapes[0]}, but {name} images {shapes[1]}")
    notes = list(source.notes)
    if "test" not in parts and "val" in parts and not config.patience:
        parts["test"] = parts.pop("val")  # nothing is chosen by it
        notes.append("there is no test part: the validation part is the held-out one")
    for name, why in (("test", "to hold one out"), ("val", "to hold one out for --patience")):
        if name in parts or (name == "val" and not config.patience):
            continue
        images, labels = parts["train"]
        out = nth_of_class(labels, _EVERY)
        if not out.any():
            raise UserError(f"{config.data}: no class has the {_EVERY} images that it takes {why}")
        parts["train"], parts[name] = (images[~out], labels[~out]), (images[out], labels[out])
        if name == "val":
            notes.append(
                f"--patience chooses by {out.sum():,} of the training images, which are not learned; the test images "
                "are judged once, at the end"
            )
        elif "val" in parts:  # which chooses
            notes.append(f"there is no test part: {out.sum():,} of the training images are held out instead")
    tensors = {
        name: (torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels)).long())
        for name, (images, labels) in parts.items()
    }
    images, labels = tensors.get("val", (None, None))
    return Data(
        *tensors["train"], *tensors["test"], classes=classes, top=source.top, skipped=source.skipped, val_images=images,
        val_labels=labels, notes=tuple(notes),
    )  # fmt: skip


_READERS: dict[str, Callable[[Path, Config, tuple[int, int] | None], RawData]] = {
    "digits": lambda path, config, size: standard_data.digits(),
    "cifar10": lambda path, config, size: standard_data.cifar10(path),
    "cifar100": lambda path, config, size: standard_data.cifar100(path),
    "mnist": lambda path, config, size: standard_data.mnist(path),
    "folder": image_folder.load,
    "npz": lambda path, config, size: npz.load(path),
}


# ---- the batches of an epoch ----------------------------------------------------------------------------------------


def epoch_batches(
    data: Data, config: Config, epoch: int, first: int = 0, part: tuple[int, int] = (0, 1), min_batch: int = 1
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The training set once, shuffled and augmented: images [B, C, H, W], labels [B], the size of the whole batch.

    first: the batch to begin with. part: (k, n) gives every n-th image of each batch, from the k-th on. min_batch: a
    last batch of fewer images joins the one before it. How an image is augmented depends only on the seed, the epoch
    and its place in the training set, not on batch, part or device.
    """
    device, count = data.labels.device, len(data.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed((config.seed << 20) + epoch)).to(device)
    chance = draws(config.seed, epoch, torch.arange(count, device=device))
    # An image is mirrored in every other epoch: of two epochs one sees it either way (airbench's alternating flip).
    mirrored = ((draws(config.seed, 0, torch.arange(count, device=device))[0] + epoch) & 1).bool()
    batches = list(order.split(config.batch_size))
    if len(batches) > 1 and len(batches[-1]) < min_batch:
        batches[-2:] = [order[(len(batches) - 2) * config.batch_size :]]
    for batch in batches[first:]:
        mine = batch[part[0] :: part[1]]
        images = _augment(data.images[mine], chance[:, mine], mirrored[mine], config)
        yield data.pixels(images, config.weight_dtype), data.labels[mine], len(batch)


def _augment(images: Tensor, chance: Tensor, mirrored: Tensor, config: Config) -> Tensor:
    """Images [B, C, H, W] shifted, mirrored and cut out, as the random numbers `chance` [4, B] say."""
    (height, width), s = images.shape[2:], config.shift
    if s:
        windows = F.pad(images, (s,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2s+1, 2s+1, H, W], a view
        each = torch.arange(len(images), device=images.device)
        images = windows[each, :, chance[0] % (2 * s + 1), chance[1] % (2 * s + 1)]
    if config.flip:
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if config.cutout:
        inside = []
        for draw, size in ((chance[2], height), (chance[3], width)):  # the square's centre is a pixel of the image
            away = torch.arange(size, device=images.device) - (draw % size - config.cutout // 2)[:, None]  # [B, size]
            inside.append((away >= 0) & (away < config.cutout))
        images = images.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)
    return images


def draws(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Four numbers 0 … 2³² − 1 for each index [N], as int64 [4, N]: a hash of (seed, epoch, index) on any device."""
    streams = torch.arange(4, device=index.device)[:, None]
    return _mix(_mix(index ^ _mix(_mix(seed) ^ epoch)) ^ streams)


def _mix(x: Any) -> Any:
    """The hash lowbias32 (Chris Wellons) on ints or int64 tensors; a product's low 32 bits survive its overflow."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
