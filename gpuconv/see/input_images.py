"""Images in every form as tensors for a model: files, NumPy arrays, Pillow's images, tensors, lists of these."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpuconv import image_files
from gpuconv.errors import UserError

Image = Any  # a tensor, an array, an image of Pillow, a path, or a list of these


def tensor_of(image: Image, channels: int | None) -> Tensor:
    """`image` as [N, C, H, W]; `channels` is what the model takes, None if that is not known.

    A tensor is [C, H, W] or [N, C, H, W]. A path (`str` or `Path`), an image of Pillow and an array, [H, W], [C, H, W],
    [H, W, C] or [N, …], are read as by `read_image`: integers, tensors of them too, become values from 0 to 1, and a
    picture becomes grey or coloured as the model takes it. A list holds images of one size. Raises UserError for
    anything else.
    """
    if isinstance(image, Tensor):
        if image.dim() not in (3, 4):
            raise UserError(f"image must be [C, H, W] or [N, C, H, W], but got {list(image.shape)}")
        image = image if image.dim() == 4 else image.unsqueeze(0)
        whole = not image.is_floating_point() and not image.is_complex() and image.dtype != torch.bool
        return image / torch.iinfo(image.dtype).max if whole else image
    if isinstance(image, list | tuple):
        batches = [tensor_of(one, channels) for one in image]
        shapes = sorted({tuple(batch.shape[1:]) for batch in batches})
        if len(shapes) != 1:
            shown = " and ".join(str(list(shape)) for shape in shapes) or "none at all"
            raise UserError(f"images must be of one size, but got {shown}")
        return torch.cat(batches)
    wanted = 3 if channels is None else channels
    if isinstance(image, str | Path):
        return read_image(Path(image), wanted).unsqueeze(0)
    if isinstance(image, np.ndarray):
        each = image if image.ndim == 4 else [image]
        return tensor_of([_values(one, "image", wanted).unsqueeze(0) for one in each], channels)
    if hasattr(image, "mode") and hasattr(image, "getbands"):  # Pillow's
        try:
            return _values(image_files.pixels_of(image, wanted)[0], "image", wanted).unsqueeze(0)
        except ValueError as error:
            raise UserError(f"image is none: {error}") from None
    raise UserError(f"image must be a tensor, an array, an image of Pillow or a path, but got {type(image).__name__}")


def read_image(path: Path, channels: int) -> Tensor:
    """An image file, or a NumPy file [H, W], [C, H, W] or [H, W, C], as [C, H, W] with values 0 … 1.

    A picture is read as in training, see `gpuconv.image_files`: grey for one channel and coloured for three. Integers
    of a NumPy file are divided by the greatest value of their type; floats are taken as they are. Raises UserError for
    a file that is no image or has other channels.
    """
    if not path.is_file():
        raise UserError(f"cannot read {path}: there is no such file")
    try:
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else image_files.read(path, channels).pixels
    except Exception as error:  # Pillow and NumPy raise whatever a damaged file makes them stumble over
        raise UserError(f"{path} is no image: {str(error) or type(error).__name__}") from error
    return _values(array, str(path), channels)


def _values(array: Any, name: str, channels: int) -> Tensor:
    """An array as [C, H, W] with values 0 … 1."""
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] != channels and array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] != channels or 0 in array.shape or array.dtype.kind not in "buif":
        raise UserError(
            f"{name} is {list(array.shape)} of {array.dtype}, but the model takes images of {channels} channel"
            f"{'s' * (channels != 1)}; a .npy file of [{channels}, H, W] is an image of any number of channels"
        )
    white = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1
    values = np.ascontiguousarray(array / white, dtype=np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{name} is no image: it holds values that are not finite")
    return torch.from_numpy(values)


def resized(image: Tensor, size: tuple[int, int] | int) -> Tensor:
    """[C, H, W] resized: to (H, W) after its middle is cut out, or so that its longer side is `size`."""
    height, width = image.shape[1:]
    if isinstance(size, int):
        scale = size / max(height, width)
        wanted = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        wanted = size
        scale = min(height / wanted[0], width / wanted[1])
        keep = max(1, round(wanted[0] * scale)), max(1, round(wanted[1] * scale))
        top, left = (height - keep[0]) // 2, (width - keep[1]) // 2
        image = image[:, top : top + keep[0], left : left + keep[1]]
    if tuple(image.shape[1:]) == wanted:
        return image
    return F.interpolate(image[None], wanted, mode="bilinear", antialias=True)[0].clamp(image.min(), image.max())
