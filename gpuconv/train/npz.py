"""Data sets in NumPy's npz files: which arrays are images and labels, which axis is which, what numbers mean."""

from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.errors import UserError
from gpuconv.text import first_few
from gpuconv.train.raw_data import Part, RawData

# The names of images and labels: gpuconv's, MedMNIST's, Keras's and others.
_NAMES = {
    "train": ("images labels", "train_images train_labels", "x_train y_train", "X_train y_train", "x y", "X y"),
    "val": ("val_images val_labels", "valid_images valid_labels", "x_val y_val", "X_val y_val"),
    "test": ("test_images test_labels", "x_test y_test", "X_test y_test"),
}
_WHITES = (255, 65535)
_USUAL = (1, 3)  # channels
_MANY = 1000  # classes


def load(path: Path) -> RawData:
    """The data of a file: images [N, H, W], [N, C, H, W] or [N, H, W, C] and labels [N]; perhaps `test_…` and `val_…`.

    Raises UserError for a file that is damaged or has arrays that cannot be interpreted.
    """
    notes: list[str] = []
    arrays = _read(path, notes)
    images = {part: _channels_first(path, pair[0], notes) for part, pair in arrays.items()}
    images, top = _scaled(path, images, notes)
    labels, classes = _numbered(path, {part: pair[1] for part, pair in arrays.items()}, notes)
    notes = list(dict.fromkeys(notes))  # parts are alike
    return RawData({part: (images[part], labels[part]) for part in images}, classes, top, notes=tuple(notes))


def _read(path: Path, notes: list[str]) -> dict[str, Part]:
    """The arrays of each part."""
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            here, found = list(file.files), dict[str, tuple[str, str]]()
            for part, names in _NAMES.items():
                pairs = [(images, labels) for images, labels in map(str.split, names) if {images, labels} & {*here}]
                if pairs:
                    found[part] = next((pair for pair in pairs if {*pair} <= {*here}), pairs[0])
            wanted = [name for pair in found.values() for name in pair]
            arrays = {name: file[name] for name in wanted if name in here}
    except OSError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever a damaged file makes them stumble over
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is damaged, or no npz file of numbers: {what}") from None
    if "train" not in found or len(arrays) < len(wanted) or not all(isinstance(a, np.ndarray) for a in arrays.values()):
        has = first_few(here) or "nothing"
        raise UserError(f"{path} must have images and labels, and both of test_ and of val_ or none, but has {has}")
    unused = [name for name in here if name not in arrays]
    if unused:
        notes.append(f"not used of {path}: {first_few(unused)}")
    return {part: (arrays[images], arrays[labels]) for part, (images, labels) in found.items()}


# ---- images ---------------------------------------------------------------------------------------------------------


def _channels_first(path: Path, images: Any, notes: list[str]) -> Any:
    if images.ndim not in (3, 4) or 0 in images.shape[1:] or images.dtype.kind not in "buif":
        flat = "; those of one row each are to be given their shape" if images.ndim == 2 else ""
        got = f"{images.shape} {images.dtype}"
        raise UserError(f"{path}: images must be [N, C, H, W], [N, H, W, C] or [N, H, W], numbers; got {got}{flat}")
    if images.ndim == 3:
        return images[:, None]
    first, middle, last = images.shape[1:]
    if (first in _USUAL) != (last in _USUAL):
        return images if first in _USUAL else images.transpose(0, 3, 1, 2)
    is_last = first not in _USUAL and last < min(first, middle)
    notes.append(
        f"images of shape {images.shape[1:]} are taken for {'[H, W, C]' if is_last else '[C, H, W]'}, which their "
        "numbers do not tell"
    )
    return images.transpose(0, 3, 1, 2) if is_last else images


def _scaled(path: Path, images: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], float]:
    """Images as uint8 or floats, and the value that stands for 1 in them."""
    if all(array.dtype == np.uint8 for array in images.values()):
        return images, 255.0
    found: dict[str, Any] = {}
    tops: dict[str, float] = {}
    for kinds, scale in (("bui", _integers), ("f", _floats)):
        ours = {part: array for part, array in images.items() if array.dtype.kind in kinds}
        if ours:
            arrays, top = scale(path, ours, notes)
            found |= arrays
            tops |= dict.fromkeys(arrays, top)
    if len({*tops.values()}) > 1:  # one part bytes, say, and another one floats
        found = {part: (array / tops[part]).astype(np.float32) for part, array in found.items()}
        return found, 1.0
    if len({array.dtype == np.uint8 for array in found.values()}) > 1:
        found = {part: array.astype(np.float32) for part, array in found.items()}
    return found, tops["train"]


