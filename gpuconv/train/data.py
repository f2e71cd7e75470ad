"""The images to learn from, held in memory on the device, and the order and guise in which training sees them."""

import dataclasses
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpuconv.train.config import Config, UserError

_EVERY = 5  # where nothing is held out, every fifth image of each class is
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR10_BYTES = 10_000 * 3073
_DIGITS = tuple("0123456789")


@dataclasses.dataclass(frozen=True)
class Data:
    """A training set and a held-out set: images [N, C, H, W] uint8 or floats, labels [N] int64."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    top: float = 255.0  # the value that stands for 1
    skipped: tuple[str, ...] = ()  # what could not be read

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[C, H, W]"""
        return tuple(self.images.shape[1:])

    def pixels(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Images of this data as networks take them: values 0 … 1."""
        return images.to(dtype).div_(self.top) if self.top != 1 else images.to(dtype)

    def to(self, device: torch.device) -> "Data":
        """The same data on `device`."""
        tensors: dict[str, Any] = {k: value.to(device) for k, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)


def load(config: Config) -> Data:
    """What `config.data` names. Raises UserError for what is missing, damaged or does not fit together."""
    kind, _, path = config.data.partition(":")
    try:
        images, labels, test, classes, *rest = _LOADERS[kind](Path(path), config)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from None
    pairs = [(images, labels), test] if test else [(images, labels)]
    for images, labels in pairs:
        if len(images) != len(labels) or not len(labels):
            raise UserError(f"{config.data}: {len(images):,} images do not go with {len(labels):,} labels")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if len(wrong):
            what = f"label {labels[wrong[0]]} of image {wrong[0]} is out of range: there are {len(classes)} classes"
            raise UserError(f"{config.data}: {what}")
        if images.shape[1:] != pairs[0][0].shape[1:]:
            shapes = [list(array.shape[1:]) for array, _ in pairs]
            raise UserError(f"{config.data}: training images are {shapes[0]}, but test images {shapes[1]}")
    if not test:
        kept = [np.delete(np.flatnonzero(labels == k), np.s_[_EVERY - 1 :: _EVERY]) for k in range(len(classes))]
        out = np.ones(len(labels), bool)
        out[np.concatenate(kept)] = False
        pairs = [(images[~out], labels[~out]), (images[out], labels[out])]
        if not out.any():
            raise UserError(f"{config.data}: no class has the {_EVERY} images that it takes to hold one out")
    tensors = [torch.from_numpy(np.array(array)) for pair in pairs for array in pair]
    return Data(tensors[0], tensors[1].long(), tensors[2], tensors[3].long(), tuple(classes), *rest)


# ---- where images come from: each gives images [N, C, H, W], labels [N], the test pair or None, classes, … -----------


def _digits(path: Path, config: Config) -> tuple[Any, ...]:
    """1,797 handwritten digits, 8×8 pixels, out of scikit-learn's package."""
    from sklearn.datasets import load_digits  # takes a second to import

    raw = load_digits()
    return raw.images[:, None].astype(np.uint8), raw.target, None, _DIGITS, 16.0


def _cifar10(path: Path, config: Config) -> tuple[Any, ...]:
    """The official binary version: records of one label byte and 3×32×32 pixels."""
    folder = path / "cifar-10-batches-bin" if (path / "cifar-10-batches-bin").is_dir() else path

    def records(*names: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [(folder / name).read_bytes() for name in names]
        for name, part in zip(names, parts, strict=True):
            if len(part) != _CIFAR10_BYTES:
                raise UserError(f"{folder / name} is damaged: it has {len(part):,} bytes, not {_CIFAR10_BYTES:,}")
        raw = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 3073)
        return raw[:, 1:].reshape(-1, 3, 32, 32), raw[:, 0]

    return *records(*(f"data_batch_{k}.bin" for k in range(1, 6))), records("test_batch.bin"), _CIFAR10


def _mnist(path: Path, config: Config) -> tuple[Any, ...]:
    """The four IDX files, gzipped or not."""

    def idx(name: str, ndim: int) -> np.ndarray:
        files = [path / f"{stem}{end}" for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
        file = next(filter(Path.exists, files), files[0])
        raw = file.read_bytes()
        try:
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{file} is damaged: {error}") from None
        shape = np.frombuffer(raw[4 : 4 + 4 * ndim], ">u4") if len(raw) >= 4 + 4 * ndim else ()
        if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) != 4 + 4 * ndim + np.prod(shape, dtype=np.int64):
            raise UserError(f"{file} is damaged: it is not an IDX file of {ndim} dimensions, or not a whole one")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape([int(size) for size in shape])

    pairs = [(idx(f"{s}-images-idx3-ubyte", 3)[:, None], idx(f"{s}-labels-idx1-ubyte", 1)) for s in ("train", "t10k")]
    return *pairs[0], pairs[1], _DIGITS


def _folder(path: Path, config: Config) -> tuple[Any, ...]:
    """A folder for each class, of images of any kind that Pillow reads; or such folders in `train` and `test`."""
    train = path / "train" if (path / "train").is_dir() else path
    test = next((path / name for name in ("test", "val") if train != path and (path / name).is_dir()), None)
    classes = _visible(train, Path.is_dir)
    skipped: list[str] = []

    def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
        found: list[tuple[np.ndarray, int]] = []
        for name in _visible(folder, Path.is_dir):
            if name not in classes:
                raise UserError(f"{folder / name} is a class without training images")
            for file in (folder / name / image for image in _visible(folder / name, Path.is_file)):
                try:
                    image = read_image(file, "RGB", (config.size, config.size) if config.size else None)
                except UserError as error:
                    if not config.skip_broken:
                        raise UserError(f"{error}; --skip-broken leaves such images out") from None
                    skipped.append(str(file))
                    continue
                if found and image.shape != found[0][0].shape:
                    sizes = ["×".join(map(str, array.shape[:0:-1])) for array in (image, found[0][0])]
                    raise UserError(f"{file} is {sizes[0]}, but the first image is {sizes[1]}; --size resizes all")
                found.append((image, classes.index(name)))
        if not found:
            raise UserError(f"{folder} has no folders with images, one for each class")
        return np.stack([image for image, _ in found]), np.array([label for _, label in found])

    pair = read(train)
    return *pair, test and read(test), tuple(classes), 255.0, tuple(skipped)


def _visible(folder: Path, is_kind: Callable[[Path], bool]) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if is_kind(file) and not file.name.startswith("."))


