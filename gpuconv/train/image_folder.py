"""Pictures in a folder for each class, of any kind that Pillow reads; or such folders in `train`, `val` and `test`."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gpuconv import image_files
from gpuconv.errors import UserError
from gpuconv.image_files import BACK, BROKEN, HIDDEN, LeftOut
from gpuconv.text import first_few
from gpuconv.train.config import Config
from gpuconv.train.raw_data import Part, RawData

_PARTS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_LARGE = 224  # the longest side to which pictures of several sizes are resized by default
_EMPTY, _LOOSE = "folder{s} without images", "file{s} beside the classes' folders"
_OTHER = "file{s} or folder{s} beside the parts"

Files = dict[str, list[Path]]  # by class


def load(path: Path, config: Config, size: tuple[int, int] | None) -> RawData:
    """The pictures below `path` in colours. size: their (H, W); by default `config.size`, or what suits them.

    Raises UserError for a folder that cannot be interpreted, and for a picture that cannot be read, unless
    `config.skip_broken`.
    """
    left_out, notes = LeftOut(), list[str]()
    folders = _folders(path, left_out)
    if len(folders) > 1:
        notes.append("parts: " + ", ".join(f"{part} in {folder}" for part, folder in folders.items()))
    found = {part: _classes(folder, left_out, notes) for part, folder in folders.items()}
    classes = tuple(found["train"])
    if not classes:
        what = f"{folders['train']} has no folders with images, one for each class"
        raise UserError("; ".join([what, *left_out.lines()]))
    for part, files in found.items():
        for name in sorted(files.keys() - found["train"].keys()):
            raise UserError(f"{folders[part] / name} is a class without training images")
        missing = [name for name in classes if name not in files]
        if missing:
            notes.append(f"no images of {first_few(missing)} in {folders[part]}")
    wanted = size or ((config.size, config.size) if config.size else _one_size(found, notes))
    read = _Reader(wanted, config.skip_broken, left_out)
    parts = {part: read.part(folders[part], files, classes) for part, files in found.items()}
    if any(images.dtype != np.uint8 for images, _ in parts.values()):
        parts = {part: (_as_floats(images), labels) for part, (images, labels) in parts.items()}
    top = 255.0 if parts["train"][0].dtype == np.uint8 else 1.0
    notes += [f"{remark}, of {len(files)} images: {first_few(files)}" for remark, files in read.remarks.items()]
    skipped = tuple(left_out.found.get(BROKEN, ()))
    return RawData(parts, classes, top, skipped, (*left_out.lines(), *notes))


def _folders(path: Path, left_out: LeftOut) -> dict[str, Path]:
    """The folder of each part; where there are no parts, `path` itself is that of 'train'.

    Raises UserError where the folders are ambiguous.
    """
    inside = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    named: dict[str, list[Path]] = {}
    for part, names in _PARTS.items():
        chosen = [entry for entry in inside if entry.name.lower() in names]
        if chosen:
            named[part] = chosen
    others = [entry for entry in inside if not any(entry in chosen for chosen in named.values())]
    # `train` may be a class, among others: then the images lie in it, not in folders for classes.
    parted = "train" in named and _has_folders(named["train"][0]) and (len(named) > 1 or not others)
    if parted:
        for part, chosen in named.items():
            if len(chosen) > 1:
                raise UserError(f"{path} has more than one folder for {part}: {first_few([c.name for c in chosen])}")
        for entry in sorted(set(path.iterdir()) - {chosen[0] for chosen in named.values()}):
            left_out.add(HIDDEN if entry.name.startswith(".") else _OTHER, entry)
        return {part: chosen[0] for part, chosen in named.items()}
    if inside and not others:
        raise UserError(f"{inside[0]} is to hold a folder for each class, with images in it, but holds none")
    for entry in (entry for chosen in named.values() for entry in chosen):
        clash = {inner.name for inner in entry.iterdir() if inner.is_dir()} & {other.name for other in inside}
        if clash:
            raise UserError(
                f"{entry} has folders called like the classes beside it ({first_few(sorted(clash))}): is it a part or "
                f"a class? Training images go into {path / 'train'}, a folder for each class"
            )
        if entry.name.lower() in _PARTS["train"] and _has_folders(entry):
            raise UserError(
                f"{entry} has folders, and beside it lie {first_few([other.name for other in others])}: is it the "
                f"training part or a class? Put all classes into {path / 'train'} to make it clear"
            )
    return {"train": path}


def _has_folders(folder: Path) -> bool:
    """Whether a folder holds folders and no pictures."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return any(entry.is_dir() for entry in entries) and not any(
        e.is_file() and image_files.is_picture(e) for e in entries
    )


