"""Picture files as arrays, in the one way in which the trainer and `gpuconv see` read them, and the files of a folder.

Eight bits a pixel stay eight bits. More become float32 from 0 to 1: integers (16 bits) by 65,535; floats by the first
of 1, 255 and 65,535 that is no less than any pixel, which is told. What is transparent is laid on white, a camera's
orientation is obeyed, and of several frames (animations, TIFF's pages) the first is taken, which is told too.
"""

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Pixels = Any  # a NumPy array [C, H, W]: uint8, or float32 from 0 to 1

_DEEP = 65535
_WHITES = (1, 255, _DEEP)
_ABOVE_1 = 1e-3  # what rounding may add to white
_TURNED = (5, 6, 7, 8)  # EXIF: the picture lies on its side
_ORIENTATION = 0x0112
_NAMES = 8


class Picture(NamedTuple):
    """What was read, what stands for white if it is of floats and not all black, and what ought to be said of it."""

    pixels: Pixels
    white: int | None
    remark: str


def read(file: Path, channels: int) -> Picture:
    """A picture file in grey (one channel) or in colours (three), or else with its own channels, however many.

    Raises ValueError, which says in a line what is wrong, without the file's name.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(file) as opened:
            warnings.simplefilter("ignore")  # of Pillow: a picture that is large, or odd, and can be read
            frames = getattr(opened, "is_animated", False)
            pixels, top = pixels_of(opened, channels)
            white = top if opened.mode == "F" and pixels.any() else None
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
        raise ValueError(_reason(error, file)) from None
    remarks = ["the first of several frames is taken"] * frames
    if white not in (None, 1):
        remarks.append(f"its floats are divided by {white:,}")
    return Picture(pixels, white, "; ".join(remarks))


def size_of(file: Path) -> tuple[int, int]:
    """(H, W) of a picture file as `read` gives it, told from its first bytes. Raises ValueError as `read` does."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("ignore")
            width, height = image.size
            # Of a PNG without it up to here Pillow would decode all pixels to look behind them.
            known = image.format != "PNG" or "exif" in image.info
            turned = known and image.getexif().get(_ORIENTATION) in _TURNED
    except Exception as error:
        raise ValueError(_reason(error, file)) from None
    return (width, height) if turned else (height, width)


def fit(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """[C, H, W] made (H, W): scaled until it covers that, then the middle cut out."""
    from PIL import Image, ImageOps

    if pixels.shape[1:] == size:
        return pixels
    planes = (ImageOps.fit(Image.fromarray(plane), size[::-1], Image.Resampling.BICUBIC) for plane in pixels)
    return np.stack([np.asarray(plane) for plane in planes]).clip(pixels.min(), pixels.max())


def pixels_of(image: Any, channels: int) -> tuple[Pixels, int]:
    """An image of Pillow as `read` gives a file, and what stands for white in it. Raises ValueError likewise."""
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
    """An image of integers or floats [H, W] as float32 from 0 to 1, and what stands for white in it."""
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
    """What lies in a folder and is not used, by what it is: words with {s} where several have an s."""

    found: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add(self, what: str, path: Path) -> None:
        self.found.setdefault(what, []).append(str(path))

    def lines(self) -> list[str]:
        """A line for each kind, with how many there are and their names, the first ones of many."""
        return [
            f"left out {len(paths):,} {what.format(s='s' * (len(paths) > 1))}: {some(paths)}"
            for what, paths in self.found.items()
        ]


def some(names: Sequence[str]) -> str:
    """Names with commas; of many the first ones, and how many more there are."""
    more = len(names) - _NAMES
    return ", ".join(names[:_NAMES]) + (f" … and {more:,} more" if more > 0 else "")


HIDDEN, BROKEN, _NO_IMAGES = "hidden file{s} or folder{s}", "broken images", "file{s} without an image"
BACK = "link{s} back to a folder further up"
_NOWHERE, _SPECIAL = "link{s} to nothing", "special file{s}"


def files_in(folder: Path, left_out: LeftOut, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The picture files of a folder and of all folders in it, in the order of their names.

    A picture is told by an ending that Pillow knows, or else by what is in the file; the rest goes to `left_out`. Links
    are followed. Raises OSError for a folder that cannot be read.
    """
    above |= way_to(folder)
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


def way_to(folder: Path) -> frozenset[Path]:
    """The folder and those above it, as they are without links."""
    real = folder.resolve()
    return frozenset([real, *real.parents])


def is_picture(file: Path) -> bool:
    """Whether its ending says that it is a picture, or, where that says nothing, its first bytes."""
    from PIL import Image

    if Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN:
        return True
    try:
        size_of(file)
    except ValueError:
        return False
    return True