def read_image(file: Path, mode: str, size: tuple[int, int] | None) -> np.ndarray:
    """An image file as [C, H, W] uint8; mode: 'L' or 'RGB'; size: width and height. Raises UserError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            image = ImageOps.exif_transpose(image).convert(mode)
            pixels = np.asarray(image if size is None else image.resize(size))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = str(error).replace(f" {str(file)!r}", "")
        raise UserError(f"cannot read the image {file}: {getattr(error, 'strerror', None) or what}") from None
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def _npz(path: Path, config: Config) -> tuple[Any, ...]:
    """NumPy arrays `images` [N, H, W], [N, C, H, W] or [N, H, W, 3] and `labels` [N]; perhaps `test_…` of both."""
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, AttributeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged, or no npz file of numbers: {error}") from None
    if not {"images", "labels"} <= arrays.keys() or ("test_images" in arrays) != ("test_labels" in arrays):
        raise UserError(f"{path} must have images and labels, and both of test_ or none, but has {', '.join(arrays)}")
    pairs = []
    for images, labels in (
        (arrays[f"{p}images"], arrays[f"{p}labels"]) for p in ("", "test_") if f"{p}images" in arrays
    ):
        if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        if images.ndim == 3:
            images = images[:, None]
        if images.ndim != 4 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
            raise UserError(f"{path}: images must be [N, C, H, W], uint8 or floats; got {images.shape} {images.dtype}")
        if images.dtype.kind == "f" and not np.isfinite(images).all():
            raise UserError(f"{path}: images must be finite, but there is NaN or Inf among them")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UserError(f"{path}: labels must be [N] integers, but got {list(labels.shape)} {labels.dtype}")
        pairs.append((images, labels.astype(np.int64)))
    classes = tuple(map(str, range(int(pairs[0][1].max(initial=0)) + 1)))
    return *pairs[0], pairs[1] if len(pairs) > 1 else None, classes, 255.0 if pairs[0][0].dtype == np.uint8 else 1.0


_LOADERS: dict[str, Callable[[Path, Config], tuple[Any, ...]]] = {
    "digits": _digits, "cifar10": _cifar10, "mnist": _mnist, "folder": _folder, "npz": _npz,
}  # fmt: skip


# ---- what training sees ---------------------------------------------------------------------------------------------


def epoch_batches(
    data: Data, config: Config, epoch: int, first: int = 0, part: tuple[int, int] = (0, 1)
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The training set once, shuffled and augmented: images [B, C, H, W], labels [B], the size of the whole batch.

    first: the batch to begin with. part: (k, n) gives every n-th image of each batch, from the k-th on. What becomes of
    an image depends on seed, epoch and its place in the training set alone, on no batch, part or device.
    """
    device, count = data.labels.device, len(data.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed((config.seed << 20) + epoch)).to(device)
    chance = draws(config.seed, epoch, torch.arange(count, device=device))
    # An image is mirrored in every other epoch: of two epochs one sees it either way (airbench's alternating flip).
    mirrored = ((draws(config.seed, 0, torch.arange(count, device=device))[0] + epoch) & 1).bool()
    for batch in order.split(config.batch_size)[first:]:
        mine = batch[part[0] :: part[1]]
        images = _augment(data.images[mine], chance[:, mine], mirrored[mine], config)
        yield data.pixels(images, config.weight_dtype), data.labels[mine], len(batch)


def _augment(images: Tensor, chance: Tensor, mirrored: Tensor, config: Config) -> Tensor:
    """Images [B, C, H, W] moved, mirrored and cut by chance [4, B]."""
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
    """Four numbers 0 … 2³² − 1 for each index [N]: int64 [4, N], a hash of (seed, epoch, index) on any device."""
    streams = torch.arange(4, device=index.device)[:, None]
    return _mix(_mix(index ^ _mix(_mix(seed) ^ epoch)) ^ streams)


def _mix(x: Any) -> Any:
    """lowbias32 (Chris Wellons) on ints or int64 tensors; a product's low 32 bits survive its overflow."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
