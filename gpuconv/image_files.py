"""Reading picture files as arrays, for the trainer and `gpuconv see` alike, and finding them in folders.

Eight bits per pixel stay eight bits. Others become float32 from 0 to 1: integers (16 bits) are divided by 65,535,
floats by the least of 1, 255 and 65,535 that no pixel exceeds. Transparent pixels become white, a camera's orientation
is applied, and of several frames (animations, pages of TIFF) the first is taken. A remark says where floats were
divided or frames left out.
"""

import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpuconv.text import first_few

Pixels = Any  # a NumPy array [C, H, W]: uint8, or float32 from 0 to 1

_DEEP = 65535
_WHITES = (1, 255, _DEEP)
_ABOVE_1 = 1e-3  # how far rounding may exceed white
_TURNED = (5, 6, 7, 8)  # EXIF: the picture lies on its side
_ORIENTATION = 0x0112


class Picture(NamedTuple):
    """A picture: its pixels, the value of white if they are floats and not all black, and a remark for the user."""

    pixels: Pixels
    white: int | None
    remark: str


def read(file: Path, channels: int) -> Picture:
    """A picture file as grey (channels = 1) or coloured (3) pixels; for other values with the channels of the file.

    Raises ValueError with one line that says what is wrong, without the file's name.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("ignore")  # from Pillow, on large or odd pictures that it can read
            frames = getattr(opened, "is_animated", False)
            pixels, top = pixels_of(opened, channels)
            white = top if opened.mode == "F" and pixels.any() else None
    except Exception as error:  # Pillow raises anything for a damaged file
        raise ValueError(_reason(error, file)) from None
    remarks = ["the first of several frames is taken"] * frames
    if white not in (None, 1):
        remarks.append(f"its floats are divided by {white:,}")
    return Picture(pixels, white, "; ".join(remarks))


def size_of(file: Path) -> tuple[int, int]:
    """The (H, W) that `read` gives for a picture file, from its first bytes. Raises ValueError as `read` does."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            # For a PNG without EXIF up to here, Pillow would decode all pixels to look behind them.
            known = image.format != "PNG" or "exif" in image.info
            turned = known and image.getexif().get(_ORIENTATION) in _TURNED
    except Exception as error:
        raise ValueError(_reason(error, file)) from None
    return (width, height) if turned else (height, width)


def fit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Pixels [C, H, W] resized to (H, W): scaled to cover that size, then cropped to the middle."""
    from PIL import Image, ImageOps

    if pixels.shape[1:] == size:
        return pixels
    planes = (ImageOps.fit(Image.fromarray(plane), size[::-1], Image.Resampling.BICUBIC) for plane in pixels)
    return np.stack([np.asarray(plane) for plane in planes]).clip(pixels.min(), pixels.max())


def pixels_of(image: Any, channels: int) -> tuple[Pixels, int]:
    """The pixels of an image of Pillow, as `read` gives those of a file, and the value of white. Raises ValueError."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        array, white = _deep(image)
        return np.stack([array] * channels) if channels == 3 else array[None], white
    if channels in (1, 3):
        if image.has_transparency_data:
            white_sheet = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white_sheet, image.convert("RGBA"))
        image = image.convert("L" if channels == 1 else "RGB")
    array = np.asarray(image)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1), 255


def _deep(image: Any) -> tuple[Any, int]:
    """An image of integers or floats [H, W] as float32 from 0 to 1, and the value of white."""
    array = np.asarray(image)
    if not np.isfinite(array).all():
        raise ValueError("it holds values that are not finite")
    low, high = array.min(), array.max()
    if image.mode == "F":
        white = next((w for w in _WHITES if high <= w + _ABOVE_1), None)
        if low < 0 or white is None or (white == 255 and high < 2):
            raise ValueError(f"its floats go from {low:.6g} to {high:.6g}, not from 0 to 1, to 255 or to 65,535")
    else:
        white = _DEEP
        if low < 0 or high > white:
            raise ValueError(f"its integers go from {low} to {high}, not from 0 to 65,535")
    values = np.minimum(array / np.float64(white), 1).astype(np.float32)
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):
        values[array == see_through] = 1
    return values, white


def _reason(error: Exception, file: Path) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).replace(f" {str(file)!r}", "").split())
    return text or type(error).__name__


# ---- folders --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class LeftOut:
    """The paths in a folder that are not used, by kind; {s} in the name of a kind stands for a plural s."""

    found: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, what: str, path: Path) -> None:
        self.found.setdefault(what, []).append(str(path))

    def lines(self) -> list[str]:
        """A line for each kind, with the number of paths and the first few of them."""
        return [
            f"left out {len(paths):,} {what.format(s='s' * (len(paths) > 1))}: {first_few(paths)}"
            for what, paths in self.found.items()
        ]


HIDDEN, BROKEN, _NO_IMAGES = "hidden file{s} or folder{s}", "broken images", "file{s} without an image"
BACK = "link{s} back to a folder further up"
_NOWHERE, _SPECIAL = "link{s} to nothing", "special file{s}"


def files_in(folder: Path, left_out: LeftOut, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The picture files of a folder and of all folders in it, ordered by name.

    A picture has a suffix that Pillow knows, or else content that Pillow can read; the rest is added to `left_out`.
    Links are followed. Raises OSError for a folder that cannot be read.
    """
    above |= folder_and_parents(folder)
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            left_out.add(HIDDEN, path)
        elif path.is_dir():
            if path.resolve() in above:
                left_out.add(BACK, path)
            else:
                yield from files_in(path, left_out, above)
        elif path.is_file():
            if is_picture(path):
                yield path
            else:
                left_out.add(_NO_IMAGES, path)
        else:
            left_out.add(_NOWHERE if path.is_symlink() and not os.path.exists(path) else _SPECIAL, path)


def folder_and_parents(folder: Path) -> frozenset[Path]:
    """The folder and those above it, with links resolved."""
    real = folder.resolve()
    return frozenset([real, *real.parents])


def is_picture(file: Path) -> bool:
    """Whether a file is a picture, by its suffix or else by its first bytes."""
    from PIL import Image

    if Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN:
        return True
    try:
        size_of(file)
    except ValueError:
        return False
    return True