def _integers(path: Path, images: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], float]:
    types = ", ".join(sorted({str(array.dtype) for array in images.values()}))
    low, high = (int(value) for value in _range(images))
    if low < 0 or high > _WHITES[-1]:
        what = f"images of integers must be from 0 to 255 or 65,535, but {types} go from {low} to {high:,}"
        raise UserError(f"{path}: {what}")
    if all(array.dtype == bool for array in images.values()):
        return {part: array.astype(np.uint8) for part, array in images.items()}, 1.0
    top = next(white for white in _WHITES if high <= white)
    if {array.dtype for array in images.values()} != {np.dtype(np.uint8)}:
        notes.append(f"images of {types} from {low} to {high:,}: {top:,} stands for white")
    return {part: array.astype(np.uint8 if top == 255 else np.float32) for part, array in images.items()}, float(top)


def _range(images: dict[str, Any]) -> tuple[Any, Any]:
    """The least and the greatest of all values and 0."""
    return min(a.min(initial=0) for a in images.values()), max(a.max(initial=0) for a in images.values())


def _floats(path: Path, images: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], float]:
    small = (2, 4)  # bytes; what is longer becomes float64
    images = {p: a.astype(np.float32 if a.itemsize in small else np.float64, copy=False) for p, a in images.items()}
    if not all(np.isfinite(array).all() for array in images.values()):
        raise UserError(f"{path}: images must be finite, but there is NaN or Inf among them")
    low, high = (float(value) for value in _range(images))
    if low >= 0 and 2 <= high <= _WHITES[-1]:
        top = next(white for white in _WHITES if high <= white)
        notes.append(f"images of floats from {low:.6g} to {high:.6g}: {top:,} stands for white")
        return images, float(top)
    if low < 0 or high > 1.001:
        notes.append(f"images of floats from {low:.6g} to {high:.6g} are taken as they are; pictures have 0 to 1")
    return images, 1.0


# ---- labels ---------------------------------------------------------------------------------------------------------


def _numbered(path: Path, labels: dict[str, Any], notes: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Labels as class numbers, and the classes' names: the labels' values, or 0, 1, 2, … where they are one-hot."""
    widths = {part: array.shape[1] for part, array in labels.items() if array.ndim == 2 and array.shape[1] > 1}
    if widths and len(widths) == len(labels) and len({*widths.values()}) == 1 and all(map(_one_hot, labels.values())):
        notes.append("labels are one-hot")
        return {p: array.argmax(1) for p, array in labels.items()}, tuple(map(str, range(widths["train"])))
    values = {part: _one_each(path, array, notes) for part, array in labels.items()}
    if len({array.dtype.kind in "US" for array in values.values()}) > 1:
        raise UserError(f"{path}: labels must be all text or all numbers")
    names = np.unique(np.concatenate([*values.values()]))
    if names.dtype.kind not in "US" and len(names) and names[0] < 0 and names.tolist() != [-1, 1]:
        wrong = next((k, array[k]) for array in values.values() for k in np.flatnonzero(array < 0))
        raise UserError(f"{path}: label {wrong[1]} of image {wrong[0]} is out of range: classes are numbered from 0 on")
    count = len(values["train"])
    if len(names) >= _MANY and len(np.unique(values["train"])) > count / 2:
        raise UserError(
            f"{path}: labels have {len(names):,} values for {count:,} images: those are no classes to learn"
        )
    classes = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist())
    if classes != tuple(map(str, range(len(classes)))):
        notes.append(
            f"labels are {len(classes)} different values, {first_few(classes)}: they stand for the classes "
            f"0 to {len(classes) - 1}"
        )
    numbered = {part: np.searchsorted(names, array) for part, array in values.items()}
    missing = np.setdiff1d(np.arange(len(classes)), numbered["train"]).tolist()
    if missing:
        notes.append(f"no training images of {first_few([classes[k] for k in missing])}")
    return numbered, classes


def _one_hot(labels: Any) -> bool:
    return labels.dtype.kind in "buif" and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def _one_each(path: Path, labels: Any, notes: list[str]) -> Any:
    """Labels [N] of integers or text."""
    given = labels
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    kind = labels.dtype.kind if labels.ndim == 1 else ""
    if kind in ("U", "S"):
        return labels
    if kind == "b":
        return labels.astype(np.str_)
    if kind in ("i", "u"):  # numbers that int64 has not become Python's
        return labels.astype(object if labels.dtype == np.uint64 and labels.max(initial=0) >> 63 else np.int64)
    whole = kind == "f" and (labels == labels.round()).all()  # NaN equals nothing
    if whole and abs(labels).max(initial=0) < 2**53 and len(np.unique(labels)) > 1:
        notes.append(f"labels are whole numbers of type {labels.dtype}")
        return labels.astype(np.int64)
    raise UserError(f"{path}: labels must be [N] integers, but got {list(given.shape)} {given.dtype}")