def _classes(folder: Path, left_out: LeftOut, notes: list[str]) -> Files:
    """The picture files of each class, those in inner folders included; a class without pictures is left out."""
    found: Files = {}
    above = image_files.folder_and_parents(folder)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            left_out.add(HIDDEN, entry)
        elif not entry.is_dir():
            left_out.add(_LOOSE, entry)
        elif entry.resolve() in above:
            left_out.add(BACK, entry)
        elif files := list(image_files.files_in(entry, left_out, above)):
            found[entry.name] = files
        else:
            left_out.add(_EMPTY, entry)
    paths = (file.relative_to(folder).parts for files in found.values() for file in files)
    inner = Counter(parts[1] for parts in paths if len(parts) > 2)
    if len(found) == 1 and len(inner) > 1 and inner.total() == sum(map(len, found.values())):
        (name,) = found
        raise UserError(
            f"{folder} has a single class, {name}, with all its images in folders ({first_few(sorted(inner))}): if "
            f"those are the classes, say folder:{folder / name}"
        )
    if inner:
        notes.append(f"{inner.total()} images lie deeper in their class's folder: {first_few(sorted(inner))}")
    return found


def _one_size(found: dict[str, Files], notes: list[str]) -> tuple[int, int] | None:
    """The (H, W) of all training images, or a square one where they differ. None if no image can be read."""
    sizes: dict[str, Counter[tuple[int, int]]] = {}
    for part, files in found.items():
        sizes[part] = Counter()
        for file in (file for several in files.values() for file in several):
            with contextlib.suppress(ValueError):  # the error is reported when the whole file is read
                sizes[part][image_files.size_of(file)] += 1
    every, train = sum(sizes.values(), Counter[tuple[int, int]]()), sizes["train"]
    if len(every) < 2:
        return next(iter(every), None)
    if len(train) == 1:
        (wanted,) = train
    else:
        wanted = (min(_LARGE, round(median(min(size) for size in train.elements()))),) * 2
    small, large = ("×".join(map(str, size[::-1])) for size in (min(every), max(every)))
    notes.append(
        f"images of {len(every)} sizes, {small} to {large}: each is scaled to cover {wanted[1]}×{wanted[0]} pixels, "
        "and its middle is taken; --size takes squares of another side"
    )
    return wanted


class _Reader:
    """Reads the files of a part, and collects remarks on them."""

    def __init__(self, size: tuple[int, int] | None, skip_broken: bool, left_out: LeftOut) -> None:
        self.size, self.skip_broken, self.left_out = size, skip_broken, left_out
        self.remarks: dict[str, list[str]] = {}
        self.whites: dict[int, Path] = {}  # of floats, each with the first file that has it

    def part(self, folder: Path, files: Files, classes: Sequence[str]) -> Part:
        images, labels = [], []
        for label, file in ((classes.index(name), file) for name, several in files.items() for file in several):
            try:
                picture = image_files.read(file, 3)
            except ValueError as error:
                if not self.skip_broken:
                    raise UserError(
                        f"cannot read the image {file}: {error}; --skip-broken leaves such images out"
                    ) from None
                self.left_out.add(BROKEN, file)
                continue
            if picture.white:
                self.whites.setdefault(picture.white, file)
                if len(self.whites) > 1:
                    first, then = sorted((white, name) for white, name in self.whites.items())
                    raise UserError(
                        f"floats of pictures go up to {first[0]} in {first[1]}, but up to {then[0]:,} in {then[1]}: "
                        "their scale has to be one"
                    )
            if picture.remark:
                self.remarks.setdefault(picture.remark, []).append(str(file))
            images.append(picture.pixels if self.size is None else image_files.fit(picture.pixels, self.size))
            labels.append(label)
        if not images:
            raise UserError("; ".join([f"{folder} has no images that can be read", *self.left_out.lines()]))
        if any(image.dtype != np.uint8 for image in images):
            images = [_as_floats(image) for image in images]
        return np.stack(images), np.array(labels)


def _as_floats(images: Any) -> Any:
    return images if images.dtype != np.uint8 else (images / 255).astype(np.float32)
